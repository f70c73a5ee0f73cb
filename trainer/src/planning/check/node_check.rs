//! The check of the resources that the ranks of a node share. One rank per node runs it.

use indicatif::DecimalBytes;

use super::{
    dataset,
    finding::Finding,
    machine,
    memory::{self, NodeShare},
    run_folder::{self, RunFolderCheck},
};
use crate::{
    config::{BatchShare, TrainConfig},
    planning::forecast::{NO_EVALUATION, checkpoint_bytes},
    rank_context::RankContext,
};

/// The check of one node.
pub(crate) struct NodeCheck<'a> {
    pub context: &'a RankContext<'a>,
    pub config: &'a TrainConfig,
    pub config_is_valid: bool,
    /// The share of a batch that each rank computes in a step; `None` if the ranks cannot share the global batch.
    pub batch: Option<BatchShare>,
}

impl NodeCheck<'_> {
    /// Checks the dataset, the folders of the run, and the resources of the machine.
    pub(crate) fn run(&self) -> Vec<Finding> {
        let (config, launch) = (self.config, self.context.launch);
        let (dataset, mut findings) = dataset::probe(config, self.config_is_valid);
        if launch.rank == 0 {
            findings.extend(run_folder::check_logs(config));
        }
        let dataset = dataset.as_ref();
        let run_folder = RunFolderCheck { config, config_is_valid: self.config_is_valid, launch, dataset };
        findings.extend(run_folder.run());
        if let Some(dataset) = dataset {
            let window = dataset.window(config);
            findings.extend(dataset::check_cache(config, dataset, window));
        }
        findings.push(machine::check_open_files());
        let threads = config.train.threads.unwrap_or(self.context.threads);
        findings.push(machine::check_cores(launch.local_world_size, threads));
        findings.extend(config.eval.as_ref().map(|_| Finding::note("eval", NO_EVALUATION)));
        if self.config_is_valid {
            findings.push(model_summary(config));
            findings.extend(self.check_memory());
        }
        findings
    }

    fn check_memory(&self) -> Vec<Finding> {
        let Some(batch) = self.batch else { return Vec::new() };
        let launch = self.context.launch;
        let node = NodeShare { world_size: launch.world_size, local_world_size: launch.local_world_size, batch };
        memory::check(self.config, node, self.context.device)
    }
}

fn model_summary(config: &TrainConfig) -> Finding {
    let millions = config.model.parameter_count() as f64 / 1e6;
    let tera = config.model.training_flops().total() * config.batch.global as f64 / 1e12;
    let checkpoint = DecimalBytes(checkpoint_bytes(&config.model));
    Finding::ok("model", format!("{millions:.1}M parameters, {tera:.3} TFLOP per step, checkpoints of {checkpoint}"))
}
