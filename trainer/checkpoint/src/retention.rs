//! Which checkpoints stay, and which goes to the store next: decisions without I/O.

use std::collections::BTreeSet;

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

/// What is in the store and what waits in the spool. Every rank keeps one and tells it the same in the same order, so
/// that all ranks send the same checkpoint at a time without asking each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    retention: Retention,
    stored: BTreeSet<u64>,
    waiting: BTreeSet<u64>,
    sending: Option<u64>,
}

impl Ledger {
    /// With these checkpoints in the store, and these in the spool that go there first.
    pub fn new(retention: Retention, stored: &[u64], leftovers: &[u64]) -> Self {
        let mut ledger = Self {
            retention,
            stored: stored.iter().copied().collect(),
            waiting: leftovers.iter().copied().collect(),
            sending: None,
        };
        ledger.sending = ledger.waiting.pop_first();
        ledger
    }

    /// The checkpoint that is being sent.
    pub fn sending(&self) -> Option<u64> {
        self.sending
    }

    /// Those that are not in the store yet, in ascending order of sending.
    pub fn unsent(&self) -> impl Iterator<Item = u64> {
        self.sending.into_iter().chain(self.waiting.iter().copied())
    }

    /// True if the store holds a checkpoint of this step, which a new one replaces.
    pub fn replaces(&self, step: u64) -> bool {
        self.stored.contains(&step)
    }

    /// A checkpoint is whole in the spool. Returns those that need not be sent any more, since retention would delete
    /// them once the others are there; the one being sent is never among them, so that the store always gets on.
    pub fn saved(&mut self, step: u64) -> Vec<u64> {
        self.waiting.insert(step);
        let known: Vec<u64> = self.stored.iter().copied().chain(self.unsent()).collect();
        let mut dropped = self.retention.superseded(&known);
        dropped.retain(|step| self.waiting.remove(step));
        if self.sending.is_none() {
            self.sending = self.waiting.pop_first();
        }
        dropped
    }

    /// The one being sent is whole in the store; the next one's turn has come.
    pub fn uploaded(&mut self) {
        self.stored.extend(self.sending.take());
        for step in self.retention.superseded(&self.stored.iter().copied().collect::<Vec<_>>()) {
            self.stored.remove(&step);
        }
        self.sending = self.waiting.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(keep_last: usize, keep_every_steps: Option<u64>) -> Ledger {
        Ledger::new(Retention { keep_last, keep_every_steps }, &[], &[])
    }

    fn unsent(ledger: &Ledger) -> Vec<u64> {
        ledger.unsent().collect()
    }

    #[test]
    fn checkpoints_are_sent_one_by_one_in_order() {
        let mut ledger = ledger(3, None);
        assert_eq!(ledger.saved(10), [0_u64; 0]);
        assert_eq!(ledger.saved(20), [0_u64; 0]);
        assert_eq!((ledger.sending(), unsent(&ledger)), (Some(10), vec![10, 20]));
        ledger.uploaded();
        assert_eq!((ledger.sending(), unsent(&ledger)), (Some(20), vec![20]));
        assert!(ledger.replaces(10) && !ledger.replaces(20));
        ledger.uploaded();
        assert_eq!((ledger.sending(), unsent(&ledger)), (None, vec![]));
    }

    #[test]
    fn what_retention_would_delete_is_not_sent() {
        let mut ledger = ledger(2, Some(100));
        for step in [10, 20, 30] {
            assert_eq!(ledger.saved(step), [0_u64; 0]);
        }
        // 10 is superseded too, but on its way.
        assert_eq!(ledger.saved(40), [20]);
        assert_eq!(ledger.saved(110), [30]);
        assert_eq!(ledger.saved(120), [40]);
        assert_eq!(ledger.saved(130), [0_u64; 0]);
        assert_eq!(ledger.saved(140), [120]);
        assert_eq!(unsent(&ledger), [10, 110, 130, 140]);
    }

    #[test]
    fn however_slow_the_store_it_gets_on() {
        let mut ledger = ledger(1, None);
        let mut stored = Vec::new();
        for step in (10..500).step_by(10) {
            ledger.saved(step);
            if step % 70 == 0 {
                stored.extend(ledger.sending());
                ledger.uploaded();
            }
        }
        assert_eq!(stored, [10, 70, 140, 210, 280, 350, 420]);
    }

    #[test]
    fn leftovers_come_first() {
        let retention = Retention { keep_last: 3, keep_every_steps: None };
        let mut ledger = Ledger::new(retention, &[10, 20, 30], &[50, 40]);
        ledger.saved(60);
        assert_eq!(unsent(&ledger), [40, 50, 60]);
        // A checkpoint of a step that waits takes its place.
        ledger.saved(60);
        assert_eq!(unsent(&ledger), [40, 50, 60]);
        ledger.uploaded();
        assert!(!ledger.replaces(10) && ledger.replaces(20));
    }

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
