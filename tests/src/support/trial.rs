//! What tests of the launcher with the real trainer share: a run under the launcher, what it must not leave
//! behind, and the run that nothing disturbs, which it must equal to the last bit.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{
    launcher::{Process, Running, Said, lives, program, until, within},
    trainer::{Ended, Lab, launch},
};

/// Nothing of a job stays after its end. The launcher gives mpirun five seconds before it kills it.
pub const GONE: Duration = Duration::from_secs(60);

/// The usual `--silence-limit`. What is noticed in a fraction of it is noticed by itself, and not because nothing was heard.
pub const SILENCE: Duration = Duration::from_secs(60);

/// A run that is going to be disturbed.
pub struct Trial {
    pub lab: Lab,
    pub ranks: usize,
    /// The launcher's `--silence-limit`.
    pub silence: Duration,
    config: PathBuf,
    overrides: Vec<String>,
}

impl Trial {
    /// Of the tiny model.
    pub fn tiny(overrides: &[&str]) -> Self {
        let lab = Lab::new();
        let config = lab.path("tiny.yaml");
        Self::new(lab, config, overrides.iter().map(|value| (*value).to_owned()).collect())
    }

    /// Of the demo's model on the demo's pictures.
    pub fn demo(overrides: &[&str]) -> Self {
        let lab = Lab::new();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut encode = launch(2);
        encode.arg(program("arinar-data")).args(["encode", "--image-size", "32", "--images"]);
        encode.arg(repository.join("tests/data/noto-emoji-32.tar")).arg("--vae");
        encode.arg(repository.join("data/assets/emoji-vae.safetensors")).arg("--out").arg(lab.path("emoji"));
        Ended::of(encode.output().unwrap()).succeeded();
        let places = [("data.url", "emoji"), ("run.dir", "run"), ("run.log_dir", "logs")];
        let places = places.map(|(key, name)| format!("{key}={}", lab.path(name).display()));
        let overrides = places.into_iter().chain(overrides.iter().map(|value| (*value).to_owned())).collect();
        Self::new(lab, repository.join("configs/demo.yaml"), overrides)
    }

    fn new(lab: Lab, config: PathBuf, overrides: Vec<String>) -> Self {
        std::fs::create_dir(lab.path("tmp")).unwrap();
        Self { lab, ranks: 2, silence: SILENCE, config, overrides }
    }

    /// Puts a text that was not known at first into the overrides.
    pub fn replace(&mut self, placeholder: &str, text: &str) {
        for value in &mut self.overrides {
            *value = value.replace(placeholder, text);
        }
    }

