//! `--check`: everything that would end a run, at once or after hours, found in seconds. Nothing is left behind, and
//! nobody who runs is disturbed.

mod finding;
mod machine;
mod places;
mod resume;
mod software;
mod stores;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use arinar_collective::device::DeviceChoice;
use arinar_data::read::cache::default_cache;
use arinar_store::Store;
use indicatif::DecimalBytes;
use serde::{Deserialize, Serialize};
use tch::Device;

use finding::{Finding, Verdict};

use crate::{
    config::{ConfigError, LogFormat, TrainConfig},
    planning::forecast::{Checkpoints, NO_EVALUATION, checkpoint_bytes},
    rank_context::RankContext,
    reporter::Reporter,
    run_length::RunLength,
    startup::shared_facts,
    stop::Stop,
    time_accounting::TimeFile,
};
use arinar_checkpoint::spool_folder;
use arinar_collective::{Collective, LaunchEnvironment, agree, conformance, cuda, gather};

use machine::Crowd;
use places::Place;
use stores::{Data, Window};

/// By more than this clocks of two machines must not differ, in seconds: stores refuse signatures by a wrong clock.
const CLOCK_TOLERANCE: u64 = 60;
/// Small files beside checkpoints: curves and logs.
const LOGS: u64 = 200_000_000;

/// What one rank has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Witness {
    rank: usize,
    host: String,
    /// Seconds since 1970 by its clock.
    clock: u64,
    /// Program and configuration, as they must be the same on all ranks.
    facts: Vec<(String, String)>,
    /// What kind of device it computes on, if it has one.
    device: Option<DeviceChoice>,
    /// Which GPU that is, among all GPUs of all machines.
    gpu: Option<String>,
    findings: Vec<Finding>,
}

/// Looks at everything, and prints it on rank 0, in the format that is returned. All ranks call it together, connected
/// in the memory of their machines alone, with their own reading of the configuration, the values of which need not have
/// been checked.
///
/// # Errors
/// [`Stop::Configuration`] when something must be changed; it has been told.
pub fn check(
    context: &RankContext<'_>,
    config: Result<TrainConfig, ConfigError>,
    format: Option<LogFormat>,
) -> Result<LogFormat, Stop> {
    let collective = context.collective;
    let told_as = config.as_ref().map_or(LogFormat::Text, |config| config.log.format);
    let format = format.unwrap_or(told_as);
    let witness = Witness::look(context, config);
    let mine = serde_json::to_vec(&witness).map_err(Stop::failure)?;
    let witnesses = gather(collective, &mine)?;
    if collective.rank() != 0 {
        return agree(collective, Ok(format));
    }
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(Stop::failure);
    let witnesses: Result<Vec<Witness>, Stop> = witnesses.iter().map(read).collect();
    let told = witnesses.and_then(|witnesses| tell(&merge(&witnesses), format));
    agree(collective, told.map(|()| format))
}

/// Tries what ranks do together where they compute, over what a run would use there. After all else has been told: what
/// goes wrong with GPUs may end ranks at once.
///
/// # Errors
/// What ranks exchange does not arrive. The process ends, as the others may wait for it where nothing reaches them.
pub fn check_collectives(collective: &dyn Collective, device: Device, format: LogFormat) -> Result<(), Stop> {
    const WHAT: &str = "collectives";
    let over = collective.describe();
    if let Err(problem) = conformance(collective, device) {
        return Err(Stop::Broken(format!("{WHAT}: {over}: {problem}").into()));
    }
    if collective.rank() == 0 {
        Finding::ok(WHAT, format!("{over}; what ranks exchange over it arrives")).report(&Reporter::new(format));
    }
    Ok(())
}

