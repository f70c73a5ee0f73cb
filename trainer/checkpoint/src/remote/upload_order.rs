//! Which checkpoint to upload next: a decision without I/O.

use std::collections::BTreeSet;

use crate::retention::Retention;

/// The checkpoints in the store and in the spool. Every rank keeps its own copy and applies the same changes in the same
/// order, so that all ranks upload the same checkpoint at a time without communicating.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UploadOrder {
    retention: Retention,
    stored: BTreeSet<u64>,
    waiting: BTreeSet<u64>,
    uploading: Option<u64>,
}

impl UploadOrder {
    /// Starts with the checkpoints in the store, and those in the spool that are not uploaded yet.
    pub(crate) fn new(retention: Retention, stored: &[u64], not_uploaded: &[u64]) -> Self {
        let mut order = Self {
            retention,
            stored: stored.iter().copied().collect(),
            waiting: not_uploaded.iter().copied().collect(),
            uploading: None,
        };
        order.uploading = order.waiting.pop_first();
        order
    }

    /// Returns the checkpoint that is being uploaded.
    pub(crate) fn uploading(&self) -> Option<u64> {
        self.uploading
    }

    /// Returns the checkpoints that are not in the store yet, in the order of their upload.
    pub(crate) fn not_uploaded(&self) -> impl Iterator<Item = u64> {
        self.uploading.into_iter().chain(self.waiting.iter().copied())
    }

    /// Returns true if the store holds a checkpoint of this step, which a new one replaces.
    pub(crate) fn replaces(&self, step: u64) -> bool {
        self.stored.contains(&step)
    }

    /// Adds a checkpoint that is complete in the spool. Returns the checkpoints that need not be uploaded any more, because
    /// retention would delete them once the newer ones are uploaded. The one being uploaded is never among them, so that
    /// uploads make progress however slow the store is.
    pub(crate) fn add(&mut self, step: u64) -> Vec<u64> {
        self.waiting.insert(step);
        let known: Vec<u64> = self.stored.iter().copied().chain(self.not_uploaded()).collect();
        let mut dropped = self.retention.superseded_by(step, &known);
        dropped.retain(|step| self.waiting.remove(step));
        if self.uploading.is_none() {
            self.uploading = self.waiting.pop_first();
        }
        dropped
    }

    /// Records that the upload of the current checkpoint is complete, and moves on to the next one.
    pub(crate) fn complete(&mut self) {
        if let Some(uploaded) = self.uploading.take() {
            self.stored.insert(uploaded);
            let stored: Vec<u64> = self.stored.iter().copied().collect();
            for step in self.retention.superseded_by(uploaded, &stored) {
                self.stored.remove(&step);
            }
        }
        self.uploading = self.waiting.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(keep_last: usize, keep_every_steps: Option<u64>) -> UploadOrder {
        UploadOrder::new(Retention { keep_last, keep_every_steps }, &[], &[])
    }

    fn waiting(order: &UploadOrder) -> Vec<u64> {
        order.not_uploaded().collect()
    }

    #[test]
    fn checkpoints_are_uploaded_one_by_one_in_order() {
        let mut order = order(3, None);
        assert_eq!(order.add(10), [0_u64; 0]);
        assert_eq!(order.add(20), [0_u64; 0]);
        assert_eq!((order.uploading(), waiting(&order)), (Some(10), vec![10, 20]));
        order.complete();
        assert_eq!((order.uploading(), waiting(&order)), (Some(20), vec![20]));
        assert!(order.replaces(10) && !order.replaces(20));
        order.complete();
        assert_eq!((order.uploading(), waiting(&order)), (None, vec![]));
    }

    #[test]
    fn checkpoints_that_retention_would_delete_are_not_uploaded() {
        let mut order = order(2, Some(100));
        for step in [10, 20, 30] {
            assert_eq!(order.add(step), [0_u64; 0]);
        }
        // 10 is superseded, too, but it is being uploaded.
        assert_eq!(order.add(40), [20]);
        assert_eq!(order.add(110), [30]);
        assert_eq!(order.add(120), [40]);
        assert_eq!(order.add(130), [0_u64; 0]);
        assert_eq!(order.add(140), [120]);
        assert_eq!(waiting(&order), [10, 110, 130, 140]);
    }

    #[test]
    fn uploads_make_progress_however_slow_the_store_is() {
        let mut order = order(1, None);
        let mut stored = Vec::new();
        for step in (10..500).step_by(10) {
            order.add(step);
            if step % 70 == 0 {
                stored.extend(order.uploading());
                order.complete();
            }
        }
        assert_eq!(stored, [10, 70, 140, 210, 280, 350, 420]);
    }

    #[test]
    fn checkpoints_of_an_earlier_start_come_first() {
        let retention = Retention { keep_last: 3, keep_every_steps: None };
        let mut order = UploadOrder::new(retention, &[10, 20, 30], &[50, 40]);
        order.add(60);
        assert_eq!(waiting(&order), [40, 50, 60]);
        // A new checkpoint of a waiting step takes its place.
        order.add(60);
        assert_eq!(waiting(&order), [40, 50, 60]);
        order.complete();
        assert!(!order.replaces(10) && order.replaces(20));
    }
}
