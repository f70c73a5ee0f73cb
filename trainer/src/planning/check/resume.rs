//! The check of the checkpoint that the run would resume from.

use arinar_checkpoint::{CheckpointError, ResumeCandidate, probe};
use arinar_data::read::cache::choose_window;
use arinar_store::Store;
use indicatif::DecimalBytes;

use super::{
    dataset::{ProbedDataset, cache_limit},
    finding::Finding,
};
use crate::{
    batch_source::{Data, RankShare},
    config::TrainConfig,
    run_length::RunLength,
    startup::checkpoint_options,
};

const SUBJECT: &str = "resume";

/// Finds the checkpoint, and compares it with the model and the dataset. `dataset` is `None` if the dataset cannot be opened.
pub(crate) fn check(config: &TrainConfig, store: &Store, dataset: Option<&ProbedDataset>) -> Vec<Finding> {
    match probe(&checkpoint_options(config, None), store) {
        Ok(None) => {
            vec![Finding::ok(SUBJECT, format!("no checkpoint in {}; the run starts from step 0", store.url()))]
        }
        Ok(Some(candidate)) => check_candidate(config, &candidate, dataset),
        Err(problem) => vec![Finding::problem(SUBJECT, problem)],
    }
}

/// Returns whether the run would resume from a checkpoint.
pub(crate) fn has_checkpoint(config: &TrainConfig, store: &Store) -> Result<bool, CheckpointError> {
    Ok(probe::<TrainConfig>(&checkpoint_options(config, None), store)?.is_some())
}

fn check_candidate(
    config: &TrainConfig,
    candidate: &ResumeCandidate<TrainConfig>,
    dataset: Option<&ProbedDataset>,
) -> Vec<Finding> {
    let warnings = candidate.warnings.iter();
    let mut findings: Vec<Finding> =
        warnings.map(|warning| Finding::note(SUBJECT, format!("{warning}; an older one is used"))).collect();
    findings.extend(candidate.unread.iter().map(|place| {
        Finding::note(SUBJECT, format!("the run has already started, so checkpoint.resume {place} is not read"))
    }));
    let (url, step, size) = (&candidate.url, candidate.state.step, DecimalBytes(candidate.bytes));
    let (ranks, epoch) = (candidate.state.world, candidate.state.epoch);
    findings.push(match dataset_mismatch(config, candidate, dataset) {
        Some(problem) => Finding::problem(SUBJECT, format!("{url}: {problem}")),
        None if dataset.is_some_and(|dataset| step >= RunLength::new(config, dataset.samples()).total_steps) => {
            Finding::note(SUBJECT, format!("{url}: all steps are trained already; raise optim.epochs to train more"))
        }
        None => Finding::ok(SUBJECT, format!("{url}: step {step}, epoch {epoch:.2}, {size}, saved by {ranks} rank(s)")),
    });
    findings
}

/// Returns the reason why the run cannot continue at the checkpoint's position in the dataset.
fn dataset_mismatch(
    config: &TrainConfig,
    candidate: &ResumeCandidate<TrainConfig>,
    dataset: Option<&ProbedDataset>,
) -> Option<String> {
    let token = &candidate.state.token;
    match dataset? {
        ProbedDataset::Synthetic(samples) => {
            // The position does not depend on the number of ranks.
            let share = RankShare { rank: 0, world: 1, batch: config.share_batch(1, 1).ok()? };
            let source = Data::Synthetic(*samples).batches(config, share, Some(token));
            source.err().map(|problem| problem.to_string())
        }
        ProbedDataset::Encoded { manifest, is_cached } => {
            // A run keeps the window that it started with.
            let window = config.data.shuffle_window.unwrap_or(token.window);
            let fits = choose_window(manifest, cache_limit(config, *is_cached), Some(window));
            let position = fits.and_then(|window| token.check(manifest, config.seed, config.batch.global, window));
            position.err().map(|problem| problem.to_string())
        }
    }
}
