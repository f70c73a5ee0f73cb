//! The state of the ranks of one start of the job.

use std::time::{Duration, Instant};

use arinar_protocol::{Beat, Farewell, Hello, exit_code};

use crate::{hang::RankView, rank_message::RankMessage};

/// The state of a rank.
#[derive(Clone, Debug)]
pub(crate) struct Rank {
    /// Its hello, once received.
    pub(crate) hello: Option<Hello>,
    /// Its newest heartbeat.
    pub(crate) beat: Beat,
    /// Its farewell, once received.
    pub(crate) farewell: Option<Farewell>,
    /// True if its connection was closed without a farewell.
    pub(crate) lost: bool,
    /// Time of its last message.
    last_message: Instant,
    /// Time of its last change of phase or step.
    last_progress: Instant,
}

impl Rank {
    /// Returns true if the rank has exited, normally or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.lost || self.farewell.is_some()
    }
}

/// The ranks of one start of the job.
#[derive(Clone, Debug)]
pub(crate) struct Ranks {
    ranks: Vec<Rank>,
    /// Step at which training resumed.
    resumed: u64,
}

/// A change in the state of the ranks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RankEvent {
    /// All ranks have reported.
    AllConnected,
    /// A rank has died, the first one of the job.
    Lost(usize),
    /// A rank exits with this code.
    Exiting(u8),
}

impl Ranks {
    /// Creates the state before any rank has reported.
    pub(crate) fn new(world: usize, now: Instant) -> Self {
        let rank = Rank {
            hello: None,
            beat: Beat::default(),
            farewell: None,
            lost: false,
            last_message: now,
            last_progress: now,
        };
        Self { ranks: vec![rank; world], resumed: 0 }
    }

