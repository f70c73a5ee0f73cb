//! Which device a rank computes on, and what carries its collective calls there.

use arinar_model::device::{DeviceChoice, DeviceError};
use tch::Device;

use super::{Collective, Launch, MpiCollective, NcclCollective, Single, agree, nccl::HOST_STAND_IN, require_equal};
use crate::exit::Stop;

/// Connects this rank with the others of its job, if it has any: over NCCL where they compute on GPUs, else over MPI.
/// `device` is what this rank has found.
///
/// # Errors
/// Some rank has no device, or another kind than rank 0; MPI or NCCL does not start. All ranks end together.
pub fn start(
    launch: Option<Launch>,
    device: Result<Device, DeviceError>,
) -> Result<(Box<dyn Collective>, Device), Stop> {
    let device = device.map_err(Stop::configuration);
    if launch.is_none() {
        return Ok((Box::new(Single), device?));
    }
    let mpi = MpiCollective::start()?;
    let device = agree(&mpi, device)?;
    let on_gpu = device != Device::Cpu;
    require_equal(&mpi, &[("device", if on_gpu { DeviceChoice::Cuda } else { DeviceChoice::Cpu }.to_string())])?;
    if on_gpu || std::env::var_os(HOST_STAND_IN).is_some() {
        return Ok((Box::new(NcclCollective::start(mpi, device)?), device));
    }
    Ok((Box::new(mpi), device))
}
