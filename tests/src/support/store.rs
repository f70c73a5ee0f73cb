//! The conformance suite of every store, local or remote, and stores on the S3 server of the tests.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::s3::S3Server;
use arinar_store::{Environment, Store};

/// Returns bytes that are changed by any shift or swap of parts.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31 + i / 251 + i / 65_537) % 256) as u8).collect()
}

/// Returns the environment of a server, with `ARINAR_STORE_PATIENCE` set to `timeout` seconds.
pub fn environment(server: &S3Server, timeout: &str) -> Environment {
    let timeout = ("ARINAR_STORE_PATIENCE".to_owned(), timeout.to_owned());
    server.environment().into_iter().chain([timeout]).collect()
}

/// Opens a store in a new bucket.
pub fn s3_store(server: &S3Server, bucket: &str, timeout: &str) -> Store {
    server.create_bucket(bucket);
    Store::open_with(&format!("s3://{bucket}/some folder/data"), &environment(server, timeout)).unwrap()
}

/// Downloads an object to a file and returns its contents.
pub fn downloaded(store: &Store, name: &str, bytes: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    store.download(name, bytes, &File::create(&path).unwrap()).unwrap();
    let mut found = Vec::new();
    File::open(path).unwrap().read_to_end(&mut found).unwrap();
    found
}

/// Runs the conformance suite on an empty store.
pub fn check_conformance(store: &Store) {
    check_objects(store);
    check_large_objects(store);
    check_conditional_puts(store);
    check_concurrent_creation(store);
}

fn check_objects(store: &Store) {
    assert!(!store.exists("a/b.bin").unwrap());
    assert!(store.list("").unwrap().is_empty());
    assert!(store.get("a/b.bin").unwrap_err().is_missing());
    store.put("a/b.bin", vec![1u8, 2, 3]).unwrap();
    store.put("a/b=c, d.bin", vec![9u8]).unwrap();
    store.put("ab", vec![7u8; 5]).unwrap();
    store.put("top", Vec::new()).unwrap();
    assert_eq!(store.get("a/b.bin").unwrap().as_ref(), [1, 2, 3]);
    assert_eq!(store.get("a/b=c, d.bin").unwrap().as_ref(), [9]);
    assert!(store.get("top").unwrap().is_empty());
    assert!(downloaded(store, "top", 0).is_empty());
    assert_eq!(store.get_range("a/b.bin", 1, 2).unwrap().as_ref(), [2, 3]);
    assert!(store.get_range("a/b.bin", 1, 9).is_err());
    assert_eq!(store.size("a/b.bin").unwrap(), Some(3));
    let names = |prefix: &str| -> Vec<(String, u64)> {
        store.list(prefix).unwrap().into_iter().map(|object| (object.name, object.bytes)).collect()
    };
    let expected = [("a/b.bin", 3), ("a/b=c, d.bin", 1), ("ab", 5), ("top", 0)];
    assert_eq!(names(""), expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    assert_eq!(names("a").len(), 2);
    store.put("a/b.bin", vec![4u8]).unwrap();
    assert_eq!(store.get("a/b.bin").unwrap().as_ref(), [4]);
    for name in ["a/b.bin", "a/b=c, d.bin", "ab", "top"] {
        store.delete(name).unwrap();
    }
    store.delete("a/b.bin").unwrap();
    assert!(!store.exists("a/b.bin").unwrap());
}

fn check_large_objects(store: &Store) {
    let folder = tempfile::tempdir().unwrap();
    // Lengths below and above the limit for multipart uploads, with an incomplete last part.
    for length in [(9 << 20) + 5, (17 << 20) + 12_345] {
        let bytes = pattern(length);
        let source = folder.path().join("source");
        std::fs::write(&source, &bytes).unwrap();
        store.put_file("large", &source).unwrap();
        assert_eq!(store.size("large").unwrap(), Some(length as u64));
        assert!(store.get("large").unwrap() == bytes);
        assert!(downloaded(store, "large", length as u64) == bytes);
        assert!(store.get_range("large", 12_345, 8 << 20).unwrap() == bytes[12_345..12_345 + (8 << 20)]);
        let file = File::create(folder.path().join("copy")).unwrap();
        for wrong in [length as u64 - 1, length as u64 + 1, 1 << 30] {
            let error = store.download("large", wrong, &file).unwrap_err().to_string();
            assert!(error.contains(&length.to_string()) && error.contains(&wrong.to_string()), "{error}");
        }
        assert!(store.download("nothing", 5, &file).unwrap_err().is_missing());
        store.delete("large").unwrap();
    }
    let missing = store.put_file("large", Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/at/all"), "{missing}");
}

fn check_conditional_puts(store: &Store) {
    assert!(store.get_versioned("c").unwrap().is_none());
    assert!(store.put_new("c", "one").unwrap());
    assert!(!store.put_new("c", "two").unwrap());
    let (bytes, first) = store.get_versioned("c").unwrap().unwrap();
    assert_eq!(bytes.as_ref(), b"one");
    assert!(store.put_if("c", "three", &first).unwrap());
    assert!(!store.put_if("c", "four", &first).unwrap());
    let (bytes, second) = store.get_versioned("c").unwrap().unwrap();
    assert_eq!(bytes.as_ref(), b"three");
    assert_ne!(first, second);
    store.delete("c").unwrap();
    assert!(!store.put_if("c", "five", &second).unwrap());
    assert!(!store.exists("c").unwrap());
}

fn check_concurrent_creation(store: &Store) {
    let created: Vec<bool> = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..8).map(|writer: u8| scope.spawn(move || store.put_new("race", vec![writer]).unwrap())).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let winners: Vec<u8> = (0..8).filter(|&writer| created[usize::from(writer)]).collect();
    assert_eq!(winners.len(), 1, "{created:?}");
    assert_eq!(store.get("race").unwrap().as_ref(), winners);
    store.delete("race").unwrap();
}
