//! The protocol between the launcher and the ranks of a training job.
//!
//! The launcher puts a [`Launcher`] into the environment of every rank ([`environment::LAUNCHER`]). A rank connects over
//! TCP, sends [`Message::Hello`], then [`Message::Beat`] every [`BEAT_EVERY`] from its own thread, and
//! [`Message::Farewell`] before an orderly exit. Every message is one JSON object on a line. The launcher answers with an
//! empty line every [`BEAT_EVERY`]. A connection that closes without a farewell therefore means that the process at the
//! other end died, and a silent one that it is stopped or that its host is unreachable.
//!
//! The crate also holds the [exit codes](exit_code) and the [names of environment variables](environment) that several
//! programs share. It contains data types only: no sockets, threads or processes. Begin with [`Message`].
//!
//! # Example
//!
//! ```
//! use arinar_protocol::{Beat, Message, Phase};
//!
//! let message = Message::Beat(Beat { step: 12, phase: Phase::AllReduce, ..Beat::default() });
//! assert!(message.line().ends_with('\n'));
//! assert_eq!(Message::parse(&message.line())?, message);
//! # Ok::<(), serde_json::Error>(())
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod environment;
pub mod exit_code;
mod launcher_info;
mod messages;
mod phase;
mod seconds;

pub use launcher_info::Launcher;
pub use messages::{BEAT_EVERY, Beat, Farewell, Hello, LONGEST_LINE, Message};
pub use phase::Phase;
pub use seconds::Seconds;
