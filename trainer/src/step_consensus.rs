//! The few numbers that ride at the end of the gradient all-reduce, so that ranks agree on how a
//! step went and what comes next without a message of their own.

use crate::parameters::FLAGS;

/// What one rank contributes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// Sum of its micro-batches' losses.
    pub loss: f32,
    /// A signal asked this rank to end.
    pub preempted: bool,
    /// It cannot go on.
    pub failed: bool,
    /// Its files of the pending checkpoint are written.
    pub written: bool,
    /// A checkpoint is due (rank 0 decides).
    pub save_due: bool,
    /// The checkpoint that is being sent to the store is valid there (rank 0 knows).
    pub uploaded: bool,
    /// Seconds it has worked since the last all-reduce, that is, not waited for other ranks.
    pub busy: f32,
}

impl Signals {
    /// As they travel from one of `world` ranks.
    pub fn to_tail(self, rank: usize, world: usize) -> Vec<f32> {
        let mut tail = vec![0.0; FLAGS + world];
        tail[FLAGS + rank] = self.busy;
        tail[0] = self.loss;
        let flags = [self.preempted, self.failed, self.written, self.save_due, self.uploaded];
        for (place, flag) in tail[1..].iter_mut().zip(flags) {
            *place = f32::from(u8::from(flag));
        }
        tail
    }
}

/// What all ranks know after the all-reduce.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreed {
    /// Mean loss of the global batch.
    pub loss: f64,
    /// Some rank was asked to end.
    pub preempted: bool,
    /// Some rank cannot go on.
    pub failed: bool,
    /// Every rank's files of the pending checkpoint are written.
    pub written: bool,
    /// A checkpoint is due.
    pub save_due: bool,
    /// The checkpoint that is being sent to the store is valid there.
    pub uploaded: bool,
    /// Each rank's [`Signals::busy`].
    pub busy: Vec<f32>,
}

impl Agreed {
    /// Reads the summed tail; `micro_batches` is their number over all ranks.
    pub fn from_tail(tail: &[f32], world: usize, micro_batches: usize) -> Self {
        Self {
            loss: f64::from(tail[0]) / micro_batches as f64,
            preempted: tail[1] > 0.0,
            failed: tail[2] > 0.0,
            written: tail[3] == world as f32,
            save_due: tail[4] > 0.0,
            uploaded: tail[5] > 0.0,
            busy: tail[FLAGS..].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summed(signals: &[Signals]) -> Agreed {
        let world = signals.len();
        let mut sum = vec![0.0; FLAGS + world];
        for (rank, signals) in signals.iter().enumerate() {
            for (sum, scalar) in sum.iter_mut().zip(signals.to_tail(rank, world)) {
                *sum += scalar;
            }
        }
        Agreed::from_tail(&sum, world, 2 * world)
    }

    #[test]
    fn one_rank_is_enough_to_end() {
        let calm = Signals { loss: 3.0, written: true, ..Signals::default() };
        let agreed = summed(&[calm, calm]);
        assert_eq!(agreed.loss, 1.5);
        assert!(agreed.written && !agreed.preempted && !agreed.failed && !agreed.save_due && !agreed.uploaded);
        assert!(summed(&[calm, Signals { preempted: true, ..calm }]).preempted);
        assert!(summed(&[calm, Signals { failed: true, ..calm }]).failed);
        assert!(summed(&[Signals { save_due: true, ..calm }, calm]).save_due);
        assert!(summed(&[Signals { uploaded: true, ..calm }, calm]).uploaded);
    }

    #[test]
    fn everyone_hears_how_long_each_has_worked() {
        let busy = |busy: f32| Signals { busy, ..Signals::default() };
        assert_eq!(summed(&[busy(1.5), busy(0.25), busy(3.0)]).busy, [1.5, 0.25, 3.0]);
    }

    #[test]
    fn every_rank_must_have_written() {
        let written = Signals { written: true, ..Signals::default() };
        assert!(!summed(&[written, Signals::default()]).written);
    }

    #[test]
    fn a_loss_that_is_not_finite_stays_visible() {
        let bad = Signals { loss: f32::NAN, ..Signals::default() };
        assert!(summed(&[bad, Signals::default()]).loss.is_nan());
    }
}