/// Every line, and how it ends.
fn tell(findings: &[Finding], format: LogFormat) -> Result<(), Stop> {
    let reporter = Reporter::new(format);
    for finding in findings {
        finding.report(&reporter);
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count() {
        0 => Ok(()),
        1 => Err(Stop::configuration("the check found 1 problem, see its line".to_owned())),
        problems => Err(Stop::configuration(format!("the check found {problems} problems, see their lines"))),
    }
}

/// All of rank 0's findings, and what is different or wrong elsewhere.
fn merge(witnesses: &[Witness]) -> Vec<Finding> {
    let Some((first, others)) = witnesses.split_first() else { return Vec::new() };
    let mut findings = first.findings.clone();
    for other in others {
        let (rank, host) = (other.rank, &other.host);
        let elsewhere =
            other.findings.iter().filter(|finding| finding.verdict != Verdict::Ok && !first.findings.contains(finding));
        findings.extend(
            elsewhere
                .map(|finding| Finding { said: format!("rank {rank} on {host}: {}", finding.said), ..finding.clone() }),
        );
        let differ = other.facts.iter().zip(&first.facts).filter(|(theirs, ours)| theirs != ours);
        findings.extend(differ.map(|((name, theirs), (_, ours))| {
            let cure = "start every rank with the same program and configuration";
            Finding::problem("ranks", format!("rank {rank} on {host} has {name} {theirs}, rank 0 has {ours}; {cure}"))
        }));
        if let (Some(ours), Some(theirs)) = (first.device, other.device)
            && ours != theirs
        {
            let cure = "take machines that all have GPUs, or set train.device=cpu";
            let told = format!("rank {rank} on {host} would compute on {theirs}, rank 0 on {ours}; {cure}");
            findings.push(Finding::problem("ranks", told));
        }
        if other.clock.abs_diff(first.clock) > CLOCK_TOLERANCE {
            let (off, ours) = (other.clock.abs_diff(first.clock), &first.host);
            let cure = "set the clocks (NTP): stores refuse requests by a wrong one";
            findings.push(Finding::problem("clock", format!("those of {host} and {ours} are {off} s apart; {cure}")));
        }
    }
    findings.extend(shared_gpus(witnesses));
    let mut hosts: Vec<&str> = witnesses.iter().map(|witness| witness.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    findings.push(Finding::ok("ranks", format!("{} looked, on {}", witnesses.len(), hosts.join(", "))));
    findings
}

/// Machines whose ranks have to share GPUs, which NCCL does not do.
fn shared_gpus(witnesses: &[Witness]) -> Vec<Finding> {
    let mut hosts: BTreeMap<&str, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for witness in witnesses {
        let Some(gpu) = &witness.gpu else { continue };
        let (ranks, gpus) = hosts.entry(&witness.host).or_default();
        *ranks += 1;
        gpus.insert(gpu);
    }
    let shared = hosts.into_iter().filter(|(_, (ranks, gpus))| gpus.len() < *ranks);
    let told = shared.map(|(host, (ranks, gpus))| {
        let gpus = gpus.len();
        format!("{ranks} ranks on {host} have {gpus} GPU(s); start one rank for each GPU, or set train.device=cpu")
    });
    told.map(|told| Finding::problem("GPUs", told)).collect()
}

impl Witness {
    fn look(context: &RankContext<'_>, config: Result<TrainConfig, ConfigError>) -> Self {
        let (collective, launch) = (context.collective, context.launch);
        let read = config.as_ref().ok().and_then(|config| shared_facts(config).ok());
        let facts = read.map(|facts| facts.map(|(name, value)| (name.to_owned(), value)).to_vec());
        // A clock is read when all ranks are here, so that those of all can be compared.
        let _ = collective.barrier();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let choice = config.as_ref().map_or(DeviceChoice::Auto, |config| config.train.device);
        let device = config.as_ref().ok().map(|config| config.train.device.device(launch.local_rank));
        let mut findings = Look { context }.findings(config);
        if launch.is_node_leader() {
            findings.extend(software::look(choice, launch));
        }
        if let (false, Some(Err(problem))) = (launch.is_node_leader(), &device) {
            findings.push(Finding::problem("GPUs", problem));
        }
        findings.push(software::collectives(collective));
        Self {
            rank: collective.rank(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            clock,
            facts: facts.unwrap_or_default(),
            device: match device {
                Some(Ok(Device::Cuda(_))) => Some(DeviceChoice::Cuda),
                Some(Ok(_)) => Some(DeviceChoice::Cpu),
                _ => None,
            },
            gpu: match device {
                Some(Ok(Device::Cuda(ordinal))) => Some(cuda::description(ordinal)),
                _ => None,
            },
            findings,
        }
    }
}

/// One rank looks.
struct Look<'a> {
    context: &'a RankContext<'a>,
}

impl Look<'_> {
    fn launch(&self) -> LaunchEnvironment {
        self.context.launch
    }

    fn findings(&self, config: Result<TrainConfig, ConfigError>) -> Vec<Finding> {
        let mut findings = Vec::new();
        match config {
            Err(problem) => findings.push(Finding::problem("configuration", problem)),
            Ok(config) => self.configured(&config, &mut findings),
        }
        if self.launch().is_node_leader() {
            let gpus = matches!(self.context.device, Device::Cuda(_));
            findings.extend(machine::shared_memory(self.launch().local_world_size, gpus));
        }
        findings
    }

    /// What depends on the configuration. One rank of each machine looks at what the machine's ranks share.
    fn configured(&self, config: &TrainConfig, findings: &mut Vec<Finding>) {
        let problems = config.problems();
        let sound = problems.is_empty();
        findings.extend(problems.iter().map(|problem| Finding::problem("configuration", problem)));
        let batch = config.share_batch(self.launch().world_size, self.context.full_world_size());
        match &batch {
            Ok(batch) if sound => {
                let (global, ranks) = (config.batch.global, self.launch().world_size);
                let told = format!(
                    "{}; batch {global} = {ranks} rank(s) x {} micro-batch(es) of {}",
                    config.run.name, batch.accumulation, batch.micro
                );
                findings.push(Finding::ok("configuration", told));
            }
            Ok(_) => {}
            Err(problem) => findings.push(Finding::problem("configuration", problem)),
        }
        if !self.launch().is_node_leader() {
            return;
        }
        let (data, found) = stores::dataset(config, sound);
        findings.extend(found);
        self.run_folder(config, sound, data.as_ref(), findings);
        if let Some(data) = &data {
            let window = data.window(config);
            findings.extend(self.cache(config, data, window));
            findings.extend(window.map(|window| machine::open_files(window.open)));
        }
        let threads = config.train.threads.unwrap_or(self.context.threads);
        findings.push(machine::cores(self.launch().local_world_size, threads));
        findings.extend(config.eval.as_ref().map(|_| Finding::note("eval", NO_EVALUATION)));
        if sound {
            findings.push(model(config));
        }
        if let (true, Ok(batch)) = (sound, batch) {
            let crowd = Crowd { world: self.launch().world_size, here: self.launch().local_world_size, batch };
            findings.extend(machine::memory(config, crowd, self.context.device));
        }
    }

    /// The store of the checkpoints, the disk they need, and what lies there already.
    fn run_folder(&self, config: &TrainConfig, sound: bool, data: Option<&Data>, findings: &mut Vec<Finding>) {
        if self.launch().rank == 0 {
            findings.push(log_folder(config).look());
            let foreign = TimeFile::check(Path::new(&config.run.log_dir)).err();
            findings.extend(foreign.map(|problem| Finding::problem("run.log_dir", problem)));
        }
        let store = match stores::open(&config.run.dir) {
            Ok(store) => store,
            Err(problem) => return findings.push(Finding::problem("run.dir", problem)),
        };
        let usable = stores::run_folder(&store);
        // What cannot be used at all is said once.
        let usable_at_all = usable.verdict != Verdict::Problem;
        findings.push(usable);
        if self.launch().rank == 0 && usable_at_all {
            findings.push(stores::lease(&store));
            if sound {
                findings.extend(resume::resume(config, &store, data));
            }
        }
        if sound && usable_at_all {
            findings.extend(self.checkpoint_disk(config, &store, data));
        }
    }

    /// Room for checkpoints: for all that are kept where they stay, for some on their way to a bucket.
    fn checkpoint_disk(&self, config: &TrainConfig, store: &Store, data: Option<&Data>) -> Option<Finding> {
        if let Some(path) = store.local_path("") {
            // How many are kept depends on steps alone, but for the pace, which hardly matters.
            let plan = RunLength::new(config, data?.samples());
            let needed = Checkpoints::of_run(config, &plan, 1.0).most_bytes;
            return Some(Place { key: "run.dir", path, needed, purpose: "its checkpoints" }.look());
        }
        let here =
            checkpoint_bytes(&config.model) / self.launch().world_size as u64 * self.launch().local_world_size as u64;
        let spool = &config.checkpoint;
        if let Some(limit) = spool.spool_limit.filter(|limit| limit.0 < here) {
            let told =
                format!("{limit} bytes are less than one checkpoint, which has {here} on this machine; raise it");
            return Some(Finding::problem("checkpoint.spool_limit", told));
        }
        Some(match spool_folder(spool.spool_dir.as_deref(), store.url()) {
            // One that is sent, and one that is written meanwhile.
            Ok(path) => {
                Place { key: "checkpoint.spool_dir", path, needed: 2 * here, purpose: "two checkpoints" }.look()
            }
            Err(problem) => Finding::problem("checkpoint.spool_dir", problem),
        })
    }

    /// Room for the shards that are copied; where no window fits, whether there can be any.
    fn cache(&self, config: &TrainConfig, data: &Data, window: Option<Window>) -> Option<Finding> {
        let Data::Encoded { cached: true, .. } = data else { return None };
        let path = config.data.cache_dir.as_ref().map_or_else(default_cache, PathBuf::from);
        let Window { bytes, .. } = window.unwrap_or_default();
        let purpose = window.map_or("shards", |window| window.described());
        if let Err(problem) = arinar_data::read::cache::probe(&path) {
            return Some(Finding::problem("data.cache_dir", problem));
        }
        Some(Place { key: "data.cache_dir", path, needed: bytes, purpose }.look())
    }
}

/// What the model comes to.
fn model(config: &TrainConfig) -> Finding {
    let millions = config.model.parameter_count() as f64 / 1e6;
    let tera = config.model.training_flops().total() * config.batch.global as f64 / 1e12;
    let checkpoint = DecimalBytes(checkpoint_bytes(&config.model));
    Finding::ok("model", format!("{millions:.1}M parameters, {tera:.3} TFLOP a step, checkpoints of {checkpoint}"))
}

fn log_folder(config: &TrainConfig) -> Place {
    Place { key: "run.log_dir", path: Path::new(&config.run.log_dir).to_path_buf(), needed: LOGS, purpose: "curves" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witness(rank: usize, host: &str, findings: Vec<Finding>) -> Witness {
        let facts = vec![("configuration hash".to_owned(), "a".to_owned())];
        Witness { rank, host: host.to_owned(), clock: 1000, facts, device: None, gpu: None, findings }
    }

    fn on_gpu(rank: usize, host: &str, gpu: &str) -> Witness {
        Witness { device: Some(DeviceChoice::Cuda), gpu: Some(gpu.to_owned()), ..witness(rank, host, vec![]) }
    }

    #[test]
    fn other_machines_tell_what_is_wrong_with_them_alone() {
        let shared = Finding::problem("data.url", "gone");
        let own = Finding::problem("data.cache_dir", "full");
        let mut late = witness(2, "c", vec![]);
        late.clock = 2000;
        late.facts[0].1 = "b".to_owned();
        let merged = merge(&[
            witness(0, "a", vec![shared.clone(), Finding::ok("memory", "much")]),
            witness(1, "b", vec![shared.clone(), own, Finding::ok("memory", "little")]),
            late,
        ]);
        let said: Vec<&str> = merged.iter().map(|finding| finding.said.as_str()).collect();
        assert_eq!(said[..3], ["gone", "much", "rank 1 on b: full"]);
        assert!(said[3].starts_with("rank 2 on c has configuration hash b, rank 0 has a"), "{said:?}");
        assert!(said[4].starts_with("those of c and a are 1000 s apart"), "{said:?}");
        assert_eq!(said[5..], ["3 looked, on a, b, c"]);
    }

    #[test]
    fn each_rank_needs_a_gpu_of_its_own() {
        let told = |witnesses: &[Witness]| -> Vec<String> {
            let findings = merge(witnesses).into_iter().filter(|finding| finding.verdict == Verdict::Problem);
            findings.map(|finding| format!("{}: {}", finding.what, finding.said)).collect()
        };
        // Two machines may have GPUs at the same address.
        assert!(told(&[on_gpu(0, "a", "x 3b"), on_gpu(1, "a", "x 3c"), on_gpu(2, "b", "y 3b")]).is_empty());
        let shared = told(&[on_gpu(0, "a", "x 3b"), on_gpu(1, "b", "y 3b"), on_gpu(2, "b", "y 3b")]);
        assert_eq!(shared, ["GPUs: 2 ranks on b have 1 GPU(s); start one rank for each GPU, or set train.device=cpu"]);
        let cpu = Witness { device: Some(DeviceChoice::Cpu), ..witness(1, "b", vec![]) };
        let mixed = told(&[on_gpu(0, "a", "x 3b"), cpu, witness(2, "c", vec![])]);
        assert_eq!(mixed.len(), 1, "{mixed:?}");
        assert!(mixed[0].starts_with("ranks: rank 1 on b would compute on cpu, rank 0 on cuda; "), "{mixed:?}");
    }

    #[test]
    fn a_problem_is_the_end() {
        assert!(tell(&[Finding::ok("a", "b"), Finding::note("c", "d")], LogFormat::Text).is_ok());
        let stop = tell(&[Finding::problem("a", "b")], LogFormat::Text);
        assert!(matches!(stop, Err(Stop::Configuration(_))));
    }
}
