//! The messages that a rank sends to the launcher.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{phase::Phase, seconds::Seconds};

/// Interval between two beats of a rank, and between two answers of the launcher.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// Maximum length of a line in bytes, for both sides. A longer line ends the connection.
pub const LONGEST_LINE: usize = 16 << 10;

/// Maximum length of a reason in bytes. It leaves room for escapes, so that no reason makes a line too long.
const LONGEST_REASON: usize = LONGEST_LINE / 8;

/// A message from a rank to the launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// The first message of a connection.
    Hello(Hello),
    /// Sent every [`BEAT_EVERY`].
    Beat(Beat),
    /// The last message of a connection.
    Farewell(Farewell),
}

/// Identification of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The token in [`crate::Launcher::token`].
    pub token: String,
    /// The rank.
    pub rank: usize,
    /// World size.
    pub world: usize,
    /// Name of the host.
    pub host: String,
    /// Process ID on that host.
    pub pid: u32,
}

/// Progress of a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Number of steps trained, including those of earlier starts.
    pub step: u64,
    /// Step at which this start resumed training.
    pub first_step: u64,
    /// Number of steps of the whole run; 0 while this and the first step are not yet known.
    pub total_steps: u64,
    /// Step of the newest valid checkpoint; 0 if there is none.
    pub saved_step: u64,
    /// Current phase.
    pub phase: Phase,
    /// Number of phase changes so far. A rank whose count stays the same makes no progress.
    pub marks: u64,
    /// Time that this start has spent in each part.
    pub seconds: Seconds,
    /// Time spent by the earlier starts that this one resumed. Only rank 0 sets it, once it has read the checkpoint.
    pub earlier: Seconds,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Number of samples per step, summed over all ranks.
    pub global_batch: u64,
    /// Loss of the newest step; `None` before the first step and where the loss is not finite.
    pub loss: Option<f64>,
    /// Wall-clock seconds of the newest step; 0 before the first.
    pub step_seconds: f64,
    /// Bytes of checkpoints that are not yet uploaded to the remote store.
    pub checkpoint_backlog_bytes: u64,
    /// True while the remote store is unreachable.
    pub store_unreachable: bool,
}

/// The exit of a rank: its code and its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Farewell {
    /// Exit code; see [`crate::exit_code`].
    pub code: u8,
    /// The reason in one line, if it is up to this rank to report it.
    pub reason: Option<String>,
    /// True if the same failure may not occur again at the same step: an outage of a store or of the network, or another job
    /// in the way.
    #[serde(default)]
    pub transient: bool,
}

impl Farewell {
    /// Creates the farewell of a rank whose failure, if it is one, is not transient. Truncates a reason that would make the
    /// line too long.
    pub fn new(code: u8, mut reason: Option<String>) -> Self {
        if let Some(reason) = reason.as_mut().filter(|reason| reason.len() > LONGEST_REASON) {
            reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
            reason.push_str(" ...");
        }
        Self { code, reason, transient: false }
    }
}

impl Message {
    /// Serializes the message as one line, including the newline.
    pub fn line(&self) -> String {
        // Serializing strings and finite numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Parses a line, with or without its newline.
    ///
    /// # Errors
    /// The line is not a message in JSON.
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
}
