//! The programs and libraries of this repository that tests start and load.
#![allow(clippy::expect_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Returns the path of a program.
pub fn program(name: &str) -> PathBuf {
    program_folder().join(name)
}

/// Returns the folder of the programs and libraries: the one that `ARINAR_TEST_PROGRAMS` names, or else that of the
/// running test, in which they are built from the current sources once per process.
pub fn program_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os("ARINAR_TEST_PROGRAMS").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        // Build the whole workspace: one package alone resolves other features and recompiles everything.
        .args(["build", "--release", "--quiet", "--workspace", "--lib", "--bins"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the programs cannot be built");
    let test = std::env::current_exe().expect("the path of the test");
    test.parent().and_then(Path::parent).expect("the folder above deps").to_owned()
}
