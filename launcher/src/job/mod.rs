//! One start of the job: starts mpirun, watches it and ends it.

mod context;
mod outcome;
mod relay;
mod shutdown;
mod watch;

use std::{path::Path, process::Stdio};

use arinar_protocol::{Launcher, environment};
use tokio::process::{Child, Command};

use crate::{output::Stream, policy::Outcome, processes, stop::Stop};

pub(crate) use context::JobContext;

use relay::relay;
use watch::{DRAIN_TIMEOUT, Job};

/// Runs mpirun with these arguments until it ends. No process of the job remains. Returns the outcome, and whether the job
/// was ended because it hung.
///
/// # Errors
/// mpirun cannot be started.
pub(crate) async fn run(
    context: &mut JobContext<'_>,
    mpirun: &Path,
    arguments: &[String],
    launcher: &Launcher,
    world: usize,
) -> Result<(Outcome, bool), Stop> {
    let mut child = spawn(mpirun, arguments, launcher)?;
    let output = context.output;
    let stdout = relay(child.stdout.take(), Stream::Stdout, output.clone());
    let stderr = relay(child.stderr.take(), Stream::Stderr, output.clone());
    let mut job = Job::new(context, launcher.attempt, child.id().unwrap_or_default(), world);
    let status = job.watch(&mut child).await;
    processes::sweep().await;
    job.remove_files();
    job.drain_messages().await;
    let mut mpirun_lines = Vec::new();
    for relay in [stdout, stderr] {
        let lines = tokio::time::timeout(DRAIN_TIMEOUT, relay).await.ok().and_then(Result::ok);
        mpirun_lines.extend(lines.unwrap_or_default());
    }
    Ok(job.finish(status, &mpirun_lines))
}

fn spawn(mpirun: &Path, arguments: &[String], launcher: &Launcher) -> Result<Child, Stop> {
    let mut command = Command::new(mpirun);
    command.args(arguments).env(environment::LAUNCHER, launcher.text());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // In its own process group, mpirun does not receive Ctrl-C. The launcher forwards the request in its own way.
    command.process_group(0);
    processes::tie_to_this_thread(command.as_std_mut());
    command.spawn().map_err(|error| Stop::failure(format!("{} cannot be started: {error}", mpirun.display())))
}

#[cfg(test)]
mod tests;
