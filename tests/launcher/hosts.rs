//! Tests of host files: the launcher accepts and refuses what mpirun does, and places ranks as mpirun does.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use arinar_tests::{mpi::session_folder, support::launcher::Stage};
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

/// Returns what mpirun prints about the placement on hosts, without starting anything on them.
fn ask_mpirun(arguments: &[&str]) -> String {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--display-map", "--do-not-launch"]).args(arguments).arg("true");
    let output = command.env("TMPDIR", session_folder()).output().unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

fn number_after(text: &str, key: &str) -> Option<usize> {
    text.split_once(key)?.1.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the number of slots that mpirun finds in a host file, or `None` if it refuses the file.
fn slots(file: &Path) -> Option<usize> {
    let printed = ask_mpirun(&["--hostfile", file.to_str().unwrap(), "-n", "1"]);
    let total = number_after(&printed, "Total slots allocated ")?;
    // The launcher needs a slot, and limits their number.
    (!printed.contains("illegal character") && (1..=65536).contains(&total)).then_some(total)
}

/// Returns the names and numbers of ranks of the hosts on which mpirun places a job.
fn placement(arguments: &[&str]) -> Vec<(String, usize)> {
    let printed = ask_mpirun(arguments);
    let of_line = |line: &str| {
        let (name, rest) = line.split_once("Data for node: ")?.1.split_once('\t')?;
        Some((name.to_owned(), number_after(rest, "Num procs: ")?))
    };
    printed.lines().filter_map(of_line).collect()
}

/// Asserts that the launcher judges a host file as mpirun does.
fn compare(stage: &Stage, text: &str) {
    let file = stage.path("hosts");
    std::fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let output = stage.run(&["--hostfile", path, "--dry-run"]);
    match slots(&file) {
        None => {
            assert_eq!(output.code, Some(78), "{text:?}: {}{}", output.stdout, output.stderr);
            assert_eq!(output.stderr.lines().count(), 1, "{text:?}: {}", output.stderr);
            assert!(output.stderr.contains(&format!("--hostfile {path}")), "{}", output.stderr);
        }
        Some(total) => {
            assert_eq!(output.code, Some(0), "{text:?}: {}", output.stderr);
            assert!(output.stdout.contains(&format!(" on {total} slots on ")), "{text:?}: {total}\n{}", output.stdout);
            if let Some((_, rest)) = output.stdout.split_once(" --host ") {
                let list = rest.split(' ').next().unwrap();
                let ranks = number_after(&output.stdout, " -n ").unwrap().to_string();
                let ours = placement(&["--host", list, "-n", &ranks, "--map-by", "slot"]);
                let theirs = placement(&["--hostfile", path, "-n", &ranks, "--map-by", "slot"]);
                assert_eq!(ours, theirs, "{text:?}: --host {list}");
            }
        }
    }
}

#[test]
fn host_files_are_judged_as_mpirun_judges_them() {
    let stage = Stage::new("{}");
    for text in [
        "a slots = 2\n",
        "a slots=2 max_slots=4\nb slots=1",
        "a slots=2 # two\n\n\t b\tcount=2\n",
        "a\nb\na\nb\n",
        "a slots=2\r\n",
        "a slotss=2\n",
        "a:2\n",
        "fe80::1 slots=2\n",
        "me@a slots=2\n",
        "localhost slots=1\n127.0.0.1\n",
    ] {
        compare(&stage, text);
    }
}

#[test]
fn random_host_files_are_judged_as_mpirun_judges_them() {
    let stage = Stage::new("{}");
    let name =
        prop::sample::select(vec!["a", "b", "b.c", "localhost", "10.1.2.3", "a_b", "x-1", "::1", "node[1-2]", "+n0"]);
    let word = prop::sample::select(vec![
        "slots=2",
        "slots = 3",
        "slots=0",
        "slots=x",
        "count=2",
        "cpu=1",
        "cpus=2",
        "max_slots=4",
        "max-slots=1",
        "slot=2",
        "slots",
        "=",
        "# note",
        "// note",
        "SLOTS=2",
        "2",
        "",
    ]);
    let line = (name, prop::collection::vec(word, 0..3), prop::sample::select(vec![" ", "\t", "  "]));
    let line = line.prop_map(|(name, words, gap)| [&[name][..], &words].concat().join(gap));
    let end = prop::sample::select(vec!["\n", "\n\n", "\n# x\n", "\r\n"]);
    let file = prop::collection::vec((line, end), 0..4)
        .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect::<String>());
    let config = ProptestConfig {
        cases: 24,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&file, |text| {
            compare(&stage, &text);
            Ok(())
        })
        .unwrap();
}
