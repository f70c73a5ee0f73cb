//! Tests of the store under every kind of failure: an operation returns the right bytes or a clear error, and never
//! wrong bytes, except for a bit flipped in transit, which only a hash can detect.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::time::{Duration, Instant};

use arinar_store::{Store, StoreError};
use arinar_tests::s3::{Fault, Faults, S3Server};
use arinar_tests::support::store::{downloaded, pattern, s3_store};

/// Size of an object that is downloaded in sixteen parts and uploaded in three.
const LARGE: usize = (20 << 20) + 777;
/// A stall longer than the stores of these tests wait.
const STALL: Fault = Fault::Stall(Duration::from_secs(3));
/// Failures that the store must survive if they are temporary.
const TEMPORARY: [Fault; 6] =
    [Fault::InternalError, Fault::SlowDown, Fault::Reset, Fault::LostAnswer, STALL, Fault::Truncate];

struct Lab {
    _folder: tempfile::TempDir,
    server: S3Server,
    store: Store,
}

impl Lab {
    /// Creates a store that retries for `timeout` seconds and waits for data for a quarter of that.
    fn new(timeout: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(folder.path());
        let store = s3_store(&server, "bucket", timeout);
        Self { _folder: folder, server, store }
    }
}

/// Runs every operation once and asserts that it succeeds.
fn check_all_operations(store: &Store, mut before_each: impl FnMut()) {
    let large = pattern(LARGE);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::write(&file, &large).unwrap();
    let mut step = |name: &str, action: &mut dyn FnMut() -> Result<bool, StoreError>| {
        before_each();
        assert!(action().unwrap_or_else(|error| panic!("{name}: {error}")), "{name}");
    };
    step("put", &mut || store.put("small", "tiny").map(|()| true));
    step("get", &mut || Ok(store.get("small")?.as_ref() == b"tiny"));
    step("size", &mut || Ok(store.size("small")? == Some(4)));
    step("put_file", &mut || store.put_file("large", &file).map(|()| true));
    step("get large", &mut || Ok(store.get("large")? == large));
    step("get_range", &mut || Ok(store.get_range("large", 5, 5 << 20)? == large[5..5 + (5 << 20)]));
    step("download", &mut || Ok(downloaded(store, "large", LARGE as u64) == large));
    step("list", &mut || Ok(store.list("")?.len() == 2));
    step("put_new", &mut || store.put_new("new", "first"));
    step("put_new again", &mut || Ok(!store.put_new("new", "second")?));
    let mut version = None;
    step("get_versioned", &mut || {
        version = store.get_versioned("new")?;
        Ok(version.is_some())
    });
    let (_, version) = version.unwrap();
    step("put_if", &mut || store.put_if("new", "third", &version));
    step("put_if again", &mut || Ok(!store.put_if("new", "fourth", &version)?));
    step("delete", &mut || store.delete("new").map(|()| true));
    step("delete again", &mut || store.delete("new").map(|()| true));
}

#[test]
fn every_operation_survives_every_temporary_failure() {
    std::thread::scope(|scope| {
        for fault in TEMPORARY {
            scope.spawn(move || {
                let lab = Lab::new("8");
                let times = if fault == STALL { 1 } else { 2 };
                let mut operations = 0;
                check_all_operations(&lab.store, || {
                    operations += 1;
                    lab.server.set_faults(Faults::first(times, fault, &[]));
                });
                let faults = lab.server.counters().faults();
                assert!(faults >= operations / 3, "{fault:?} happened only {faults} times");
            });
        }
    });
}

#[test]
fn many_failures_are_survived() {
    let lab = Lab::new("8");
    let kinds = [Fault::InternalError, Fault::SlowDown, Fault::Reset, Fault::LostAnswer, Fault::Truncate].to_vec();
    lab.server.set_faults(Faults { of_ten: 3, kinds, seed: 7, ..Faults::default() });
    for _ in 0..3 {
        check_all_operations(&lab.store, || {});
        lab.store.delete("large").unwrap();
    }
    assert!(lab.server.counters().faults() > 30, "{:?}", lab.server.counters().faults);
}

#[test]
fn broken_bodies_are_resumed_where_they_broke() {
    let lab = Lab::new("8");
    let large = pattern(LARGE);
    lab.store.put("large", large.clone()).unwrap();
    lab.server.set_faults(Faults {
        of_ten: 4,
        kinds: vec![Fault::Reset, Fault::Truncate],
        seed: 3,
        ..Faults::default()
    });
    lab.server.reset_counters();
    assert!(downloaded(&lab.store, "large", LARGE as u64) == large);
    let counters = lab.server.counters();
    let sent = counters.below("bucket/").sent as f64 / LARGE as f64;
    assert!(counters.faults() > 0 && sent <= 1.02, "sent {sent} times the object, {:?}", counters.faults);
}

#[test]
fn lasting_failures_end_in_a_transient_error_in_time() {
    let lab = Lab::new("1");
    lab.store.put("x", "y").unwrap();
    let always = |fault| Faults::always(fault, &[]);
    let down = Faults { down: true, ..Faults::default() };
    let mut plans: Vec<Faults> = TEMPORARY.into_iter().filter(|fault| *fault != Fault::Truncate).map(always).collect();
    plans.push(down);
    for plan in plans {
        lab.server.set_faults(plan.clone());
        let start = Instant::now();
        let errors = [
            lab.store.get("x").unwrap_err(),
            lab.store.size("x").unwrap_err(),
            lab.store.put("x", "z").unwrap_err(),
            lab.store.list("").unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(error.is_transient() && !error.is_configuration(), "{plan:?}: {text}");
            assert!(text.contains("s3://bucket") && text.contains("attempts") && !text.contains('\n'), "{text}");
        }
        assert!(start.elapsed() < Duration::from_secs(4 * 3), "{plan:?} took {:?}", start.elapsed());
    }
    // The store recovers with the server.
    lab.server.set_faults(Faults::default());
    lab.store.get("x").unwrap();
}

