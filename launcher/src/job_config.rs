//! The part of the configuration that concerns the launcher, as reported by the trainer.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use arinar_protocol::exit_code;

use crate::{
    arguments::Arguments,
    processes,
    stop::Stop,
    trainer_arguments::{is_inspection, trainer_arguments},
};

/// Prefix of the line in which the trainer reports why it exits.
pub(crate) const TRAINER_ERROR: &str = "arinar-trainer: error: ";
/// Prefix of the line in which the trainer reports an invalid argument. Usage information follows it.
const ARGUMENT_ERROR: &str = "error: ";

/// The configuration values that concern the launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobConfig {
    /// `run.name`.
    pub(crate) name: String,
    /// `run.log_dir`.
    pub(crate) log_dir: PathBuf,
    /// `batch.global`.
    pub(crate) global_batch: usize,
    /// True if the configuration selects the CPU even on hosts with GPUs.
    pub(crate) cpu: bool,
}

impl JobConfig {
    /// Runs `arinar-trainer --config X --print-config` and parses its output. If the trainer is to inspect something and
    /// the configuration is wrong, replaces this process by the trainer, which then reports all problems itself.
    ///
    /// # Errors
    /// The trainer rejects the configuration (its own message and exit code), cannot be run, or prints something else
    /// than a configuration.
    pub(crate) fn query(trainer: &Path, arguments: &Arguments) -> Result<Self, Stop> {
        let words = trainer_arguments(arguments);
        let mut command = outside_mpi(trainer);
        command.args(words.iter().filter(|word| !is_inspection(word))).arg("--print-config").stdin(Stdio::null());
        processes::tie_to_this_thread(&mut command);
        let output = command.output().map_err(|error| cannot_run(trainer, &error))?;
        if output.status.success() {
            return Self::parse(&output.stdout)
                .map_err(|error| Stop::configuration(format!("{} --print-config: {error}", trainer.display())));
        }
        let code = output.status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0);
        let line = error_line(&String::from_utf8_lossy(&output.stderr));
        let stop = Stop { code: code.unwrap_or(exit_code::FAILED), line };
        let inspects = !arguments.dry_run && words.iter().any(|word| is_inspection(word));
        if inspects && stop.code == exit_code::CONFIGURATION && stop.line.starts_with(TRAINER_ERROR) {
            return Err(cannot_run(trainer, &outside_mpi(trainer).args(words).exec()));
        }
        Err(stop)
    }

    fn parse(json: &[u8]) -> Result<Self, String> {
        let config: serde_json::Value = serde_json::from_slice(json)
            .map_err(|error| format!("the output is not JSON ({error}); use a trainer of the launcher's version"))?;
        let text = |path: &str| config.pointer(path).and_then(serde_json::Value::as_str);
        let global_batch = config.pointer("/batch/global").and_then(serde_json::Value::as_u64);
        let global_batch = global_batch.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
        Ok(Self {
            name: text("/run/name").unwrap_or("run").to_owned(),
            log_dir: text("/run/log_dir").ok_or("run.log_dir is missing")?.into(),
            global_batch: global_batch.ok_or("batch.global is missing")?,
            cpu: ["/device", "/train/device"].iter().any(|path| text(path) == Some("cpu")),
        })
    }
}

/// Returns a command that runs the trainer outside MPI, even if the launcher itself runs under another mpirun (such as
/// Slurm's).
fn outside_mpi(trainer: &Path) -> Command {
    let mut command = Command::new(trainer);
    for (name, _) in std::env::vars_os() {
        if ["OMPI_COMM_", "PMIX_", "PMI_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

fn cannot_run(trainer: &Path, error: &io::Error) -> Stop {
    Stop::configuration(format!("cannot run {}: {error}; set --trainer", trainer.display()))
}

/// Returns the line of the trainer's standard error that states why it exited.
fn error_line(stderr: &str) -> String {
    let mut lines = stderr.lines().filter(|line| !line.trim().is_empty());
    let error = lines.clone().find(|line| line.starts_with(TRAINER_ERROR) || line.starts_with(ARGUMENT_ERROR));
    match error.map(|line| (line, line.strip_prefix(ARGUMENT_ERROR))) {
        Some((_, Some(error))) => format!("arinar-trainer: {error} (see arinar-trainer --help)"),
        Some((line, None)) => line.to_owned(),
        None => lines.next_back().unwrap_or("the trainer failed without a message").to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_line_with_the_error_is_found() {
        let argument = "error: unexpected argument '--chek' found\n\n  tip: a similar argument exists: '--check'\n\n\
                        Usage: arinar-trainer --check\n\nFor more information, try '--help'.\n";
        let line = "arinar-trainer: unexpected argument '--chek' found (see arinar-trainer --help)";
        assert_eq!(error_line(argument), line);
        let own = "arinar-trainer: error: optim.ema: 2 is not a number of at least 0 and below 1";
        for stderr in [own.to_owned(), format!("a warning\n{own}\n"), format!("{own}\nand more\n")] {
            assert_eq!(error_line(&stderr), own);
        }
        assert_eq!(error_line("a library is missing\n\n"), "a library is missing");
        assert_eq!(error_line(" \n"), "the trainer failed without a message");
    }

    #[test]
    fn the_printed_configuration_is_parsed() {
        let json = br#"{"run": {"name": "a", "dir": "r", "log_dir": "l"}, "batch": {"global": 8}}"#;
        let config = JobConfig { name: "a".into(), log_dir: "l".into(), global_batch: 8, cpu: false };
        assert_eq!(JobConfig::parse(json), Ok(config));
        for damaged in ["", "{}", r#"{"run": {"log_dir": "l"}, "batch": {"global": 0}}"#] {
            assert!(JobConfig::parse(damaged.as_bytes()).is_err());
        }
        for (device, cpu) in
            [(r#""train": {"device": "cpu"}"#, true), (r#""device": "cpu""#, true), (r#""device": "auto""#, false)]
        {
            let json = format!(r#"{{{device}, "run": {{"log_dir": "l"}}, "batch": {{"global": 1}}}}"#);
            let config = JobConfig { name: "run".into(), log_dir: "l".into(), global_batch: 1, cpu };
            assert_eq!(JobConfig::parse(json.as_bytes()), Ok(config), "{device}");
        }
    }

    #[test]
    fn a_trainer_that_does_not_answer_is_an_error() {
        let query = |trainer: &str| {
            let line = ["arinar-launcher", "--config", "a"].map(Into::into);
            JobConfig::query(Path::new(trainer), &Arguments::read(line).unwrap()).unwrap_err()
        };
        assert_eq!(query("false"), Stop::failure("the trainer failed without a message"));
        let error = query("true");
        assert!(error.code == 78 && error.line.starts_with("true --print-config: the output is not JSON"), "{error}");
        let error = query("/nowhere/trainer");
        assert!(error.code == 78 && error.line.contains("--trainer"), "{error}");
    }
}
