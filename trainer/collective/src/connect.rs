//! Which device a rank computes on, and what carries its collective calls there.

use arinar_model::device::DeviceChoice;
use tch::Device;

use super::{Collective, Launch, MpiCollective, NcclCollective, Single, agree, require_equal};
use crate::{cuda::HOST_STAND_IN, exit::Stop};

/// Connects this rank with the others of its job over MPI, if it has any.
///
/// # Errors
/// MPI does not start.
pub fn start(launch: Option<Launch>) -> Result<Connected, Stop> {
    Ok(Connected { mpi: launch.map(|_| MpiCollective::start()).transpose()? })
}

/// Ranks that have found each other, whatever they are going to compute on.
pub struct Connected {
    /// `None` for a process by itself.
    mpi: Option<MpiCollective>,
}

impl Connected {
    /// What they do together in the memory of their machines.
    pub fn collective(&self) -> &dyn Collective {
        match &self.mpi {
            Some(mpi) => mpi,
            None => &Single,
        }
    }

    /// Goes on where the ranks compute: over NCCL on GPUs, else over MPI. `device` is what this rank has found, or why
    /// it cannot take part.
    ///
    /// # Errors
    /// Some rank has no device, or another kind than rank 0; NCCL does not start. All ranks end together.
    pub fn with(self, device: Result<Device, Stop>) -> Result<(Box<dyn Collective>, Device), Stop> {
        let ranks = self.collective();
        let device = agree(ranks, device)?;
        let kind = if device == Device::Cpu { DeviceChoice::Cpu } else { DeviceChoice::Cuda };
        require_equal(ranks, &[("device", kind.to_string())])?;
        Ok((self.over(device)?, device))
    }

    /// The same for ranks which all are known to have such a device.
    ///
    /// # Errors
    /// NCCL does not start. All ranks end together.
    pub fn over(self, device: Device) -> Result<Box<dyn Collective>, Stop> {
        let stays = self.stays_on_hosts(device);
        match self.mpi {
            Some(mpi) if stays => Ok(Box::new(mpi)),
            // The tensors of a single rank go nowhere: it needs no NCCL, and MPI takes none of a GPU.
            Some(mpi) if mpi.world() == 1 && !over_stand_in() => Ok(Box::new(Single)),
            Some(mpi) => Ok(Box::new(NcclCollective::start(mpi, device)?)),
            None => Ok(Box::new(Single)),
        }
    }

    /// True if with such a device all that ranks exchange lies in the memory of their machines.
    pub fn stays_on_hosts(&self, device: Device) -> bool {
        device == Device::Cpu && (self.mpi.is_none() || !over_stand_in())
    }
}

/// Whether tests have NCCL carry what lies in the memory of machines.
fn over_stand_in() -> bool {
    std::env::var_os(HOST_STAND_IN).is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_by_itself_needs_neither_mpi_nor_nccl() {
        for device in [Device::Cpu, Device::Cuda(0)] {
            let ranks = start(None).unwrap();
            assert_eq!(ranks.stays_on_hosts(device), device == Device::Cpu);
            let (collective, found) = ranks.with(Ok(device)).unwrap();
            assert_eq!((collective.world(), found), (1, device));
        }
        let told = Err(Stop::configuration(arinar_model::device::DeviceError::NoGpu));
        let stop = start(None).unwrap().with(told).map(|(_, device)| device);
        assert!(matches!(stop, Err(Stop::Configuration(_))));
    }
}
