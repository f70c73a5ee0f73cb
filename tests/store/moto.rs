//! Tests of the store and `arinar-data` against moto, an S3 server that shares no code with this project or with s3s.
//! `ops/bootstrap.sh --tests` installs it.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output};

use arinar_store::lease::Lease;
use arinar_store::{Environment, Store};
use arinar_tests::programs::program;
use arinar_tests::python_server;
use arinar_tests::support::data::{exit_status, picture_tree, succeeded, text, tiny_vae};

/// A running moto server, stopped when dropped.
struct Moto {
    process: Child,
    address: String,
}

impl Moto {
    fn start() -> Self {
        let (process, address) = python_server::start("moto_server", &[]);
        Self { process, address }
    }

    fn create_bucket(&self, name: &str) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "PUT /{name} HTTP/1.0\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", self.address).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.lines().next().unwrap().contains(" 200 "), "{response}");
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "testing".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "testing".to_owned()),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ]
    }

    fn store(&self, url: &str) -> Store {
        Store::open_with(url, &self.variables().into_iter().collect::<Environment>()).unwrap()
    }

    fn arinar_data(&self, arguments: &[&str]) -> Output {
        Command::new(program("arinar-data")).args(arguments).envs(self.variables()).output().unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn moto_conforms() {
    let moto = Moto::start();
    moto.create_bucket("bucket");
    arinar_tests::support::store::check_conformance(&moto.store("s3://bucket/some folder/data"));
}

#[test]
fn a_dataset_is_encoded_and_verified_on_moto_by_one_writer_at_a_time() {
    let moto = Moto::start();
    moto.create_bucket("bucket");
    let folder = tempfile::tempdir().unwrap();
    picture_tree(&folder.path().join("pictures"), 11);
    tiny_vae(&folder.path().join("vae.safetensors"));
    let url = "s3://bucket/emoji";
    let pictures = folder.path().join("pictures");
    let vae = folder.path().join("vae.safetensors");
    let mut encode = vec!["encode", "--images", text(&pictures), "--vae", text(&vae), "--out", url];
    encode.extend(["--image-size", "8", "--shard-bytes", "1000", "--threads", "1"]);

    let (code, _, stderr) = exit_status(&moto.arinar_data(&["inspect", url]));
    assert!(code == 78 && stderr.contains("no dataset"), "{code} {stderr}");

    let store = moto.store(url);
    let lease = Lease::acquire(&store, "another writer").unwrap();
    let (code, _, stderr) = exit_status(&moto.arinar_data(&encode));
    let holder = "`another writer` on host";
    assert!(
        code == 1 && stderr.contains(holder) && stderr.contains(&std::process::id().to_string()),
        "{code} {stderr}"
    );
    assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
    drop(lease);

    let summary = succeeded(&moto.arinar_data(&encode));
    assert!(summary.contains("11 pictures of 2 classes") && summary.contains(url), "{summary}");
    assert!(!store.exists("writer.json").unwrap());
    assert!(succeeded(&moto.arinar_data(&["inspect", url])).contains("11"));
    assert!(succeeded(&moto.arinar_data(&["verify", "--deep", url])).contains("11 records are sound"));

    // A flipped bit is detected.
    let name = &store.list("").unwrap().into_iter().find(|object| object.name.starts_with("shard-")).unwrap().name;
    let mut bytes = store.get(name).unwrap().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    store.put(name, bytes).unwrap();
    let (code, _, stderr) = exit_status(&moto.arinar_data(&["verify", url]));
    assert!(code == 1 && stderr.contains(name.as_str()), "{code} {stderr}");
}
