//! Servers from the Python environment of the tests, such as moto and TensorBoard.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Starts a server on a free port of this machine, and returns it with its address, such as "127.0.0.1:5000".
pub fn start(name: &str, arguments: &[&str]) -> (Child, String) {
    let program = test_program(name);
    assert!(program.exists(), "no {}; run ops/bootstrap.sh --tests", program.display());
    let mut process = Command::new(program)
        .args(["--host", "127.0.0.1", "--port", "0"])
        .args(arguments)
        .env("PYTHONUNBUFFERED", "1")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(process.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "{name} ended without printing its address");
        if let Some((_, rest)) = line.split_once("http://") {
            break rest.trim().split(['/', ' ']).next().unwrap_or_default().to_owned();
        }
    };
    // Drain the pipe, so that the server does not block on it.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    (process, address)
}

/// Returns the path of a program in the Python environment that `ops/bootstrap.sh --tests` creates.
pub fn test_program(name: &str) -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("ARINAR_HOME").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache"));
        cache.join("arinar")
    });
    home.join("test-venv/bin").join(name)
}
