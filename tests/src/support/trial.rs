//! Helpers for tests of the launcher with the real trainer: a run under the launcher that is disturbed, checks that it
//! leaves no processes or files behind, and the undisturbed run that it must equal bit for bit.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::programs::program;
use crate::support::{
    launcher::{LauncherOutput, Process, Running, is_alive, wait_at_most, wait_until},
    trainer::{Lab, ProcessOutput, launch},
};

/// Time within which all processes of a finished job must be gone. The launcher kills `mpirun` after five seconds.
pub const GONE: Duration = Duration::from_secs(60);

/// The default `--silence-limit`. A failure noticed in a fraction of it was detected directly, not by silence.
pub const SILENCE: Duration = Duration::from_secs(60);

/// A run under the launcher that the test disturbs.
pub struct Trial {
    pub lab: Lab,
    pub ranks: usize,
    /// The launcher's `--silence-limit`.
    pub silence: Duration,
    config: PathBuf,
    overrides: Vec<String>,
}

impl Trial {
    /// Creates a trial of the tiny model.
    pub fn tiny(overrides: &[&str]) -> Self {
        let lab = Lab::new();
        let config = lab.path("tiny.yaml");
        Self::new(lab, config, overrides.iter().map(|value| (*value).to_owned()).collect())
    }

    /// Creates a trial of the demo's model on the demo's pictures.
    pub fn demo(overrides: &[&str]) -> Self {
        let lab = Lab::new();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut encode = launch(2);
        encode.arg(program("arinar-data")).args(["encode", "--image-size", "32", "--images"]);
        encode.arg(repository.join("tests/data/noto-emoji-32.tar")).arg("--vae");
        encode.arg(repository.join("data/assets/emoji-vae.safetensors")).arg("--out").arg(lab.path("emoji"));
        ProcessOutput::of(encode.output().unwrap()).succeeded();
        let paths = [("data.url", "emoji"), ("run.dir", "run"), ("run.log_dir", "logs")];
        let paths = paths.map(|(key, name)| format!("{key}={}", lab.path(name).display()));
        let overrides = paths.into_iter().chain(overrides.iter().map(|value| (*value).to_owned())).collect();
        Self::new(lab, repository.join("configs/demo.yaml"), overrides)
    }

    fn new(lab: Lab, config: PathBuf, overrides: Vec<String>) -> Self {
        std::fs::create_dir(lab.path("tmp")).unwrap();
        Self { lab, ranks: 2, silence: SILENCE, config, overrides }
    }

    /// Replaces a placeholder in the overrides by a text that was unknown when the trial was created.
    pub fn replace(&mut self, placeholder: &str, text: &str) {
        for value in &mut self.overrides {
            *value = value.replace(placeholder, text);
        }
    }

