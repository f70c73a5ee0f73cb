//! The CUDA calls that tch lacks: streams ordered against libtorch's by events, copies through pinned host memory, and the
//! name, address and memory of a GPU.
//!
//! libtorch computes on the legacy default stream of its device (this program never selects another one), so that stream
//! stands for all work that libtorch has been given. The contexts used here are the primary contexts of the devices, which
//! libtorch uses, too.

mod error;
mod gpu;
mod host_copier;
mod stream;
mod version;

pub use error::CudaError;
pub use gpu::{Gpu, bus_address, description};
pub use host_copier::HostCopier;
pub use stream::SideStream;
pub(crate) use stream::{pause, wait};
pub use version::{driver_version, runtime_version};

/// Environment variable that lets the ranks pass host memory to CUDA and NCCL. Only for tests, whose stand-ins for both
/// libraries work on host memory; the real libraries would access invalid addresses.
pub const HOST_STAND_IN: &str = "ARINAR_NCCL_STAND_IN";
