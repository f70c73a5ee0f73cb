//! The contract of [`Collective`] as a check that any implementation can be subjected to.

use std::ops::Range;

use arinar_protocol::exit_code;
use tch::Tensor;

use crate::{
    agree::{JobError, agree, require_equal},
    collective::{Collective, Reduction},
    error::CollectiveError,
};

/// Checks that an implementation fulfils the contract of [`Collective`]. All ranks call it together. The tests run it on
/// one rank, under mpirun over MPI, and over NCCL; `arinar-trainer --check` runs it before a job is trusted.
///
/// `device` is the device of the tensors.
///
/// # Errors
/// Returns a description of the first operation that gave a wrong result.
pub fn conformance(collective: &dyn Collective, device: tch::Device) -> Result<(), String> {
    let (rank, world_size) = (collective.rank(), collective.world_size());
    let message = |error: CollectiveError| error.to_string();
    // Longer than a bucket, and a multiple of nothing.
    let len = (1_i64 << 24) + 17;
    let options = (tch::Kind::Float, device);
    // Integers so small that their sums are exact in any order.
    let numbers = Tensor::arange(len, options).remainder(1000.0) + 1.0;
    let mut flat = &numbers + rank as f64;
    let expected = &numbers * world_size as f64 + (world_size * (world_size - 1) / 2) as f64;
    collective.all_reduce_sum(&mut flat).map_err(message)?;
    if flat != expected {
        let error = (&flat - &expected).abs().max().double_value(&[]);
        return Err(format!("all_reduce_sum is off by {error}"));
    }
    for root in 0..world_size {
        let mut flat = Tensor::full([len], rank as f64, options);
        collective.broadcast(&mut flat, root).map_err(message)?;
        if flat != Tensor::full([len], root as f64, options) {
            return Err(format!("broadcast from {root} did not arrive"));
        }
        let bytes = collective.broadcast_bytes(vec![rank as u8; rank * 7], root).map_err(message)?;
        if bytes != vec![root as u8; root * 7] {
            return Err(format!("broadcast_bytes from {root} did not arrive"));
        }
    }
    let mut mine = Tensor::full([2 * world_size as i64], rank as f64, options);
    let parts: Vec<Range<usize>> = (0..world_size).map(|rank| 2 * rank..2 * rank + 2).collect();
    collective.all_gather(&mut mine, &parts).map_err(message)?;
    if mine != Tensor::arange(2 * world_size as i64, options).floor_divide_scalar(2) {
        return Err("all_gather did not arrive".to_owned());
    }
    scalars_conform(collective)?;
    agreement_conforms(collective)?;
    collective.barrier().map_err(message)
}

fn scalars_conform(collective: &dyn Collective) -> Result<(), String> {
    let (rank, world_size) = (collective.rank(), collective.world_size());
    let last = (world_size - 1) as f64;
    let expected = [(Reduction::Sum, last * world_size as f64 / 2.0), (Reduction::Min, 0.0), (Reduction::Max, last)];
    for (how, expected) in expected {
        let mut scalars = [rank as f64, 0.0];
        collective.all_reduce_scalars(&mut scalars, how).map_err(|error| error.to_string())?;
        if scalars != [expected, 0.0] {
            return Err(format!("{how:?} gave {scalars:?}"));
        }
    }
    Ok(())
}

/// Lets the last rank fail with a configuration error, which must reach all ranks.
fn agreement_conforms(collective: &dyn Collective) -> Result<(), String> {
    let (rank, world_size) = (collective.rank(), collective.world_size());
    let unavailable = || CollectiveError::Unavailable(Box::new(CollectiveError::NcclMissing));
    let failing = if rank + 1 == world_size { Err(unavailable()) } else { Ok(()) };
    match agree(collective, failing) {
        Err(error) if error.exit_code() == exit_code::CONFIGURATION => {}
        other => return Err(format!("agree gave {other:?}")),
    }
    agree(collective, Ok::<_, CollectiveError>(())).map_err(|error| error.to_string())?;
    if world_size > 1 && require_equal(collective, &[("rank", rank.to_string())]).is_ok() {
        return Err("require_equal let different facts pass".to_owned());
    }
    Ok(())
}
