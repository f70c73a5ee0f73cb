//! When a job hangs, and for which rank the others wait. Decided from what ranks have told, and from nothing else.

use std::{fmt, time::Duration};

use arinar_protocol::Phase;

/// So many ranks are named in a line.
const NAMED: usize = 8;

/// Ranks that fell silent together have had their last words within this: a beat, and a look at them.
const APART: Duration = Duration::from_millis(500);

/// What is known of one rank at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct RankView {
    /// Its rank.
    pub rank: usize,
    /// Its host and process, once it has said so.
    pub place: Option<(String, u32)>,
    /// Steps it has trained.
    pub step: u64,
    /// What it is doing.
    pub phase: Phase,
    /// Time since it said anything.
    pub silent: Duration,
    /// Time since it began to do something else.
    pub still: Duration,
    /// It has ended, in order or not.
    pub ended: bool,
    /// Physical memory it holds, in bytes.
    pub resident_bytes: u64,
}

/// How long is too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Without a move, while all ranks are in a step.
    pub step: Duration,
    /// The same, if it is longer, while any rank waits for data: the store may be out of reach for a while.
    pub data: Duration,
    /// Without a move, while any rank starts, waits for a checkpoint, or finishes.
    pub slow: Duration,
    /// Without a word.
    pub silence: Duration,
}

impl Limits {
    /// Waiting for data takes so many times as long as a store is asked: what came before the outage was slow, too.
    pub const STORE_MARGIN: f64 = 1.5;

    /// The limit of a step, learned from those that went well; before the first, all the time that a start may take.
    pub fn of_step(usual: Option<Duration>, factor: f64, floor: Duration, slow: Duration) -> Duration {
        usual.map_or(slow, |usual| floor.max(Duration::from_secs_f64((usual.as_secs_f64() * factor).min(1e8))))
    }
}

/// A job that does not move.
#[derive(Clone, Debug, PartialEq)]
pub struct Hang {
    /// For whom the others wait.
    pub blamed: Vec<usize>,
    /// What shows it.
    pub sign: Sign,
    /// The limit that is passed.
    pub limit: Duration,
}

/// What shows a hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The rank has never said a word.
    NeverHeard,
    /// The rank says nothing any more: its process is stopped, or its machine is cut off.
    Silent,
    /// The rank talks, but does nothing new.
    Still,
}

impl fmt::Display for Sign {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NeverHeard => "has not reported since the job was started",
            Self::Silent => "is silent: its process is stopped, or its machine is cut off",
            Self::Still => "does not move",
        })
    }
}

/// Judges a job. Ranks that have ended are not waited for.
pub fn judge(ranks: &[RankView], limits: &Limits) -> Option<Hang> {
    let living: Vec<&RankView> = ranks.iter().filter(|rank| !rank.ended).collect();
    let named = |wanted: &dyn Fn(&RankView) -> bool| -> Vec<usize> {
        living.iter().filter(|rank| wanted(rank)).map(|rank| rank.rank).collect()
    };
    let silent_for = |limit: Duration| named(&|rank| rank.place.is_some() && rank.silent > limit);
    if !silent_for(limits.silence).is_empty() {
        let silent = silent_for(limits.silence.saturating_sub(APART));
        return Some(Hang { blamed: silent, sign: Sign::Silent, limit: limits.silence });
    }
    let still = living.iter().map(|rank| rank.still).min()?;
    let unheard = named(&|rank| rank.place.is_none());
    let in_step = unheard.is_empty() && living.iter().all(|rank| rank.phase.is_step());
    let waits_for_data = living.iter().any(|rank| rank.phase == Phase::DataWait);
    let limit = match (in_step, waits_for_data) {
        (false, _) => limits.slow,
        (true, true) => limits.step.max(limits.data),
        (true, false) => limits.step,
    };
    if still <= limit {
        return None;
    }
    if !unheard.is_empty() {
        return Some(Hang { blamed: unheard, sign: Sign::NeverHeard, limit });
    }
    let busy = named(&|rank| rank.phase != Phase::AllReduce);
    let lowest = living.iter().map(|rank| rank.step).min()?;
    let blamed = if busy.is_empty() { named(&|rank| rank.step == lowest) } else { busy };
    Some(Hang { blamed, sign: Sign::Still, limit })
}

/// The report: for whom all wait, then every rank.
pub fn report(hang: &Hang, ranks: &[RankView]) -> String {
    let mut lines = vec![headline(hang, ranks)];
    lines.push("  rank  host                  pid  phase           step   last word   last move".to_owned());
    for rank in ranks {
        let (host, pid) = rank.place.clone().unwrap_or_else(|| ("-".to_owned(), 0));
        let mark = if hang.blamed.contains(&rank.rank) { '>' } else { ' ' };
        let phase = match (&rank.place, rank.ended) {
            (_, true) => "ended",
            (None, _) => "unheard",
            _ => rank.phase.name(),
        };
        lines.push(format!(
            "{mark} {:>4}  {host:<16} {pid:>8}  {phase:<11} {:>8}  {:>8} ago {:>8} ago",
            rank.rank,
            rank.step,
            seconds(rank.silent),
            seconds(rank.still)
        ));
    }
    lines.join("\n")
}

