//! The text about a hang.

use std::time::Duration;

use crate::hang::{Hang, RankView, Symptom};

/// Maximum number of ranks to name in a line.
const MAX_NAMED: usize = 8;

/// Returns the full report: a headline, then a table of all ranks.
pub(crate) fn report(hang: &Hang, ranks: &[RankView]) -> String {
    let mut lines = vec![headline(hang, ranks)];
    lines.push("  rank  host                  pid  phase           step   last report  last change".to_owned());
    for rank in ranks {
        let (host, pid) = rank.process.clone().unwrap_or_else(|| ("-".to_owned(), 0));
        let mark = if hang.blamed.contains(&rank.rank) { '>' } else { ' ' };
        let phase = match (&rank.process, rank.ended) {
            (_, true) => "ended",
            (None, _) => "unreported",
            _ => rank.phase.name(),
        };
        lines.push(format!(
            "{mark} {:>4}  {host:<16} {pid:>8}  {phase:<11} {:>8}  {:>8} ago {:>8} ago",
            rank.rank,
            rank.step,
            seconds(rank.since_message),
            seconds(rank.since_progress)
        ));
    }
    lines.join("\n")
}

/// Returns the short form, which is the reason of the restart.
pub(crate) fn reason(hang: &Hang, ranks: &[RankView]) -> String {
    let position =
        first_blamed(hang, ranks).map_or_else(String::new, |rank| format!(", in {} of step {}", rank.phase, rank.step));
    format!("the job hung, waiting for rank {}{position}", named(&hang.blamed))
}

fn headline(hang: &Hang, ranks: &[RankView]) -> String {
    let more = if hang.blamed.len() > MAX_NAMED { ", ..." } else { "" };
    let (noun, pronoun) = if hang.blamed.len() == 1 { ("rank", "which") } else { ("ranks", "each of which") };
    let detail = first_blamed(hang, ranks).map_or_else(String::new, |rank| {
        let process = rank.process.as_ref().map_or_else(String::new, |(host, pid)| format!(" ({host}, pid {pid})"));
        let since = if hang.symptom == Symptom::Silent { rank.since_message } else { rank.since_progress };
        format!("{process}; last known: {} of step {}, {} ago", rank.phase, rank.step, seconds(since))
    });
    format!(
        "the job hangs: all ranks wait for {noun} {}{more}, {pronoun} {}{detail} (limit {})",
        named(&hang.blamed),
        hang.symptom,
        seconds(hang.limit)
    )
}

fn first_blamed<'a>(hang: &Hang, ranks: &'a [RankView]) -> Option<&'a RankView> {
    let first = hang.blamed.first()?;
    ranks.iter().find(|rank| rank.rank == *first)
}

fn named(ranks: &[usize]) -> String {
    ranks.iter().take(MAX_NAMED).map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Formats a duration as in `12.3 s`.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use arinar_protocol::Phase;

    use super::*;

    fn rank(rank: usize, step: u64, phase: Phase, since_progress: u64) -> RankView {
        RankView {
            rank,
            process: Some(("node".to_owned(), 100 + rank as u32)),
            step,
            phase,
            since_message: Duration::from_millis(200),
            since_progress: Duration::from_secs(since_progress),
            ended: false,
            resident_bytes: 1,
        }
    }

    fn hang(blamed: impl IntoIterator<Item = usize>, symptom: Symptom, limit: u64) -> Hang {
        Hang { blamed: blamed.into_iter().collect(), symptom, limit: Duration::from_secs(limit) }
    }

    #[test]
    fn the_report_has_a_headline_and_a_row_per_rank() {
        let silent = |rank, secs| RankView { since_message: Duration::from_secs(secs), ..rank };
        let ranks = [
            rank(0, 8, Phase::AllReduce, 2),
            silent(rank(1, 7, Phase::DataWait, 12), 6),
            RankView { ended: true, ..silent(rank(2, 9, Phase::Finish, 13), 14) },
            RankView { process: None, ..rank(3, 0, Phase::StartUp, 15) },
        ];
        let hang = hang([1], Symptom::Silent, 5);
        let wanted = [
            "the job hangs: all ranks wait for rank 1, which is silent: its process is stopped or its host is unreachable \
             (node, pid 101); last known: data_wait of step 7, 6.0 s ago (limit 5.0 s)",
            "  rank  host                  pid  phase           step   last report  last change",
            "     0  node                  100  all_reduce         8     0.2 s ago    2.0 s ago",
            ">    1  node                  101  data_wait          7     6.0 s ago   12.0 s ago",
            "     2  node                  102  ended              9    14.0 s ago   13.0 s ago",
            "     3  -                       0  unreported         0     0.2 s ago   15.0 s ago",
        ];
        assert_eq!(report(&hang, &ranks), wanted.join("\n"));
        assert_eq!(reason(&hang, &ranks), "the job hung, waiting for rank 1, in data_wait of step 7");
    }

    #[test]
    fn a_stalled_rank_is_reported_with_the_time_since_its_progress() {
        let ranks =
            [rank(0, 7, Phase::AllReduce, 12), rank(1, 7, Phase::Compute, 13), rank(2, 7, Phase::AllReduce, 11)];
        let report = report(&hang([1], Symptom::Stalled, 10), &ranks);
        let headline = "the job hangs: all ranks wait for rank 1, which makes no progress (node, pid 101); last known: \
                        compute of step 7, 13.0 s ago (limit 10.0 s)\n";
        assert!(report.starts_with(headline) && report.lines().count() == 5, "{report}");
        assert_eq!(report.lines().filter(|line| line.starts_with('>')).count(), 1, "{report}");
    }

    #[test]
    fn at_most_eight_ranks_are_named() {
        let ranks: Vec<RankView> = (0..9).map(|index| rank(index, 7, Phase::Compute, 11)).collect();
        let eight = hang(0..8, Symptom::Stalled, 10);
        let wanted =
            "all ranks wait for ranks 0, 1, 2, 3, 4, 5, 6, 7, each of which makes no progress (node, pid 100); ";
        assert!(report(&eight, &ranks).contains(wanted), "{}", report(&eight, &ranks));
        let nine = hang(0..9, Symptom::Stalled, 10);
        assert!(report(&nine, &ranks).contains(" 6, 7, ..., each of which makes no progress "));
        assert!(reason(&nine, &ranks).starts_with("the job hung, waiting for rank 0, 1, 2, 3, 4, 5, 6, 7, in compute"));
        assert_eq!(report(&nine, &ranks).lines().filter(|line| line.starts_with('>')).count(), 9);
    }
}
