//! The number and size of the steps for which a rehearsal has time.

use crate::config::BatchShare;

/// Number of steps of a rehearsal.
const STEPS: usize = 10;
/// The smallest number of steps, if a step takes long.
const MIN_STEPS: usize = 4;
/// The approximate maximum duration of a rehearsal, in seconds.
const BUDGET: f64 = 60.0;
/// Fewer steps are made rather than steps with fewer images than this.
const MIN_IMAGES: usize = 4;

/// Returns the share of a step for the rehearsal if an image takes `seconds` and a micro-batch may have `max_micro` images.
///
/// It is the share of the run itself if ten such steps fit into the budget; otherwise as many of its micro-batches as fit,
/// otherwise a smaller micro-batch. If that would have very few images, fewer steps are made instead, because only steps of
/// different sizes show the time of an image.
pub(crate) fn affordable_share(batch: BatchShare, max_micro: usize, seconds: f64) -> BatchShare {
    let images_in = |steps: usize| (BUDGET / steps as f64 / seconds.max(1e-9)) as usize;
    let images = images_in(STEPS).max(images_in(MIN_STEPS).min(MIN_IMAGES));
    let micro = batch.micro.min(max_micro).min(images).max(1);
    let accumulation = if micro < batch.micro { 1 } else { (images / micro).clamp(1, batch.accumulation) };
    BatchShare { micro, accumulation }
}

/// Returns the number of steps of `seconds` seconds that fit into the budget.
pub(crate) fn affordable_steps(seconds: f64) -> usize {
    ((BUDGET / seconds.max(1e-9)) as usize).clamp(MIN_STEPS, STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_stays_within_its_budget() {
        let share = |micro, accumulation| BatchShare { micro, accumulation };
        assert_eq!(affordable_share(share(16, 2), 16, 0.01), share(16, 2), "the run's own step");
        assert_eq!(affordable_share(share(16, 4), 16, 0.15), share(16, 2), "fewer micro-batches");
        assert_eq!(affordable_share(share(64, 1), 64, 1.0), share(6, 1), "a smaller micro-batch");
        assert_eq!(affordable_share(share(64, 1), 3, 1.0), share(3, 1), "limited by memory");
        assert_eq!(affordable_share(share(64, 1), 64, 5.0), share(3, 1), "fewer steps");
        assert_eq!(affordable_share(share(64, 1), 64, 1000.0), share(1, 1));
        assert_eq!((affordable_steps(1.0), affordable_steps(9.0), affordable_steps(1e4)), (10, 6, 4));
    }
}