    /// Returns the command that runs the launcher.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("arinar-launcher"));
        command.arg("--config").arg(&self.config).args(["--nproc", &self.ranks.to_string()]);
        command.args(["--silence-limit", &format!("{}s", self.silence.as_secs())]);
        for value in &self.overrides {
            command.args(["--set", value]);
        }
        // Open MPI stores its session files in TMPDIR.
        command.env("TMPDIR", self.lab.path("tmp")).env("ARINAR_SAMPLE_LOG", self.lab.path("samples"));
        command.args(arguments);
        command
    }

    /// Runs the launcher until it exits.
    pub fn run(&self, arguments: &[&str]) -> LauncherOutput {
        LauncherOutput::of(&mut self.command(arguments))
    }

    /// Starts the launcher.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.watch(self.command(arguments))
    }

    /// Starts a command that is the launcher or executes it. Its standard output goes to a file, because a pipe without
    /// a reader would fill up.
    pub fn watch(&self, mut command: Command) -> Running {
        let stdout = File::options().create(true).append(true).open(self.lab.path("stdout")).unwrap();
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        Running { child: Some(child), log: self.lab.path("logs/ranks/launcher.log") }
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.lab.path(&format!("logs/ranks/{name}.log"))).unwrap_or_default()
    }

    /// Waits for the next checkpoint; returns its name.
    #[track_caller]
    pub fn next_checkpoint(&self) -> String {
        let known = self.lab.checkpoints("run");
        wait_until("a checkpoint", || self.lab.checkpoints("run").into_iter().find(|name| !known.contains(name)))
    }

    /// Waits until rank 0 of this attempt has logged the checkpoint from which it resumes; returns its name.
    #[track_caller]
    pub fn resumed_from(&self, attempt: &str) -> String {
        wait_until("a restart", || {
            let log = self.log("rank-0");
            let (_, of_attempt) = log.rsplit_once(attempt)?;
            let line = of_attempt.lines().find(|line| line.starts_with("resuming from "))?;
            Some(line.rsplit('/').next()?.to_owned())
        })
    }

    /// Returns the command of the same run without the launcher, in separate folders.
    pub fn undisturbed(&self) -> Command {
        let mut command = launch(self.ranks);
        command.arg(program("arinar-trainer")).arg("--config").arg(&self.config);
        let paths = [("run.dir", "calm"), ("run.log_dir", "calm-logs")];
        let paths = paths.map(|(key, name)| format!("{key}={}", self.lab.path(name).display()));
        for value in self.overrides.iter().chain(&paths) {
            command.arg("--set").arg(value);
        }
        command.env("ARINAR_SAMPLE_LOG", self.lab.path("calm-samples"));
        command
    }

    /// Runs the undisturbed training and asserts that the trial has the same curve, samples and final weights.
    pub fn assert_matches_undisturbed(&self) {
        ProcessOutput::of(self.undisturbed().output().unwrap()).succeeded();
        self.assert_same_results();
    }

    /// Makes the assertions of [`Self::assert_matches_undisturbed`] after the undisturbed run has ended.
    pub fn assert_same_results(&self) {
        let last = self.lab.checkpoints("calm").pop().unwrap();
        assert_eq!(self.lab.checkpoints("run").last(), Some(&last));
        let tensors = |run: &str| self.lab.tensors(&format!("{run}/{last}"));
        assert!(tensors("run") == tensors("calm"), "the weights differ");
        self.move_rank_logs();
        assert_eq!(self.lab.curve("logs", "train_loss"), self.lab.curve("calm-logs", "train_loss"));
        assert_eq!(self.samples("samples"), self.samples("calm-samples"));
    }

    /// Moves the ranks' logs away, because the reader of curves expects a folder with files only.
    pub fn move_rank_logs(&self) {
        std::fs::rename(self.lab.path("logs/ranks"), self.lab.path("ranks")).unwrap();
    }

    /// Returns the samples of each step as (sample, epoch). A step that was trained twice must have the same samples.
    pub fn samples(&self, name: &str) -> BTreeMap<u64, BTreeSet<(u64, u64)>> {
        let text = std::fs::read_to_string(self.lab.path(name)).unwrap();
        let mut steps: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for line in text.lines() {
            let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            steps.entry(numbers[0]).or_default().insert((numbers[1], numbers[2]));
        }
        steps
    }

    /// Asserts that no process or file of these jobs or of another job of this trial is left.
    #[track_caller]
    pub fn assert_nothing_is_left(&self, jobs: &Jobs) {
        jobs.assert_gone();
        let found = Command::new("find").arg(self.lab.path("tmp")).args(["-mindepth", "1"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        assert_eq!(jobs.shared_memory(), [""; 0]);
    }
}

/// Returns `command` prefixed by the command `starter`, which executes it.
pub fn started_by(mut starter: Command, command: &Command) -> Command {
    starter.arg(command.get_program()).args(command.get_args());
    starter.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    starter
}

/// Processes recorded as descendants of launchers, and Open MPI's numbers of their jobs.
#[derive(Default)]
pub struct Jobs {
    processes: BTreeSet<u32>,
    numbers: BTreeSet<u32>,
}

impl Jobs {
    /// Records a launcher's processes.
    pub fn record(&mut self, processes: &[Process]) {
        self.processes.extend(processes.iter().map(|process| process.pid));
        let variables = processes.iter().flat_map(|process| &process.environment);
        let numbers = variables.filter_map(|variable| variable.strip_prefix("PMIX_NAMESPACE=")?.parse::<u32>().ok());
        self.numbers.extend(numbers);
    }

    /// Asserts that all recorded processes are gone within [`GONE`].
    #[track_caller]
    pub fn assert_gone(&self) {
        wait_at_most(GONE, "all processes gone", || (!self.processes.iter().any(|&pid| is_alive(pid))).then_some(()));
    }

    /// Returns the names of the shared memory that ranks of these jobs have left.
    fn shared_memory(&self) -> Vec<String> {
        let names =
            std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let is_ours = |name: &String| self.numbers.iter().any(|job| name.contains(&format!(".{job:x}.")));
        names.filter(is_ours).collect()
    }
}
