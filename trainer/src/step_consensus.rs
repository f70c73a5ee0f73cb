//! The flags that are piggybacked on the gradient all-reduce. With them, ranks agree on the outcome of a step and on what to
//! do next without a collective operation of their own.

use arinar_checkpoint::CheckpointFlags;

use crate::parameters::FLAGS;

/// The contribution of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankFlags {
    /// Sum of the losses of its micro-batches.
    pub loss: f32,
    /// A signal asked this rank to end.
    pub preempted: bool,
    /// This rank cannot continue.
    pub failed: bool,
    /// A checkpoint is due. Rank 0 decides.
    pub save_due: bool,
    /// Progress of saving.
    pub checkpoint: CheckpointFlags,
    /// Seconds spent working, rather than waiting for other ranks, since the last all-reduce.
    pub busy: f32,
}

impl RankFlags {
    /// Returns the values to be summed over all ranks.
    pub fn to_tail(self, rank: usize, world_size: usize) -> Vec<f32> {
        let mut tail = vec![0.0; FLAGS + world_size];
        let [written, uploaded] = self.checkpoint.to_summands();
        let flag = |flag: bool| f32::from(u8::from(flag));
        let values = [self.loss, flag(self.preempted), flag(self.failed), written, flag(self.save_due), uploaded];
        tail[..values.len()].copy_from_slice(&values);
        tail[FLAGS + rank] = self.busy;
        tail
    }
}

/// The flags and figures that all ranks know after the all-reduce.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConsensus {
    /// Mean loss of the global batch.
    pub loss: f64,
    /// Some rank was asked to end.
    pub preempted: bool,
    /// Some rank cannot continue.
    pub failed: bool,
    /// A checkpoint is due.
    pub save_due: bool,
    /// Progress of saving on all ranks together.
    pub checkpoint: CheckpointFlags,
    /// [`RankFlags::busy`] of each rank.
    pub busy: Vec<f32>,
}

impl StepConsensus {
    /// Reads the sums. `micro_batches` is the number of micro-batches on all ranks.
    pub fn from_tail(tail: &[f32], world_size: usize, micro_batches: usize) -> Self {
        Self {
            loss: f64::from(tail[0]) / micro_batches as f64,
            preempted: tail[1] > 0.0,
            failed: tail[2] > 0.0,
            save_due: tail[4] > 0.0,
            checkpoint: CheckpointFlags::from_sums([tail[3], tail[5]], world_size),
            busy: tail[FLAGS..].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summed(flags: &[RankFlags]) -> StepConsensus {
        let world_size = flags.len();
        let mut sum = vec![0.0; FLAGS + world_size];
        for (rank, flags) in flags.iter().enumerate() {
            for (sum, scalar) in sum.iter_mut().zip(flags.to_tail(rank, world_size)) {
                *sum += scalar;
            }
        }
        StepConsensus::from_tail(&sum, world_size, 2 * world_size)
    }

    const WRITTEN: CheckpointFlags = CheckpointFlags { written: true, uploaded: false };

    #[test]
    fn one_rank_is_enough_to_end() {
        let idle = RankFlags { loss: 3.0, checkpoint: WRITTEN, ..RankFlags::default() };
        let consensus = summed(&[idle, idle]);
        assert_eq!((consensus.loss, consensus.checkpoint), (1.5, WRITTEN));
        assert!(!consensus.preempted && !consensus.failed && !consensus.save_due);
        assert!(summed(&[idle, RankFlags { preempted: true, ..idle }]).preempted);
        assert!(summed(&[idle, RankFlags { failed: true, ..idle }]).failed);
        assert!(summed(&[RankFlags { save_due: true, ..idle }, idle]).save_due);
        let uploaded = CheckpointFlags { written: true, uploaded: true };
        assert_eq!(summed(&[RankFlags { checkpoint: uploaded, ..idle }, idle]).checkpoint, uploaded);
    }

    #[test]
    fn all_ranks_know_how_long_each_has_worked() {
        let busy = |busy: f32| RankFlags { busy, ..RankFlags::default() };
        assert_eq!(summed(&[busy(1.5), busy(0.25), busy(3.0)]).busy, [1.5, 0.25, 3.0]);
    }

    #[test]
    fn all_ranks_must_have_written() {
        let written = RankFlags { checkpoint: WRITTEN, ..RankFlags::default() };
        assert!(!summed(&[written, RankFlags::default()]).checkpoint.written);
    }

    #[test]
    fn a_loss_that_is_not_finite_stays_visible() {
        let bad = RankFlags { loss: f32::NAN, ..RankFlags::default() };
        assert!(summed(&[bad, RankFlags::default()]).loss.is_nan());
    }
}
