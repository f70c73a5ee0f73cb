//! An S3 server in this process that misbehaves on demand.
//!
//! The protocol (signatures, ranges, listings, uploads in parts, conditional puts) is that of the crates s3s and
//! s3s-fs over a folder. What this module adds lies in front of them, in `serve.rs`: faults drawn from a plan that can
//! change while the server runs ([`Faults`]), a limit on bandwidth, counters of requests and bytes ([`Counters`]), and
//! a lock, because s3s-fs checks the condition of a conditional put and writes the object in two steps, and reads an
//! object and its ETag in two steps.

mod counters;
mod faults;
mod serve;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures::future::select;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use counters::{Counters, Traffic};
pub use faults::{BLOCK, Fault, Faults};
use serve::Gateway;

/// The access key that the server accepts.
pub const ACCESS_KEY_ID: &str = "AKIAARINARTESTS00000";
/// Its secret: tests search output for it.
pub const SECRET_ACCESS_KEY: &str = "s3cr3t/Of+The=ArinarTests0123456789abcdef";
/// The region that requests are signed for.
pub const REGION: &str = "eu-central-1";

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    folder: PathBuf,
    gateway: Arc<Gateway>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Serves the folder (each folder in it is a bucket) on a free port of 127.0.0.1, without faults at first.
    ///
    /// # Panics
    /// If the folder or a port cannot be had: it is for tests.
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("the server's folder");
        let gateway = Arc::new(Gateway::new(folder));
        // A runtime of its own, so that no blocked test thread can starve the server.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .expect("a runtime for the server");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("the port's address");
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&gateway);
        let thread = std::thread::spawn(move || {
            runtime.block_on(select(pin!(serve::accept(listener, serving)), stopped));
            runtime.shutdown_background();
        });
        Self { address, folder: folder.to_path_buf(), gateway, stop: Some(stop), thread: Some(thread) }
    }

    /// http://127.0.0.1:PORT
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a process needs to use the server: the `AWS_*` variables of the AWS command line, and no profile.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL", &self.endpoint()),
            ("AWS_ALLOW_HTTP", "true"),
            // What the machine's user has set up must not matter.
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Makes a bucket; one that exists is no error.
    pub fn create_bucket(&self, name: &str) {
        std::fs::create_dir_all(self.folder.join(name)).expect("the bucket's folder");
    }

    /// File that holds an object which was put whole or is complete.
    pub fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.join(bucket).join(key)
    }

    /// Replaces the plan of faults, for requests that begin from now on; their draws begin anew.
    pub fn set_faults(&self, faults: Faults) {
        self.gateway.faults.set(faults);
    }

    /// What was asked and sent since the start or the last [`Self::reset_counters`].
    pub fn counters(&self) -> Counters {
        self.gateway.counters.snapshot()
    }

    /// Sets all counters to zero.
    pub fn reset_counters(&self) {
        self.gateway.counters.reset();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
