//! A replacement for a file system without file locks: a library that makes flock fail below a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The errors of Linux for a file system without locks: ENOLCK, ENOSYS and EOPNOTSUPP.
pub const ERRORS: [i32; 3] = [37, 38, 95];

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int file, int operation) {
    const char *folder = getenv("ARINAR_TEST_NO_LOCKS");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    if (folder && strncmp(path, folder, strlen(folder)) == 0) {
        errno = atoi(getenv("ARINAR_TEST_LOCK_ERROR"));
        return -1;
    }
    return syscall(SYS_flock, file, operation);
}
"#;

/// The library, compiled in a folder of a test.
pub struct NoLocks {
    library: PathBuf,
}

impl NoLocks {
    /// Compiles the library in `folder`.
    pub fn compile(folder: &Path) -> Self {
        let (source, library) = (folder.join("no_locks.c"), folder.join("no_locks.so"));
        std::fs::write(&source, SOURCE).unwrap();
        let status = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
        assert!(status.success(), "gcc fails");
        Self { library }
    }

    /// Lets locks of files below `folder` fail with `error` in a process.
    pub fn apply<'a>(&self, command: &'a mut Command, folder: &Path, error: i32) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library);
        command.env("ARINAR_TEST_NO_LOCKS", folder).env("ARINAR_TEST_LOCK_ERROR", error.to_string())
    }
}
