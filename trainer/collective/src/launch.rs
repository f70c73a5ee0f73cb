//! The launch environment: the rank and world size that mpirun or Slurm assigned to this process.

/// Rank and world size of this process, known before MPI is started.
///
/// The only reader of the variables that launchers set; all programs use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchEnvironment {
    /// Rank of this process, counted from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Rank of this process among those on its node.
    pub local_rank: usize,
    /// Number of ranks on this node.
    pub local_world_size: usize,
}

impl LaunchEnvironment {
    /// Reads the variables that Open MPI, or a launcher that speaks PMIx or PMI such as Slurm, sets for each process.
    /// Returns `None` for a process that was started by hand.
    pub fn from_environment() -> Option<Self> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Returns the environment of a job of one process.
    pub fn single() -> Self {
        Self { rank: 0, world_size: 1, local_rank: 0, local_world_size: 1 }
    }

    /// Returns true on exactly one rank of each node.
    pub fn is_node_leader(&self) -> bool {
        self.local_rank == 0
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.parse::<usize>().ok();
        let open_mpi = || {
            Some(Self {
                rank: number("OMPI_COMM_WORLD_RANK")?,
                world_size: number("OMPI_COMM_WORLD_SIZE")?,
                local_rank: number("OMPI_COMM_WORLD_LOCAL_RANK")?,
                local_world_size: number("OMPI_COMM_WORLD_LOCAL_SIZE")?,
            })
        };
        let slurm = || {
            variable("PMIX_RANK").or_else(|| variable("PMI_RANK"))?;
            Some(Self {
                rank: number("SLURM_PROCID")?,
                world_size: number("SLURM_NTASKS")?,
                local_rank: number("SLURM_LOCALID")?,
                local_world_size: tasks_of_node(&variable("SLURM_STEP_TASKS_PER_NODE")?, number("SLURM_NODEID")?)?,
            })
        };
        open_mpi().or_else(slurm)
    }
}

/// Returns the rank of this process without its other facts, for a program that only needs to know whether it was launched
/// as one of several; `None` for a process that was started by hand.
pub fn launched_rank() -> Option<usize> {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"].iter().find_map(number)
}

/// Returns the number of tasks on a node, from a list in Slurm's format: `4(x2),3` means 4, 4 and 3 tasks.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut nodes_before = 0;
    for entry in list.split(',') {
        let (tasks, nodes) = match entry.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        nodes_before += nodes;
        if node < nodes_before {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{LaunchEnvironment, tasks_of_node};

    #[test]
    fn task_lists_of_slurm_are_parsed() {
        let tasks = |list| (0..4).map(|node| tasks_of_node(list, node)).collect::<Vec<_>>();
        assert_eq!(tasks("8"), [Some(8), None, None, None]);
        assert_eq!(tasks("4(x2),3"), [Some(4), Some(4), Some(3), None]);
        assert_eq!(tasks("2,4(x3)"), [Some(2), Some(4), Some(4), Some(4)]);
        for damaged in ["", "x", "2(x", "2(xa)", "(x2)"] {
            assert_eq!(tasks_of_node(damaged, 0), None, "{damaged}");
        }
    }

    #[test]
    fn open_mpi_and_slurm_are_recognized() {
        let read = |variables: &[(&str, &str)]| {
            LaunchEnvironment::read(|name| Some(variables.iter().find(|(key, _)| *key == name)?.1.to_owned()))
        };
        let launch = |rank, world_size, local_rank, local_world_size| {
            Some(LaunchEnvironment { rank, world_size, local_rank, local_world_size })
        };
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
        ];
        let slurm = [
            ("PMIX_RANK", "5"),
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "7"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4,3"),
        ];
        assert_eq!(read(&open_mpi), launch(5, 8, 1, 4));
        assert_eq!(read(&slurm), launch(5, 7, 1, 3));
        // A batch script within a Slurm job has the SLURM variables, but is not a task that srun started.
        assert_eq!(read(&slurm[1..]), None);
        assert_eq!(read(&[]), None);
    }
}
