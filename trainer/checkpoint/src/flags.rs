//! The flags about checkpoints on which ranks agree in every step.

/// Progress of saving on one rank, or of all ranks together. The training loop sums the flags of all ranks in an all-reduce
/// that it makes anyway, so that ranks agree on them without a collective operation of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointFlags {
    /// The files of the pending checkpoint are written.
    pub written: bool,
    /// The checkpoint that is being uploaded is valid in the remote store. Only rank 0 knows.
    pub uploaded: bool,
}

impl CheckpointFlags {
    /// Returns the flags as numbers to be summed over all ranks.
    pub fn to_summands(self) -> [f32; 2] {
        [self.written, self.uploaded].map(|flag| f32::from(u8::from(flag)))
    }

    /// Returns the flags of all ranks together: a checkpoint is written once all ranks have written their files.
    pub fn from_sums(sums: [f32; 2], world_size: usize) -> Self {
        let [written, uploaded] = sums;
        Self { written: written == world_size as f32, uploaded: uploaded > 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::CheckpointFlags;

    #[test]
    fn a_checkpoint_is_written_once_all_ranks_have_written() {
        let sums = |ranks: &[(bool, bool)]| {
            let mut sums = [0.0; 2];
            for &(written, uploaded) in ranks {
                let summands = CheckpointFlags { written, uploaded }.to_summands();
                sums.iter_mut().zip(summands).for_each(|(sum, summand)| *sum += summand);
            }
            CheckpointFlags::from_sums(sums, ranks.len())
        };
        assert_eq!(sums(&[(true, false), (false, false)]), CheckpointFlags::default());
        assert_eq!(sums(&[(true, false), (true, false)]), CheckpointFlags { written: true, uploaded: false });
        assert_eq!(sums(&[(false, true), (false, false)]), CheckpointFlags { written: false, uploaded: true });
    }
}
