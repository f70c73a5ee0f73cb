//! The checkpoint that the run would go on from: which, and does it fit?

use arinar_store::Store;
use indicatif::DecimalBytes;

use super::{finding::Finding, stores::Data};
use crate::{
    checkpoint::{Outlook, look},
    config::TrainConfig,
    train::Plan,
};

const WHAT: &str = "resume";

/// Looks for it; `data` is the dataset, where that could be opened.
pub fn resume(config: &TrainConfig, store: &Store, data: Option<&Data>) -> Vec<Finding> {
    match look(config, store) {
        Ok(None) => vec![Finding::ok(WHAT, format!("no checkpoint in {}: the run begins anew", store.url()))],
        Ok(Some(outlook)) => found(config, &outlook, data),
        Err(problem) => vec![Finding::problem(WHAT, problem)],
    }
}

fn found(config: &TrainConfig, outlook: &Outlook, data: Option<&Data>) -> Vec<Finding> {
    let warnings = outlook.warnings.iter();
    let mut findings: Vec<Finding> =
        warnings.map(|warning| Finding::note(WHAT, format!("{warning}; an older one is used"))).collect();
    let (url, step, size) = (&outlook.url, outlook.state.step, DecimalBytes(outlook.bytes));
    let (ranks, epoch) = (outlook.state.world, outlook.state.epoch);
    findings.push(match misfit(config, outlook, data) {
        Some(problem) => Finding::problem(WHAT, format!("{url}: {problem}")),
        None if data.is_some_and(|data| step >= Plan::new(config, data.samples()).total_steps) => {
            Finding::note(WHAT, format!("{url}: all steps are trained already; raise optim.epochs to go on"))
        }
        None => Finding::ok(WHAT, format!("{url}: step {step}, epoch {epoch:.2}, {size}, saved by {ranks} rank(s)")),
    });
    findings
}

/// Why the run cannot go on in its data where the checkpoint was.
fn misfit(config: &TrainConfig, outlook: &Outlook, data: Option<&Data>) -> Option<String> {
    let Some(Data::Encoded { manifest, .. }) = data else { return None };
    let token = &outlook.state.token;
    let window = config.data.shuffle_window.unwrap_or(token.window);
    token.check(manifest, config.seed, config.batch.global, window).err().map(|problem| problem.to_string())
}
