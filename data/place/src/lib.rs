//! Places that a user names in a configuration or on a command line: paths, and URLs of object stores.
//!
//! Every program parses every place with [`Place::parse`], or with [`local_path`] where only a local file or folder can
//! be used, so that a text means the same everywhere. A text that looks like a URL and is none is refused, because a
//! folder of that name would be created otherwise.
//!
//! - A text that begins with `/`, `./` or `../` is a path, whatever follows.
//! - `~` and `~/` at the beginning stand for the home folder.
//! - `file:///folder` is a path with percent-encoding.
//! - `s3://bucket/folder`, `gs://bucket/folder` and `az://container/folder` are remote. As for the command line of AWS,
//!   the name behind the bucket is taken literally: `%20` are three characters.
//! - Any other text is a path relative to the current folder, unless it resembles a URL, a path of Windows, or a shell
//!   variable.
//!
//! ```
//! use arinar_place::Place;
//!
//! let place = Place::parse("s3://bucket/runs/a")?;
//! assert!(matches!(&place, Place::Remote(folder) if folder.bucket() == "bucket" && folder.key() == "runs/a"));
//! assert!(Place::parse("s3:/bucket/runs/a").is_err());
//! assert_eq!(Place::parse("/data/s3:/x")?.to_string(), "/data/s3:/x");
//! # Ok::<(), arinar_place::PlaceError>(())
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod error;
mod local;
mod local_place;
mod object;
mod place;
mod redact;
mod remote;
mod scheme;

pub use error::{OptionError, PlaceError, of_option};
pub use local_place::{expand, local_path};
pub use object::split_file;
pub use place::Place;
pub use redact::redacted;
pub use remote::RemoteFolder;
pub use scheme::Provider;
