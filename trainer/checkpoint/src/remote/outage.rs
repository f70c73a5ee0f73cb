//! Outages of the store and the upload backlog, and the messages about them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use indicatif::DecimalBytes;

/// The upload backlog, for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UploadStatus {
    /// Bytes that are waiting in the spool.
    pub backlog_bytes: u64,
    /// False while the store cannot be reached.
    pub reachable: bool,
}

/// A store that cannot be reached.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    pub since: Instant,
    /// The last error.
    pub reason: String,
}

/// Checkpoints that are not uploaded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub checkpoints: usize,
    pub bytes: u64,
}

impl Backlog {
    /// Returns a phrase such as `2 checkpoints, 6.8 GB wait in SPOOL`.
    pub(crate) fn describe(&self, spool: &Path) -> String {
        let (plural, verb) = if self.checkpoints == 1 { ("", "waits") } else { ("s", "wait") };
        let bytes = DecimalBytes(self.bytes);
        format!("{} checkpoint{plural}, {bytes} {verb} in {}", self.checkpoints, spool.display())
    }
}

/// Returns the message for the beginning of an outage.
pub(crate) fn outage_began(url: &str, outage: &Outage, backlog: &Backlog, spool: &Path) -> String {
    let (since, reason, backlog) = (whole_seconds(outage.since.elapsed()), &outage.reason, backlog.describe(spool));
    format!("{url} cannot be reached since {since} ({reason}): {backlog}; training continues")
}

/// Returns the message for the end of an outage.
pub(crate) fn outage_ended(url: &str, duration: Duration, backlog: &Backlog, spool: &Path) -> String {
    format!("{url} can be reached again after {}: {}", whole_seconds(duration), backlog.describe(spool))
}

/// Formats a duration in whole seconds.
pub(crate) fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_are_described_in_one_line() {
        let since = Instant::now().checked_sub(Duration::from_secs(181)).unwrap_or_else(Instant::now);
        let outage = Outage { since, reason: "connection refused".to_owned() };
        let backlog = Backlog { checkpoints: 2, bytes: 6_800_000_000 };
        let message = outage_began("s3://bucket/run", &outage, &backlog, Path::new("/spool"));
        assert_eq!(
            message,
            "s3://bucket/run cannot be reached since 3m 1s (connection refused): 2 checkpoints, 6.80 GB wait in \
             /spool; training continues"
        );
        let duration = Duration::from_millis(62_900);
        let message = outage_ended("s3://bucket/run", duration, &Backlog::default(), Path::new("/spool"));
        assert_eq!(message, "s3://bucket/run can be reached again after 1m 2s: 0 checkpoints, 0 B wait in /spool");
    }
}
