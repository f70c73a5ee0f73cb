//! `--check`: finds in seconds everything that would end a run, at once or after hours. It leaves nothing behind and does not
//! disturb a run in progress.
//!
//! Every rank makes its [`RankFindings`] (`rank_check`, and `node_check` on one rank per node). Rank 0 merges and reports them.

mod dataset;
mod finding;
mod folder;
mod machine;
mod memory;
mod merge;
mod node_check;
mod rank_check;
mod resume;
mod run_folder;
mod software;
mod store_probe;

use arinar_collective::{Collective, agree, conformance, gather};
use tch::Device;

use self::{
    finding::Finding,
    merge::{RankFindings, merge},
    rank_check::check_rank,
};
use crate::{
    config::{ConfigError, LogFormat, TrainConfig},
    rank_context::RankContext,
    stop::Stop,
};

/// Checks everything that a run needs, and reports the findings on rank 0. Returns the format of the report.
///
/// All ranks call it together, and are connected through host memory only. `config` is the result of reading the configuration
/// on this rank; its values need not be valid. `import` is the URL of weights to start a new run with.
///
/// # Errors
/// Returns [`Stop::Configuration`] on all ranks if there is a problem, after it has been reported.
pub fn check(
    context: &RankContext<'_>,
    config: Result<TrainConfig, ConfigError>,
    format: Option<LogFormat>,
    import: Option<&str>,
) -> Result<LogFormat, Stop> {
    let collective = context.collective;
    let configured = config.as_ref().map_or(LogFormat::Text, |config| config.log.format);
    let format = format.unwrap_or(configured);
    let own = serde_json::to_vec(&check_rank(context, config, import)).map_err(Stop::failure)?;
    let all = gather(collective, &own)?;
    if collective.rank() != 0 {
        return agree(collective, Ok(format));
    }
    let parse = |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(Stop::failure);
    let ranks: Result<Vec<RankFindings>, Stop> = all.iter().map(parse).collect();
    let outcome = ranks.and_then(|ranks| report(&merge(&ranks), format));
    agree(collective, outcome.map(|()| format))
}

/// Runs the conformance suite of collective operations on the devices of the ranks, over the library that a run would use
/// there. Call it after [`check`]: a problem with GPUs may end the process at once.
///
/// # Errors
/// Returns [`Stop::Output`] if the finding cannot be written, and [`Stop::Broken`] if an operation fails. In the second case,
/// the process must exit, because other ranks may wait for it in NCCL.
pub fn check_collectives(collective: &dyn Collective, device: Device, format: LogFormat) -> Result<(), Stop> {
    const SUBJECT: &str = "collectives";
    let library = collective.describe();
    if let Err(problem) = conformance(collective, device) {
        return Err(Stop::Broken(format!("{SUBJECT}: {library}: {problem}").into()));
    }
    if collective.rank() == 0 {
        let text = format!("{library}; collective operations work");
        Finding::ok(SUBJECT, text).report(&format.reporter())?;
    }
    Ok(())
}

/// Reports every finding.
///
/// # Errors
/// Returns [`Stop::Configuration`] if there is a problem, and [`Stop::Output`] if a finding cannot be written.
fn report(findings: &[Finding], format: LogFormat) -> Result<(), Stop> {
    let reporter = format.reporter();
    for finding in findings {
        finding.report(&reporter)?;
    }
    match findings.iter().filter(|finding| finding.is_problem()).count() {
        0 => Ok(()),
        1 => Err(Stop::configuration("the check found 1 problem, see its line".to_owned())),
        problems => Err(Stop::configuration(format!("the check found {problems} problems, see their lines"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_a_configuration_error() {
        assert!(report(&[Finding::ok("a", "b"), Finding::note("c", "d")], LogFormat::Text).is_ok());
        let stop = report(&[Finding::problem("a", "b")], LogFormat::Text);
        assert!(matches!(stop, Err(Stop::Configuration(_))));
    }
}
