//! Where the launcher's wall time went: what ranks tell, and the time without a job.

use std::time::Duration;

use arinar_protocol::{Beat, Seconds};

/// The sums of the run, as rank 0 tells them.
///
/// A rank tells what its own start has spent, and, once it has read that, what the checkpoint it goes on from had spent
/// and what was lost since. Of the first start, the latter is older than this launcher, and is left out; later it takes
/// the place of what was known, since work that was lost has moved from one part to another.
#[derive(Clone, Debug, Default)]
pub struct TimeSplit {
    /// Spent before this launcher started.
    before: Seconds,
    /// Spent by the starts that have ended.
    ended: Seconds,
    /// The start that runs is not the first.
    later: bool,
    newest: Beat,
}

impl TimeSplit {
    /// Hears rank 0.
    pub fn note(&mut self, beat: &Beat) {
        if !self.later {
            self.before = beat.earlier;
        }
        self.newest = beat.clone();
    }

    /// The job has ended, and may be started again.
    pub fn next_start(&mut self) {
        self.ended = self.seconds();
        (self.later, self.newest) = (true, Beat::default());
    }

    /// Seconds of the launcher's life by part, apart from those without a job.
    pub fn seconds(&self) -> Seconds {
        let told = self.newest.earlier.total() > 0.0;
        let mut sum = if told { minus(self.newest.earlier, self.before) } else { self.ended };
        sum += self.newest.seconds;
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

    fn seconds(start_up: f64, compute: f64, lost_work: f64) -> Seconds {
        Seconds { start_up, compute, lost_work, ..Seconds::default() }
    }

    fn beat(earlier: Seconds, seconds: Seconds) -> Beat {
        Beat { seconds, earlier, ..Beat::default() }
    }

    #[test]
    fn lost_work_is_charged_once_and_the_parts_are_the_whole() {
        let nothing = Seconds::default();
        let mut split = TimeSplit::default();
        split.note(&beat(nothing, seconds(1.0, 0.0, 0.0)));
        // It goes on from a checkpoint of 1000 s that this launcher has not seen.
        split.note(&beat(seconds(11.0, 989.0, 0.0), seconds(1.0, 100.0, 0.0)));
        assert_eq!(split.seconds(), seconds(1.0, 100.0, 0.0));
        // The job dies, and goes on 2 s later from a checkpoint 40 s before.
        split.next_start();
        assert_eq!(split.seconds(), seconds(1.0, 100.0, 0.0));
        split.note(&beat(nothing, seconds(1.0, 0.0, 0.0)));
        assert_eq!(split.seconds(), seconds(2.0, 100.0, 0.0));
        split.note(&beat(seconds(12.0, 1049.0, 40.0), seconds(2.0, 10.0, 0.0)));
        assert_eq!(split.seconds(), seconds(3.0, 70.0, 40.0));
        let life = Duration::from_secs_f64(116.5);
        assert!((split.down(life) - 3.5).abs() < 1e-9, "{}", split.down(life));
        assert!((split.goodput(life) - 70.0 / 116.5).abs() < 1e-9);
    }

    #[test]
    fn every_part_is_counted_from_the_launchers_start() {
        let parts = |first: f64| Seconds {
            compute: first,
            all_reduce: first + 1.0,
            data_wait: first + 2.0,
            checkpoint: first + 3.0,
            start_up: first + 4.0,
            lost_work: first + 5.0,
        };
        let mut split = TimeSplit::default();
        split.note(&beat(parts(10.0), Seconds::default()));
        split.next_start();
        split.note(&beat(parts(110.0), parts(1.0)));
        let mut wanted = parts(1.0);
        wanted += Seconds {
            compute: 100.0,
            all_reduce: 100.0,
            data_wait: 100.0,
            checkpoint: 100.0,
            start_up: 100.0,
            lost_work: 100.0,
        };
        assert_eq!(split.seconds(), wanted);
        // A checkpoint that is older than the one of the first start: nothing is less than nothing.
        split.note(&beat(parts(5.0), Seconds::default()));
        assert_eq!(split.seconds(), Seconds::default());
    }

    #[test]
    fn shares_are_shares_whatever_the_clocks_say() {
        let mut split = TimeSplit::default();
        assert_eq!((split.goodput(Duration::ZERO), split.down(Duration::ZERO)), (1.0, 0.0));
        split.note(&beat(Seconds::default(), seconds(1.0, 3.0, 0.0)));
        // Ranks may count a little more than the launcher has lived.
        assert_eq!((split.goodput(Duration::from_secs(2)), split.down(Duration::from_secs(2))), (1.0, 0.0));
        assert_eq!((split.goodput(Duration::from_secs(6)), split.down(Duration::from_secs(6))), (0.5, 2.0));
    }

    #[test]
    fn a_run_from_scratch_that_dies_early() {
        let mut split = TimeSplit::default();
        split.note(&beat(Seconds::default(), seconds(1.0, 3.0, 0.0)));
        split.next_start();
        split.note(&beat(Seconds::default(), seconds(1.0, 0.0, 0.0)));
        assert_eq!(split.seconds(), seconds(2.0, 3.0, 0.0));
        split.note(&beat(seconds(0.0, 0.0, 4.0), seconds(1.5, 0.0, 0.0)));
        assert_eq!(split.seconds(), seconds(1.5, 0.0, 4.0));
    }
}
