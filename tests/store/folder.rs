//! The store on a folder and on an S3 server, and what becomes of every kind of failure.
#![allow(clippy::unwrap_used)]

use arinar_store::Store;
use arinar_tests::s3::S3Server;
use arinar_tests::support::store::{conforms, environment, s3_store};

#[test]
fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}/with space/runs", folder.path().display())).unwrap();
    assert!(store.is_local());
    conforms(&store);
    // Nothing half written is left.
    assert_eq!(std::fs::read_dir(store.local_path("").unwrap()).unwrap().count(), 1, "the empty folder a");
}

#[test]
fn an_s3_server_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path());
    let store = s3_store(&server, "bucket", "5");
    assert!(!store.is_local());
    conforms(&store);
    // As a user writes it, with a slash at the end, or the bucket alone.
    for url in ["s3://bucket/some folder/data/", "s3://bucket"] {
        Store::open_with(url, &environment(&server, "5")).unwrap().put("x", "y").unwrap();
    }
    assert!(store.exists("x").unwrap());
    assert!(server.object_path("bucket", "x").exists());
}

#[test]
fn half_written_files_are_removed_and_others_kept() {
    let folder = tempfile::tempdir().unwrap();
    const NAMES: [&str; 6] = ["a#1", "a", "b#x", "c#", "notes#1", "link#2"];
    for name in &NAMES[..5] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    std::os::unix::fs::symlink("a", folder.path().join("link#2")).unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    store.remove_unfinished(|name| ["a", "b", "c", "link"].contains(&name)).unwrap();
    let left = |name: &str| folder.path().join(name).exists();
    assert_eq!(NAMES.map(left), [false, true, true, true, true, true]);
}

#[test]
fn unknown_schemes_are_refused() {
    for url in ["ftp://host/x", "memory:///x", "https://example.com/x", ""] {
        let error = Store::open(url).unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains("s3://"), "{error}");
    }
}
