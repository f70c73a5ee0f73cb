//! Tests of stores that refuse requests: each refusal has its own fix and exit code 78 at the start, and nothing is lost
//! when it begins during a run.
#![allow(clippy::unwrap_used)]

use arinar_tests::s3::{Fault, Faults};
use arinar_tests::support::checkpoint::Cloud;
use arinar_tests::support::trainer::ProcessOutput;

/// Refusals with parts of their messages, from the documentation of S3 and the remedies of each.
const REFUSALS: [(&str, &str); 8] = [
    ("AccessDenied", "check credentials and permissions"),
    ("InvalidAccessKeyId", "correct AWS_ACCESS_KEY_ID or the profile"),
    ("SignatureDoesNotMatch", "correct AWS_SECRET_ACCESS_KEY or the profile"),
    ("InvalidToken", "set AWS_SESSION_TOKEN"),
    ("RequestTimeTooSkewed", "set the clock of this machine"),
    ("AuthorizationHeaderMalformed", "set AWS_REGION"),
    ("PermanentRedirect", "set AWS_REGION"),
    ("NoSuchBucket", "create it, or correct the URL or the region"),
];

#[test]
fn a_refusal_at_the_start_names_its_fix() {
    let cloud = Cloud::new();
    for (code, remedy) in REFUSALS {
        cloud.server.set_faults(Faults::always(Fault::Refusal(code), &[]));
        let run = cloud.train(0, &["train.max_steps=2"]);
        assert_eq!(run.code, Some(78), "{code}: {}\n{}", run.stdout, run.stderr);
        assert!(run.error().contains(remedy) && run.error().contains("s3://runs/tiny"), "{code}: {}", run.error());
        let check = ProcessOutput::of(cloud.command(0, &[]).arg("--check").output().unwrap());
        let problems: Vec<&str> = check.stdout.lines().filter(|line| line.starts_with("PROBLEM")).collect();
        assert!(check.code == Some(78) && problems.len() == 1, "{code}: {}\n{}", check.stdout, check.stderr);
        assert!(problems[0].contains(remedy), "{code}: {}", problems[0]);
    }
    cloud.server.set_faults(Faults::always(Fault::ExpiredToken, &[]));
    let run = cloud.train(0, &["train.max_steps=2"]);
    assert!(run.code == Some(78) && run.error().contains("renew them in the profile file"), "{}", run.stderr);
}

#[test]
fn a_refusal_during_a_run_loses_nothing() {
    let cloud = Cloud::with_short_timeout();
    let mut run = cloud.start(2, &["train.max_steps=1000000", "checkpoint.every=20 steps"]);
    run.wait_for_line("uploaded step-");
    cloud.server.set_faults(Faults::always(Fault::Refusal("AccessDenied"), &[]));
    let line = run.wait_for_line("training continues");
    assert!(line.contains("AccessDenied") && line.contains("check credentials"), "{line}");
    run.wait_for_line("saved step-");
    cloud.server.set_faults(Faults::default());
    run.wait_for_line("can be reached again after");
    run.wait_for_line("uploaded step-");
    run.signal("-TERM");
    let output = run.wait();
    assert_eq!(output.code, Some(75), "{}", output.stderr);
    cloud.check_manifests();
}

#[test]
fn a_refused_shard_during_a_run_is_no_error_of_the_configuration() {
    let cloud = Cloud::with_short_timeout();
    cloud.publish_dataset();
    let cache = format!("data.cache_dir={}", cloud.lab.path("cache").display());
    let overrides = ["data.url=s3://data", &cache, "data.shuffle_window=1", "data.look_ahead=1"];
    // At the start, the manifest can be read and the shards cannot.
    let refused = |prefix: &str| Faults {
        prefix: prefix.to_owned(),
        ..Faults::always(Fault::Refusal("AccessDenied"), &["GET", "HEAD"])
    };
    cloud.server.set_faults(refused("data/shard-"));
    let output = cloud.train(0, &[&overrides[..], &["train.max_steps=20"]].concat());
    assert_eq!(output.code, Some(78), "{}\n{}", output.stdout, output.stderr);
    // After some steps, the launcher shall try again.
    let _ = std::fs::remove_dir_all(cloud.lab.path("cache"));
    for shard in ["data/shard-00000", "data/shard-00001"] {
        cloud.server.set_faults(refused(shard));
        let output = cloud.train(0, &[&overrides[..], &["train.max_steps=20"]].concat());
        let steps = output.stdout.lines().filter(|line| line.starts_with("step ")).count();
        let expected = if steps > 0 { 1 } else { 78 };
        assert_eq!(output.code, Some(expected), "{steps} steps\n{}\n{}", output.stdout, output.stderr);
        assert!(output.error().contains("check credentials and permissions"), "{}", output.error());
        let _ = std::fs::remove_dir_all(cloud.lab.path("cache"));
        let _ = std::fs::remove_dir_all(cloud.lab.path("s3/runs/tiny"));
    }
}
