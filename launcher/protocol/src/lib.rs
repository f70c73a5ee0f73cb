//! What ranks and the launcher say to each other: one JSON object per line over TCP.
//!
//! The launcher puts a [`Launcher`] into the environment of every rank. A rank connects, says [`Message::Hello`], then
//! [`Message::Beat`] every [`BEAT_EVERY`] from a thread of its own, and [`Message::Farewell`] when it ends in order.
//! The launcher answers an empty line every [`BEAT_EVERY`]. So both sides know: a connection that closes without a
//! farewell is a rank, or a launcher, that died; one that is silent is a process that is stopped or a machine that is
//! cut off.

pub mod exit_code;
mod phase;

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

pub use phase::{Phase, Seconds};

/// Time between two beats, and between two answers.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// Longest line that either side reads; a longer one ends the connection.
pub const LONGEST_LINE: usize = 16 << 10;

/// A reason that is longer is cut, so that its line is not, whatever it quotes.
const LONGEST_REASON: usize = LONGEST_LINE / 8;

/// Where ranks find their launcher, and what they must know of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launcher {
    /// Its addresses, to be tried in turn.
    pub addresses: Vec<SocketAddr>,
    /// Told in the hello; whoever does not know it is no rank of this job.
    pub token: String,
    /// Which start of the job this is, from 1.
    pub attempt: u32,
    /// Ranks of the job when all its hosts are there. A rank never takes more samples through the model at once than
    /// it would among so many.
    pub full_world: usize,
    /// A rank that hears nothing of the launcher for so long ends itself.
    pub silence_secs: f64,
    /// Seconds from the signal that ends a job to SIGKILL.
    pub grace_secs: f64,
}

impl Launcher {
    /// The environment variable that carries it.
    pub const VARIABLE: &str = "ARINAR_LAUNCHER";

    /// Reads the environment; `None` where no launcher started this process.
    ///
    /// # Errors
    /// What is wrong with the variable, in one line.
    pub fn from_environment() -> Result<Option<Self>, String> {
        match std::env::var(Self::VARIABLE) {
            Err(_) => Ok(None),
            Ok(text) => Self::parse(&text).map(Some),
        }
    }

    /// Reads the variable's text.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let launcher: Self = serde_json::from_str(text).map_err(|error| {
            format!("{}={text:?} is not what arinar-launcher sets ({error}); unset it", Self::VARIABLE)
        })?;
        let times = [launcher.silence_secs, launcher.grace_secs];
        if times.iter().all(|secs| secs.is_finite() && (0.0..1e9).contains(secs)) {
            Ok(launcher)
        } else {
            Err(format!("{}={text:?} has a time that is none; unset it", Self::VARIABLE))
        }
    }

    /// What the variable is set to.
    pub fn text(&self) -> String {
        // Strings and numbers cannot fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What a rank says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// First of all.
    Hello(Hello),
    /// Again and again.
    Beat(Beat),
    /// Last of all.
    Farewell(Farewell),
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`Launcher::token`].
    pub token: String,
    /// The rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Name of its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
}

/// How far a rank is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Steps trained.
    pub step: u64,
    /// Steps that earlier starts have trained: where this one goes on.
    pub first_step: u64,
    /// Steps to train in all; 0 while neither that nor the first step is known.
    pub total_steps: u64,
    /// Step of the newest checkpoint that is valid; 0 for none.
    pub saved_step: u64,
    /// What it is doing.
    pub phase: Phase,
    /// How often it has begun to do something else: where this does not change, nothing moves.
    pub marks: u64,
    /// Where the time of this start went.
    pub seconds: Seconds,
    /// What the earlier starts had spent that this one goes on from; rank 0 tells it, once it knows.
    pub earlier: Seconds,
    /// Physical memory it holds, in bytes.
    pub resident_bytes: u64,
    /// Samples of a step, on all ranks.
    pub global_batch: u64,
    /// Loss of the newest step; none before the first, and where it is not finite.
    pub loss: Option<f64>,
    /// Wall-clock seconds of the newest step; 0 before the first.
    pub step_seconds: f64,
    /// Bytes of checkpoints that still lack in the run's remote store.
    pub checkpoint_backlog_bytes: u64,
    /// That store cannot be reached.
    pub store_unreachable: bool,
}

/// How a rank ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Farewell {
    /// Its exit code.
    pub code: u8,
    /// Why, in one line, if this rank is the one that tells.
    pub reason: Option<String>,
}

impl Farewell {
    /// With the reason cut to what a line can hold.
    pub fn new(code: u8, mut reason: Option<String>) -> Self {
        if let Some(reason) = reason.as_mut().filter(|reason| reason.len() > LONGEST_REASON) {
            reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
            reason.push_str(" ...");
        }
        Self { code, reason }
    }
}

impl Message {
    /// The line it travels as, with its end.
    pub fn line(&self) -> String {
        // Strings and finite numbers cannot fail to be written.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let beat = Beat { step: 7, phase: Phase::AllReduce, loss: Some(-1.5), ..Beat::default() };
        let hello = Hello { token: "t".into(), rank: 1, world: 2, host: "a\nb".into(), pid: 9 };
        let farewell = Farewell::new(75, Some("a \"reason\"".into()));
        let long = Farewell::new(1, Some("\u{1}\u{e9}".repeat(LONGEST_LINE)));
        for message in
            [Message::Hello(hello), Message::Beat(beat), Message::Farewell(farewell), Message::Farewell(long)]
        {
            let line = message.line();
            assert_eq!(line.find('\n'), Some(line.len() - 1), "{line:?}");
            assert!(line.len() < LONGEST_LINE);
            assert_eq!(Message::parse(&line).unwrap(), message);
        }
        assert!(Message::parse("{}").is_err());
    }

    #[test]
    fn a_launcher_survives_the_environment() {
        let launcher = Launcher {
            addresses: vec!["127.0.0.1:4000".parse().unwrap(), "[::1]:4000".parse().unwrap()],
            token: "secret".into(),
            attempt: 3,
            full_world: 4,
            silence_secs: 20.0,
            grace_secs: 60.0,
        };
        assert_eq!(Launcher::parse(&launcher.text()), Ok(launcher));
        for damaged in ["", "{}", "127.0.0.1:4000"] {
            let told = Launcher::parse(damaged).unwrap_err();
            assert!(told.contains("ARINAR_LAUNCHER") && told.lines().count() == 1, "{told}");
        }
    }
}
