//! A stand-in for arinar-trainer, for the launcher's tests. It trains nothing, but sends heartbeats, waits for the
//! other ranks, saves "checkpoints" and handles signals like the trainer, and fails as its configuration requests.
//!
//! The configuration is JSON with the sections that the launcher requires (`run`, `batch`) and `stand_in`, a
//! [`Script`]. Ranks wait for each other with files in `run.log_dir`, so that MPI is not needed.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::exit,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arinar_protocol::{BEAT_EVERY, Beat, Farewell, Hello, Launcher, Message, Phase};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use serde::Deserialize;

/// A time longer than any test.
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Deserialize)]
#[serde(default)]
struct Script {
    steps: u64,
    step_ms: u64,
    /// Whether signals are ignored.
    deaf: bool,
    faults: Vec<Fault>,
}

impl Default for Script {
    fn default() -> Self {
        Self { steps: 20, step_ms: 20, deaf: false, faults: Vec::new() }
    }
}

#[derive(Clone, Deserialize)]
struct Fault {
    /// Attempt of the job in which the fault occurs; 0 for every attempt.
    attempt: u32,
    rank: usize,
    /// Step before whose end the fault occurs; 0 for the start-up, before the first step.
    step: u64,
    /// kill, stop, hang, starve (hang while waiting for data), hang-up (close the connection, then hang),
    /// `linger [CODE]` (send a farewell, then hang), flood (print many lines), `pause MILLISECONDS`,
    /// `exit CODE [REASON]`, or `asked ACT` (wait for the signal to stop, then do ACT).
    act: String,
}

struct Trainer {
    script: Script,
    folder: PathBuf,
    launcher: Launcher,
    start: Instant,
    rank: usize,
    world: usize,
    beat: Arc<Mutex<Beat>>,
    stream: Arc<Mutex<TcpStream>>,
    stop_requested: Arc<AtomicBool>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let config = arguments.iter().position(|word| word == "--config").map(|at| arguments[at + 1].clone());
    let text = std::fs::read_to_string(config.unwrap_or_default())?;
    let config: serde_json::Value = serde_json::from_str(&text)?;
    if arguments.iter().any(|word| word == "--print-config") {
        println!("{config}");
        return Ok(());
    }
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let rank = number("OMPI_COMM_WORLD_RANK").unwrap_or(0);
    let world = number("OMPI_COMM_WORLD_SIZE").unwrap_or(1);
    let stop_requested = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&stop_requested))?;
    let launcher = Launcher::from_environment().map_err(anyhow::Error::msg)?;
    let launcher = launcher.ok_or_else(|| anyhow::anyhow!("no launcher"))?;
    let mut stream = TcpStream::connect(&launcher.addresses[..])?;
    let hello =
        Hello { token: launcher.token.clone(), rank, world, host: "stand-in".to_owned(), pid: std::process::id() };
    stream.write_all(Message::Hello(hello).line().as_bytes())?;
    let mut incoming = stream.try_clone()?;
    // Discard everything that the launcher sends.
    std::thread::spawn(move || while incoming.read(&mut [0; 64]).is_ok_and(|count| count > 0) {});
    let folder = config["run"]["log_dir"].as_str().unwrap_or_default().into();
    let script = serde_json::from_value(config["stand_in"].clone())?;
    let beat = Arc::new(Mutex::new(Beat { total_steps: 0, ..Beat::default() }));
    let stream = Arc::new(Mutex::new(stream));
    let start = Instant::now();
    let trainer = Trainer { script, folder, launcher, start, rank, world, beat, stream, stop_requested };
    trainer.start_heartbeats();
    trainer.train()
}

