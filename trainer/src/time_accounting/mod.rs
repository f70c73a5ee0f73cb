//! Time accounting: every second of a run is charged to exactly one phase.
//!
//! The training thread states what it does next ([`TimeAccounting::enter`]), and the time since the last statement is charged
//! to the phase before. The heartbeat thread reads the sums. The sums continue over restarts: a checkpoint contains those
//! up to it, and a small file next to the curves ([`TimeFile`]) records how far the run had come when it was interrupted. The
//! difference between the two is lost work.

mod file;
mod stragglers;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arinar_protocol::{Phase, Seconds};

pub(crate) use file::TimeFile;
pub(crate) use stragglers::Stragglers;

/// The clock of one rank.
#[derive(Debug)]
pub struct TimeAccounting(Mutex<Clock>);

#[derive(Debug)]
struct Clock {
    phase: Phase,
    since: Instant,
    marks: u64,
    seconds: Seconds,
    earlier: Seconds,
}

/// The state of the clock at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The current phase.
    pub phase: Phase,
    /// Number of times that a phase was entered.
    pub marks: u64,
    /// Time spent since the process started.
    pub seconds: Seconds,
    /// Time spent by earlier starts of the run.
    pub earlier: Seconds,
}

impl Reading {
    /// Returns the time spent by the whole run.
    pub fn run(&self) -> Seconds {
        let mut sum = self.earlier;
        sum += self.seconds;
        sum
    }
}

impl TimeAccounting {
    /// Starts the clock in [`Phase::StartUp`].
    pub fn start() -> Self {
        let (seconds, earlier) = (Seconds::default(), Seconds::default());
        Self(Mutex::new(Clock { phase: Phase::StartUp, since: Instant::now(), marks: 0, seconds, earlier }))
    }

    // Nothing panics while it holds the lock, and the sums would be consistent nevertheless.
    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        let mut clock = self.clock();
        clock.charge();
        clock.phase = phase;
        clock.marks += 1;
    }

    /// Reads the clock.
    pub fn read(&self) -> Reading {
        let mut clock = self.clock();
        clock.charge();
        Reading { phase: clock.phase, marks: clock.marks, seconds: clock.seconds, earlier: clock.earlier }
    }

    /// Sets the time spent by earlier starts of the run.
    pub fn carry_over(&self, earlier: Seconds) {
        self.clock().earlier = earlier;
    }
}

impl Clock {
    /// Charges the time since the last call to the current phase.
    fn charge(&mut self) {
        let now = Instant::now();
        self.seconds.charge(self.phase, (now - self.since).as_secs_f64());
        self.since = now;
    }
}

/// Returns the total time and the share of each part, for example `time: 2h, of which 93.1% compute, 4.0% all reduce, ...`.
pub(crate) fn summary(seconds: &Seconds) -> String {
    let total = seconds.total().max(1e-9);
    let share = |(name, part): (&str, f64)| format!("{:.1}% {}", 100.0 * part / total, name.replace('_', " "));
    let shares: Vec<String> = seconds.parts().map(share).to_vec();
    let whole = humantime::format_duration(Duration::from_secs(total.min(1e12) as u64));
    format!("time: {whole}, of which {}", shares.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_charged_once() {
        let before = Instant::now();
        let time = TimeAccounting::start();
        let began = Instant::now();
        for (marks, phase) in Phase::ALL.into_iter().chain(Phase::ALL).enumerate() {
            std::thread::sleep(Duration::from_millis(2));
            time.enter(phase);
            assert_eq!((time.read().phase, time.read().marks), (phase, marks as u64 + 1));
        }
        let outside = began.elapsed().as_secs_f64();
        let seconds = time.read().seconds;
        assert!(seconds.total() >= 0.024 && seconds.total() >= outside, "{seconds:?} in {outside}");
        assert!(seconds.total() <= before.elapsed().as_secs_f64());
        assert!(seconds.compute >= 0.002 && seconds.checkpoint >= 0.004 && seconds.lost_work == 0.0);
    }

    #[test]
    fn the_summary_names_every_part() {
        let text = summary(&Seconds { compute: 75.0, all_reduce: 25.0, ..Seconds::default() });
        assert!(text.starts_with("time: 1m 40s, of which 75.0% compute, 25.0% all reduce, 0.0% data wait"), "{text}");
    }
}
