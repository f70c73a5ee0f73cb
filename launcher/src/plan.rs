//! What the launcher must know of the run before it starts: asked of the trainer, which checks the configuration.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use arinar_protocol::exit_code;

use crate::{
    arguments::{Arguments, LogFormat, RankCount},
    exit::Stop,
    processes,
};

/// How a line begins in which the trainer says why it ends.
const OWN_ERROR: &str = "arinar-trainer: error: ";
/// The same of a wrong argument; lines about how to use it follow.
const ARGUMENT_ERROR: &str = "error: ";

/// The few values of the configuration that concern the launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `run.name`.
    pub name: String,
    /// `run.log_dir`.
    pub log_dir: PathBuf,
    /// `batch.global`.
    pub global_batch: usize,
    /// The configuration asks for the CPU even where there are GPUs.
    pub cpu: bool,
}

impl Plan {
    /// Runs `arinar-trainer --config X --print-config`. Where the trainer is asked a question and the configuration is
    /// wrong, this process becomes the trainer: it finds all that is wrong, and tells it in lines of its own.
    ///
    /// # Errors
    /// What the trainer finds wrong, in its words and with its code; or that it does not answer.
    pub fn ask(trainer: &Path, arguments: &Arguments) -> Result<Self, Stop> {
        let told = trainer_arguments(arguments);
        let mut command = alone(trainer);
        command.args(told.iter().filter(|word| !is_question(word))).arg("--print-config").stdin(Stdio::null());
        processes::tie_to_this_thread(&mut command);
        let output = command.output().map_err(|error| cannot_be_run(trainer, &error))?;
        if output.status.success() {
            return Self::read(&output.stdout)
                .map_err(|told| Stop::configuration(format!("{} --print-config: {told}", trainer.display())));
        }
        let code = output.status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0);
        let line = reason(&String::from_utf8_lossy(&output.stderr));
        let stop = Stop { code: code.unwrap_or(exit_code::FAILED), line };
        let asks = !arguments.dry_run && told.iter().any(|word| is_question(word));
        if asks && stop.code == exit_code::CONFIGURATION && stop.line.starts_with(OWN_ERROR) {
            return Err(cannot_be_run(trainer, &alone(trainer).args(told).exec()));
        }
        Err(stop)
    }

    fn read(json: &[u8]) -> Result<Self, String> {
        let config: serde_json::Value = serde_json::from_slice(json)
            .map_err(|error| format!("it prints no JSON ({error}); is it of the same version as the launcher?"))?;
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

/// The trainer as a process by itself: inside another mpirun, say Slurm's, this one is no rank.
fn alone(trainer: &Path) -> Command {
    let mut command = Command::new(trainer);
    for (name, _) in std::env::vars_os() {
        if ["OMPI_COMM_", "PMIX_", "PMI_"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

fn cannot_be_run(trainer: &Path, error: &io::Error) -> Stop {
    Stop::configuration(format!("{} cannot be run ({error}); name the trainer with --trainer", trainer.display()))
}

/// The one line of what the trainer has written that says why it ended.
fn reason(stderr: &str) -> String {
    let mut lines = stderr.lines().filter(|line| !line.trim().is_empty());
    let told = lines.clone().find(|line| line.starts_with(OWN_ERROR) || line.starts_with(ARGUMENT_ERROR));
    match told.map(|line| (line, line.strip_prefix(ARGUMENT_ERROR))) {
        Some((_, Some(told))) => format!("arinar-trainer: {told} (arinar-trainer --help explains)"),
        Some((line, None)) => line.to_owned(),
        None => lines.next_back().unwrap_or("it says nothing").to_owned(),
    }
}

/// Arguments that make the trainer look at something instead of training: that is neither watched nor restarted.
const QUESTIONS: [&str; 2] = ["--check", "--plan"];

/// Whether an argument of the trainer is one of those.
pub fn is_question(word: &str) -> bool {
    QUESTIONS.contains(&word)
}

/// What every rank is told.
pub fn trainer_arguments(arguments: &Arguments) -> Vec<String> {
    let mut told = vec!["--config".to_owned(), arguments.config.clone()];
    for value in &arguments.overrides {
        told.extend(["--set".to_owned(), value.clone()]);
    }
    told.extend(arguments.trainer_arguments.iter().cloned());
    if arguments.log_format == LogFormat::Json && !told.iter().any(|word| word.starts_with("--log-format")) {
        told.extend(["--log-format", "json"].map(str::to_owned));
    }
    told
}

/// How many ranks to start.
///
/// # Errors
/// The number asked for does not divide the global batch.
pub fn choose_ranks(asked: RankCount, slots: usize, global_batch: usize) -> Result<usize, Stop> {
    let divides = |ranks: &usize| global_batch.is_multiple_of(*ranks);
    match asked {
        RankCount::Auto => Ok((1..=slots).rev().find(divides).unwrap_or(1)),
        RankCount::Exactly(ranks) if divides(&ranks) => Ok(ranks),
        RankCount::Exactly(ranks) => {
            let below = (1..ranks).rev().find(divides);
            let above = (ranks + 1..=global_batch).find(divides);
            let near: Vec<String> = below.into_iter().chain(above).map(|ranks| ranks.to_string()).collect();
            Err(Stop::configuration(format!(
                "batch.global {global_batch} is not divisible by --nproc {ranks}; use {}",
                near.join(" or ")
            )))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn as_many_ranks_as_share_the_batch() {
        for (slots, batch, ranks) in [(4, 256, 4), (3, 256, 2), (7, 30, 6), (1, 7, 1), (0, 8, 1), (8, 7, 7)] {
            assert_eq!(choose_ranks(RankCount::Auto, slots, batch), Ok(ranks));
        }
        assert_eq!(choose_ranks(RankCount::Exactly(8), 1, 16), Ok(8));
    }

    #[test]
    fn a_number_that_does_not_fit_names_those_that_do() {
        let told = choose_ranks(RankCount::Exactly(3), 4, 32).unwrap_err();
        assert_eq!(told, Stop::configuration("batch.global 32 is not divisible by --nproc 3; use 2 or 4"));
        let told = choose_ranks(RankCount::Exactly(64), 4, 32).unwrap_err();
        assert_eq!(told.line, "batch.global 32 is not divisible by --nproc 64; use 32");
    }

    #[test]
    fn of_all_that_the_trainer_says_the_reason_is_taken() {
        let argument = "error: unexpected argument '--chek' found\n\n  tip: a similar argument exists: '--check'\n\n\
                        Usage: arinar-trainer --check\n\nFor more information, try '--help'.\n";
        let told = "arinar-trainer: unexpected argument '--chek' found (arinar-trainer --help explains)";
        assert_eq!(reason(argument), told);
        let own = "arinar-trainer: error: optim.ema: 2 is not within [0, 1)";
        for said in [own.to_owned(), format!("a warning\n{own}\n"), format!("{own}\nand more\n")] {
            assert_eq!(reason(&said), own);
        }
        assert_eq!(reason("a library is missing\n\n"), "a library is missing");
        assert_eq!(reason(" \n"), "it says nothing");
    }

    #[test]
    fn ranks_write_as_the_launcher_does() {
        let told = |line: &str| {
            let words = line.split(' ').map(Into::into);
            trainer_arguments(&Arguments::read(words).unwrap()).join(" ")
        };
        let line = "arinar-launcher --config a --set b=1 --log-format json";
        assert_eq!(told(line), "--config a --set b=1 --log-format json");
        let line = "arinar-launcher --config a --log-format json -- --check --log-format=text";
        assert_eq!(told(line), "--config a --check --log-format=text");
    }

    #[test]
    fn the_printed_configuration_is_read() {
        let json = br#"{"run": {"name": "a", "dir": "r", "log_dir": "l"}, "batch": {"global": 8}}"#;
        let plan = Plan { name: "a".into(), log_dir: "l".into(), global_batch: 8, cpu: false };
        assert_eq!(Plan::read(json), Ok(plan));
        for damaged in ["", "{}", r#"{"run": {"log_dir": "l"}, "batch": {"global": 0}}"#] {
            assert!(Plan::read(damaged.as_bytes()).is_err());
        }
        for (device, cpu) in
            [(r#""train": {"device": "cpu"}"#, true), (r#""device": "cpu""#, true), (r#""device": "auto""#, false)]
        {
            let json = format!(r#"{{{device}, "run": {{"log_dir": "l"}}, "batch": {{"global": 1}}}}"#);
            let plan = Plan { name: "run".into(), log_dir: "l".into(), global_batch: 1, cpu };
            assert_eq!(Plan::read(json.as_bytes()), Ok(plan), "{device}");
        }
    }

    #[test]
    fn a_trainer_that_does_not_answer_says_whether_to_change_something() {
        let asked = |trainer: &str| {
            let line = ["arinar-launcher", "--config", "a"].map(Into::into);
            Plan::ask(Path::new(trainer), &Arguments::read(line).unwrap()).unwrap_err()
        };
        assert_eq!(asked("false"), Stop::failure("it says nothing"));
        let told = asked("true");
        assert!(told.code == 78 && told.line.starts_with("true --print-config: it prints no JSON"), "{told}");
        let told = asked("/nowhere/trainer");
        assert!(told.code == 78 && told.line.contains("--trainer"), "{told}");
    }

    #[test]
    fn a_question_is_neither_watched_nor_restarted() {
        assert!(is_question("--check") && is_question("--plan"));
        assert!(!is_question("--export") && !is_question("check"));
    }
}