    /// The launcher.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("arinar-launcher"));
        command.arg("--config").arg(&self.config).args(["--nproc", &self.ranks.to_string()]);
        command.args(["--silence-limit", &format!("{}s", self.silence.as_secs())]);
        for value in &self.overrides {
            command.args(["--set", value]);
        }
        // Open MPI keeps its files there.
        command.env("TMPDIR", self.lab.path("tmp")).env("ARINAR_SAMPLE_LOG", self.lab.path("samples"));
        command.args(arguments);
        command
    }

    /// Runs the launcher to its end.
    pub fn run(&self, arguments: &[&str]) -> Said {
        Said::by(&mut self.command(arguments))
    }

    /// Starts the launcher.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.watch(self.command(arguments))
    }

    /// Starts a command that is the launcher, or becomes it. What ranks say goes to a file: a pipe that nobody reads would
    /// fill up.
    pub fn watch(&self, mut command: Command) -> Running {
        let stdout = File::options().create(true).append(true).open(self.lab.path("stdout")).unwrap();
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        Running { child: Some(child), log: self.lab.path("logs/ranks/launcher.log") }
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.lab.path(&format!("logs/ranks/{name}.log"))).unwrap_or_default()
    }

    /// Waits for a checkpoint that is not there yet; returns its name.
    #[track_caller]
    pub fn next_checkpoint(&self) -> String {
        let known = self.lab.checkpoints("run");
        until("a checkpoint", || self.lab.checkpoints("run").into_iter().find(|name| !known.contains(name)))
    }

    /// Waits until rank 0 of this start has told where it goes on from.
    #[track_caller]
    pub fn goes_on_from(&self, attempt: &str) -> String {
        until("a restart", || {
            let log = self.log("rank-0");
            let (_, last) = log.rsplit_once(attempt)?;
            let line = last.lines().find(|line| line.starts_with("resuming from "))?;
            Some(line.rsplit('/').next()?.to_owned())
        })
    }

    /// The same run, which nothing disturbs, under plain mpirun in folders of its own.
    pub fn undisturbed(&self) -> Command {
        let mut command = launch(self.ranks);
        command.arg(program("arinar-trainer")).arg("--config").arg(&self.config);
        let places = [("run.dir", "calm"), ("run.log_dir", "calm-logs")];
        let places = places.map(|(key, name)| format!("{key}={}", self.lab.path(name).display()));
        for value in self.overrides.iter().chain(&places) {
            command.arg("--set").arg(value);
        }
        command.env("ARINAR_SAMPLE_LOG", self.lab.path("calm-samples"));
        command
    }

    /// Trains undisturbed, and asserts that the trial came to the same end by the same way.
    pub fn assert_like_undisturbed(&self) {
        Ended::of(self.undisturbed().output().unwrap()).succeeded();
        self.assert_same_end();
    }

    /// What [`Self::assert_like_undisturbed`] asserts, once the undisturbed run has ended.
    pub fn assert_same_end(&self) {
        let last = self.lab.checkpoints("calm").pop().unwrap();
        assert_eq!(self.lab.checkpoints("run").last(), Some(&last));
        let tensors = |run: &str| self.lab.tensors(&format!("{run}/{last}"));
        assert!(tensors("run") == tensors("calm"), "the weights differ");
        self.put_ranks_aside();
        assert_eq!(self.lab.curve("logs", "train_loss"), self.lab.curve("calm-logs", "train_loss"));
        assert_eq!(self.samples("samples"), self.samples("calm-samples"));
    }

    /// The reader of curves wants files alone.
    pub fn put_ranks_aside(&self) {
        std::fs::rename(self.lab.path("logs/ranks"), self.lab.path("ranks")).unwrap();
    }

    /// The samples of each step, as sample and epoch; a step that was trained again has the same.
    pub fn samples(&self, name: &str) -> BTreeMap<u64, BTreeSet<(u64, u64)>> {
        let text = std::fs::read_to_string(self.lab.path(name)).unwrap();
        let mut steps: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for line in text.lines() {
            let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            steps.entry(numbers[0]).or_default().insert((numbers[1], numbers[2]));
        }
        steps
    }

    /// Asserts that of these jobs and of any other of this trial neither a process nor a file is left.
    #[track_caller]
    pub fn assert_nothing_is_left(&self, jobs: &Jobs) {
        jobs.assert_gone();
        let found = Command::new("find").arg(self.lab.path("tmp")).args(["-mindepth", "1"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        assert_eq!(jobs.shared_memory(), [""; 0]);
    }
}

/// `command`, started by another, which becomes it.
pub fn started_by(mut starter: Command, command: &Command) -> Command {
    starter.arg(command.get_program()).args(command.get_args());
    starter.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    starter
}

/// Processes that were seen below launchers, and Open MPI's numbers of their jobs.
#[derive(Default)]
pub struct Jobs {
    processes: BTreeSet<u32>,
    numbers: BTreeSet<u32>,
}

impl Jobs {
    /// Takes note of a launcher's processes.
    pub fn see(&mut self, processes: &[Process]) {
        self.processes.extend(processes.iter().map(|process| process.pid));
        let variables = processes.iter().flat_map(|process| &process.environment);
        let numbers = variables.filter_map(|variable| variable.strip_prefix("PMIX_NAMESPACE=")?.parse::<u32>().ok());
        self.numbers.extend(numbers);
    }

    /// Waits until all of them are gone, no longer than [`GONE`].
    #[track_caller]
    pub fn assert_gone(&self) {
        within(GONE, "all processes gone", || (!self.processes.iter().any(|&pid| lives(pid))).then_some(()));
    }

    /// Names of their ranks' shared memory that is still there.
    fn shared_memory(&self) -> Vec<String> {
        let names =
            std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let is_ours = |name: &String| self.numbers.iter().any(|job| name.contains(&format!(".{job:x}.")));
        names.filter(is_ours).collect()
    }
}
