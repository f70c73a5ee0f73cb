//! A stand-in for arinar-trainer, for the launcher's tests: it trains nothing, but talks, waits for the other ranks, saves
//! "checkpoints" and takes signals like it, and fails in every way that its configuration asks for.
//!
//! The configuration is JSON: what the launcher asks for (`run`, `batch`), and `stand_in`, a [`Script`]. Ranks wait for each
//! other through files in `run.log_dir`, so that no MPI is needed.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::exit,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arinar_protocol::{BEAT_EVERY, Beat, Farewell, Hello, Launcher, Message, Phase};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use serde::Deserialize;

/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Deserialize)]
#[serde(default)]
struct Script {
    steps: u64,
    step_ms: u64,
    /// Signals are ignored.
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
    /// Which start of the job; 0 for each.
    attempt: u32,
    rank: usize,
    /// Before it is done; 0 for the start, before the first.
    step: u64,
    /// kill, stop, hang, starve (hang, waiting for data), hang-up (end the connection, and stay), `linger [CODE]` (take
    /// leave, and stay), flood, `pause MILLISECONDS`, `exit CODE [REASON]`, or `asked ACT` (that, once asked to end).
    act: String,
}

struct Trainer {
    script: Script,
    folder: PathBuf,
    launcher: Launcher,
    began: Instant,
    rank: usize,
    world: usize,
    beat: Arc<Mutex<Beat>>,
    stream: Arc<Mutex<TcpStream>>,
    asked: Arc<AtomicBool>,
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
    let asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&asked))?;
    let launcher = Launcher::from_environment().map_err(anyhow::Error::msg)?;
    let launcher = launcher.ok_or_else(|| anyhow::anyhow!("no launcher"))?;
    let mut stream = TcpStream::connect(&launcher.addresses[..])?;
    let hello =
        Hello { token: launcher.token.clone(), rank, world, host: "stand-in".to_owned(), pid: std::process::id() };
    stream.write_all(Message::Hello(hello).line().as_bytes())?;
    let mut hearing = stream.try_clone()?;
    // The launcher is gone.
    std::thread::spawn(move || while hearing.read(&mut [0; 64]).is_ok_and(|count| count > 0) {});
    let folder = config["run"]["log_dir"].as_str().unwrap_or_default().into();
    let script = serde_json::from_value(config["stand_in"].clone())?;
    let beat = Arc::new(Mutex::new(Beat { total_steps: 0, ..Beat::default() }));
    let stream = Arc::new(Mutex::new(stream));
    let began = Instant::now();
    let trainer = Trainer { script, folder, launcher, began, rank, world, beat, stream, asked };
    trainer.beat_for_ever();
    trainer.train()
}

fn number_in(path: &Path) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Replaces a file's text at once, so that no reader sees half of it.
fn put(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, path)
}

/// False once the launcher is gone.
fn tell_beat(beat: &Mutex<Beat>, stream: &Mutex<TcpStream>, began: Instant, rank: usize) -> bool {
    let mut stream = stream.lock().unwrap_or_else(|held| held.into_inner());
    let mut now = beat.lock().unwrap_or_else(|held| held.into_inner()).clone();
    // Rank 1 works more.
    now.seconds.compute = began.elapsed().as_secs_f64() * if rank == 0 { 0.5 } else { 0.9 };
    stream.write_all(Message::Beat(now).line().as_bytes()).is_ok()
}

impl Trainer {
    fn beat_for_ever(&self) {
        let (beat, stream) = (Arc::clone(&self.beat), Arc::clone(&self.stream));
        let (began, rank) = (self.began, self.rank);
        std::thread::spawn(move || {
            while tell_beat(&beat, &stream, began, rank) {
                std::thread::sleep(BEAT_EVERY);
            }
            exit(1);
        });
    }

    fn enter(&self, phase: Phase, step: u64) {
        let mut beat = self.beat.lock().unwrap_or_else(|held| held.into_inner());
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
        let saved = self.folder.join("checkpoint");
        let mut step = number_in(&saved);
        println!("goes on from step {step}");
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
            let ends = self.asked.load(Ordering::Relaxed) && !self.script.deaf;
            if self.rank == 0 && (step.is_multiple_of(5) || ends) {
                put(&saved, &step.to_string())?;
                self.beat.lock().unwrap_or_else(|held| held.into_inner()).saved_step = step;
            }
            if ends {
                eprintln!("stopped by a signal after saving step {step}");
                self.leave(75, Some(format!("stopped by a signal after saving step {step}")));
            }
        }
        self.leave(0, None)
    }

    /// Does what the script asks for in this step.
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
                // So that the launcher knows where it stopped.
                tell_beat(&self.beat, &self.stream, self.began, self.rank);
                let _ = kill_process(getpid(), Signal::STOP);
            }
            ["hang"] => std::thread::sleep(HOUR),
            ["starve"] => {
                self.beat.lock().unwrap_or_else(|held| held.into_inner()).phase = Phase::DataWait;
                std::thread::sleep(HOUR);
            }
            ["hang-up"] => {
                let stream = self.stream.lock().unwrap_or_else(|held| held.into_inner());
                let _ = stream.shutdown(Shutdown::Both);
                std::thread::sleep(HOUR);
            }
            ["pause", milliseconds] => {
                std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap_or(0)));
            }
            ["linger", ref code @ ..] => {
                let code = code.first().and_then(|code| code.parse().ok()).unwrap_or(0);
                let _stream = self.say_farewell(code, None);
                std::thread::sleep(HOUR);
            }
            ["asked", ..] => {
                // So that the launcher knows how far it came.
                tell_beat(&self.beat, &self.stream, self.began, self.rank);
                while !self.asked.load(Ordering::Relaxed) {
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
            _ => self.leave(99, Some(format!("no such act: {act}"))),
        }
    }

    fn leave(&self, code: u8, reason: Option<String>) -> ! {
        let _stream = self.say_farewell(code, reason);
        exit(code.into())
    }

    /// Nothing is said after it while the stream is held.
    fn say_farewell(&self, code: u8, reason: Option<String>) -> MutexGuard<'_, TcpStream> {
        let mut stream = self.stream.lock().unwrap_or_else(|held| held.into_inner());
        let _ = stream.write_all(Message::Farewell(Farewell::new(code, reason)).line().as_bytes());
        stream
    }

    /// Until all ranks of this start have come to this step.
    fn wait_for_others(&self, step: u64) -> anyhow::Result<()> {
        let attempt = u64::from(self.launcher.attempt) << 32;
        let place = |rank| self.folder.join(format!("rank-{rank}.at"));
        put(&place(self.rank), &(attempt + step).to_string())?;
        while (0..self.world).any(|rank| number_in(&place(rank)) < attempt + step) {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}
