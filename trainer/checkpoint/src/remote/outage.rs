//! How long a store has been out of reach, what to say about it, and when to try again.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use indicatif::DecimalBytes;

/// The first and the longest pause between two attempts.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// Pauses that double, with jitter, so that many ranks do not all come back at once.
pub(super) struct Patience {
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pause: PAUSES[0] }
    }
}

impl Patience {
    /// How long to wait before the next attempt.
    pub fn next(&mut self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let pause = jittered(self.pause, now.subsec_nanos() ^ std::process::id());
        self.pause = (self.pause * 2).min(PAUSES[1]);
        pause
    }
}

/// Between one half of the pause and all of it.
fn jittered(pause: Duration, random: u32) -> Duration {
    let share = f64::from(random.wrapping_mul(0x9e37_79b9) >> 16) / f64::from(1 << 16);
    pause.mul_f64(0.5 + 0.5 * share)
}

/// A store that cannot be reached.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    pub since: Instant,
    /// What it said last.
    pub reason: String,
}

/// Checkpoints that are not in the store yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    pub checkpoints: usize,
    pub bytes: u64,
}

impl Backlog {
    /// `2 checkpoints, 6.8 GB wait in SPOOL`
    pub fn tell(&self, spool: &Path) -> String {
        let (plural, verb) = if self.checkpoints == 1 { ("", "waits") } else { ("s", "wait") };
        let bytes = DecimalBytes(self.bytes);
        format!("{} checkpoint{plural}, {bytes} {verb} in {}", self.checkpoints, spool.display())
    }
}

/// What to tell when an outage begins.
pub(super) fn begins(url: &str, outage: &Outage, backlog: &Backlog, spool: &Path) -> String {
    let (since, reason, backlog) = (rounded(outage.since.elapsed()), &outage.reason, backlog.tell(spool));
    format!("{url} cannot be reached since {since} ({reason}): {backlog}; training goes on")
}

/// What to tell when it has ended.
pub(super) fn ends(url: &str, lasted: Duration, backlog: &Backlog, spool: &Path) -> String {
    format!("{url} can be reached again after {}: {}", rounded(lasted), backlog.tell(spool))
}

/// To the second, for people.
pub(super) fn rounded(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut patience = Patience::default();
        let pauses: Vec<Duration> = (0..12).map(|_| patience.next()).collect();
        assert!(pauses[0] <= PAUSES[0] && pauses[0] >= PAUSES[0] / 2, "{pauses:?}");
        assert!(pauses[11] <= PAUSES[1] && pauses[11] >= PAUSES[1] / 2, "{pauses:?}");
        assert!((0..1000).map(|random| jittered(PAUSES[1], random)).all(|pause| pause <= PAUSES[1]));
    }

    #[test]
    fn an_outage_is_told_in_one_line() {
        let since = Instant::now().checked_sub(Duration::from_secs(181)).unwrap_or_else(Instant::now);
        let outage = Outage { since, reason: "connection refused".to_owned() };
        let backlog = Backlog { checkpoints: 2, bytes: 6_800_000_000 };
        let told = begins("s3://bucket/run", &outage, &backlog, Path::new("/spool"));
        assert_eq!(
            told,
            "s3://bucket/run cannot be reached since 3m 1s (connection refused): 2 checkpoints, 6.80 GB wait in \
             /spool; training goes on"
        );
        let told = ends("s3://bucket/run", Duration::from_millis(62_900), &Backlog::default(), Path::new("/spool"));
        assert_eq!(told, "s3://bucket/run can be reached again after 1m 2s: 0 checkpoints, 0 B wait in /spool");
    }
}