/// The report in short: the reason of the restart.
pub fn reason(hang: &Hang, ranks: &[RankView]) -> String {
    let first = hang.blamed.first().and_then(|blamed| ranks.iter().find(|rank| rank.rank == *blamed));
    let place = first.map_or_else(String::new, |rank| format!(", in {} of step {}", rank.phase, rank.step));
    let names: Vec<String> = hang.blamed.iter().take(NAMED).map(usize::to_string).collect();
    format!("the job hung, waiting for rank {}{place}", names.join(", "))
}

/// The first line of the report.
fn headline(hang: &Hang, ranks: &[RankView]) -> String {
    let names: Vec<String> = hang.blamed.iter().take(NAMED).map(usize::to_string).collect();
    let more = if hang.blamed.len() > names.len() { ", ..." } else { "" };
    let (noun, verb) = match hang.blamed.len() {
        1 => ("rank", hang.sign.to_string()),
        _ => ("ranks", format!("each {}", hang.sign)),
    };
    let first = hang.blamed.first().and_then(|blamed| ranks.iter().find(|rank| rank.rank == *blamed));
    let detail = first.map_or_else(String::new, |rank| {
        let place = rank.place.as_ref().map_or_else(String::new, |(host, pid)| format!(" ({host}, pid {pid})"));
        let since = if hang.sign == Sign::Silent { rank.silent } else { rank.still };
        format!("{place}; last known: {} of step {}, {} ago", rank.phase, rank.step, seconds(since))
    });
    format!(
        "the job hangs: everyone waits for {noun} {}{more}, which {verb}{detail} (limit {})",
        names.join(", "),
        seconds(hang.limit)
    )
}

