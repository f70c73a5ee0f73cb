//! Hang detection: decides when a job hangs, and which ranks the others wait for. It depends on the heartbeats alone.

use std::{fmt, time::Duration};

use arinar_protocol::Phase;

/// The last messages of ranks that fell silent together arrive within this time: one heartbeat and one check.
const SIMULTANEOUS: Duration = Duration::from_millis(500);

/// The state of a rank at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RankView {
    /// The rank.
    pub(crate) rank: usize,
    /// Its host and process ID, once it has reported.
    pub(crate) process: Option<(String, u32)>,
    /// Number of steps it has trained.
    pub(crate) step: u64,
    /// Its phase.
    pub(crate) phase: Phase,
    /// Time since its last message.
    pub(crate) since_message: Duration,
    /// Time since its last change of phase or step.
    pub(crate) since_progress: Duration,
    /// True if it has exited, normally or not.
    pub(crate) ended: bool,
    /// Its resident memory in bytes.
    pub(crate) resident_bytes: u64,
}

/// Time limits, beyond which a job counts as hanging.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Limit without progress while all ranks are in a step.
    pub(crate) step: Duration,
    /// Minimum of that limit while any rank waits for data, since the store may be unreachable for a while.
    pub(crate) data: Duration,
    /// Limit without progress while any rank starts, waits for a checkpoint, or finishes.
    pub(crate) outside_step: Duration,
    /// Limit without a message from a rank.
    pub(crate) silence: Duration,
}

impl Limits {
    /// Factor from the retry time of a store to the limit while waiting for data. Reads before an outage may have been
    /// slow, too.
    pub(crate) const STORE_MARGIN: f64 = 1.5;

    /// Returns the limit of a step: `factor` times the median step time, and at least `floor`. Before the first step the
    /// median is not known, and the limit is `outside_step`.
    pub(crate) fn of_step(median: Option<Duration>, factor: f64, floor: Duration, outside_step: Duration) -> Duration {
        median
            .map_or(outside_step, |median| floor.max(Duration::from_secs_f64((median.as_secs_f64() * factor).min(1e8))))
    }
}

/// A hang of the job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hang {
    /// The ranks that the others wait for.
    pub(crate) blamed: Vec<usize>,
    /// The symptom that these ranks show.
    pub(crate) symptom: Symptom,
    /// The limit that was exceeded.
    pub(crate) limit: Duration,
}

/// The symptom of a hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symptom {
    /// The rank has never sent a message.
    NeverReported,
    /// The rank no longer sends messages.
    Silent,
    /// The rank sends messages but makes no progress.
    Stalled,
}

impl fmt::Display for Symptom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NeverReported => "has not reported since the job started",
            Self::Silent => "is silent: its process is stopped or its host is unreachable",
            Self::Stalled => "makes no progress",
        })
    }
}

/// Decides whether a job hangs. Ranks that have exited are ignored.
pub(crate) fn detect(ranks: &[RankView], limits: &Limits) -> Option<Hang> {
    let running: Vec<&RankView> = ranks.iter().filter(|rank| !rank.ended).collect();
    let select = |condition: &dyn Fn(&RankView) -> bool| -> Vec<usize> {
        running.iter().filter(|rank| condition(rank)).map(|rank| rank.rank).collect()
    };
    let silent_for = |limit: Duration| select(&|rank| rank.process.is_some() && rank.since_message > limit);
    if !silent_for(limits.silence).is_empty() {
        let blamed = silent_for(limits.silence.saturating_sub(SIMULTANEOUS));
        return Some(Hang { blamed, symptom: Symptom::Silent, limit: limits.silence });
    }
    let limit = progress_limit(&running, limits);
    if running.iter().map(|rank| rank.since_progress).min()? <= limit {
        return None;
    }
    let unreported = select(&|rank| rank.process.is_none());
    if !unreported.is_empty() {
        return Some(Hang { blamed: unreported, symptom: Symptom::NeverReported, limit });
    }
    let busy = select(&|rank| rank.phase != Phase::AllReduce);
    let lowest = running.iter().map(|rank| rank.step).min()?;
    let blamed = if busy.is_empty() { select(&|rank| rank.step == lowest) } else { busy };
    Some(Hang { blamed, symptom: Symptom::Stalled, limit })
}

