//! Where the trainer and mpirun are.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::exit::Stop;

/// The programs that the launcher runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// arinar-trainer.
    pub trainer: PathBuf,
    /// Open MPI's mpirun.
    pub mpirun: PathBuf,
    /// Its major version.
    pub mpirun_version: u32,
}

impl Programs {
    /// Finds both.
    ///
    /// # Errors
    /// One is missing, or mpirun is not Open MPI's.
    pub fn find(trainer: Option<&Path>, mpirun: Option<&Path>) -> Result<Self, Stop> {
        let trainer = match trainer {
            Some(given) => named(given, "--trainer")?,
            None => beside("arinar-trainer").or_else(|| on_path("arinar-trainer")).ok_or_else(|| {
                Stop::configuration(
                    "arinar-trainer is neither beside arinar-launcher nor on the PATH; name it with --trainer",
                )
            })?,
        };
        let mpirun = match mpirun {
            Some(given) => named(given, "--mpirun")?,
            None => on_path("mpirun").ok_or_else(|| {
                Stop::configuration(
                    "mpirun is not on the PATH; install Open MPI (openmpi-bin on Debian), or name it with --mpirun",
                )
            })?,
        };
        let mpirun_version = version(&mpirun)?;
        Ok(Self { trainer, mpirun, mpirun_version })
    }
}

/// A program as a shell would find it.
pub fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return is_program(Path::new(name)).then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| is_program(program))
}

fn named(given: &Path, flag: &str) -> Result<PathBuf, Stop> {
    let found = on_path(&given.to_string_lossy());
    let missing = || Stop::configuration(format!("{flag} {} is no program that can be run", given.display()));
    // Other machines and mpirun know nothing of this one's current folder.
    std::path::absolute(found.ok_or_else(missing)?).map_err(|error| Stop::configuration(error.to_string()))
}

fn beside(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.parent()?.join(name);
    is_program(&program).then_some(program)
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

fn version(mpirun: &Path) -> Result<u32, Stop> {
    let shown = mpirun.display();
    let output = Command::new(mpirun)
        .arg("--version")
        .output()
        .map_err(|error| Stop::configuration(format!("{shown} cannot be run: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let is_open_mpi = text.contains("Open MPI") || text.contains("OpenRTE") || text.contains("PRRTE");
    let digits = text.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    digits.filter(|_| is_open_mpi).ok_or_else(|| {
        let said = text.lines().next().unwrap_or_default();
        Stop::configuration(format!("{shown} is not Open MPI's mpirun (--version says {said:?}); see --mpirun"))
    })
}
