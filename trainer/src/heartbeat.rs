//! The thread that tells the launcher how this rank does, and that ends the rank when the launcher is gone.
//!
//! A rank must not outlive its job: on another machine nobody would see it compute, and hold its GPU, for ever. The
//! kernel ends it when its parent (mpirun or its daemon) dies; and it ends itself when the launcher has died, or has
//! been silent for too long, as when the network between the two is cut. Checkpoints are safe at any such moment.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arinar_protocol::{BEAT_EVERY, Farewell, Hello, Launcher, Message};
use rustix::process::Signal;

use crate::{exit, vitals::Vitals};
use arinar_collective::LaunchEnvironment;

/// Longest wait for one of the launcher's addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait until the launcher has taken a message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before all addresses are tried again.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// The one connection of this process, once there is one.
static LINE: OnceLock<Line> = OnceLock::new();

struct Line {
    stream: Mutex<TcpStream>,
    /// The last word is said: that the launcher hangs up means nothing any more.
    ended: AtomicBool,
}

/// Asks the kernel to end this process when its parent dies. Call it first in `main`, under mpirun alone.
pub fn die_with_parent() {
    // Without it, as on other systems than Linux, the launcher's silence ends the rank a little later.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// Connects to the launcher, if one started this job, and beats from now on.
///
/// # Errors
/// One line: the launcher cannot be reached, or what should say where it is makes no sense.
pub fn start(launch: Option<LaunchEnvironment>, vitals: Arc<Vitals>) -> Result<Option<Launcher>, String> {
    let Some(launcher) = Launcher::from_environment()? else { return Ok(None) };
    let silence = Duration::from_secs_f64(launcher.silence_secs);
    let stream = connect(&launcher, silence)?;
    let told = |error: io::Error| format!("the connection to the launcher cannot be used: {error}");
    let mut hearing = stream.try_clone().map_err(told)?;
    let line = LINE.get_or_init(|| Line { stream: Mutex::new(stream), ended: AtomicBool::new(false) });
    let (rank, world) = launch.map_or((0, 1), |launch| (launch.rank, launch.world_size));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hello = Hello { token: launcher.token.clone(), rank, world, host, pid: std::process::id() };
    line.tell(&Message::Hello(hello)).map_err(told)?;
    let beat = move || {
        let why = line.beat(&mut hearing, &vitals, silence);
        if !line.ended.load(Ordering::SeqCst) {
            eprintln!("arinar-trainer: rank {rank} ends: {why}");
            end_daemon();
            exit::at_once(exit::FAILED);
        }
    };
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat).map_err(told)?;
    Ok(Some(launcher))
}

/// Says how this process ends, to the launcher if there is one. Nothing that happens to the connection afterwards ends
/// the process.
pub fn farewell(code: u8, reason: Option<String>) {
    let Some(line) = LINE.get() else { return };
    let mut stream = line.stream.lock().unwrap_or_else(PoisonError::into_inner);
    // While the stream is locked, so that no beat comes after it.
    if !line.ended.swap(true, Ordering::SeqCst) {
        // If it does not arrive, the launcher sees a rank that died: no worse than without.
        let _ = stream.write_all(Message::Farewell(Farewell::new(code, reason)).line().as_bytes());
    }
}

/// On another machine than the launcher's, the parent is a daemon of mpirun's. If the network is cut, that waits for
/// mpirun as long as TCP tries again, a quarter of an hour; asked to end it takes its files away.
fn end_daemon() {
    let Some(parent) = rustix::process::getppid() else { return };
    let name = std::fs::read_to_string(format!("/proc/{}/comm", parent.as_raw_nonzero())).unwrap_or_default();
    if ["orted", "prted"].contains(&name.trim_end()) {
        // It may have ended meanwhile.
        let _ = rustix::process::kill_process(parent, Signal::TERM);
    }
}

fn connect(launcher: &Launcher, patience: Duration) -> Result<TcpStream, String> {
    let began = Instant::now();
    loop {
        let mut problems = Vec::new();
        let mut gone = true;
        for address in &launcher.addresses {
            match TcpStream::connect_timeout(address, CONNECT_TIMEOUT) {
                Ok(stream) => return ready(stream).map_err(|error| format!("{address}: {error}")),
                Err(error) => {
                    gone &= error.kind() == io::ErrorKind::ConnectionRefused;
                    problems.push(format!("{address}: {error}"));
                }
            }
        }
        // It listens before it starts any rank: where nobody listens any more, it has died, and so must this rank.
        if gone || began.elapsed() >= patience {
            return Err(format!(
                "the launcher cannot be reached from {} ({}); has it died, or does a firewall stand between the machines?",
                rustix::system::uname().nodename().to_string_lossy(),
                problems.join(", ")
            ));
        }
        std::thread::sleep(RETRY_EVERY);
    }
}

fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(stream)
}

impl Line {
    fn tell(&self, message: &Message) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        stream.write_all(message.line().as_bytes())
    }

    /// Beats until the launcher is gone; returns how that showed.
    fn beat(&self, hearing: &mut TcpStream, vitals: &Vitals, silence: Duration) -> String {
        let mut heard = Instant::now();
        loop {
            if let Err(error) = self.tell(&Message::Beat(vitals.beat())) {
                return format!("the launcher cannot be told anything ({error})");
            }
            match hear_for(hearing, BEAT_EVERY) {
                Ok(false) => {}
                Ok(true) => heard = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return "the launcher is gone".to_owned(),
                Err(error) => return format!("the launcher is gone ({error})"),
            }
            if heard.elapsed() > silence {
                let silence = humantime::format_duration(silence);
                return format!("the launcher has been silent for {silence}");
            }
        }
    }
}

/// Listens for so long; true if there was anything.
fn hear_for(stream: &mut TcpStream, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    let mut heard = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(heard);
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut [0; 256]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => heard = true,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}
