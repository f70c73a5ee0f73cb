//! The check of one rank.

use std::time::{SystemTime, UNIX_EPOCH};

use arinar_collective::{cuda, device::DeviceChoice};
use arinar_store::Store;
use tch::Device;

use super::{finding::Finding, machine, merge::RankFindings, node_check::NodeCheck, resume::has_checkpoint, software};
use crate::{
    config::{BatchShare, ConfigError, TrainConfig},
    import,
    rank_context::RankContext,
    startup::{check_single_origin, shared_facts},
};

/// Subject of findings about the configuration as a whole.
const SUBJECT: &str = "configuration";

/// Checks one rank. All ranks call it together. The values of the configuration need not be valid.
pub(crate) fn check_rank(
    context: &RankContext<'_>,
    config: Result<TrainConfig, ConfigError>,
    import: Option<&str>,
) -> RankFindings {
    let (collective, launch) = (context.collective, context.launch);
    let facts = config.as_ref().ok().and_then(|config| shared_facts(config).ok());
    let facts = facts.map(|facts| facts.map(|(name, value)| (name.to_owned(), value)).to_vec());
    // After the barrier all ranks read their clocks at about the same time.
    let _ = collective.barrier();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let choice = config.as_ref().map_or(DeviceChoice::Auto, |config| config.train.device);
    let device = config.as_ref().ok().map(|config| config.train.device.device(launch.local_rank));
    let mut findings = check_config_and_node(context, config, import);
    if launch.is_node_leader() {
        findings.extend(software::check(choice, launch));
    } else if let Some(Err(problem)) = &device {
        findings.push(Finding::problem("GPUs", problem));
    }
    findings.push(software::check_collectives(collective));
    let device = device.and_then(Result::ok);
    RankFindings {
        rank: collective.rank(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        clock,
        shared_facts: facts.unwrap_or_default(),
        device: device.map(|device| match device {
            Device::Cuda(_) => DeviceChoice::Cuda,
            _ => DeviceChoice::Cpu,
        }),
        gpu: match device {
            Some(Device::Cuda(ordinal)) => Some(cuda::description(ordinal)),
            _ => None,
        },
        findings,
    }
}

fn check_config_and_node(
    context: &RankContext<'_>,
    config: Result<TrainConfig, ConfigError>,
    import: Option<&str>,
) -> Vec<Finding> {
    let launch = context.launch;
    let mut findings = match config {
        Err(problem) => vec![Finding::problem(SUBJECT, problem)],
        Ok(config) => check_config(context, &config, import),
    };
    if launch.is_node_leader() {
        let on_gpus = matches!(context.device, Device::Cuda(_));
        findings.extend(machine::check_shared_memory(launch.local_world_size, on_gpus));
    }
    findings
}

/// Checks the values of the configuration and, on one rank per node, the resources that they need.
fn check_config(context: &RankContext<'_>, config: &TrainConfig, import: Option<&str>) -> Vec<Finding> {
    let launch = context.launch;
    let problems = config.problems();
    let is_valid = problems.is_empty();
    let mut findings: Vec<Finding> = problems.iter().map(|problem| Finding::problem(SUBJECT, problem)).collect();
    let batch = config.share_batch(launch.world_size, context.full_world_size());
    match &batch {
        Ok(batch) if is_valid => findings.push(summary(config, launch.world_size, *batch)),
        Ok(_) => {}
        Err(problem) => findings.push(Finding::problem(SUBJECT, problem)),
    }
    if launch.is_node_leader() {
        findings.extend(NodeCheck { context, config, config_is_valid: is_valid, batch: batch.ok() }.run());
    }
    findings.extend(import.filter(|_| is_valid && launch.rank == 0).map(|url| check_import(config, url)));
    findings
}

/// Checks the weights to start a new run with. If the run has started already, they are not read.
fn check_import(config: &TrainConfig, url: &str) -> Finding {
    const SUBJECT: &str = "import";
    if let Err(problem) = check_single_origin(config, Some(url)) {
        return Finding::problem(SUBJECT, problem);
    }
    let store = Store::open(&config.run.dir).map_err(|error| error.to_string());
    let started = store.and_then(|store| has_checkpoint(config, &store).map_err(|error| error.to_string()));
    // A store that cannot be read is another finding.
    if started.unwrap_or(false) {
        return Finding::note(SUBJECT, format!("the run has already started, so --import {url} is not read"));
    }
    match import::check(url, &config.model) {
        Ok(text) => Finding::ok(SUBJECT, text),
        Err(problem) => Finding::problem(SUBJECT, problem),
    }
}

fn summary(config: &TrainConfig, ranks: usize, batch: BatchShare) -> Finding {
    let (name, global) = (&config.run.name, config.batch.global);
    let (micro, accumulation) = (batch.micro, batch.accumulation);
    Finding::ok(
        SUBJECT,
        format!("{name}; batch {global} = {ranks} rank(s) x {accumulation} micro-batch(es) of {micro}"),
    )
}
