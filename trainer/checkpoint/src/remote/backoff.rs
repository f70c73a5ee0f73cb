//! Pauses between attempts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first and the longest pause between two attempts.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// Exponential backoff with jitter, so that many ranks do not retry at the same time.
pub(crate) struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: PAUSES[0] }
    }
}

impl Backoff {
    /// Returns the pause before the next attempt.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let pause = jittered(self.pause, now.subsec_nanos() ^ std::process::id());
        self.pause = (self.pause * 2).min(PAUSES[1]);
        pause
    }
}

/// Returns between one half of the pause and all of it.
fn jittered(pause: Duration, random: u32) -> Duration {
    let share = f64::from(random.wrapping_mul(0x9e37_79b9) >> 16) / f64::from(1 << 16);
    pause.mul_f64(0.5 + 0.5 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.next_pause()).collect();
        assert!(pauses[0] <= PAUSES[0] && pauses[0] >= PAUSES[0] / 2, "{pauses:?}");
        assert!(pauses[11] <= PAUSES[1] && pauses[11] >= PAUSES[1] / 2, "{pauses:?}");
        assert!((0..1000).map(|random| jittered(PAUSES[1], random)).all(|pause| pause <= PAUSES[1]));
    }
}
