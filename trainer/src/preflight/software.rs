//! Versions of what a run is built on, and the GPUs that it sees.

use arinar_model::device::{self, DeviceChoice, DeviceError};
use tch::Device;

use super::finding::Finding;
use crate::{
    collective::{self, Collective, nccl},
    cuda,
};

/// What is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Software {
    mpi: String,
    choice: DeviceChoice,
    gpus: Result<usize, DeviceError>,
    runtime: Option<String>,
    driver: Option<String>,
    nccl: Result<String, String>,
}

/// The GPUs that a run with this `train.device` would see, and the libraries for them.
pub fn look(choice: DeviceChoice) -> Vec<Finding> {
    let gpus = device::gpus();
    let nccl = nccl::version().map_err(|error| error.to_string());
    let (runtime, driver) = (cuda::runtime_version(), cuda::driver_version());
    Software { mpi: collective::library_version(), choice, gpus, runtime, driver, nccl }.findings()
}

/// GPUs that libtorch sees.
pub fn gpus() -> usize {
    device::gpus().unwrap_or(0)
}

/// Tries what ranks do together; all of them call it.
pub fn collectives(collective: &dyn Collective, device: Device) -> Finding {
    match collective::conformance(collective, device) {
        Ok(()) => Finding::ok("collectives", format!("{}; what ranks exchange arrives", collective.describe())),
        Err(problem) => Finding::problem("collectives", format!("{}: {problem}", collective.describe())),
    }
}

impl Software {
    fn findings(&self) -> Vec<Finding> {
        let on_cpu = self.choice == DeviceChoice::Cpu;
        let gpus = match &self.gpus {
            _ if on_cpu => Finding::ok("GPUs", "not used: train.device is cpu"),
            Err(problem) => Finding::problem("GPUs", problem),
            Ok(0) if self.choice == DeviceChoice::Cuda => Finding::problem("GPUs", DeviceError::NoGpu),
            Ok(0) if self.driver.is_some() => Finding::problem(
                "GPUs",
                "there is a driver, but no GPU is seen; is CUDA_VISIBLE_DEVICES empty? Or set train.device=cpu",
            ),
            Ok(0) => Finding::ok("GPUs", "none; training is on the CPU"),
            Ok(count) => Finding::ok("GPUs", format!("{count}, one for each rank")),
        };
        let runtime = self.runtime.as_deref().unwrap_or("not loaded");
        let driver = self.driver.as_deref().unwrap_or("none");
        let nccl = match &self.nccl {
            Ok(version) => Finding::ok("NCCL", version),
            Err(problem) if !on_cpu && self.gpus.as_ref().is_ok_and(|&gpus| gpus > 0) => {
                Finding::problem("NCCL", problem)
            }
            Err(_) => Finding::ok("NCCL", "not installed, and not needed without GPUs"),
        };
        vec![
            Finding::ok("MPI", &self.mpi),
            gpus,
            Finding::ok("CUDA runtime", runtime),
            Finding::ok("GPU driver", driver),
            nccl,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::finding::Verdict;

    /// A machine without GPUs, and without anything for them.
    fn bare(choice: DeviceChoice) -> Software {
        let nccl = Err("not found".to_owned());
        Software { mpi: "Open MPI v4.1.4".to_owned(), choice, gpus: Ok(0), runtime: None, driver: None, nccl }
    }

    fn problems(software: &Software) -> usize {
        software.findings().iter().filter(|finding| finding.verdict == Verdict::Problem).count()
    }

    #[test]
    fn what_gpus_lack_is_a_problem_where_they_are_used() {
        assert_eq!(problems(&bare(DeviceChoice::Auto)), 0);
        assert_eq!(problems(&bare(DeviceChoice::Cuda)), 1);
        let hidden = Software { driver: Some("13.0".to_owned()), ..bare(DeviceChoice::Auto) };
        assert_eq!(problems(&hidden), 1);
        assert_eq!(problems(&Software { choice: DeviceChoice::Cpu, ..hidden }), 0);
        let without_nccl = Software { gpus: Ok(4), ..bare(DeviceChoice::Auto) };
        assert_eq!(problems(&without_nccl), 1);
        assert_eq!(problems(&Software { nccl: Ok("2.29.7".to_owned()), ..without_nccl }), 0);
    }
}
