//! Messages from ranks as the launcher receives them.

use arinar_protocol::{Beat, Farewell, Hello};

/// A message of a rank, or the end of its connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RankMessage {
    /// The first message.
    Hello(Hello),
    /// A heartbeat.
    Beat(Beat),
    /// The last message before an orderly exit.
    Farewell(Farewell),
    /// The connection has been closed.
    Closed,
}

/// A message with its sender.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IncomingMessage {
    /// Number of the start of the job that the sender belongs to.
    pub(crate) attempt: u32,
    /// Rank of the sender.
    pub(crate) rank: usize,
    /// The message.
    pub(crate) message: RankMessage,
}
