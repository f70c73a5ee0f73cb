//! The division of a global batch among ranks and micro-batches.

use crate::error::DataError;

/// Division of one rank's part of a global batch into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShare {
    /// Samples per micro-batch.
    pub micro: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
}

impl BatchShare {
    /// Chooses the micro-batch size and the accumulation of each of `ranks` ranks.
    ///
    /// The micro-batch is the largest divisor of a rank's part that does not exceed `wished_micro`. Without a wish, it
    /// does not exceed the part of a rank in the full job of `full_world` ranks: when a job continues with fewer ranks
    /// after losing hosts, a micro-batch still fits in memory.
    ///
    /// # Errors
    /// Returns [`DataError::Batch`] if `global_batch` is not divisible by `ranks`. The message names the nearest
    /// batch sizes that are.
    pub fn choose(
        global_batch: usize,
        ranks: usize,
        full_world: usize,
        wished_micro: Option<usize>,
    ) -> Result<Self, DataError> {
        if !global_batch.is_multiple_of(ranks) {
            let choices = nearest_multiples(global_batch, ranks);
            return Err(DataError::Batch(format!(
                "global batch {global_batch} is not divisible by {ranks} ranks; use {choices}"
            )));
        }
        let per_rank = global_batch / ranks;
        let limit = wished_micro.unwrap_or(global_batch.div_ceil(full_world.max(ranks))).min(per_rank);
        let micro = (1..=limit).rev().find(|size| per_rank.is_multiple_of(*size)).unwrap_or(1);
        Ok(Self { micro, accumulation: per_rank / micro })
    }
}

/// One rank's place in the global batches of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    global_batch: usize,
    rank: usize,
    world_size: usize,
    micro_batch: usize,
    accumulation: usize,
}

impl BatchLayout {
    /// Creates the layout for `rank` of `world_size` ranks that read `micro_batch` samples at a time.
    ///
    /// # Errors
    /// Returns [`DataError::Batch`] if the ranks cannot share the global batch evenly. The message names batch sizes
    /// that they can share.
    pub fn new(global_batch: usize, rank: usize, world_size: usize, micro_batch: usize) -> Result<Self, DataError> {
        if global_batch == 0 || micro_batch == 0 || world_size == 0 || rank >= world_size {
            return Err(DataError::Batch(format!(
                "rank {rank} of {world_size} cannot take micro-batches of {micro_batch} from a global batch of \
                 {global_batch}; all must be at least 1"
            )));
        }
        let samples_of_all_ranks = world_size * micro_batch;
        if !global_batch.is_multiple_of(samples_of_all_ranks) {
            let choices = nearest_multiples(global_batch, samples_of_all_ranks);
            return Err(DataError::Batch(format!(
                "global batch {global_batch} is not divisible by {world_size} ranks x micro-batch {micro_batch}; \
                 use {choices}"
            )));
        }
        let accumulation = global_batch / samples_of_all_ranks;
        Ok(Self { global_batch, rank, world_size, micro_batch, accumulation })
    }

    /// Samples in a global batch.
    pub fn global_batch(&self) -> usize {
        self.global_batch
    }

    /// Samples in a micro-batch of one rank.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Micro-batches that each rank reads from a global batch.
    pub fn accumulation(&self) -> usize {
        self.accumulation
    }

    /// Returns the position in the global sequence at which this rank's micro-batch number `micro_batches` begins.
    pub(crate) fn start_of(&self, micro_batches: u64) -> u64 {
        let (batch, part) = (micro_batches / self.accumulation as u64, micro_batches % self.accumulation as u64);
        let part_samples = (self.world_size * self.micro_batch) as u64;
        batch * self.global_batch as u64 + part * part_samples + (self.rank * self.micro_batch) as u64
    }

    /// Returns the number of samples in the global batches that are complete after `micro_batches` micro-batches of
    /// this rank.
    pub(crate) fn complete_samples(&self, micro_batches: u64) -> u64 {
        micro_batches / self.accumulation as u64 * self.global_batch as u64
    }
}

/// The multiples of `divisor` below and above `number`, for a message.
fn nearest_multiples(number: usize, divisor: usize) -> String {
    let below = number / divisor * divisor;
    match below {
        0 => divisor.to_string(),
        below => format!("{below} or {}", below + divisor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(global_batch: usize, rank: usize, world_size: usize, micro_batch: usize) -> String {
        BatchLayout::new(global_batch, rank, world_size, micro_batch).expect_err("a refusal").to_string()
    }

    #[test]
    fn a_batch_the_ranks_cannot_share_names_ones_they_can() {
        let error = refusal(250, 0, 8, 1);
        assert!(error.contains("use 248 or 256"), "{error}");
        // No smaller batch is large enough for all ranks.
        let error = refusal(5, 7, 8, 2);
        assert!(error.ends_with("8 ranks x micro-batch 2; use 16"), "{error}");
        let error = BatchShare::choose(5, 8, 8, None).expect_err("not divisible").to_string();
        assert_eq!(error, "global batch 5 is not divisible by 8 ranks; use 8");
    }

    #[test]
    fn a_batch_the_ranks_can_share_is_cut_evenly() {
        assert_eq!(BatchLayout::new(24, 1, 2, 3).expect("a layout").accumulation(), 4);
        for (global_batch, rank, world_size, micro_batch) in
            [(0, 1, 2, 3), (24, 1, 2, 0), (24, 1, 0, 3), (24, 2, 2, 3), (24, 3, 2, 3)]
        {
            let error = refusal(global_batch, rank, world_size, micro_batch);
            assert!(error.contains("all must be at least 1"), "{error}");
        }
    }

    #[test]
    fn a_micro_batch_divides_the_part_of_a_rank_and_is_no_larger_than_wished() {
        let choose = |ranks, full_world, wished| BatchShare::choose(256, ranks, full_world, wished).expect("a share");
        assert_eq!(choose(4, 4, None), BatchShare { micro: 64, accumulation: 1 });
        assert_eq!(choose(4, 4, Some(48)), BatchShare { micro: 32, accumulation: 2 });
        assert_eq!(choose(4, 4, Some(1000)), BatchShare { micro: 64, accumulation: 1 });
        // After a host was lost, micro-batches are no larger than they were.
        assert_eq!(choose(4, 8, None), BatchShare { micro: 32, accumulation: 2 });
    }

    #[test]
    fn ranks_take_turns_within_a_batch() {
        let layout = |rank| BatchLayout::new(24, rank, 2, 3).expect("a layout");
        let starts = |rank| -> Vec<u64> { (0..9).map(|micro_batches| layout(rank).start_of(micro_batches)).collect() };
        assert_eq!(starts(0), [0, 6, 12, 18, 24, 30, 36, 42, 48]);
        assert_eq!(starts(1), [3, 9, 15, 21, 27, 33, 39, 45, 51]);
        assert_eq!([0, 3, 4, 9].map(|micro_batches| layout(1).complete_samples(micro_batches)), [0, 0, 24, 48]);
    }
}
