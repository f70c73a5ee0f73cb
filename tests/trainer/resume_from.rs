//! Tests of `checkpoint.resume` with a checkpoint: where a run begins, and that it continues from its own checkpoints after
//! that.
#![allow(clippy::unwrap_used)]

use arinar_tests::s3::Faults;
use arinar_tests::support::checkpoint::{Cloud, files};
use arinar_tests::support::trainer::{Lab, ProcessOutput};

const EVERY: &str = "checkpoint.every=1 steps";
const KEEP_ALL: &str = "checkpoint.keep_last=100";

/// A run with the checkpoints of steps 1 to 6.
fn six_steps() -> Lab {
    let lab = Lab::new();
    lab.train(0, &["train.max_steps=6", EVERY, KEEP_ALL]).succeeded();
    lab
}

fn resume(lab: &Lab, place: &str) -> String {
    format!("checkpoint.resume={}", lab.path(place).display())
}

fn run_dir(lab: &Lab, name: &str) -> String {
    format!("run.dir={}", lab.path(name).display())
}

fn steps(steps: impl IntoIterator<Item = u64>) -> Vec<String> {
    steps.into_iter().map(arinar_checkpoint::step_folder_name).collect()
}

fn check(lab: &Lab, overrides: &[&str]) -> ProcessOutput {
    ProcessOutput::of(lab.command(0, overrides).arg("--check").output().unwrap())
}

/// Asserts that the run and `--check` name the checkpoint to resume from, and whether `checkpoint.resume` is read.
#[track_caller]
fn assert_resumes(lab: &Lab, overrides: &[&str], from: &str, is_read: bool) {
    let unread = "the run has already started, so checkpoint.resume ";
    let checked = check(lab, overrides);
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    let line = checked.stdout.lines().find(|line| line.contains(from) && line.contains(" resume "));
    assert!(line.is_some(), "{from} is not in {}", checked.stdout);
    let output = lab.train(0, overrides).succeeded();
    assert!(output.stdout.contains(&format!("resuming from {}", lab.path(from).display())), "{}", output.stdout);
    for report in [&checked.stdout, &output.stdout] {
        assert_eq!(report.contains(unread), !is_read, "{report}");
    }
}

#[test]
fn a_run_that_begins_elsewhere_continues_from_its_own_checkpoints() {
    let lab = six_steps();
    let (place, other) = (resume(&lab, "run/step-00000002"), run_dir(&lab, "other"));
    let keep = "checkpoint.keep_last=2";
    let train = |steps: &'static str| [steps, EVERY, keep, &place, &other].map(str::to_owned);
    let as_words = |words: &[String; 5]| -> Vec<&'static str> {
        words.iter().map(|word| &*Box::leak(word.clone().into_boxed_str())).collect()
    };
    assert_resumes(&lab, &as_words(&train("train.max_steps=4")), "run/step-00000002", true);
    assert_eq!(lab.checkpoints("other"), steps([3, 4]));
    // The same command continues, even if the place is gone.
    std::fs::rename(lab.path("run"), lab.path("moved")).unwrap();
    assert_resumes(&lab, &as_words(&train("train.max_steps=6")), "other/step-00000004", false);
    assert_eq!(lab.checkpoints("other"), steps([5, 6]));
    // It never left the course of the first run.
    assert!(lab.tensors("other/step-00000006") == lab.tensors("moved/step-00000006"));
    assert_eq!(lab.checkpoints("moved"), steps(1..=6));
    // The newest is damaged: the one before it is used.
    let state = lab.path("other/step-00000006/state.json");
    std::fs::write(&state, "{").unwrap();
    assert_resumes(&lab, &as_words(&train("train.max_steps=7")), "other/step-00000005", false);
    // All are damaged: the place is not used in their stead.
    for name in lab.checkpoints("other") {
        std::fs::write(lab.path(&format!("other/{name}/state.json")), "{").unwrap();
    }
    std::fs::rename(lab.path("moved"), lab.path("run")).unwrap();
    let words = train("train.max_steps=8");
    let words = as_words(&words);
    let output = lab.train(0, &words);
    assert!(output.code == Some(78) && output.error().contains("none of the checkpoints"), "{}", output.stderr);
    let checked = check(&lab, &words);
    assert!(checked.code == Some(78) && checked.stdout.contains("none of the checkpoints"), "{}", checked.stdout);
}