fn number_in(path: &Path) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Replaces a file's contents atomically, so that no reader sees a part of them.
fn replace_file(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

/// Sends a heartbeat. Returns false if the launcher is gone.
fn send_heartbeat(beat: &Mutex<Beat>, stream: &Mutex<TcpStream>, start: Instant, rank: usize) -> bool {
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    let mut now = beat.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Rank 1 has more work than rank 0.
    now.seconds.compute = start.elapsed().as_secs_f64() * if rank == 0 { 0.5 } else { 0.9 };
    stream.write_all(Message::Beat(now).line().as_bytes()).is_ok()
}

impl Trainer {
    fn start_heartbeats(&self) {
        let (beat, stream) = (Arc::clone(&self.beat), Arc::clone(&self.stream));
        let (start, rank) = (self.start, self.rank);
        std::thread::spawn(move || {
            while send_heartbeat(&beat, &stream, start, rank) {
                std::thread::sleep(BEAT_EVERY);
            }
            exit(1);
        });
    }

    fn enter(&self, phase: Phase, step: u64) {
        let mut beat = self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        beat.marks += 1;
        (beat.phase, beat.step, beat.global_batch) = (phase, step, 8);
        beat.total_steps = self.script.steps;
        beat.resident_bytes = 100 << 20;
        if phase == Phase::StartUp {
            beat.first_step = step;
        }
        if step > beat.first_step {
            beat.step_seconds = self.script.step_ms as f64 / 1e3;
            beat.loss = Some(1.0 / (1.0 + step as f64));
        }
    }

    fn train(&self) -> anyhow::Result<()> {
        let checkpoint = self.folder.join("checkpoint");
        let mut step = number_in(&checkpoint);
        println!("resumes from step {step}");
        self.enter(Phase::StartUp, step);
        self.fail_in(0);
        self.wait_for_others(step)?;
        while step < self.script.steps {
            self.enter(Phase::Compute, step);
            std::thread::sleep(Duration::from_millis(self.script.step_ms));
            self.fail_in(step + 1);
            self.enter(Phase::AllReduce, step);
            self.wait_for_others(step + 1)?;
            step += 1;
            println!("step {step}");
            let stops = self.stop_requested.load(Ordering::Relaxed) && !self.script.deaf;
            if self.rank == 0 && (step.is_multiple_of(5) || stops) {
                replace_file(&checkpoint, &step.to_string())?;
                self.beat.lock().unwrap_or_else(PoisonError::into_inner).saved_step = step;
            }
            if stops {
                eprintln!("stopped by a signal after saving step {step}");
                self.leave(75, Some(format!("stopped by a signal after saving step {step}")));
            }
        }
        self.leave(0, None)
    }

    /// Injects the faults that the script plans for this step.
    fn fail_in(&self, step: u64) {
        for fault in self.script.faults.clone() {
            let now = fault.rank == self.rank && fault.step == step;
            if now && (fault.attempt == 0 || fault.attempt == self.launcher.attempt) {
                self.fail(&fault.act);
            }
        }
    }

    fn fail(&self, act: &str) {
        match act.split(' ').collect::<Vec<_>>()[..] {
            ["kill"] => {
                let _ = kill_process(getpid(), Signal::KILL);
            }
            ["stop"] => {
                // Report the current phase to the launcher first.
                send_heartbeat(&self.beat, &self.stream, self.start, self.rank);
                let _ = kill_process(getpid(), Signal::STOP);
            }
            ["hang"] => std::thread::sleep(HOUR),
            ["starve"] => {
                self.beat.lock().unwrap_or_else(PoisonError::into_inner).phase = Phase::DataWait;
                std::thread::sleep(HOUR);
            }
            ["hang-up"] => {
                let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = stream.shutdown(Shutdown::Both);
                std::thread::sleep(HOUR);
            }
            ["pause", milliseconds] => {
                std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap_or(0)));
            }
            ["linger", ref code @ ..] => {
                let code = code.first().and_then(|code| code.parse().ok()).unwrap_or(0);
                let _stream = self.send_farewell(code, None);
                std::thread::sleep(HOUR);
            }
            ["asked", ..] => {
                // Report the current step to the launcher first.
                send_heartbeat(&self.beat, &self.stream, self.start, self.rank);
                while !self.stop_requested.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                self.fail(act.trim_start_matches("asked "));
            }
            ["flood"] => {
                for line in 0..2000 {
                    println!("rank {} line {line} {}", self.rank, "x".repeat(line % 300));
                }
            }
            ["exit", code, ..] => {
                let reason = act.splitn(3, ' ').nth(2).map(str::to_owned);
                self.leave(code.parse().unwrap_or(1), reason);
            }
            _ => self.leave(99, Some(format!("unknown act: {act}"))),
        }
    }

    fn leave(&self, code: u8, reason: Option<String>) -> ! {
        let _stream = self.send_farewell(code, reason);
        exit(code.into())
    }

    /// Sends the farewell. Nothing else can be sent while the caller holds the returned guard.
    fn send_farewell(&self, code: u8, reason: Option<String>) -> MutexGuard<'_, TcpStream> {
        // The launcher learns the last step even if it was faster than the heartbeat.
        send_heartbeat(&self.beat, &self.stream, self.start, self.rank);
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.write_all(Message::Farewell(Farewell::new(code, reason)).line().as_bytes());
        stream
    }

    /// Waits until all ranks of this attempt have reached this step.
    fn wait_for_others(&self, step: u64) -> anyhow::Result<()> {
        let attempt = u64::from(self.launcher.attempt) << 32;
        let path = |rank| self.folder.join(format!("rank-{rank}.at"));
        replace_file(&path(self.rank), &(attempt + step).to_string())?;
        while (0..self.world).any(|rank| number_in(&path(rank)) < attempt + step) {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}
