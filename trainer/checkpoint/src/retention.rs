//! Which checkpoints to keep: a decision without I/O.

/// The checkpoints of a run to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Number of newest checkpoints to keep.
    pub keep_last: usize,
    /// Keep the first checkpoint of every interval of this many steps permanently.
    pub keep_every_steps: Option<u64>,
}

impl Retention {
    /// Returns the steps to delete after the checkpoint of `saved` has become valid, in ascending order. `committed` are the
    /// steps of all valid checkpoints. Those after `saved` belong to an earlier start that resumed elsewhere, or are damaged:
    /// they are neither deleted nor counted, so that they never supersede what the run saves now.
    pub fn superseded_by(&self, saved: u64, committed: &[u64]) -> Vec<u64> {
        let known: Vec<u64> = committed.iter().copied().filter(|step| *step <= saved).collect();
        self.superseded(&known)
    }

    /// Returns the steps to delete, in ascending order, given the steps of all valid checkpoints.
    pub fn superseded(&self, committed: &[u64]) -> Vec<u64> {
        let mut steps = committed.to_vec();
        steps.sort_unstable();
        steps.dedup();
        let last = steps.len().saturating_sub(self.keep_last);
        let mut kept_interval = 0;
        let mut superseded = Vec::new();
        for (index, &step) in steps.iter().enumerate() {
            let interval = self.keep_every_steps.map_or(0, |every| step / every.max(1));
            if interval > kept_interval {
                kept_interval = interval;
            } else if index < last {
                superseded.push(step);
            }
        }
        superseded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_checkpoints_are_kept() {
        let retention = Retention { keep_last: 3, keep_every_steps: None };
        assert_eq!(retention.superseded(&[50, 10, 20, 40, 30]), [10, 20]);
        assert_eq!(retention.superseded(&[10, 20]), [0_u64; 0]);
    }

    #[test]
    fn one_checkpoint_of_every_interval_is_kept() {
        let retention = Retention { keep_last: 1, keep_every_steps: Some(100) };
        assert_eq!(retention.superseded(&[90, 105, 150, 190, 230, 260, 270]), [90, 150, 190, 260]);
    }

    #[test]
    fn later_checkpoints_do_not_supersede_the_saved_one() {
        let retention = Retention { keep_last: 2, keep_every_steps: None };
        assert_eq!(retention.superseded_by(110, &[90, 100, 110, 149, 150]), [90]);
        assert_eq!(retention.superseded_by(110, &[149, 150, 151, 110]), [0_u64; 0]);
        let every = Retention { keep_last: 1, keep_every_steps: Some(100) };
        assert_eq!(every.superseded_by(120, &[100, 110, 120, 210]), [110]);
        // Saved at every step between stale checkpoints, the newest is always kept.
        for saved in 1..200 {
            let committed: Vec<u64> = (1..=saved).chain([149, 150]).collect();
            assert!(!every.superseded_by(saved, &committed).contains(&saved), "{saved}");
        }
    }

    #[test]
    fn applying_it_twice_changes_nothing() {
        let retention = Retention { keep_last: 2, keep_every_steps: Some(70) };
        let mut present: Vec<u64> = Vec::new();
        for step in (10..1000).step_by(30) {
            present.push(step);
            let gone = retention.superseded(&present);
            present.retain(|step| !gone.contains(step));
            assert!(present.contains(&step));
            assert_eq!(retention.superseded(&present), [0_u64; 0]);
        }
        let intervals: Vec<u64> = present.iter().map(|step| step / 70).collect();
        assert!((1..=13).all(|interval| intervals.contains(&interval)), "{intervals:?}");
    }
}
