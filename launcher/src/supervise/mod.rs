//! The launcher from start to end.

mod dry_run;
mod placement;
mod run_loop;
mod settings;

use std::{io, os::unix::process::CommandExt};

use arinar_protocol::exit_code;

use crate::{
    arguments::Arguments,
    history::RunHistory,
    http,
    job_config::TRAINER_ERROR,
    mpi_cleanup, open_files,
    output::{Level, Output, OutputThreads, Stream, write_directly},
    policy::RestartPolicy,
    processes,
    run_lock::RunLock,
    server::Server,
    shutdown_signals::ShutdownSignals,
    status::SharedStatus,
    stop::Stop,
};

use run_loop::RunLoop;
use settings::{Settings, variable_names};

/// Runs the launcher until the run is done or cannot continue. Returns the exit code once all output is written.
///
/// It must run on a single-threaded runtime, because the kernel signals mpirun when the thread that started it exits.
pub async fn supervise(arguments: Arguments) -> u8 {
    let (mut output, mut threads) = match Output::start(arguments.log_format) {
        Ok(started) => started,
        Err(error) => {
            // If this cannot be written, there is nothing left to do.
            let text = format!("arinar-launcher: error: cannot start a thread: {error}\n");
            let _ = write_directly(Stream::Stderr, &text);
            return exit_code::FAILED;
        }
    };
    let result = run(arguments, &mut output, &mut threads).await;
    output.set_status(String::new());
    let code = match result {
        Ok(()) => exit_code::DONE,
        Err(stop) => {
            let line = stop.line.strip_prefix(TRAINER_ERROR).unwrap_or(&stop.line).to_owned();
            let level = if stop.code == exit_code::PREEMPTED { Level::Info } else { Level::Error };
            if !line.is_empty() {
                output.log_last(level, line).await;
            }
            // A rank may have exited with any code. All unknown codes mean a failure.
            let is_known = matches!(stop.code, exit_code::PREEMPTED | exit_code::CONFIGURATION);
            if is_known { stop.code } else { exit_code::FAILED }
        }
    };
    drop(output);
    threads.join();
    code
}

async fn run(arguments: Arguments, output: &mut Output, threads: &mut OutputThreads) -> Result<(), Stop> {
    open_files::raise_limit();
    // Signals come first: one that arrives during the preparations ends the job once it has started.
    let signals = ShutdownSignals::install().map_err(failure("cannot install signal handlers"))?;
    let settings = Settings::resolve(arguments)?;
    if settings.arguments.dry_run {
        return write_directly(Stream::Stdout, &dry_run::dry_run(&settings)).map_err(|error| Stop::output(&error));
    }
    if settings.is_inspection() {
        return Err(become_mpirun(&settings));
    }
    let folder = settings.config.log_dir.join("ranks");
    std::fs::create_dir_all(&folder)
        .map_err(|error| Stop::configuration(format!("run.log_dir: {}: {error}", folder.display())))?;
    let (_lock, warning) = RunLock::acquire(&folder)?;
    output.open_log_files(&folder, threads)?;
    if let Some(warning) = warning {
        output.log(Level::Warning, warning);
    }
    let session_record = folder.join(mpi_cleanup::FILE_NAME);
    mpi_cleanup::remove_leftovers(&session_record);
    processes::adopt_orphans().map_err(failure("cannot adopt orphaned processes"))?;
    let (server, messages) =
        Server::start(settings.listen_address()).await.map_err(failure("cannot listen for heartbeats"))?;
    let status = SharedStatus::default();
    if let Some(requested) = settings.arguments.status_port {
        let address = http::serve(requested.0, status.clone()).await?;
        output.log(Level::Info, format!("status at http://{address}/status, metrics at http://{address}/metrics"));
    }
    output.log(Level::Info, dry_run::summary(&settings));
    let policy = RestartPolicy::new(settings.arguments.max_restarts);
    let (output, history) = (output.clone(), RunHistory::new());
    let mut run_loop =
        RunLoop { settings, output, server, messages, signals, status, history, policy, attempt: 0, session_record };
    let result = run_loop.run().await;
    run_loop.log_summary();
    result
}

fn failure(action: &'static str) -> impl Fn(io::Error) -> Stop {
    move |error| Stop::failure(format!("{action}: {error}"))
}

/// Replaces this process by mpirun, so that its output, its exit code and signals to it are passed on unchanged. Returns
/// only if that fails.
fn become_mpirun(settings: &Settings) -> Stop {
    let placement = settings.full_placement();
    let hostfile = match settings.hostfile(&placement) {
        Ok(file) => file,
        Err(stop) => return stop,
    };
    let hostfile = hostfile.as_ref().map(|file| file.path.as_str());
    let arguments = settings.command(&placement, hostfile).arguments(variable_names());
    let mpirun = &settings.programs.mpirun;
    let error = std::process::Command::new(mpirun).args(arguments).exec();
    Stop::configuration(format!("cannot run {}: {error}", mpirun.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