#[test]
fn an_older_checkpoint_of_the_same_run_is_refused() {
    let lab = six_steps();
    std::os::unix::fs::symlink(lab.path("run"), lab.path("link")).unwrap();
    let before = lab.tensors("run/step-00000006");
    for place in ["run/step-00000002", "run/step-00000005/", "link/step-00000003", "run/./step-00000001"] {
        let overrides = [&resume(&lab, place), "train.max_steps=9", EVERY, "checkpoint.keep_last=1"];
        let output = lab.train(0, &overrides);
        assert_eq!(output.code, Some(78), "{}", output.stderr);
        let checked = check(&lab, &overrides);
        assert_eq!(checked.code, Some(78), "{}", checked.stdout);
        for part in ["is older than the checkpoint step-00000006", "run.dir to a new folder", "checkpoint.resume=auto"]
        {
            assert!(output.error().contains(part) && checked.stdout.contains(part), "{part:?}: {}", output.error());
        }
    }
    let missing = [&resume(&lab, "run/step-00000007"), "train.max_steps=9"];
    let output = lab.train(0, &missing);
    assert!(output.code == Some(78) && output.error().contains("no checkpoint in "), "{}", output.stderr);
    assert_eq!(check(&lab, &missing).code, Some(78));
    assert_eq!(lab.checkpoints("run"), steps(1..=6));
    assert!(lab.tensors("run/step-00000006") == before);
}

#[test]
fn the_newest_checkpoint_of_the_same_run_can_be_named() {
    let lab = six_steps();
    let place = resume(&lab, "run/step-00000006");
    assert_resumes(&lab, &[&place, "train.max_steps=8", EVERY, KEEP_ALL], "run/step-00000006", true);
    // The same command again, as after a crash.
    assert_resumes(&lab, &[&place, "train.max_steps=9", EVERY, KEEP_ALL], "run/step-00000008", false);
    // Another start has saved newer ones, from which this command did not begin.
    lab.train(0, &["train.max_steps=10", EVERY, KEEP_ALL]).succeeded();
    assert_eq!(lab.train(0, &[&place, "train.max_steps=11"]).code, Some(78));
    // The whole run as a place is the same as auto.
    assert_resumes(&lab, &[&resume(&lab, "run"), "train.max_steps=11", EVERY, KEEP_ALL], "run/step-00000010", true);
    assert_eq!(lab.checkpoints("run"), steps(1..=11));
}

#[test]
fn damaged_later_checkpoints_do_not_supersede_what_is_saved() {
    let lab = six_steps();
    for step in [5, 6] {
        std::fs::write(lab.path(&format!("run/step-{step:08}/model-00001-of-00001.safetensors")), "").unwrap();
    }
    std::fs::remove_dir_all(lab.path("run/step-00000005")).unwrap();
    lab.train(0, &["train.max_steps=5", EVERY, "checkpoint.keep_last=1"]).succeeded();
    // The damaged one is kept for an investigation until its step is saved again.
    assert_eq!(lab.checkpoints("run"), steps([5, 6]));
    lab.train(0, &["train.max_steps=7", EVERY, "checkpoint.keep_last=1"]).succeeded();
    assert_eq!(lab.checkpoints("run"), steps([7]));
}

#[test]
fn checkpoints_in_the_spool_alone_are_continued() {
    let cloud = Cloud::with_short_timeout();
    cloud.lab.train(0, &["train.max_steps=4", EVERY, KEEP_ALL]).succeeded();
    let place = resume(&cloud.lab, "run/step-00000002");
    let gone = Faults::always(arinar_tests::s3::Fault::InternalError, &["PUT"]);
    cloud.server.set_faults(Faults { prefix: "runs/tiny/step-".to_owned(), ..gone });
    let output = cloud.train(0, &["train.max_steps=3", &place, "checkpoint.upload_timeout=1s"]);
    assert!(output.error().contains("not everything is in s3://runs/tiny"), "{}", output.stderr);
    assert_eq!((cloud.stored(), files(&cloud.spool())), (Vec::new(), steps([3])));
    cloud.server.set_faults(Faults::default());
    let command = ["train.max_steps=5", EVERY, KEEP_ALL, &place];
    let mut checked = cloud.command(0, &command);
    let checked = ProcessOutput::of(checked.arg("--check").output().unwrap()).succeeded();
    let output = cloud.train(0, &command).succeeded();
    for report in [&checked.stdout, &output.stdout] {
        assert!(report.contains("the run has already started, so checkpoint.resume "), "{report}");
    }
    assert!(output.stdout.contains("step-00000003 (its copy in the spool)"), "{}", output.stdout);
    assert_eq!(cloud.stored(), steps([3, 4, 5]));
    // On another machine, from the bucket.
    cloud.new_machine();
    let again = cloud.train(0, &["train.max_steps=6", EVERY, KEEP_ALL, &place]).succeeded();
    assert!(again.stdout.contains("resuming from s3://runs/tiny/step-00000005"), "{}", again.stdout);
    let older = cloud.train(0, &["train.max_steps=7", "checkpoint.resume=s3://runs/tiny/step-00000003/"]);
    assert!(older.code == Some(78) && older.error().contains("is older than"), "{}", older.stderr);
}
