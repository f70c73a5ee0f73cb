//! Tests that the real GPU libraries of the installed wheels are found, load and answer on any machine. They need no
//! GPU.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, process::Command};

use arinar_collective::{cuda, device, nccl};
use arinar_tests::gpu_stand_in::GpuStandIn;

#[test]
fn libtorch_cuda_is_loaded_on_demand() {
    assert_eq!(cuda::runtime_version(), None, "the CUDA runtime is linked, so that every machine would need it");
    device::load_libtorch_cuda().unwrap();
    assert_eq!(cuda::runtime_version().as_deref(), Some("13.0"));
    if !device::has_driver() {
        assert_eq!(device::gpus(), Ok(0));
    }
}

/// Not a test: the next one runs it in a separate process with the stand-in for the driver.
#[test]
#[ignore = "run by another test in a separate process"]
fn detect_gpus() {
    // The number depends on the stand-in for the driver and does not matter here.
    let _ = device::gpus();
    assert!(device::has_driver() && device::has_libtorch_cuda());
}

#[test]
fn libtorch_cuda_is_loaded_if_there_is_a_driver() {
    let stand_in = GpuStandIn::new();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "detect_gpus", "--ignored"]);
    stand_in.apply(&mut child);
    let output = child.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
fn nccl_is_found_and_creates_unique_ids() {
    assert!(nccl::version().unwrap().starts_with("2.29."));
    let ids: BTreeSet<Vec<u8>> = (0..3).map(|_| nccl::unique_id().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.len() == 128));
}
