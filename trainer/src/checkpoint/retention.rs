//! Which checkpoints stay: a decision without I/O.

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest that many.
    pub keep_last: usize,
    /// The first of every interval of this many steps, for ever.
    pub keep_every_steps: Option<u64>,
}

impl Retention {
    /// The steps to delete out of the committed ones, in ascending order.
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
    fn the_newest_stay() {
        let retention = Retention { keep_last: 3, keep_every_steps: None };
        assert_eq!(retention.superseded(&[50, 10, 20, 40, 30]), [10, 20]);
        assert_eq!(retention.superseded(&[10, 20]), [0_u64; 0]);
    }

    #[test]
    fn one_of_every_interval_stays_for_ever() {
        let retention = Retention { keep_last: 1, keep_every_steps: Some(100) };
        assert_eq!(retention.superseded(&[90, 105, 150, 190, 230, 260, 270]), [90, 150, 190, 260]);
    }

    #[test]
    fn deciding_again_changes_nothing() {
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
