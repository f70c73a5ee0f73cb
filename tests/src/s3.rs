//! An in-process S3 server that injects faults on demand.
//!
//! The crates s3s and s3s-fs implement the protocol (signatures, ranges, listings, multipart uploads, conditional puts)
//! on a folder. The gateway in front of them, `serve.rs`, adds faults drawn from a plan that can change while the
//! server runs ([`Faults`]), a bandwidth limit, counters of requests and bytes ([`Counters`]), and a lock. The lock is
//! needed because s3s-fs checks the condition of a put and writes the object in two steps, and reads an object and its
//! ETag in two steps.

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
pub use faults::{BLOCK, Conditions, Fault, Faults};
use serve::Gateway;

/// The access key that the server accepts.
pub const ACCESS_KEY_ID: &str = "AKIAARINARTESTS00000";
/// The secret of the access key, which tests search for in output.
pub const SECRET_ACCESS_KEY: &str = "s3cr3t/Of+The=ArinarTests0123456789abcdef";
/// The region that requests are signed for.
pub const REGION: &str = "eu-central-1";

/// A running server, stopped when dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    folder: PathBuf,
    gateway: Arc<Gateway>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server on a free port of 127.0.0.1, initially without faults. Each folder in `folder` is a bucket.
    ///
    /// # Panics
    /// Panics if the folder cannot be created or no port is free.
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("the server's folder");
        let gateway = Arc::new(Gateway::new(folder));
        // Use a separate runtime, so that no blocked test thread can starve the server.
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

    /// Returns the server's URL, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the environment variables that a process needs to use the server: those of the AWS command line, without
    /// a profile.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL", &self.endpoint()),
            ("AWS_ALLOW_HTTP", "true"),
            // Ignore the user's own configuration.
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Creates a bucket, unless it exists.
    pub fn create_bucket(&self, name: &str) {
        std::fs::create_dir_all(self.folder.join(name)).expect("the bucket's folder");
    }

    /// Returns the path of the file that holds a completely written object.
    pub fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.join(bucket).join(key)
    }

    /// Replaces the fault plan for all future requests and restarts its random draws.
    pub fn set_faults(&self, faults: Faults) {
        self.gateway.faults.set(faults);
    }

    /// Returns the requests and bytes since the start or the last [`Self::reset_counters`].
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