/// `12.3 s`.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        step: Duration::from_secs(10),
        data: Duration::from_secs(30),
        slow: Duration::from_secs(100),
        silence: Duration::from_secs(5),
    };

    fn rank(rank: usize, step: u64, phase: Phase, still: u64) -> RankView {
        RankView {
            rank,
            place: Some(("node".to_owned(), 100 + rank as u32)),
            step,
            phase,
            silent: Duration::from_millis(200),
            still: Duration::from_secs(still),
            ended: false,
            resident_bytes: 1,
        }
    }

    fn blamed(ranks: &[RankView]) -> Option<(Vec<usize>, Sign)> {
        judge(ranks, &LIMITS).map(|hang| (hang.blamed, hang.sign))
    }

    #[test]
    fn who_computes_while_others_wait_is_blamed() {
        let ranks =
            [rank(0, 7, Phase::AllReduce, 12), rank(1, 7, Phase::Compute, 13), rank(2, 7, Phase::AllReduce, 11)];
        assert_eq!(blamed(&ranks), Some((vec![1], Sign::Still)));
        let report = report(&judge(&ranks, &LIMITS).unwrap(), &ranks);
        assert!(report.starts_with("the job hangs: everyone waits for rank 1, which does not move (node, pid 101)"));
        assert!(report.contains("compute of step 7, 13.0 s ago (limit 10.0 s)") && report.lines().count() == 5);
        assert_eq!(report.lines().filter(|line| line.starts_with('>')).count(), 1, "{report}");
    }

    #[test]
    fn one_that_moves_is_enough() {
        let ranks = [rank(0, 7, Phase::AllReduce, 90), rank(1, 7, Phase::Compute, 9)];
        assert_eq!(blamed(&ranks), None);
        // It may have ended, too: then nobody waits for it.
        let ranks = [rank(0, 7, Phase::AllReduce, 90), RankView { ended: true, ..rank(1, 7, Phase::Compute, 9) }];
        assert_eq!(blamed(&ranks), Some((vec![0], Sign::Still)));
        assert_eq!(blamed(&[]), None);
    }

    #[test]
    fn among_those_who_all_wait_the_one_behind_is_blamed() {
        let ranks = [rank(0, 8, Phase::AllReduce, 11), rank(1, 7, Phase::AllReduce, 11)];
        assert_eq!(blamed(&ranks), Some((vec![1], Sign::Still)));
    }

    #[test]
    fn the_silent_come_first_and_need_not_be_waited_for() {
        let mut ranks = [rank(0, 8, Phase::Compute, 0), rank(1, 7, Phase::DataWait, 6)];
        ranks[1].silent = Duration::from_secs(6);
        assert_eq!(blamed(&ranks), Some((vec![1], Sign::Silent)));
        // Its neighbour's last word came a little later.
        ranks[0].silent = Duration::from_millis(4700);
        assert_eq!(blamed(&ranks), Some((vec![0, 1], Sign::Silent)));
        // That of one which still talks came later than that.
        ranks[0].silent = Duration::from_millis(4400);
        assert_eq!(blamed(&ranks), Some((vec![1], Sign::Silent)));
    }

    #[test]
    fn the_limit_itself_is_not_too_long() {
        assert_eq!(blamed(&[rank(0, 7, Phase::Compute, 10)]), None);
        assert_eq!(blamed(&[rank(0, 7, Phase::Compute, 11)]), Some((vec![0], Sign::Still)));
        let silent = |secs| [RankView { silent: Duration::from_secs(secs), ..rank(0, 7, Phase::Compute, 0) }];
        assert_eq!(blamed(&silent(5)), None);
        assert_eq!(blamed(&silent(6)), Some((vec![0], Sign::Silent)));
    }

    #[test]
    fn a_store_has_its_time() {
        let waiting = |still| [rank(0, 7, Phase::AllReduce, still), rank(1, 7, Phase::DataWait, still)];
        assert_eq!(blamed(&waiting(30)), None);
        assert_eq!(blamed(&waiting(31)), Some((vec![1], Sign::Still)));
        // Where steps take longer than that, as long as they.
        let limits = Limits { step: Duration::from_secs(40), ..LIMITS };
        assert_eq!(judge(&waiting(40), &limits), None);
        assert_eq!(judge(&waiting(41), &limits).unwrap().limit, limits.step);
    }

    #[test]
    fn starts_and_checkpoints_may_take_long() {
        for phase in [Phase::StartUp, Phase::Checkpoint, Phase::Finish] {
            let mut ranks = [rank(0, 8, Phase::AllReduce, 99), rank(1, 8, phase, 99)];
            assert_eq!(blamed(&ranks), None, "{phase}");
            ranks.iter_mut().for_each(|rank| rank.still = Duration::from_secs(101));
            assert_eq!(blamed(&ranks), Some((vec![1], Sign::Still)), "{phase}");
        }
    }

    #[test]
    fn who_never_came_is_blamed_for_a_start_that_does_not_end() {
        let absent = RankView { place: None, silent: Duration::from_secs(101), ..rank(1, 0, Phase::StartUp, 101) };
        let ranks = [rank(0, 0, Phase::StartUp, 102), absent];
        assert_eq!(blamed(&ranks), Some((vec![1], Sign::NeverHeard)));
        assert!(report(&judge(&ranks, &LIMITS).unwrap(), &ranks).contains("unheard"));
    }

    #[test]
    fn the_report_says_who_where_and_how_long() {
        let silent = |rank, secs| RankView { silent: Duration::from_secs(secs), ..rank };
        let ranks = [
            rank(0, 8, Phase::AllReduce, 2),
            silent(rank(1, 7, Phase::DataWait, 12), 6),
            RankView { ended: true, ..silent(rank(2, 9, Phase::Finish, 13), 14) },
            RankView { place: None, ..rank(3, 0, Phase::StartUp, 15) },
        ];
        let hang = judge(&ranks, &LIMITS).unwrap();
        let told = [
            "the job hangs: everyone waits for rank 1, which is silent: its process is stopped, or its machine is cut off \
             (node, pid 101); last known: data_wait of step 7, 6.0 s ago (limit 5.0 s)",
            "  rank  host                  pid  phase           step   last word   last move",
            "     0  node                  100  all_reduce         8     0.2 s ago    2.0 s ago",
            ">    1  node                  101  data_wait          7     6.0 s ago   12.0 s ago",
            "     2  node                  102  ended              9    14.0 s ago   13.0 s ago",
            "     3  -                       0  unheard            0     0.2 s ago   15.0 s ago",
        ];
        assert_eq!(report(&hang, &ranks), told.join("\n"));
        assert_eq!(reason(&hang, &ranks), "the job hung, waiting for rank 1, in data_wait of step 7");
    }

    #[test]
    fn of_many_ranks_the_first_are_named() {
        let hang_of = |count| {
            let ranks: Vec<RankView> = (0..count).map(|index| rank(index, 7, Phase::Compute, 11)).collect();
            (judge(&ranks, &LIMITS).unwrap(), ranks)
        };
        let (hang, ranks) = hang_of(8);
        let told = "everyone waits for ranks 0, 1, 2, 3, 4, 5, 6, 7, which each does not move (node, pid 100); ";
        assert!(report(&hang, &ranks).contains(told), "{}", report(&hang, &ranks));
        let (hang, ranks) = hang_of(9);
        assert!(report(&hang, &ranks).contains(" 6, 7, ..., which each does not move "));
        assert!(reason(&hang, &ranks).starts_with("the job hung, waiting for rank 0, 1, 2, 3, 4, 5, 6, 7, in compute"));
        assert_eq!(report(&hang, &ranks).lines().filter(|line| line.starts_with('>')).count(), 9);
    }

    #[test]
    fn the_limit_is_learned() {
        let (floor, slow) = (Duration::from_secs(60), Duration::from_secs(1800));
        assert_eq!(Limits::of_step(None, 20.0, floor, slow), slow);
        assert_eq!(Limits::of_step(Some(Duration::from_secs(1)), 20.0, floor, slow), floor);
        assert_eq!(Limits::of_step(Some(Duration::from_secs(10)), 20.0, floor, slow), Duration::from_secs(200));
        // However long that is, it is a time.
        let year = Duration::from_secs(366 * 24 * 3600);
        assert_eq!(Limits::of_step(Some(year), 1e6, floor, slow), Duration::from_secs(100_000_000));
    }
}
