//! Blocking access to folders of object stores, local or in a cloud.
//!
//! The crate contains stores ([`Store`]), leases for single writers ([`lease`]), locks ([`file_lock`]), single objects
//! named by their own URL ([`object`]), and the retries, credentials and rate limits of transfers. It does not interpret the objects: datasets
//! are in `arinar-data`, checkpoints in `arinar-checkpoint`. Begin with [`Store::open`].
//!
//! The crate arinar-place defines what a text names: a path, or a URL with file://, s3://, gs:// or az://. Credentials and options come from the environment variables and files that each cloud's own tools
//! use (see [`Environment`]), never from the URL. Objects become visible atomically: local files are written under
//! another name, synced and renamed.
//!
//! Requests that fail temporarily because of overload, broken connections or stalls are retried with random backoff for
//! the time in [`RETRY_TIMEOUT_VARIABLE`]. An interrupted download continues where it was interrupted.
//!
//! ```
//! use arinar_store::{Store, lease::Lease};
//!
//! let folder = tempfile::tempdir()?;
//! let store = Store::open(&folder.path().join("run").display().to_string())?;
//! store.put("notes/first.txt", "hello")?;
//! assert_eq!(store.get("notes/first.txt")?, "hello");
//! assert_eq!(store.size("notes/second.txt")?, None);
//!
//! // Only one process at a time holds the lease.
//! let lease = Lease::acquire(&store, "example")?;
//! assert!(Lease::acquire(&store, "another example").is_err());
//! lease.check()?; // before each commit
//! drop(lease);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cloud;
mod environment;
mod error;
mod failure;
pub mod file_lock;
mod folder;
pub mod lease;
pub mod local_folder;
pub mod object;
pub mod plain_file;
mod profile;
mod profile_file;
mod rate_limiter;
mod remote;
mod retry;
mod runtime;
mod s3_endpoint;
mod secrets;
mod store;
mod transfer;
mod version;

pub use environment::Environment;
pub use error::{StoreError, is_wrong_folder};
pub use folder::unfinished_of;
pub use rate_limiter::RateLimiter;
pub use retry::RETRY_TIMEOUT_VARIABLE;
pub use store::{ObjectInfo, Store};
pub use version::Version;
