//! Tests of leases: a second writer is rejected, the lease of a dead writer is taken over at once, and that of a silent
//! writer on another host after its time to live.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arinar_store::Store;
use arinar_store::lease::{Lease, LeaseError};
use arinar_tests::s3::{Conditions, Fault, Faults, S3Server};
use arinar_tests::support::store::s3_store;

const URL_VARIABLE: &str = "ARINAR_TEST_LEASE_URL";
const SHORT: Duration = Duration::from_millis(900);

/// Environment variables for a child process.
type Variables = Vec<(String, String)>;

/// Returns a store in a folder and one on an S3 server, each with the variables that a child process needs to open it.
fn stores() -> (tempfile::TempDir, S3Server, Vec<(Store, Variables)>) {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(&folder.path().join("s3"));
    let remote = s3_store(&server, "bucket", "5");
    let local = Store::open(folder.path().join("local").to_str().unwrap()).unwrap();
    let variables = server.environment();
    (folder, server, vec![(local, Vec::new()), (remote, variables)])
}

fn held_error(result: Result<Lease, LeaseError>) -> String {
    match result {
        Err(error @ LeaseError::Held { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_second_writer_gets_an_error_that_names_the_first() {
    let (_folder, _server, stores) = stores();
    for (store, _) in stores {
        let lease = Lease::acquire(&store, "arinar-trainer run tiny").unwrap();
        let start = Instant::now();
        let error = held_error(Lease::acquire(&store, "another"));
        let pid = std::process::id();
        for part in ["arinar-trainer run tiny", &format!("pid {pid}"), &format!("kill {pid}"), store.url()] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "took too long to find a live writer on the same host");
        lease.check().unwrap();
        drop(lease);
        assert!(store.list("").unwrap().is_empty(), "the lease left a file behind");
        let next = Lease::acquire(&store, "another").unwrap();
        next.check().unwrap();
    }
}

#[test]
fn a_probe_sees_the_writer_and_changes_nothing() {
    let (_folder, _server, stores) = stores();
    for (store, variables) in stores {
        Lease::probe(&store).unwrap();
        assert!(store.list("").unwrap().is_empty(), "the probe created a file");
        let child = LeaseHolder::start(store.url(), &variables);
        let files = |store: &Store| store.list("").unwrap();
        let before = files(&store);
        let error = Lease::probe(&store).unwrap_err();
        assert!(matches!(error, LeaseError::Held { .. }), "{error}");
        assert!(error.to_string().contains(&format!("pid {}", child.0.id())), "{error}");
        child.kill();
        Lease::probe(&store).unwrap();
        assert_eq!(files(&store).len(), before.len(), "the probe removed a file of the dead writer");
        let lease = Lease::acquire(&store, "next").unwrap();
        assert!(Lease::probe(&store).unwrap_err().to_string().contains("`next`"));
        lease.check().unwrap();
    }
}

#[test]
fn a_probe_waits_for_a_writer_on_another_host_to_renew() {
    let (_folder, _server, stores) = stores();
    let store = &stores[1].0;
    let lease = Lease::acquire_for(store, "first", SHORT).unwrap();
    let mut holder = move_to_another_host(store);
    drop(lease);
    let before = store.get("writer.json").unwrap();
    Lease::probe_for(store, SHORT).unwrap();
    assert_eq!(store.get("writer.json").unwrap(), before, "the probe changed the lease");
    let result = std::thread::scope(|scope| {
        let probe = scope.spawn(|| Lease::probe_for(store, Duration::from_secs(20)));
        while !probe.is_finished() {
            std::thread::sleep(Duration::from_millis(200));
            holder["counter"] = (holder["counter"].as_u64().unwrap() + 1).into();
            store.put("writer.json", holder.to_string()).unwrap();
        }
        probe.join().unwrap()
    });
    assert!(result.unwrap_err().to_string().contains("far-away"));
}

#[test]
fn one_of_many_simultaneous_writers_gets_the_lease() {
    let (_folder, _server, stores) = stores();
    for (store, _) in stores {
        let results: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..6).map(|_| scope.spawn(|| Lease::acquire(&store, "race"))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winners: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
        assert_eq!(winners.len(), 1, "{}", store.url());
        winners[0].check().unwrap();
    }
}

/// Not a test: the process that [`LeaseHolder`] starts.
#[test]
#[ignore = "run by other tests in a separate process"]
fn hold_a_lease() {
    let store = Store::open(&std::env::var(URL_VARIABLE).unwrap()).unwrap();
    let _lease = Lease::acquire(&store, "child").unwrap();
    println!("\nholding");
    std::thread::sleep(Duration::from_secs(60));
}

/// Another process that holds the lease.
struct LeaseHolder(Child);

impl LeaseHolder {
    /// Starts the process and waits until it has the lease.
    fn start(url: &str, variables: &[(String, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lease::hold_a_lease", "--ignored", "--nocapture"])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env(URL_VARIABLE, url)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "holding"), "the child did not get the lease");
        Self(child)
    }

    /// Kills the process with SIGKILL.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_lease_of_a_killed_writer_is_taken_over_at_once() {
    let (_folder, _server, stores) = stores();
    for (store, variables) in stores {
        let child = LeaseHolder::start(store.url(), &variables);
        assert!(held_error(Lease::acquire(&store, "second")).contains(&child.0.id().to_string()));
        child.kill();
        let start = Instant::now();
        Lease::acquire(&store, "second").unwrap().check().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

/// Rewrites the lease as that of a process on another host, whose state is unknown here.
fn move_to_another_host(store: &Store) -> serde_json::Value {
    let mut holder: serde_json::Value = serde_json::from_slice(&store.get("writer.json").unwrap()).unwrap();
    holder["boot_id"] = "elsewhere".into();
    holder["host"] = "far-away".into();
    holder["nonce"] = "another".into();
    store.put("writer.json", holder.to_string()).unwrap();
    holder
}

#[test]
fn the_lease_of_a_silent_writer_on_another_host_is_taken_over_after_its_time_to_live() {
    let (_folder, server, stores) = stores();
    let (store, variables) = &stores[1];
    let child = LeaseHolder::start(store.url(), variables);
    child.kill();
    move_to_another_host(store);
    let start = Instant::now();
    let lease = Lease::acquire_for(store, "second", SHORT).unwrap();
    assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    // The new lease is renewed.
    let before = server.counters().of_method("PUT");
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.counters().of_method("PUT") == before {
        assert!(Instant::now() < deadline, "the lease is not renewed");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(lease);
}

#[test]
fn an_unrelated_file_is_not_overwritten() {
    let (_folder, _server, stores) = stores();
    for (store, _) in &stores {
        let name = if store.is_local() { "writer.lock" } else { "writer.json" };
        for text in ["garbage", r#"{"host": "of another program"}"#] {
            store.put(name, text).unwrap();
            for result in [Lease::probe_for(store, SHORT), Lease::acquire_for(store, "first", SHORT).map(drop)] {
                let error = result.unwrap_err();
                assert!(matches!(error, LeaseError::Foreign { .. }), "{error}");
                assert!(error.to_string().contains(name) && error.to_string().contains("move it away"), "{error}");
            }
            assert_eq!(store.get(name).unwrap(), text);
        }
    }
    // A killed writer may leave an empty file, and a crashed host zeros. A symlink may point to an unrelated file.
    let local = &stores[0].0;
    for text in ["", "\0\0\0"] {
        local.put("writer.lock", text).unwrap();
        Lease::probe(local).unwrap();
        drop(Lease::acquire(local, "first").unwrap());
    }
    local.put("notes.txt", "of a person").unwrap();
    std::os::unix::fs::symlink("notes.txt", local.local_path("writer.lock").unwrap()).unwrap();
    assert!(Lease::acquire(local, "first").is_err());
    assert_eq!(local.get("notes.txt").unwrap(), "of a person");
}

#[test]
fn a_writer_on_another_host_that_renews_keeps_its_lease() {
    let (_folder, _server, stores) = stores();
    let store = &stores[1].0;
    let lease = Lease::acquire(store, "first").unwrap();
    let mut holder = move_to_another_host(store);
    drop(lease); // It does not delete another writer's file.
    let error = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| held_error(Lease::acquire_for(store, "second", Duration::from_secs(20))));
        while !waiter.is_finished() {
            std::thread::sleep(Duration::from_millis(200));
            holder["counter"] = (holder["counter"].as_u64().unwrap() + 1).into();
            store.put("writer.json", holder.to_string()).unwrap();
        }
        waiter.join().unwrap()
    });
    assert!(error.contains("far-away") && !error.contains("kill"), "{error}");
}

#[test]
fn a_lease_taken_by_another_writer_is_lost() {
    let (_folder, _server, stores) = stores();
    for (store, _) in &stores {
        let lease = Lease::acquire(store, "first").unwrap();
        let name = if store.is_local() { "writer.lock" } else { "writer.json" };
        store.delete(name).unwrap();
        let second = Lease::acquire(store, "second one").unwrap();
        let error = lease.check().unwrap_err();
        assert!(matches!(error, LeaseError::Lost { .. }), "{error}");
        assert!(error.to_string().contains("second one"), "{error}");
        drop(lease);
        second.check().unwrap();
        store.delete(name).unwrap();
        assert!(second.check().unwrap_err().to_string().contains(name));
    }
}

#[test]
fn a_lease_survives_an_outage_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path());
    let store = s3_store(&server, "bucket", "4");
    let lease = Lease::acquire_for(&store, "first", SHORT).unwrap();
    server.set_faults(Faults { down: true, ..Faults::default() });
    let error = lease.check().unwrap_err();
    assert!(matches!(error, LeaseError::Store(_)) && error.is_transient(), "{error}");
    std::thread::sleep(2 * SHORT);
    server.set_faults(Faults::default());
    lease.check().unwrap();
    // A lost response to a renewal does not count as a lost lease.
    let renewals = || server.counters().of_method("PUT");
    server.set_faults(Faults {
        of_ten: 5,
        kinds: vec![Fault::LostAnswer],
        seed: 5,
        methods: vec!["PUT"],
        ..Faults::default()
    });
    let before = renewals();
    while renewals() < before + 8 {
        std::thread::sleep(SHORT / 10);
    }
    lease.check().unwrap();
}

#[test]
fn a_lease_survives_bits_flipped_in_transit() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path());
    let store = s3_store(&server, "bucket", "5");
    let lease = Lease::acquire(&store, "first").unwrap();
    let kinds = vec![Fault::FlipBit];
    server.set_faults(Faults { of_ten: 3, kinds, seed: 2, methods: vec!["GET"], ..Faults::default() });
    for _ in 0..50 {
        lease.check().unwrap();
    }
    assert!(server.counters().faults() >= 15, "{:?}", server.counters());
    let error = Lease::acquire(&store, "second").unwrap_err();
    assert!(matches!(error, LeaseError::Held { .. }), "{error}");
}

#[test]
fn a_store_that_cannot_keep_two_writers_apart_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path());
    let store = s3_store(&server, "bucket", "5");
    for (conditions, reason) in [
        (Conditions::NotImplemented, "501 NotImplemented"),
        (Conditions::Rejected, "400 InvalidRequest"),
        (Conditions::Ignored, "ignores the condition If-None-Match"),
        (Conditions::MatchIgnored, "ignores the condition If-Match"),
        (Conditions::MatchNotImplemented, "501 NotImplemented"),
    ] {
        server.set_faults(Faults { conditions, ..Faults::default() });
        for result in [Lease::probe(&store), Lease::acquire(&store, "first").map(drop)] {
            let error = result.unwrap_err();
            assert!(matches!(error, LeaseError::NoConditions { .. }) && error.is_configuration(), "{error}");
            let text = error.to_string();
            assert!(text.contains(reason) && text.contains("s3://bucket/some folder/data"), "{conditions:?}: {text}");
            assert!(text.contains("run.lease=none") && text.contains("--no-lease"), "{text}");
            assert!(store.list("").unwrap().is_empty(), "{conditions:?}: an object is left behind");
        }
    }
    // A denied put is reported as such.
    server.set_faults(Faults::always(Fault::AccessDenied, &["PUT"]));
    let error = Lease::acquire(&store, "first").unwrap_err();
    assert!(matches!(error, LeaseError::Store(_)) && error.is_configuration(), "{error}");
    // The check of a good store takes few requests.
    server.set_faults(Faults::default());
    server.reset_counters();
    Lease::probe(&store).unwrap();
    let counters = server.counters();
    assert!(counters.of_method("PUT") == 4 && counters.of_method("POST") == 1, "{:?}", counters.requests);
    assert!(store.list("").unwrap().is_empty());
    Lease::without_exclusion().check().unwrap();
}
