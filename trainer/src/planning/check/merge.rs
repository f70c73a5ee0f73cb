//! The merge of the findings of all ranks into one report.

use std::collections::{BTreeMap, BTreeSet};

use arinar_collective::device::DeviceChoice;
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Verdict};

/// Maximum clock skew between hosts, in seconds. Stores reject requests that are signed with a wrong time.
const MAX_CLOCK_SKEW: u64 = 60;

/// The result of the check on one rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RankFindings {
    pub rank: usize,
    pub host: String,
    /// Seconds since 1970 by the clock of the host.
    pub clock: u64,
    /// Names and values that must be the same on all ranks: the version of the program and the hash of the configuration.
    pub shared_facts: Vec<(String, String)>,
    /// The kind of device of the rank; `None` if it has none.
    pub device: Option<DeviceChoice>,
    /// Identifies the GPU of the rank among all GPUs of its host.
    pub gpu: Option<String>,
    pub findings: Vec<Finding>,
}

/// Returns all findings of rank 0, the notes and problems of other ranks that differ from them, and what only a comparison of
/// ranks shows.
pub(crate) fn merge(ranks: &[RankFindings]) -> Vec<Finding> {
    let Some((first, others)) = ranks.split_first() else { return Vec::new() };
    let mut findings = first.findings.clone();
    for other in others {
        findings.extend(own_findings(first, other));
        findings.extend(fact_mismatches(first, other));
        findings.extend(device_mismatch(first, other));
        findings.extend(clock_skew(first, other));
    }
    findings.extend(shared_gpus(ranks));
    let hosts: BTreeSet<&str> = ranks.iter().map(|rank| rank.host.as_str()).collect();
    let hosts: Vec<&str> = hosts.into_iter().collect();
    findings.push(Finding::ok("ranks", format!("checked {} rank(s) on {}", ranks.len(), hosts.join(", "))));
    findings
}

/// Returns the notes and problems of `other` that rank 0 does not have.
fn own_findings(first: &RankFindings, other: &RankFindings) -> Vec<Finding> {
    let (rank, host) = (other.rank, &other.host);
    let own = other.findings.iter();
    let own = own.filter(|finding| finding.verdict != Verdict::Ok && !first.findings.contains(finding));
    own.map(|finding| Finding { text: format!("rank {rank} on {host}: {}", finding.text), ..finding.clone() }).collect()
}

fn fact_mismatches(first: &RankFindings, other: &RankFindings) -> Vec<Finding> {
    let (rank, host) = (other.rank, &other.host);
    let mismatches = other.shared_facts.iter().zip(&first.shared_facts).filter(|(theirs, ours)| theirs != ours);
    let findings = mismatches.map(|((name, theirs), (_, ours))| {
        let fix = "start every rank with the same program and configuration";
        Finding::problem("ranks", format!("rank {rank} on {host} has {name} {theirs}, rank 0 has {ours}; {fix}"))
    });
    findings.collect()
}

fn device_mismatch(first: &RankFindings, other: &RankFindings) -> Option<Finding> {
    let (ours, theirs) = (first.device?, other.device?);
    (ours != theirs).then(|| {
        let (rank, host) = (other.rank, &other.host);
        let fix = "use machines that all have GPUs, or set train.device=cpu";
        let text = format!("rank {rank} on {host} would compute on {theirs}, rank 0 on {ours}; {fix}");
        Finding::problem("ranks", text)
    })
}

fn clock_skew(first: &RankFindings, other: &RankFindings) -> Option<Finding> {
    let skew = other.clock.abs_diff(first.clock);
    (skew > MAX_CLOCK_SKEW).then(|| {
        let fix = "synchronize them (NTP), because stores reject requests with a wrong time";
        let text = format!("the clocks of {} and {} differ by {skew} s; {fix}", other.host, first.host);
        Finding::problem("clock", text)
    })
}

/// Returns a problem for every host on which ranks would share a GPU, which NCCL does not support.
fn shared_gpus(ranks: &[RankFindings]) -> Vec<Finding> {
    let mut hosts: BTreeMap<&str, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for rank in ranks {
        let Some(gpu) = &rank.gpu else { continue };
        let (count, gpus) = hosts.entry(&rank.host).or_default();
        *count += 1;
        gpus.insert(gpu);
    }
    let shared = hosts.into_iter().filter(|(_, (ranks, gpus))| gpus.len() < *ranks);
    let findings = shared.map(|(host, (ranks, gpus))| {
        let gpus = gpus.len();
        let fix = "start one rank per GPU, or set train.device=cpu";
        Finding::problem("GPUs", format!("{ranks} ranks on {host} have {gpus} GPU(s); {fix}"))
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: usize, host: &str, findings: Vec<Finding>) -> RankFindings {
        let shared_facts = vec![("configuration hash".to_owned(), "a".to_owned())];
        RankFindings { rank, host: host.to_owned(), clock: 1000, shared_facts, device: None, gpu: None, findings }
    }

    fn on_gpu(number: usize, host: &str, gpu: &str) -> RankFindings {
        RankFindings { device: Some(DeviceChoice::Cuda), gpu: Some(gpu.to_owned()), ..rank(number, host, vec![]) }
    }

    #[test]
    fn other_ranks_add_only_what_differs() {
        let shared = Finding::problem("data.url", "gone");
        let own = Finding::problem("data.cache_dir", "full");
        let mut late = rank(2, "c", vec![]);
        late.clock = 2000;
        late.shared_facts[0].1 = "b".to_owned();
        let merged = merge(&[
            rank(0, "a", vec![shared.clone(), Finding::ok("memory", "much")]),
            rank(1, "b", vec![shared.clone(), own, Finding::ok("memory", "little")]),
            late,
        ]);
        let texts: Vec<&str> = merged.iter().map(|finding| finding.text.as_str()).collect();
        assert_eq!(texts[..3], ["gone", "much", "rank 1 on b: full"]);
        assert!(texts[3].starts_with("rank 2 on c has configuration hash b, rank 0 has a"), "{texts:?}");
        assert!(texts[4].starts_with("the clocks of c and a differ by 1000 s"), "{texts:?}");
        assert_eq!(texts[5..], ["checked 3 rank(s) on a, b, c"]);
    }

    #[test]
    fn each_rank_needs_its_own_gpu() {
        let problems = |ranks: &[RankFindings]| -> Vec<String> {
            let findings = merge(ranks).into_iter().filter(Finding::is_problem);
            findings.map(|finding| format!("{}: {}", finding.subject, finding.text)).collect()
        };
        // GPUs of two hosts may have the same address.
        assert!(problems(&[on_gpu(0, "a", "x 3b"), on_gpu(1, "a", "x 3c"), on_gpu(2, "b", "y 3b")]).is_empty());
        let shared = problems(&[on_gpu(0, "a", "x 3b"), on_gpu(1, "b", "y 3b"), on_gpu(2, "b", "y 3b")]);
        assert_eq!(shared, ["GPUs: 2 ranks on b have 1 GPU(s); start one rank per GPU, or set train.device=cpu"]);
        let cpu = RankFindings { device: Some(DeviceChoice::Cpu), ..rank(1, "b", vec![]) };
        let mixed = problems(&[on_gpu(0, "a", "x 3b"), cpu, rank(2, "c", vec![])]);
        assert_eq!(mixed.len(), 1, "{mixed:?}");
        assert!(mixed[0].starts_with("ranks: rank 1 on b would compute on cpu, rank 0 on cuda; "), "{mixed:?}");
    }
}
