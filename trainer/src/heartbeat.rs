//! The heartbeat: a thread that sends the state of this rank to the launcher, and ends the rank if the launcher is gone.
//!
//! A rank must not outlive its job: on another host it would compute and occupy its GPU unnoticed. The kernel ends it if its
//! parent (mpirun or its daemon) dies. It ends itself if the launcher has died or has been silent for too long, for example
//! because the network between them is down. Checkpoints are safe at any moment.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arinar_protocol::{BEAT_EVERY, Farewell, Hello, Launcher, Message, exit_code};
use rustix::process::Signal;

use crate::{process_exit::exit_now, vitals::Vitals};
use arinar_collective::LaunchEnvironment;

/// Timeout for connecting to one address of the launcher.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout for sending a message to the launcher.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before all addresses are tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The connection of this process, once it is established.
static CONNECTION: OnceLock<Connection> = OnceLock::new();

struct Connection {
    stream: Mutex<TcpStream>,
    vitals: Arc<Vitals>,
    /// True once the farewell is sent. Afterwards, a closed connection is expected.
    ended: AtomicBool,
}

/// Lets the kernel kill this process when its parent dies. Call it early in `main`, and only under mpirun.
pub fn die_with_parent() {
    // If it is not supported, the silence of the launcher ends the rank a little later.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// Connects to the launcher, if one started this job, and starts the heartbeat.
///
/// # Errors
/// Returns a message in one line if the launcher cannot be reached or its environment variable is malformed.
pub fn start(launch: Option<LaunchEnvironment>, vitals: Arc<Vitals>) -> Result<Option<Launcher>, String> {
    let Some(launcher) = Launcher::from_environment()? else { return Ok(None) };
    let silence = Duration::from_secs_f64(launcher.silence_secs);
    let stream = connect(&launcher, silence)?;
    let message = |error: io::Error| format!("the connection to the launcher cannot be used: {error}");
    let mut replies = stream.try_clone().map_err(message)?;
    let connection =
        CONNECTION.get_or_init(|| Connection { stream: Mutex::new(stream), vitals, ended: AtomicBool::new(false) });
    let (rank, world) = launch.map_or((0, 1), |launch| (launch.rank, launch.world_size));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hello = Hello { token: launcher.token.clone(), rank, world, host, pid: std::process::id() };
    connection.send(&Message::Hello(hello)).map_err(message)?;
    let beat = move || {
        let reason = connection.beat(&mut replies, silence);
        if !connection.ended.load(Ordering::SeqCst) {
            // Standard error may be closed.
            let _ = writeln!(io::stderr(), "arinar-trainer: rank {rank} ends: {reason}");
            end_daemon();
            exit_now(exit_code::FAILED);
        }
    };
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat).map_err(message)?;
    Ok(Some(launcher))
}

/// Reports to the launcher, if there is one, how this process ends, and at which step. Afterwards, the process no longer depends
/// on the connection.
pub fn farewell(farewell: Farewell) {
    let Some(connection) = CONNECTION.get() else { return };
    let mut stream = connection.stream.lock().unwrap_or_else(PoisonError::into_inner);
    // While the stream is locked, so that no beat follows it.
    if !connection.ended.swap(true, Ordering::SeqCst) {
        let last = Message::Beat(connection.vitals.beat()).line() + &Message::Farewell(farewell).line();
        // If it does not arrive, the launcher detects that the rank has died.
        let _ = stream.write_all(last.as_bytes());
    }
}

/// Terminates the parent process if it is a daemon of mpirun, which it is on all hosts except the launcher's. If the network
/// is down, the daemon would wait for mpirun until TCP gives up after a quarter of an hour. SIGTERM lets it remove its files.
fn end_daemon() {
    let Some(parent) = rustix::process::getppid() else { return };
    let name = std::fs::read_to_string(format!("/proc/{}/comm", parent.as_raw_nonzero())).unwrap_or_default();
    if ["orted", "prted"].contains(&name.trim_end()) {
        // It may already have ended.
        let _ = rustix::process::kill_process(parent, Signal::TERM);
    }
}

fn connect(launcher: &Launcher, timeout: Duration) -> Result<TcpStream, String> {
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
        // The launcher listens before it starts any rank. If nothing listens any more, it has died, and this rank must end.
        if gone || began.elapsed() >= timeout {
            return Err(format!(
                "the launcher cannot be reached from {} ({}); has it died, or does a firewall stand between the machines?",
                rustix::system::uname().nodename().to_string_lossy(),
                problems.join(", ")
            ));
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(stream)
}

impl Connection {
    fn send(&self, message: &Message) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        stream.write_all(message.line().as_bytes())
    }

    /// Sends a beat at regular intervals until the launcher is gone. Returns the evidence for that.
    fn beat(&self, replies: &mut TcpStream, silence: Duration) -> String {
        let mut last_reply = Instant::now();
        loop {
            if let Err(error) = self.send(&Message::Beat(self.vitals.beat())) {
                return format!("messages cannot be sent to the launcher ({error})");
            }
            match receive_for(replies, BEAT_EVERY) {
                Ok(false) => {}
                Ok(true) => last_reply = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return "the launcher is gone".to_owned(),
                Err(error) => return format!("the launcher is gone ({error})"),
            }
            if last_reply.elapsed() > silence {
                let silence = humantime::format_duration(silence);
                return format!("the launcher has been silent for {silence}");
            }
        }
    }
}

/// Reads for the given time. Returns true if anything was received.
fn receive_for(stream: &mut TcpStream, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    let mut received = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(received);
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut [0; 256]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => received = true,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}
