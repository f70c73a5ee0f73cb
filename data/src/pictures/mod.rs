//! Pictures: decoding and cropping them.

pub(crate) mod crop;
pub(crate) mod decode;
mod halve;
mod jpeg;
mod size_limit;

pub use crop::CropError;
pub use decode::{DecodeError, load_picture};
pub use jpeg::JpegError;
pub use size_limit::TooLarge;
