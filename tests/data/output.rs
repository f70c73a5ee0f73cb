//! Tests of `arinar-data` with output that cannot be written.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use arinar_tests::programs::program;
use arinar_tests::support::data::{files, picture_tree, text, tiny_vae, write_synthetic_dataset};
use arinar_tests::support::output_sinks::{
    Sink, assert_invalid_everywhere, assert_result_is_required, run, unwritable,
};

fn arinar_data(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("arinar-data"));
    command.args(arguments);
    command
}

/// Returns a command that encodes the pictures of a folder into its subfolder `out`.
fn encode(folder: &Path, out: &str, more: &[&str]) -> Command {
    let (images, vae, out) = (folder.join("pictures"), folder.join("vae.safetensors"), folder.join(out));
    let paths = ["encode", "--images", text(&images), "--vae", text(&vae), "--out", text(&out)];
    arinar_data(&[&paths, ["--image-size=8", "--threads=1", "--skip-bad"].as_slice(), more].concat())
}

#[test]
fn a_dataset_is_encoded_even_if_nothing_can_be_written_about_it() {
    let folder = tempfile::tempdir().unwrap();
    picture_tree(&folder.path().join("pictures"), 12);
    std::fs::write(folder.path().join("pictures/apes/bad.png"), "no picture").unwrap();
    tiny_vae(&folder.path().join("vae.safetensors"));
    run(&encode(folder.path(), "whole", &[]), Sink::Read, Sink::Read).succeeded();
    let expected = files(&folder.path().join("whole"));
    for (number, (stdout, stderr)) in unwritable().into_iter().enumerate() {
        let out = format!("out-{number}");
        let output = run(&encode(folder.path(), &out, &[]), stdout, stderr).succeeded();
        assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
        // Nothing was written into a file instead of a closed stream.
        assert!(files(&folder.path().join(&out)) == expected, "{stdout:?} {stderr:?}");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write_synthetic_dataset(folder.path(), &[5, 3]);
    let url = text(folder.path());
    for arguments in [
        ["inspect", url].as_slice(),
        &["inspect", url, "--json"],
        &["verify", url, "--deep"],
        &["simulate", "--data", url, "--global-batch", "2"],
        &["encode", "--help"],
    ] {
        assert_result_is_required(&arinar_data(arguments));
    }
}

#[test]
fn an_invalid_command_line_has_its_exit_code_even_if_it_cannot_be_reported() {
    assert_invalid_everywhere(&arinar_data(&["encode"]));
    assert_invalid_everywhere(&arinar_data(&["no-such-command"]));
    assert_invalid_everywhere(&arinar_data(&["inspect", "/no/such/dataset"]));
}
