//! A job of one rank without MPI.

use tch::Tensor;

use crate::{
    collective::{Collective, Reduction},
    error::CollectiveError,
};

/// The collective of a single rank: every operation is the identity.
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn describe(&self) -> String {
        "none (one rank)".to_owned()
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce_sum(&self, _: &mut Tensor) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&self, _: &mut Tensor, _: usize) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce_scalars(&self, _: &mut [f64], _: Reduction) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>, _: usize) -> Result<Vec<u8>, CollectiveError> {
        Ok(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        crate::conformance(&Single, tch::Device::Cpu).unwrap();
    }
}
