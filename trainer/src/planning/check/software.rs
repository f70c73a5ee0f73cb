//! Versions of what a run is built on, and the GPUs that it sees.

use arinar_collective::{
    Collective, LaunchEnvironment, conformance, cuda,
    device::{self, DeviceChoice, DeviceError},
    library_version, nccl,
};

use super::finding::Finding;

/// What is installed, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Software {
    mpi: String,
    choice: DeviceChoice,
    gpus: Result<usize, DeviceError>,
    runtime: Option<String>,
    driver: Option<String>,
    nccl: Result<String, String>,
    /// Ranks of the run, and those on this machine.
    world: usize,
    here: usize,
}

/// The GPUs that the ranks of a machine would see with this `train.device`, and the libraries for them.
pub(super) fn look(choice: DeviceChoice, launch: LaunchEnvironment) -> Vec<Finding> {
    let gpus = match choice {
        // Where they are not used, nothing of them is loaded.
        DeviceChoice::Cpu => Ok(0),
        _ => choice.device(0).and_then(|_| device::gpus()),
    };
    let nccl = nccl::version().map_err(|error| error.to_string());
    let (runtime, driver) = (cuda::runtime_version(), cuda::driver_version());
    let (mpi, world, here) = (library_version(), launch.world_size, launch.local_world_size);
    Software { mpi, choice, gpus, runtime, driver, nccl, world, here }.findings()
}

/// Tries what ranks do together in the memory of their machines; all of them call it.
pub fn collectives(collective: &dyn Collective) -> Finding {
    match conformance(collective, tch::Device::Cpu) {
        Ok(()) => Finding::ok("collectives", format!("{}; what ranks exchange arrives", collective.describe())),
        Err(problem) => Finding::problem("collectives", format!("{}: {problem}", collective.describe())),
    }
}

impl Software {
    fn findings(&self) -> Vec<Finding> {
        let runtime = self.runtime.as_deref().unwrap_or("not loaded");
        let driver = self.driver.as_deref().unwrap_or("none");
        vec![
            Finding::ok("MPI", &self.mpi),
            self.gpus(),
            Finding::ok("CUDA runtime", runtime),
            Finding::ok("GPU driver", driver),
            self.nccl(),
        ]
    }

    /// Whether each rank here has a GPU of its own is another question: it may see that one alone.
    fn gpus(&self) -> Finding {
        const WHAT: &str = "GPUs";
        let here = self.here;
        match &self.gpus {
            _ if self.choice == DeviceChoice::Cpu => Finding::ok(WHAT, "not used: train.device is cpu"),
            Err(problem) => Finding::problem(WHAT, problem),
            Ok(0) if self.choice == DeviceChoice::Cuda => Finding::problem(WHAT, DeviceError::NoGpu),
            Ok(0) if self.driver.is_some() => Finding::problem(
                WHAT,
                "there is a driver, but no GPU is seen; is CUDA_VISIBLE_DEVICES empty? Or set train.device=cpu",
            ),
            Ok(0) => Finding::ok(WHAT, "none; training is on the CPU"),
            Ok(count) => Finding::ok(WHAT, format!("{count} seen by a rank, {here} rank(s) here")),
        }
    }

    fn nccl(&self) -> Finding {
        const WHAT: &str = "NCCL";
        let on_gpus = self.choice != DeviceChoice::Cpu && self.gpus.as_ref().is_ok_and(|&gpus| gpus > 0);
        match &self.nccl {
            Ok(version) => Finding::ok(WHAT, version),
            Err(problem) if on_gpus && self.world > 1 => Finding::problem(WHAT, problem),
            Err(_) if on_gpus => Finding::ok(WHAT, "not installed, and not needed by a single rank"),
            Err(_) => Finding::ok(WHAT, "not installed, and not needed without GPUs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planning::check::finding::Verdict;

    /// A machine without GPUs, and without anything for them.
    fn bare(choice: DeviceChoice) -> Software {
        let (mpi, nccl) = ("Open MPI v4.1.4".to_owned(), Err("not found".to_owned()));
        Software { mpi, choice, gpus: Ok(0), runtime: None, driver: None, nccl, world: 4, here: 4 }
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
        assert_eq!(problems(&Software { world: 1, here: 1, ..without_nccl.clone() }), 0, "nobody to talk to");
        assert_eq!(problems(&Software { choice: DeviceChoice::Cpu, ..without_nccl.clone() }), 0);
        assert_eq!(problems(&Software { nccl: Ok("2.29.7".to_owned()), ..without_nccl }), 0);
    }
}
