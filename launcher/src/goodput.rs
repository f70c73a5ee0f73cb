//! Where the launcher's wall time went: what ranks tell, and the time without a job.

use std::time::Duration;

use arinar_heartbeat::{Beat, Seconds};

/// A leap of a rank's sums by so many seconds more than the clock is what it carries over from earlier starts.
const LEAP: f64 = 0.5;

/// The sums of the run, as rank 0 tells them.
///
/// A rank begins with its own start-up, and adds what the checkpoint it goes on from had spent, and what was lost since,
/// once it has read them: its sums leap. At the first start the leap is older than this launcher, and is taken off;
/// later it replaces what was known, since work that was lost has moved from one part to another.
#[derive(Clone, Debug, Default)]
pub struct TimeSplit {
    /// Spent before this launcher started.
    before: Seconds,
    /// Spent by earlier starts.
    earlier: Seconds,
    /// The newest sums of the start that runs.
    newest: Seconds,
    /// They contain those of earlier starts.
    carried: bool,
    /// A leap of this start may still come.
    first_start: bool,
    heard: Duration,
}

impl TimeSplit {
    /// At the first start.
    pub fn new() -> Self {
        Self { first_start: true, ..Self::default() }
    }

    /// Hears rank 0, `now` after the launcher's start.
    pub fn note(&mut self, beat: &Beat, now: Duration) {
        let passed = now.saturating_sub(self.heard).as_secs_f64();
        let leap = beat.seconds.total() - self.newest.total() > passed + LEAP;
        if leap && !self.carried {
            self.carried = true;
            if self.first_start {
                self.before = minus(beat.seconds, self.newest);
            }
        }
        (self.newest, self.heard) = (beat.seconds, now);
    }

    /// The job has ended, and may be started again.
    pub fn next_start(&mut self, now: Duration) {
        self.earlier = self.seconds();
        // From now on it is all this launcher's.
        let before = if self.first_start && !self.carried { Seconds::default() } else { self.before };
        *self = Self { before, earlier: self.earlier, heard: now, ..Self::default() };
    }

    /// Seconds of the launcher's life by part, apart from those without a job.
    pub fn seconds(&self) -> Seconds {
        if self.carried {
            return minus(self.newest, self.before);
        }
        let mut sum = self.earlier;
        sum += self.newest;
        sum
    }

    /// Seconds without a job, of so long a life.
    pub fn down(&self, life: Duration) -> f64 {
        (life.as_secs_f64() - self.seconds().total()).max(0.0)
    }

    /// The share of so long a life that trained.
    pub fn goodput(&self, life: Duration) -> f64 {
        let life = life.as_secs_f64();
        if life > 0.0 { (self.seconds().compute / life).clamp(0.0, 1.0) } else { 1.0 }
    }
}

/// Each part less that of another; none is below zero.
fn minus(a: Seconds, b: Seconds) -> Seconds {
    Seconds {
        compute: (a.compute - b.compute).max(0.0),
        all_reduce: (a.all_reduce - b.all_reduce).max(0.0),
        data_wait: (a.data_wait - b.data_wait).max(0.0),
        checkpoint: (a.checkpoint - b.checkpoint).max(0.0),
        start_up: (a.start_up - b.start_up).max(0.0),
        lost_work: (a.lost_work - b.lost_work).max(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(start_up: f64, compute: f64, lost_work: f64) -> Beat {
        Beat { seconds: Seconds { start_up, compute, lost_work, ..Seconds::default() }, ..Beat::default() }
    }

    fn secs(secs: f64) -> Duration {
        Duration::from_secs_f64(secs)
    }

    #[test]
    fn lost_work_is_charged_once_and_the_parts_are_the_whole() {
        let mut split = TimeSplit::new();
        split.note(&beat(1.0, 0.0, 0.0), secs(1.5));
        // It goes on from a checkpoint of 1000 s that this launcher has not seen.
        split.note(&beat(12.0, 990.0, 0.0), secs(2.5));
        split.note(&beat(12.0, 1090.0, 0.0), secs(102.5));
        let seconds = split.seconds();
        assert_eq!((seconds.compute, seconds.start_up, seconds.lost_work), (100.0, 1.0, 0.0));
        // The job dies, and goes on 2 s later from a checkpoint 40 s before.
        split.next_start(secs(104.5));
        assert_eq!(split.seconds(), seconds);
        split.note(&beat(1.0, 0.0, 0.0), secs(105.5));
        assert_eq!((split.seconds().start_up, split.seconds().compute), (2.0, 100.0));
        split.note(&beat(14.0, 1050.0, 40.0), secs(106.5));
        split.note(&beat(14.0, 1060.0, 40.0), secs(116.5));
        let seconds = split.seconds();
        assert_eq!((seconds.compute, seconds.lost_work, seconds.start_up), (70.0, 40.0, 3.0));
        assert!((split.down(secs(116.5)) - 3.5).abs() < 1e-9, "{}", split.down(secs(116.5)));
        assert!((split.goodput(secs(116.5)) - 70.0 / 116.5).abs() < 1e-9);
    }

    #[test]
    fn a_run_from_scratch_that_dies_early() {
        let mut split = TimeSplit::new();
        split.note(&beat(1.0, 3.0, 0.0), secs(4.1));
        split.next_start(secs(5.0));
        split.note(&beat(1.0, 0.0, 0.0), secs(6.0));
        assert_eq!((split.seconds().start_up, split.seconds().compute), (2.0, 3.0));
        split.note(&beat(1.5, 0.0, 4.0), secs(6.5));
        assert_eq!((split.seconds().start_up, split.seconds().compute, split.seconds().lost_work), (1.5, 0.0, 4.0));
    }
}