    /// Iterates over the ranks in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rank> {
        self.ranks.iter()
    }

    /// Returns the state of a rank.
    pub(crate) fn get(&self, rank: usize) -> Option<&Rank> {
        self.ranks.get(rank)
    }

    /// Returns the world size.
    pub(crate) fn world(&self) -> usize {
        self.ranks.len()
    }

    /// Updates the state with a message that was received at `now`.
    pub(crate) fn update(&mut self, rank: usize, message: RankMessage, now: Instant) -> Option<RankEvent> {
        let none_lost = !self.ranks.iter().any(|rank| rank.lost);
        let sender = self.ranks.get_mut(rank)?;
        match message {
            RankMessage::Hello(hello) => {
                sender.hello = Some(hello);
                (sender.last_message, sender.last_progress) = (now, now);
                return self.ranks.iter().all(|rank| rank.hello.is_some()).then_some(RankEvent::AllConnected);
            }
            RankMessage::Beat(beat) => {
                sender.last_message = now;
                if beat.marks != sender.beat.marks || beat.step != sender.beat.step {
                    sender.last_progress = now;
                }
                if beat.total_steps > 0 {
                    self.resumed = self.resumed.max(beat.first_step);
                }
                sender.beat = beat;
            }
            RankMessage::Farewell(farewell) => {
                if farewell.code == exit_code::DONE {
                    // The last steps may have been faster than the heartbeat.
                    sender.beat.step = sender.beat.step.max(sender.beat.total_steps);
                }
                let code = farewell.code;
                sender.farewell = Some(farewell);
                return Some(RankEvent::Exiting(code));
            }
            RankMessage::Closed => {
                sender.lost = sender.farewell.is_none();
                return (sender.lost && none_lost).then_some(RankEvent::Lost(rank));
            }
        }
        None
    }

    /// Excludes a pause of the launcher itself (it was stopped, or its host was suspended) from the times without a message
    /// and without progress of all ranks.
    pub(crate) fn exclude_pause(&mut self, pause: Duration, now: Instant) {
        for rank in &mut self.ranks {
            rank.last_message = now.min(rank.last_message + pause);
            rank.last_progress = now.min(rank.last_progress + pause);
        }
    }

    /// Returns true if every rank has exited, normally or not.
    pub(crate) fn all_ended(&self) -> bool {
        self.ranks.iter().all(Rank::has_ended)
    }

    /// Returns true if a rank has completed a step in this start.
    pub(crate) fn have_stepped(&self) -> bool {
        self.ranks.iter().any(|rank| rank.beat.step_seconds > 0.0)
    }

    /// Returns the state of each rank as seen by hang detection.
    pub(crate) fn views(&self, now: Instant) -> Vec<RankView> {
        let view = |(index, rank): (usize, &Rank)| RankView {
            rank: index,
            process: rank.hello.as_ref().map(|hello| (hello.host.clone(), hello.pid)),
            step: rank.beat.step,
            phase: rank.beat.phase,
            since_message: now.saturating_duration_since(rank.last_message),
            since_progress: now.saturating_duration_since(rank.last_progress),
            ended: rank.has_ended(),
            resident_bytes: rank.beat.resident_bytes,
        };
        self.ranks.iter().enumerate().map(view).collect()
    }

    /// Returns the step at which training resumed.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Returns the newest step of all ranks.
    pub(crate) fn reached(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.beat.step).max().unwrap_or(0)
    }

    /// Describes a rank, as in `rank 1 (node, pid 7; compute of step 12, 512 MiB)`.
    pub(crate) fn describe(&self, index: usize) -> String {
        let Some(rank) = self.ranks.get(index) else { return format!("rank {index}") };
        let Some(hello) = &rank.hello else { return format!("rank {index} (never reported)") };
        let beat = &rank.beat;
        format!(
            "rank {index} ({}, pid {}; {} of step {}, {} MiB)",
            hello.host,
            hello.pid,
            beat.phase,
            beat.step,
            beat.resident_bytes >> 20
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arinar_protocol::Phase;

    use super::*;

    fn hello(rank: usize) -> RankMessage {
        RankMessage::Hello(Hello { token: String::new(), rank, world: 2, host: "node".to_owned(), pid: 7 })
    }

    #[test]
    fn messages_update_the_state_of_a_rank() {
        let start = Instant::now();
        let later = |secs| start + Duration::from_secs(secs);
        let mut ranks = Ranks::new(2, start);
        assert_eq!(ranks.update(1, hello(1), later(1)), None);
        assert_eq!(ranks.update(0, hello(0), later(1)), Some(RankEvent::AllConnected));
        let beat = |step, marks, phase| {
            RankMessage::Beat(Beat { step, first_step: 10, total_steps: 90, marks, phase, ..Beat::default() })
        };
        ranks.update(1, beat(10, 1, Phase::StartUp), later(2));
        ranks.update(1, beat(10, 2, Phase::Compute), later(3));
        ranks.update(1, beat(10, 2, Phase::Compute), later(5));
        let view = ranks.views(later(6)).remove(1);
        assert_eq!((view.since_message.as_secs(), view.since_progress.as_secs(), view.ended), (1, 3, false));
        assert_eq!((ranks.resumed(), ranks.reached()), (10, 10));
        assert!(!ranks.all_ended() && !ranks.have_stepped());
        ranks.exclude_pause(Duration::from_secs(1), later(6));
        assert_eq!(ranks.views(later(6))[1].since_progress.as_secs(), 2);
        assert_eq!(ranks.update(1, RankMessage::Closed, later(6)), Some(RankEvent::Lost(1)));
        assert_eq!(ranks.describe(1), "rank 1 (node, pid 7; compute of step 10, 0 MiB)");
        // Neither the loss of further ranks nor a close after a farewell is an event.
        assert_eq!(ranks.update(0, RankMessage::Closed, later(6)), None);
        let mut ranks = Ranks::new(1, start);
        let farewell = Farewell::new(0, None);
        assert_eq!(ranks.update(0, RankMessage::Farewell(farewell), later(1)), Some(RankEvent::Exiting(0)));
        assert_eq!(ranks.update(0, RankMessage::Closed, later(1)), None);
        assert!(ranks.views(later(1))[0].ended && ranks.all_ended());
        assert_eq!(ranks.update(9, RankMessage::Closed, later(1)), None);
    }
}
