//! The real libraries for GPUs, as their wheels bring them, on whatever machine this is: they are found, loaded and
//! answer. What needs a GPU itself is not tried.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arinar_model::device;
use arinar_trainer::{collective::nccl, cuda};

#[test]
fn libtorchs_cuda_part_is_loaded_on_demand() {
    assert_eq!(cuda::runtime_version(), None, "it is linked, and would be needed on every machine");
    device::load_libtorch_cuda().unwrap();
    assert_eq!(cuda::runtime_version().as_deref(), Some("13.0"));
    // A machine with a driver may well have no GPU; without one there is none.
    assert!(device::has_driver() || device::gpus() == Ok(0));
}

#[test]
fn nccl_is_found_and_makes_unique_ids() {
    assert!(nccl::version().unwrap().starts_with("2.29."));
    let ids: BTreeSet<Vec<u8>> = (0..3).map(|_| nccl::unique_id().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.len() == 128));
}
