//! Stragglers: ranks that the others wait for.

/// Tracks how long each rank works per step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stragglers {
    /// Exponential moving average of each rank's seconds of work per step.
    busy: Vec<f64>,
}

/// The slowest rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slowest {
    /// The rank.
    pub rank: usize,
    /// How much longer than the mean it works, relative to the mean.
    pub excess: f64,
}

impl Stragglers {
    /// Weight of the newest step in the average.
    const NEWEST: f64 = 0.05;

    /// Records how long each rank worked in a step, in seconds.
    pub(crate) fn record(&mut self, busy: &[f32]) {
        self.busy.resize(busy.len(), 0.0);
        for (average, &seconds) in self.busy.iter_mut().zip(busy) {
            let seconds = f64::from(seconds);
            *average = if *average == 0.0 { seconds } else { *average + Self::NEWEST * (seconds - *average) };
        }
    }

    /// Returns the slowest rank; `None` if there is only one.
    pub(crate) fn slowest(&self) -> Option<Slowest> {
        let mean = self.busy.iter().sum::<f64>() / self.busy.len() as f64;
        let (rank, most) = self.busy.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        (self.busy.len() > 1 && mean > 0.0).then(|| Slowest { rank, excess: most / mean - 1.0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rank_is_found() {
        let mut stragglers = Stragglers::default();
        assert_eq!(stragglers.slowest(), None);
        stragglers.record(&[1.0]);
        assert_eq!(stragglers.slowest(), None, "a single rank has no stragglers");
        let mut stragglers = Stragglers::default();
        for _ in 0..10 {
            stragglers.record(&[1.0, 1.0, 2.5, 1.5]);
        }
        let slowest = stragglers.slowest().unwrap();
        assert_eq!(slowest.rank, 2);
        assert!((slowest.excess - 2.0 / 3.0).abs() < 1e-6, "{slowest:?}");
    }
}
