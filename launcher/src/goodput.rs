//! Accounting of the launcher's wall-clock time: the time that ranks report, and the time without a job.

use std::time::Duration;

use arinar_protocol::{Beat, Seconds};

/// The time spent under this launcher, according to the heartbeats of rank 0.
///
/// A rank reports the time that its own start has spent and, once it has read a checkpoint, the time of the earlier starts
/// ([`Beat::earlier`]): what the checkpoint had recorded, and what was lost since. In the first start, the latter precedes
/// this launcher and is subtracted. In later starts it replaces the sum known so far, because lost work has moved from one
/// part to another.
#[derive(Clone, Debug, Default)]
pub(crate) struct TimeAccounting {
    /// Time spent before this launcher started.
    before: Seconds,
    /// Time spent by the starts that have ended.
    ended: Seconds,
    /// True once the first start has ended.
    restarted: bool,
    newest: Beat,
}

impl TimeAccounting {
    /// Updates the accounting with a heartbeat of rank 0.
    pub(crate) fn update(&mut self, beat: &Beat) {
        if !self.restarted {
            self.before = beat.earlier;
        }
        self.newest = beat.clone();
    }

    /// Records the end of a start.
    pub(crate) fn end_start(&mut self) {
        self.ended = self.seconds();
        (self.restarted, self.newest) = (true, Beat::default());
    }

    /// Returns the time spent in jobs, by part.
    pub(crate) fn seconds(&self) -> Seconds {
        let known = self.newest.earlier.total() > 0.0;
        let mut sum = if known { saturating_sub(self.newest.earlier, self.before) } else { self.ended };
        sum += self.newest.seconds;
        sum
    }

    /// Returns the seconds without a job, out of the launcher's `uptime`.
    pub(crate) fn down(&self, uptime: Duration) -> f64 {
        (uptime.as_secs_f64() - self.seconds().total()).max(0.0)
    }

    /// Returns the share of the launcher's `uptime` that was spent on training.
    pub(crate) fn goodput(&self, uptime: Duration) -> f64 {
        let uptime = uptime.as_secs_f64();
        if uptime > 0.0 { (self.seconds().compute / uptime).clamp(0.0, 1.0) } else { 1.0 }
    }
}

/// Subtracts part by part, saturating at zero.
fn saturating_sub(a: Seconds, b: Seconds) -> Seconds {
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
    fn lost_work_is_counted_once_and_the_parts_add_up() {
        let nothing = Seconds::default();
        let mut accounting = TimeAccounting::default();
        accounting.update(&beat(nothing, seconds(1.0, 0.0, 0.0)));
        // It resumes from a checkpoint after 1000 s that precede this launcher.
        accounting.update(&beat(seconds(11.0, 989.0, 0.0), seconds(1.0, 100.0, 0.0)));
        assert_eq!(accounting.seconds(), seconds(1.0, 100.0, 0.0));
        // The job dies, and resumes 2 s later from a checkpoint that is 40 s old.
        accounting.end_start();
        assert_eq!(accounting.seconds(), seconds(1.0, 100.0, 0.0));
        accounting.update(&beat(nothing, seconds(1.0, 0.0, 0.0)));
        assert_eq!(accounting.seconds(), seconds(2.0, 100.0, 0.0));
        accounting.update(&beat(seconds(12.0, 1049.0, 40.0), seconds(2.0, 10.0, 0.0)));
        assert_eq!(accounting.seconds(), seconds(3.0, 70.0, 40.0));
        let uptime = Duration::from_secs_f64(116.5);
        assert!((accounting.down(uptime) - 3.5).abs() < 1e-9, "{}", accounting.down(uptime));
        assert!((accounting.goodput(uptime) - 70.0 / 116.5).abs() < 1e-9);
    }

    #[test]
    fn time_before_the_launcher_is_subtracted_from_every_part() {
        let parts = |first: f64| Seconds {
            compute: first,
            all_reduce: first + 1.0,
            data_wait: first + 2.0,
            checkpoint: first + 3.0,
            start_up: first + 4.0,
            lost_work: first + 5.0,
        };
        let mut accounting = TimeAccounting::default();
        accounting.update(&beat(parts(10.0), Seconds::default()));
        accounting.end_start();
        accounting.update(&beat(parts(110.0), parts(1.0)));
        let mut wanted = parts(1.0);
        wanted += Seconds {
            compute: 100.0,
            all_reduce: 100.0,
            data_wait: 100.0,
            checkpoint: 100.0,
            start_up: 100.0,
            lost_work: 100.0,
        };
        assert_eq!(accounting.seconds(), wanted);
        // A checkpoint that is older than that of the first start: no part becomes negative.
        accounting.update(&beat(parts(5.0), Seconds::default()));
        assert_eq!(accounting.seconds(), Seconds::default());
    }

    #[test]
    fn shares_are_between_0_and_1() {
        let mut accounting = TimeAccounting::default();
        assert_eq!((accounting.goodput(Duration::ZERO), accounting.down(Duration::ZERO)), (1.0, 0.0));
        accounting.update(&beat(Seconds::default(), seconds(1.0, 3.0, 0.0)));
        // Ranks may count slightly more time than the launcher.
        assert_eq!((accounting.goodput(Duration::from_secs(2)), accounting.down(Duration::from_secs(2))), (1.0, 0.0));
        assert_eq!((accounting.goodput(Duration::from_secs(6)), accounting.down(Duration::from_secs(6))), (0.5, 2.0));
    }

    #[test]
    fn a_run_may_die_before_its_first_checkpoint() {
        let mut accounting = TimeAccounting::default();
        accounting.update(&beat(Seconds::default(), seconds(1.0, 3.0, 0.0)));
        accounting.end_start();
        accounting.update(&beat(Seconds::default(), seconds(1.0, 0.0, 0.0)));
        assert_eq!(accounting.seconds(), seconds(2.0, 3.0, 0.0));
        accounting.update(&beat(seconds(0.0, 0.0, 4.0), seconds(1.5, 0.0, 0.0)));
        assert_eq!(accounting.seconds(), seconds(1.5, 0.0, 4.0));
    }
}
