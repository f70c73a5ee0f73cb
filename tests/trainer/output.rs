//! Tests of `arinar-trainer` and `arinar-sample` with output that cannot be written.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use arinar_tests::support::{
    output_sinks::{assert_invalid_everywhere, assert_result_is_required, run, unwritable},
    trainer::{Lab, trainer},
};

fn with(mut command: Command, argument: &str) -> Command {
    command.arg(argument);
    command
}

#[test]
fn a_run_ends_with_its_checkpoint_even_if_no_progress_can_be_written() {
    let lab = Lab::new();
    for (number, (stdout, stderr)) in unwritable().into_iter().enumerate() {
        let run_dir = format!("run.dir={}", lab.path(&format!("run-{number}")).display());
        let command = lab.command(0, &["train.max_steps=2", &run_dir]);
        let output = run(&command, stdout, stderr).succeeded();
        assert!(!output.stderr.contains("bug"), "{}", output.stderr);
        assert_eq!(lab.checkpoints(&format!("run-{number}")), ["step-00000002"], "{stdout:?} {stderr:?}");
        assert!(lab.tensors(&format!("run-{number}/step-00000002")) == lab.tensors("run-0/step-00000002"));
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let lab = Lab::new();
    for argument in ["--print-config", "--check", "--plan"] {
        assert_result_is_required(&with(lab.command(0, &[]), argument));
    }
    for program in ["arinar-trainer", "arinar-sample"] {
        for argument in ["--help", "--version"] {
            assert_result_is_required(&with(Command::new(trainer().with_file_name(program)), argument));
        }
    }
}

#[test]
fn an_error_has_its_exit_code_even_if_it_cannot_be_reported() {
    let lab = Lab::new();
    assert_invalid_everywhere(&lab.command(0, &["train.max_steps=none"]));
    for program in ["arinar-trainer", "arinar-sample"] {
        assert_invalid_everywhere(&with(Command::new(trainer().with_file_name(program)), "--no-such-option"));
    }
}
