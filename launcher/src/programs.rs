//! Locates the trainer and mpirun.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::stop::Stop;

/// The programs that the launcher runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    /// Path of arinar-trainer.
    pub(crate) trainer: PathBuf,
    /// Path of Open MPI's mpirun.
    pub(crate) mpirun: PathBuf,
    /// Major version of mpirun.
    pub(crate) mpirun_version: u32,
}

impl Programs {
    /// Locates both programs, at the given paths if there are any.
    ///
    /// # Errors
    /// A program is missing, or mpirun is not Open MPI's.
    pub(crate) fn find(trainer: Option<&Path>, mpirun: Option<&Path>) -> Result<Self, Stop> {
        let trainer = match trainer {
            Some(given) => resolve(given, "--trainer")?,
            None => next_to_this_program("arinar-trainer").or_else(|| on_path("arinar-trainer")).ok_or_else(|| {
                Stop::configuration(
                    "arinar-trainer is neither in the folder of arinar-launcher nor on the PATH; set --trainer",
                )
            })?,
        };
        let mpirun = match mpirun {
            Some(given) => resolve(given, "--mpirun")?,
            None => on_path("mpirun").ok_or_else(|| {
                Stop::configuration(
                    "mpirun is not on the PATH; install Open MPI (openmpi-bin on Debian), or set --mpirun",
                )
            })?,
        };
        let mpirun_version = open_mpi_version(&mpirun)?;
        Ok(Self { trainer, mpirun, mpirun_version })
    }
}

/// Locates a program as a shell does.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return is_executable(Path::new(name)).then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| is_executable(program))
}

/// Returns the absolute path of the program that an option names. mpirun and other hosts do not know the current folder.
fn resolve(given: &Path, option: &str) -> Result<PathBuf, Stop> {
    let found = on_path(&given.to_string_lossy());
    let missing = || Stop::configuration(format!("{option} {} is not an executable program", given.display()));
    std::path::absolute(found.ok_or_else(missing)?).map_err(|error| Stop::configuration(error.to_string()))
}

fn next_to_this_program(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.parent()?.join(name);
    is_executable(&program).then_some(program)
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Returns the major version of Open MPI's mpirun.
fn open_mpi_version(mpirun: &Path) -> Result<u32, Stop> {
    let shown = mpirun.display();
    let output = Command::new(mpirun)
        .arg("--version")
        .output()
        .map_err(|error| Stop::configuration(format!("cannot run {shown}: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let is_open_mpi = text.contains("Open MPI") || text.contains("OpenRTE") || text.contains("PRRTE");
    let major = text.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    major.filter(|_| is_open_mpi).ok_or_else(|| {
        let first = text.lines().next().unwrap_or_default();
        Stop::configuration(format!("{shown} is not Open MPI's mpirun (--version prints {first:?}); set --mpirun"))
    })
}
