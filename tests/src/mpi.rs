//! Commands that run `mpirun` in tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Prefix of the folders created by [`session_folder`].
const PREFIX: &str = "arinar-mpi-";

/// Returns an `mpirun` command with `ranks` ranks that also works as root and with more ranks than cores.
pub fn mpirun(ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()]);
    command.env("TMPDIR", session_folder());
    command
}

/// Creates a `TMPDIR` for one `mpirun`, which leaves it empty.
///
/// Two runs must not share a folder. Open MPI 4 checks for its session folder and creates it in two steps, so a run
/// that starts while another starts or ends can fail with "A call to mkdir was unable to create the desired directory".
pub fn session_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static SWEEP: Once = Once::new();
    let all = std::env::temp_dir();
    SWEEP.call_once(|| remove_left_over(&all));
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = all.join(format!("{PREFIX}{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

/// Removes the empty folders of test processes that have exited.
fn remove_left_over(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(process, _)| process.to_owned());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Keeps a folder that is not empty, since removing it fails.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}