/// Returns the limit without progress of any rank.
fn progress_limit(running: &[&RankView], limits: &Limits) -> Duration {
    let in_step = running.iter().all(|rank| rank.process.is_some() && rank.phase.is_step());
    let waits_for_data = running.iter().any(|rank| rank.phase == Phase::DataWait);
    match (in_step, waits_for_data) {
        (false, _) => limits.outside_step,
        (true, true) => limits.step.max(limits.data),
        (true, false) => limits.step,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        step: Duration::from_secs(10),
        data: Duration::from_secs(30),
        outside_step: Duration::from_secs(100),
        silence: Duration::from_secs(5),
    };

    fn rank(rank: usize, step: u64, phase: Phase, still: u64) -> RankView {
        RankView {
            rank,
            process: Some(("node".to_owned(), 100 + rank as u32)),
            step,
            phase,
            since_message: Duration::from_millis(200),
            since_progress: Duration::from_secs(still),
            ended: false,
            resident_bytes: 1,
        }
    }

    fn blamed(ranks: &[RankView]) -> Option<(Vec<usize>, Symptom)> {
        detect(ranks, &LIMITS).map(|hang| (hang.blamed, hang.symptom))
    }

    #[test]
    fn a_rank_that_computes_while_the_others_wait_is_blamed() {
        let ranks =
            [rank(0, 7, Phase::AllReduce, 12), rank(1, 7, Phase::Compute, 13), rank(2, 7, Phase::AllReduce, 11)];
        assert_eq!(blamed(&ranks), Some((vec![1], Symptom::Stalled)));
        let busy: Vec<RankView> = (0..9).map(|index| rank(index, 7, Phase::Compute, 11)).collect();
        assert_eq!(blamed(&busy), Some(((0..9).collect(), Symptom::Stalled)));
    }

    #[test]
    fn progress_of_one_rank_is_enough() {
        let ranks = [rank(0, 7, Phase::AllReduce, 90), rank(1, 7, Phase::Compute, 9)];
        assert_eq!(blamed(&ranks), None);
        // Ranks that have exited do not count.
        let ranks = [rank(0, 7, Phase::AllReduce, 90), RankView { ended: true, ..rank(1, 7, Phase::Compute, 9) }];
        assert_eq!(blamed(&ranks), Some((vec![0], Symptom::Stalled)));
        assert_eq!(blamed(&[]), None);
    }

    #[test]
    fn if_all_ranks_wait_the_last_one_is_blamed() {
        let ranks = [rank(0, 8, Phase::AllReduce, 11), rank(1, 7, Phase::AllReduce, 11)];
        assert_eq!(blamed(&ranks), Some((vec![1], Symptom::Stalled)));
    }

    #[test]
    fn silent_ranks_are_blamed_first() {
        let mut ranks = [rank(0, 8, Phase::Compute, 0), rank(1, 7, Phase::DataWait, 6)];
        ranks[1].since_message = Duration::from_secs(6);
        assert_eq!(blamed(&ranks), Some((vec![1], Symptom::Silent)));
        // The last message of its neighbor came a little later.
        ranks[0].since_message = Duration::from_millis(4700);
        assert_eq!(blamed(&ranks), Some((vec![0, 1], Symptom::Silent)));
        // A rank that still sends messages is not blamed.
        ranks[0].since_message = Duration::from_millis(4400);
        assert_eq!(blamed(&ranks), Some((vec![1], Symptom::Silent)));
        // Neither ranks that have exited nor those that never reported count as silent.
        let silent = |rank| RankView { since_message: Duration::from_secs(14), ..rank };
        let ended = RankView { ended: true, ..silent(rank(2, 9, Phase::Finish, 13)) };
        let absent = RankView { process: None, ..silent(rank(3, 0, Phase::StartUp, 15)) };
        let [first, second] = ranks;
        assert_eq!(blamed(&[first, second, ended, absent]), Some((vec![1], Symptom::Silent)));
    }

    #[test]
    fn limits_are_exclusive() {
        assert_eq!(blamed(&[rank(0, 7, Phase::Compute, 10)]), None);
        assert_eq!(blamed(&[rank(0, 7, Phase::Compute, 11)]), Some((vec![0], Symptom::Stalled)));
        let silent = |secs| [RankView { since_message: Duration::from_secs(secs), ..rank(0, 7, Phase::Compute, 0) }];
        assert_eq!(blamed(&silent(5)), None);
        assert_eq!(blamed(&silent(6)), Some((vec![0], Symptom::Silent)));
    }

    #[test]
    fn waiting_for_data_has_its_own_limit() {
        let waiting = |still| [rank(0, 7, Phase::AllReduce, still), rank(1, 7, Phase::DataWait, still)];
        assert_eq!(blamed(&waiting(30)), None);
        assert_eq!(blamed(&waiting(31)), Some((vec![1], Symptom::Stalled)));
        // The limit of a step applies if it is longer.
        let limits = Limits { step: Duration::from_secs(40), ..LIMITS };
        assert_eq!(detect(&waiting(40), &limits), None);
        assert_eq!(detect(&waiting(41), &limits).unwrap().limit, limits.step);
    }

    #[test]
    fn other_phases_have_a_longer_limit() {
        for phase in [Phase::StartUp, Phase::Checkpoint, Phase::Finish] {
            let mut ranks = [rank(0, 8, Phase::AllReduce, 99), rank(1, 8, phase, 99)];
            assert_eq!(blamed(&ranks), None, "{phase}");
            ranks.iter_mut().for_each(|rank| rank.since_progress = Duration::from_secs(101));
            assert_eq!(blamed(&ranks), Some((vec![1], Symptom::Stalled)), "{phase}");
        }
    }

    #[test]
    fn ranks_that_never_reported_are_blamed() {
        let absent =
            RankView { process: None, since_message: Duration::from_secs(101), ..rank(1, 0, Phase::StartUp, 101) };
        let ranks = [rank(0, 0, Phase::StartUp, 102), absent];
        assert_eq!(blamed(&ranks), Some((vec![1], Symptom::NeverReported)));
    }

    #[test]
    fn the_limit_of_a_step_follows_the_median() {
        let (floor, outside_step) = (Duration::from_secs(60), Duration::from_secs(1800));
        assert_eq!(Limits::of_step(None, 20.0, floor, outside_step), outside_step);
        assert_eq!(Limits::of_step(Some(Duration::from_secs(1)), 20.0, floor, outside_step), floor);
        assert_eq!(Limits::of_step(Some(Duration::from_secs(10)), 20.0, floor, outside_step), Duration::from_secs(200));
        // The product is bounded.
        let year = Duration::from_secs(366 * 24 * 3600);
        assert_eq!(Limits::of_step(Some(year), 1e6, floor, outside_step), Duration::from_secs(100_000_000));
    }
}
