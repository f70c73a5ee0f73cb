//! Tests of the launcher with output that cannot be written.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use arinar_tests::programs::program;
use arinar_tests::support::{
    launcher::Stage,
    output_sinks::{assert_invalid_everywhere, assert_result_is_required, run, unwritable},
};

#[test]
fn a_run_is_supervised_to_its_end_even_if_no_output_can_be_written() {
    for (stdout, stderr) in unwritable() {
        for format in ["text", "json"] {
            let stage = Stage::new(r#"{"steps": 3, "faults": [{"attempt": 0, "rank": 1, "step": 2, "act": "flood"}]}"#);
            let command = stage.command(&["--nproc", "2", "--log-format", format]);
            let output = run(&command, stdout, stderr).succeeded();
            assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
            // The log files are complete.
            assert!(stage.log("rank-1").contains("step 3"), "{}", stage.log("rank-1"));
        }
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let stage = Stage::new("{}");
    assert_result_is_required(&stage.command(&["--nproc", "2", "--dry-run"]));
    for argument in ["--help", "--version"] {
        let mut command = Command::new(program("arinar-launcher"));
        command.arg(argument);
        assert_result_is_required(&command);
    }
}

#[test]
fn an_error_has_its_exit_code_even_if_it_cannot_be_reported() {
    let stage = Stage::new("{}");
    assert_invalid_everywhere(&stage.command(&["--no-such-option"]));
    assert_invalid_everywhere(&stage.command(&["--hostfile", "/no/such/file"]));
}
