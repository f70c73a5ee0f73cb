//! Tests of the store on a folder and on an S3 server without faults.
#![allow(clippy::unwrap_used)]

use arinar_store::Store;
use arinar_tests::s3::S3Server;
use arinar_tests::support::store::{check_conformance, environment, s3_store};

#[test]
fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}/with space/runs", folder.path().display())).unwrap();
    assert!(store.is_local());
    check_conformance(&store);
    // Only the empty folder `a` is left, and no partially written file.
    assert_eq!(std::fs::read_dir(store.local_path("").unwrap()).unwrap().count(), 1);
}

#[test]
fn an_s3_server_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path());
    let store = s3_store(&server, "bucket", "5");
    assert!(!store.is_local());
    check_conformance(&store);
    // A URL may end with a slash or consist of the bucket alone.
    for url in ["s3://bucket/some folder/data/", "s3://bucket"] {
        Store::open_with(url, &environment(&server, "5")).unwrap().put("x", "y").unwrap();
    }
    assert!(store.exists("x").unwrap());
    assert!(server.object_path("bucket", "x").exists());
}

#[test]
fn names_of_objects_are_literal() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(&folder.path().join("s3"));
    server.create_bucket("bucket");
    let names = ["a%20c", "a c", "a+b", "what?", "a#b", "gr\u{f6}\u{df}e", "a=b, c", "{x}", "a~b"];
    for name in names {
        for url in [format!("s3://bucket/{name}"), format!("{}/local/{name}", folder.path().display())] {
            let store = Store::open_with(&url, &environment(&server, "5")).unwrap();
            store.put("x", name).unwrap();
            assert_eq!((store.get("x").unwrap().as_ref(), store.url()), (name.as_bytes(), url.as_str()));
            let listed: Vec<String> = store.list("").unwrap().into_iter().map(|object| object.name).collect();
            assert_eq!(listed, ["x"], "{url}");
        }
        assert!(server.object_path("bucket", name).join("x").exists(), "{name}");
        assert!(folder.path().join("local").join(name).join("x").exists(), "{name}");
    }
}

#[test]
fn partially_written_files_are_removed_and_others_kept() {
    let folder = tempfile::tempdir().unwrap();
    const NAMES: [&str; 6] = ["a#1", "a", "b#x", "c#", "notes#1", "link#2"];
    for name in &NAMES[..5] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    std::os::unix::fs::symlink("a", folder.path().join("link#2")).unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    store.remove_unfinished(|name| ["a", "b", "c", "link"].contains(&name)).unwrap();
    let exists = |name: &str| folder.path().join(name).exists();
    assert_eq!(NAMES.map(exists), [false, true, true, true, true, true]);
}

#[test]
fn unknown_schemes_are_rejected() {
    for url in ["ftp://host/x", "memory:///x", "https://example.com/x", ""] {
        let error = Store::open(url).unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains("s3://"), "{error}");
    }
}
