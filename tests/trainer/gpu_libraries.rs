//! The real libraries for GPUs, as their wheels bring them, on whatever machine this is: they are found, loaded and
//! answer. What needs a GPU itself is not tried.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, process::Command};

use arinar_collective::{cuda, device, nccl};
use arinar_tests::gpu_stand_in::GpuStandIn;

#[test]
fn libtorchs_cuda_part_is_loaded_on_demand() {
    assert_eq!(cuda::runtime_version(), None, "it is linked, and would be needed on every machine");
    device::load_libtorch_cuda().unwrap();
    assert_eq!(cuda::runtime_version().as_deref(), Some("13.0"));
    if !device::has_driver() {
        assert_eq!(device::gpus(), Ok(0));
    }
}

/// Not a test: what the next one runs in another process, over the stand-in for the driver.
#[test]
#[ignore = "run by another test in a process of its own"]
fn look_for_gpus() {
    // The stand-in for the driver determines the number, which does not matter here.
    let _ = device::gpus();
    assert!(device::has_driver() && device::has_libtorch_cuda());
}

#[test]
fn where_a_driver_is_libtorchs_cuda_part_is_loaded_by_itself() {
    let stand_in = GpuStandIn::new();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "look_for_gpus", "--ignored"]);
    stand_in.apply(&mut child);
    let ended = child.output().unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn nccl_is_found_and_makes_unique_ids() {
    assert!(nccl::version().unwrap().starts_with("2.29."));
    let ids: BTreeSet<Vec<u8>> = (0..3).map(|_| nccl::unique_id().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.len() == 128));
}
