//! The checkpoint that the run would go on from: which, and does it fit?

use arinar_checkpoint::{ResumeCandidate, probe};
use arinar_store::Store;
use indicatif::DecimalBytes;

use super::{finding::Finding, stores::Data};
use crate::{config::TrainConfig, run_length::RunLength, startup::checkpoint_options};

const WHAT: &str = "resume";

/// Looks for it; `data` is the dataset, where that could be opened.
pub fn resume(config: &TrainConfig, store: &Store, data: Option<&Data>) -> Vec<Finding> {
    match probe(&checkpoint_options(config, None), store) {
        Ok(None) => vec![Finding::ok(WHAT, format!("no checkpoint in {}: the run begins anew", store.url()))],
        Ok(Some(candidate)) => found(config, &candidate, data),
        Err(problem) => vec![Finding::problem(WHAT, problem)],
    }
}

fn found(config: &TrainConfig, candidate: &ResumeCandidate<TrainConfig>, data: Option<&Data>) -> Vec<Finding> {
    let warnings = candidate.warnings.iter();
    let mut findings: Vec<Finding> =
        warnings.map(|warning| Finding::note(WHAT, format!("{warning}; an older one is used"))).collect();
    let (url, step, size) = (&candidate.url, candidate.state.step, DecimalBytes(candidate.bytes));
    let (ranks, epoch) = (candidate.state.world, candidate.state.epoch);
    findings.push(match misfit(config, candidate, data) {
        Some(problem) => Finding::problem(WHAT, format!("{url}: {problem}")),
        None if data.is_some_and(|data| step >= RunLength::new(config, data.samples()).total_steps) => {
            Finding::note(WHAT, format!("{url}: all steps are trained already; raise optim.epochs to go on"))
        }
        None => Finding::ok(WHAT, format!("{url}: step {step}, epoch {epoch:.2}, {size}, saved by {ranks} rank(s)")),
    });
    findings
}

/// Why the run cannot go on in its data where the checkpoint was.
fn misfit(config: &TrainConfig, candidate: &ResumeCandidate<TrainConfig>, data: Option<&Data>) -> Option<String> {
    let Some(Data::Encoded { manifest, .. }) = data else { return None };
    let token = &candidate.state.token;
    let window = config.data.shuffle_window.unwrap_or(token.window);
    token.check(manifest, config.seed, config.batch.global, window).err().map(|problem| problem.to_string())
}
