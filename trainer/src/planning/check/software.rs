//! The check of libraries and drivers: MPI, CUDA and NCCL, and the GPUs that are visible through them.

use arinar_collective::{
    Collective, LaunchEnvironment, conformance, cuda,
    device::{self, DeviceChoice, DeviceError},
    library_version, nccl,
};

use super::finding::Finding;

const GPUS: &str = "GPUs";

/// The installed software, and the ranks that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Software {
    mpi: String,
    choice: DeviceChoice,
    gpus: Result<usize, DeviceError>,
    runtime: Option<String>,
    driver: Option<String>,
    nccl: Result<String, String>,
    world_size: usize,
    local_world_size: usize,
}

/// Checks the libraries, and the GPUs that are visible to the ranks of this machine with this `train.device`.
pub(crate) fn check(choice: DeviceChoice, launch: LaunchEnvironment) -> Vec<Finding> {
    let gpus = match choice {
        // No library for GPUs is loaded if they are not used.
        DeviceChoice::Cpu => Ok(0),
        _ => choice.device(0).and_then(|_| device::gpus()),
    };
    let software = Software {
        mpi: library_version(),
        choice,
        gpus,
        nccl: nccl::version().map_err(|error| error.to_string()),
        runtime: cuda::runtime_version(),
        driver: cuda::driver_version(),
        world_size: launch.world_size,
        local_world_size: launch.local_world_size,
    };
    software.findings()
}

/// Runs the conformance suite of collective operations in host memory. All ranks call it together.
pub(crate) fn check_collectives(collective: &dyn Collective) -> Finding {
    const SUBJECT: &str = "collectives";
    match conformance(collective, tch::Device::Cpu) {
        Ok(()) => Finding::ok(SUBJECT, format!("{}; collective operations work", collective.describe())),
        Err(problem) => Finding::problem(SUBJECT, format!("{}: {problem}", collective.describe())),
    }
}

impl Software {
    fn findings(&self) -> Vec<Finding> {
        vec![
            Finding::ok("MPI", &self.mpi),
            self.gpus(),
            Finding::ok("CUDA runtime", self.runtime.as_deref().unwrap_or("not loaded")),
            Finding::ok("GPU driver", self.driver.as_deref().unwrap_or("none")),
            self.nccl(),
        ]
    }

    /// Checks the number of GPUs. Whether each rank has its own GPU is checked across ranks, because each rank may see only
    /// one.
    fn gpus(&self) -> Finding {
        let ranks = self.local_world_size;
        match &self.gpus {
            _ if self.choice == DeviceChoice::Cpu => Finding::ok(GPUS, "not used: train.device is cpu"),
            Err(problem) => Finding::problem(GPUS, problem),
            Ok(0) if self.choice == DeviceChoice::Cuda => Finding::problem(GPUS, DeviceError::NoGpu),
            Ok(0) if self.driver.is_some() => Finding::problem(
                GPUS,
                "a driver is installed, but no GPU is visible; check CUDA_VISIBLE_DEVICES, or set train.device=cpu",
            ),
            Ok(0) => Finding::ok(GPUS, "none; training runs on the CPU"),
            Ok(count) => Finding::ok(GPUS, format!("{count} visible to a rank, {ranks} rank(s) on this machine")),
        }
    }

    fn nccl(&self) -> Finding {
        const SUBJECT: &str = "NCCL";
        let on_gpus = self.choice != DeviceChoice::Cpu && self.gpus.as_ref().is_ok_and(|&gpus| gpus > 0);
        match &self.nccl {
            Ok(version) => Finding::ok(SUBJECT, version),
            Err(problem) if on_gpus && self.world_size > 1 => Finding::problem(SUBJECT, problem),
            Err(_) if on_gpus => Finding::ok(SUBJECT, "not installed; a single rank does not need it"),
            Err(_) => Finding::ok(SUBJECT, "not installed; only needed with GPUs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine without GPUs, drivers and libraries for them.
    fn without_gpus(choice: DeviceChoice) -> Software {
        let (mpi, nccl) = ("Open MPI v4.1.4".to_owned(), Err("not found".to_owned()));
        Software { mpi, choice, gpus: Ok(0), runtime: None, driver: None, nccl, world_size: 4, local_world_size: 4 }
    }

    fn problems(software: &Software) -> usize {
        software.findings().iter().filter(|finding| finding.is_problem()).count()
    }

    #[test]
    fn missing_software_for_gpus_is_a_problem_only_if_gpus_are_used() {
        assert_eq!(problems(&without_gpus(DeviceChoice::Auto)), 0);
        assert_eq!(problems(&without_gpus(DeviceChoice::Cuda)), 1);
        let hidden = Software { driver: Some("13.0".to_owned()), ..without_gpus(DeviceChoice::Auto) };
        assert_eq!(problems(&hidden), 1);
        assert_eq!(problems(&Software { choice: DeviceChoice::Cpu, ..hidden }), 0);
        let without_nccl = Software { gpus: Ok(4), ..without_gpus(DeviceChoice::Auto) };
        assert_eq!(problems(&without_nccl), 1);
        let single = Software { world_size: 1, local_world_size: 1, ..without_nccl.clone() };
        assert_eq!(problems(&single), 0, "a single rank needs no NCCL");
        assert_eq!(problems(&Software { choice: DeviceChoice::Cpu, ..without_nccl.clone() }), 0);
        assert_eq!(problems(&Software { nccl: Ok("2.29.7".to_owned()), ..without_nccl }), 0);
    }
}
