//! Connecting the ranks of a job, and choosing the backend of its collectives.

use tch::Device;

use crate::{
    agree::{JobError, agree, require_equal},
    collective::Collective,
    cuda::HOST_STAND_IN,
    device::DeviceChoice,
    error::CollectiveError,
    launch::LaunchEnvironment,
    mpi::MpiCollective,
    nccl::NcclCollective,
    single::Single,
};

/// Connects this rank with the other ranks of its job over MPI. Without a launch environment the process is a job of one
/// rank and MPI is not started.
///
/// # Errors
/// Returns [`CollectiveError::Start`] if MPI cannot be initialized.
pub fn connect(launch: Option<LaunchEnvironment>) -> Result<Connected, CollectiveError> {
    Ok(Connected { mpi: launch.map(|_| MpiCollective::start()).transpose()? })
}

/// Ranks that are connected, but have not chosen a device yet.
pub struct Connected {
    /// `None` for a job of one process without MPI.
    mpi: Option<MpiCollective>,
}

impl Connected {
    /// Returns the collective for tensors in host memory.
    pub fn collective(&self) -> &dyn Collective {
        match &self.mpi {
            Some(mpi) => mpi,
            None => &Single,
        }
    }

    /// Returns the collective for the device that all ranks use: NCCL on GPUs, otherwise MPI. `device` is the device of
    /// this rank, or the reason why it has none.
    ///
    /// # Errors
    /// Returns an error on all ranks if some rank has no device, if ranks differ in the kind of device, or if NCCL does
    /// not start.
    pub fn with<E: JobError>(self, device: Result<Device, E>) -> Result<(Box<dyn Collective>, Device), E> {
        let ranks = self.collective();
        let device = agree(ranks, device)?;
        let kind = if device == Device::Cpu { DeviceChoice::Cpu } else { DeviceChoice::Cuda };
        require_equal(ranks, &[("device", kind.to_string())])?;
        Ok((self.over(device)?, device))
    }

    /// Returns the collective for ranks that are known to use the same kind of device.
    ///
    /// # Errors
    /// Returns an error on all ranks if NCCL does not start.
    pub fn over(self, device: Device) -> Result<Box<dyn Collective>, CollectiveError> {
        let in_host_memory = self.uses_host_memory(device);
        match self.mpi {
            Some(mpi) if in_host_memory => Ok(Box::new(mpi)),
            // A single rank exchanges nothing, so it needs no NCCL; and MPI cannot take tensors of a GPU.
            Some(mpi) if mpi.world_size() == 1 && !uses_stand_in() => Ok(Box::new(Single)),
            Some(mpi) => Ok(Box::new(NcclCollective::start(mpi, device)?)),
            None => Ok(Box::new(Single)),
        }
    }

    /// Returns true if everything that ranks with this device exchange is in host memory.
    pub fn uses_host_memory(&self, device: Device) -> bool {
        device == Device::Cpu && (self.mpi.is_none() || !uses_stand_in())
    }
}

/// Returns true if a test lets a stand-in for NCCL exchange tensors in host memory.
fn uses_stand_in() -> bool {
    std::env::var_os(HOST_STAND_IN).is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_single_process_needs_neither_mpi_nor_nccl() {
        for device in [Device::Cpu, Device::Cuda(0)] {
            let ranks = connect(None).unwrap();
            assert_eq!(ranks.uses_host_memory(device), device == Device::Cpu);
            let (collective, found) = ranks.with(Ok::<_, CollectiveError>(device)).unwrap();
            assert_eq!((collective.world_size(), found), (1, device));
        }
        let unavailable = CollectiveError::Unavailable(Box::new(CollectiveError::NcclMissing));
        let result = connect(None).unwrap().with(Err(unavailable)).map(|(_, device)| device);
        assert!(matches!(result, Err(CollectiveError::Unavailable(_))));
    }
}
