//! Runs of a program whose output cannot be written.

use std::fs::File;
use std::process::{Command, Stdio};

use super::trainer::ProcessOutput;

/// What becomes of an output stream of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// The test reads it.
    Read,
    /// A full disk.
    Full,
    /// A pipe that nobody reads.
    ClosedPipe,
    /// The descriptor is closed, as by `>&-`.
    Closed,
}

/// All ways in which one or both of standard output and standard error cannot be written.
pub fn unwritable() -> Vec<(Sink, Sink)> {
    use Sink::{Closed, ClosedPipe, Full, Read};
    let mut pairs = Vec::new();
    for sink in [Full, ClosedPipe, Closed] {
        pairs.extend([(sink, Read), (Read, sink), (sink, sink)]);
    }
    pairs
}

/// Runs a command until it exits, with its standard output and standard error going to these sinks.
pub fn run(command: &Command, stdout: Sink, stderr: Sink) -> ProcessOutput {
    let close = |sink, redirection| if sink == Sink::Closed { redirection } else { "" };
    let script = format!("exec \"$@\" {} {}", close(stdout, ">&-"), close(stderr, "2>&-"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    ProcessOutput::of(shell.stdout(stdio(stdout)).stderr(stdio(stderr)).output().unwrap())
}

fn stdio(sink: Sink) -> Stdio {
    match sink {
        Sink::Read => Stdio::piped(),
        Sink::Full => File::options().write(true).open("/dev/full").unwrap().into(),
        // The reading end is dropped at once.
        Sink::ClosedPipe => std::io::pipe().unwrap().1.into(),
        Sink::Closed => Stdio::null(),
    }
}

/// Asserts what a command does whose result cannot be written: it exits with 1 and one line on standard error that names
/// the problem, or without a line if nobody reads the result. A closed descriptor is the same as /dev/null.
#[track_caller]
pub fn assert_result_is_required(command: &Command) {
    let whole = run(command, Sink::Read, Sink::Read).succeeded();
    assert!(!whole.stdout.is_empty());
    let stdout_sinks = [Sink::Full, Sink::ClosedPipe, Sink::Closed].map(|sink| (sink, Sink::Read));
    for (stdout, stderr) in stdout_sinks.into_iter().chain([(Sink::Read, Sink::Full), (Sink::Full, Sink::Closed)]) {
        let output = run(command, stdout, stderr);
        let name = format!("{command:?} with {stdout:?} and {stderr:?}: {}", output.stderr);
        let expected = if matches!(stdout, Sink::Read | Sink::Closed) { 0 } else { 1 };
        assert_eq!(output.code, Some(expected), "{name}");
        let problem = "cannot write the result to standard output: No space left on device";
        if stderr == Sink::Read && stdout == Sink::Full {
            assert!(output.stderr.contains(problem), "{name}");
        }
        assert!(!output.stderr.contains("panicked") && !output.stderr.contains("bug"), "{name}");
        let lines = output.stderr.lines().filter(|line| line.contains("arinar-")).count();
        assert_eq!(lines, usize::from(stderr == Sink::Read && stdout == Sink::Full), "{name}");
    }
}

/// Asserts that a command line that is invalid exits with 78, even if this cannot be reported.
#[track_caller]
pub fn assert_invalid_everywhere(command: &Command) {
    for (stdout, stderr) in unwritable() {
        assert_eq!(run(command, stdout, stderr).code, Some(78), "{command:?} with {stdout:?} and {stderr:?}");
    }
}