#[test]
fn truncated_responses_end_in_an_error_without_wrong_bytes() {
    let lab = Lab::new("4");
    let bytes = pattern(100_000);
    lab.store.put("x", bytes.clone()).unwrap();
    lab.server.set_faults(Faults::always(Fault::Truncate, &["GET"]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    // A small object is requested again each time and is never complete.
    let got = lab.store.get("x").unwrap_err();
    // A download resumes where it broke: each response delivers half of the missing bytes, and nothing of the last one.
    let downloaded = lab.store.download("x", 100_000, &File::create(&path).unwrap()).unwrap_err();
    for error in [got, downloaded] {
        assert!(matches!(error, StoreError::Unavailable { .. }) && error.is_transient(), "{error}");
    }
    assert!(std::fs::read(&path).unwrap() == bytes[..99_999]);
}

#[test]
fn slow_down_responses_cause_exponential_backoff() {
    let lab = Lab::new("4");
    lab.server.set_faults(Faults::always(Fault::SlowDown, &[]));
    let error = lab.store.get("x").unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("SlowDown"), "{error}");
    let requests = lab.server.counters().of_method("GET");
    // Pauses are random, up to 0.2 s, then 0.4 s, 0.8 s and so on. This gives 6 requests in 4 s on average, and never
    // more than 11 in 200,000 simulated runs. With a constant maximum of 0.2 s there would be 40, and at least 21.
    assert!((2..=20).contains(&requests), "{requests} requests in 4 s");
}

#[test]
fn expired_credentials_are_reported_at_once_as_transient() {
    let lab = Lab::new("20");
    lab.store.put("x", "y").unwrap();
    lab.server.set_faults(Faults::always(Fault::ExpiredToken, &["GET", "PUT", "LIST"]));
    let start = Instant::now();
    let error = lab.store.get("x").unwrap_err();
    assert!(matches!(error, StoreError::Expired { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains("ExpiredToken"), "{error}");
    assert!(matches!(lab.store.put("x", "z").unwrap_err(), StoreError::Expired { .. }));
    assert!(matches!(lab.store.list("").unwrap_err(), StoreError::Expired { .. }));
    // The response to HEAD has no body that could name the error.
    lab.server.set_faults(Faults::always(Fault::ExpiredToken, &[]));
    assert!(matches!(lab.store.size("x").unwrap_err(), StoreError::Expired { .. }));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_bit_flipped_in_transit_is_left_to_hashes() {
    let lab = Lab::new("5");
    let bytes = pattern(5 << 20);
    lab.store.put("x", bytes.clone()).unwrap();
    lab.server.set_faults(Faults::first(1, Fault::FlipBit, &["GET"]));
    let flipped = downloaded(&lab.store, "x", bytes.len() as u64);
    let different: u32 = bytes.iter().zip(&flipped).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((different, flipped.len()), (1, bytes.len()));
    assert!(downloaded(&lab.store, "x", bytes.len() as u64) == bytes);
}

#[test]
fn bandwidth_is_limited() {
    let lab = Lab::new("5");
    let bytes = pattern(4 << 20);
    lab.store.put("x", bytes.clone()).unwrap();
    lab.server.set_faults(Faults { bytes_per_second: 8 << 20, ..Faults::default() });
    let start = Instant::now();
    assert!(lab.store.get("x").unwrap() == bytes);
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
}

#[test]
fn a_bucket_that_does_not_exist_is_named() {
    let lab = Lab::new("5");
    let environment = arinar_tests::support::store::environment(&lab.server, "5");
    let store = Store::open_with("s3://nowhere/x", &environment).unwrap();
    let error = store.list("").unwrap_err();
    assert!(error.is_configuration() && error.to_string().contains("s3://nowhere/x"), "{error}");
    assert!(!error.is_transient());
}

#[test]
fn a_refusal_of_one_object_in_a_deletion_is_classified() {
    let lab = Lab::new("8");
    lab.store.put("x", "y").unwrap();
    lab.server.set_faults(Faults::always(Fault::AccessDenied, &[]));
    let denied = lab.store.delete("x").unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }) && denied.is_configuration(), "{denied}");
    // The first attempts fail, and a later one succeeds.
    lab.server.set_faults(Faults::first(2, Fault::SlowDeletion, &["POST"]));
    lab.store.delete("x").unwrap();
    assert_eq!(lab.server.counters().faults.get("SlowDeletion"), Some(&2));
    assert!(!lab.store.exists("x").unwrap());
}

#[test]
fn every_operation_names_the_reason_of_a_refusal() {
    let lab = Lab::new("5");
    for (code, part) in [
        ("RequestTimeTooSkewed", "set the clock"),
        ("AuthorizationHeaderMalformed", "us-west-2"),
        ("PermanentRedirect", "AWS_REGION"),
        ("InvalidToken", "AWS_SESSION_TOKEN"),
    ] {
        lab.server.set_faults(Faults::always(Fault::Refusal(code), &[]));
        let errors = [
            lab.store.get("x").unwrap_err(),
            lab.store.size("x").unwrap_err(),
            lab.store.list("").unwrap_err(),
            lab.store.put("x", "y").unwrap_err(),
            lab.store.put_new("x", "y").unwrap_err(),
            lab.store.delete("x").unwrap_err(),
        ];
        for error in errors {
            assert!(error.is_configuration() && error.to_string().contains(part), "{code}: {error}");
        }
    }
}
