//! Tests of the loop that need access to its parts. tests/trainer/reference.rs compares the numbers of the real
//! program with a reference implementation.

use std::{
    ops::Range,
    sync::{Arc, mpsc},
};

use tch::{Device, Tensor};

use arinar_collective::{Collective, CollectiveError, LaunchEnvironment, Single};

use super::*;
use crate::{Startup, Vitals, batch_source::Data, config, config::BatchShare, preemption::Preemption};

const SAMPLES: u64 = 1000;

fn config(overrides: &[&str]) -> TrainConfig {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo.yaml");
    let ours = ["data.url=synthetic:", "batch.global=4", "optim.warmup_epochs=0", "model.outer.encoder_depth=1"];
    let overrides: Vec<String> = ours.iter().chain(overrides).map(|value| (*value).to_owned()).collect();
    config::load(path, &overrides).unwrap()
}

/// Creates a training on synthetic data that saves nothing.
fn training<'a>(collective: &'a dyn Collective, config: &'a TrainConfig) -> Training<'a> {
    let context = RankContext {
        collective,
        launch: LaunchEnvironment::single(),
        device: Device::Cpu,
        threads: 1,
        launcher: None,
        preemption: Preemption::default(),
        vitals: Arc::new(Vitals::start()),
    };
    let batch: BatchShare = config.share_batch(1, 1).unwrap();
    Startup::rehearsal(context, config, batch).rehearsal_training(&Data::Synthetic(SAMPLES)).unwrap()
}

#[test]
fn a_run_has_whole_steps() {
    let length = |overrides: &[&str]| RunLength::new(&config(overrides), 10);
    // Four samples a step: three and three quarters of a step are four steps.
    let epochs = length(&["optim.epochs=1.5", "checkpoint.keep_every_epochs=0.5"]);
    assert_eq!(epochs, RunLength { total_steps: 4, samples: 10, keep_every_steps: Some(2) });
    assert_eq!(epochs.epoch(4, 4), 1.6);
    assert_eq!(length(&["optim.epochs=1.5", "train.max_steps=3"]).total_steps, 3);
    assert_eq!(length(&["optim.epochs=1.5", "train.max_steps=5"]).total_steps, 4);
    assert_eq!(
        length(&["optim.epochs=0.01", "checkpoint.keep_every_epochs=null"]),
        RunLength { total_steps: 1, samples: 10, keep_every_steps: None }
    );
}

fn weights(training: &Training<'_>) -> Tensor {
    training.state.parameters.values().copy()
}

#[test]
fn no_weight_changes_before_a_checkpoint_has_its_copy() {
    let config = config(&[]);
    let mut training = training(&Single, &config);
    let (copying, copied) = mpsc::channel();
    training.checkpoints.pretend_to_copy(LaunchEnvironment::single(), copied).unwrap();
    let (live, before) = (training.state.parameters.values().shallow_clone(), weights(&training));
    let copy = std::thread::spawn(move || {
        // Much longer than the step takes.
        std::thread::sleep(Duration::from_secs(2));
        let untouched = live == before;
        drop(copying);
        untouched
    });
    let before = weights(&training);
    training.rehearse().unwrap();
    assert!(copy.join().unwrap(), "the weights have changed while they were copied");
    assert_ne!(weights(&training), before, "the step has changed nothing");
}

/// A single rank whose first `times` all-reduces overflow in a gradient, while every loss is finite.
struct Overflowing {
    times: std::cell::Cell<u32>,
}

impl Collective for Overflowing {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn describe(&self) -> String {
        "one rank whose gradients overflow".to_owned()
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), CollectiveError> {
        if let Some(left) = self.times.get().checked_sub(1) {
            self.times.set(left);
            let _ = flat.narrow(0, 5, 1).fill_(f64::INFINITY);
        }
        Ok(())
    }

    fn broadcast(&self, flat: &mut Tensor, root: usize) -> Result<(), CollectiveError> {
        Single.broadcast(flat, root)
    }

    fn all_reduce_scalars(&self, scalars: &mut [f64], how: Reduction) -> Result<(), CollectiveError> {
        Single.all_reduce_scalars(scalars, how)
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>, CollectiveError> {
        Single.broadcast_bytes(bytes, root)
    }

    fn all_gather(&self, flat: &mut Tensor, ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        Single.all_gather(flat, ranges)
    }
}

#[test]
fn a_gradient_that_is_not_finite_touches_nothing_though_the_loss_is() {
    let overflowing = Overflowing { times: 1.into() };
    let config = config(&["train.non_finite=stop"]);
    let mut training = training(&overflowing, &config);
    let before = weights(&training);
    let Err(Stop::Failure(error)) = training.rehearse() else { panic!("the step was taken") };
    let error = error.to_string();
    assert!(error.contains("the gradient norm inf") && !error.contains("loss is inf"), "{error}");
    assert_eq!(weights(&training), before);
    assert_eq!(training.state.optimizer.steps(), 0);
}

#[test]
fn a_skipped_step_leaves_nothing_behind() {
    let overflowing = Overflowing { times: 2.into() };
    let config = config(&["train.non_finite=skip"]);
    let mut training = training(&overflowing, &config);
    let before = weights(&training);
    training.rehearse().unwrap();
    training.rehearse().unwrap();
    assert_eq!(weights(&training), before);
    assert_eq!((training.step, training.state.optimizer.steps()), (2, 0));
    assert_eq!(training.state.parameters.gradients().abs().max().double_value(&[]), 0.0);
    training.rehearse().unwrap();
    assert_eq!((training.step, training.state.optimizer.steps()), (3, 1));
    assert_ne!(weights(&training), before);
}
