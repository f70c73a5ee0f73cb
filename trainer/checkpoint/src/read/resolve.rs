//! Resolving `resume` to a checkpoint: the newest one that passes a check.

use arinar_store::{Store, StoreError};

use super::found::Location;
use crate::{
    error::CheckpointError,
    format::manifest::{MANIFEST, committed_steps, step_folder_name, step_of},
    options::Resume,
};

/// A checkpoint that may be resumed from.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub step: u64,
    pub location: Location,
    /// The store that holds its files.
    pub store: Store,
}

/// Knows the checkpoints of the run itself.
pub(crate) trait OwnCheckpoints {
    /// Returns the steps of the run's checkpoints, in ascending order.
    fn steps(&self) -> Result<Vec<u64>, CheckpointError>;

    /// Returns where the run's checkpoint of a step can be read, cheapest first.
    fn candidates(&self, step: u64) -> Vec<Candidate>;
}

/// A candidate that has passed the check.
pub(crate) struct Resolved<K, T> {
    /// URL of the run that holds it, as given by the user.
    pub run: String,
    pub candidate: K,
    /// Result of the check.
    pub value: T,
    /// Problems of newer checkpoints.
    pub warnings: Vec<String>,
}

/// Returns the checkpoint that `resume` asks for, or `None` if the run starts from step 0. `run` is the URL of the run, `own`
/// knows its checkpoints, and `foreign` returns where a checkpoint of another run can be read. `check` decides whether a
/// candidate is valid.
///
/// # Errors
/// Returns an error if the run must not be overwritten, if there is no checkpoint where there must be one, if none is valid,
/// or if a store fails.
pub(crate) fn resolve<T>(
    run: &str,
    resume: &Resume,
    own: &dyn OwnCheckpoints,
    foreign: impl Fn(&Store, u64) -> Vec<Candidate>,
    check: impl FnMut(&Candidate) -> Result<T, CheckpointError>,
) -> Result<Option<Resolved<Candidate, T>>, CheckpointError> {
    let own_candidates = |steps: Vec<u64>| steps.into_iter().rev().flat_map(|step| own.candidates(step));
    match resume {
        Resume::Auto => newest_valid(run, own_candidates(own.steps()?), check),
        Resume::None => match own.steps()?.last() {
            None => Ok(None),
            Some(&newest) => Err(CheckpointError::RunExists { url: run.to_owned(), newest: step_folder_name(newest) }),
        },
        Resume::From(url) => {
            let (found_run, steps) = steps_at(url)?;
            let resolved = if found_run == run.trim_end_matches('/') {
                newest_valid(&found_run, own_candidates(steps), check)?
            } else {
                let store = Store::open(&found_run)?;
                newest_valid(&found_run, steps.into_iter().rev().flat_map(|step| foreign(&store, step)), check)?
            };
            resolved.map(Some).ok_or_else(|| CheckpointError::NoCheckpoint { url: url.clone() })
        }
    }
}

/// Returns the first candidate that passes the check, or `None` without candidates. Damaged candidates are skipped.
///
/// # Errors
/// Returns [`CheckpointError::NoneIntact`] if there are candidates and all are damaged, or any error other than damage.
pub(crate) fn newest_valid<K, T>(
    run: &str,
    newest_first: impl IntoIterator<Item = K>,
    mut check: impl FnMut(&K) -> Result<T, CheckpointError>,
) -> Result<Option<Resolved<K, T>>, CheckpointError> {
    let mut warnings = Vec::new();
    for candidate in newest_first {
        match check(&candidate) {
            Ok(value) => return Ok(Some(Resolved { run: run.to_owned(), candidate, value, warnings })),
            Err(problem) if is_damage(&problem) => warnings.push(problem.to_string()),
            Err(problem) => return Err(problem),
        }
    }
    if warnings.is_empty() {
        return Ok(None);
    }
    Err(CheckpointError::NoneIntact { url: run.to_owned(), problems: warnings.join("; ") })
}

/// Returns the run that a URL refers to and the steps of its checkpoints in ascending order; if the URL refers to a single
/// checkpoint, only its step.
pub(crate) fn steps_at(url: &str) -> Result<(String, Vec<u64>), CheckpointError> {
    let url = url.trim_end_matches('/');
    let (run, name) = url.rsplit_once('/').unwrap_or((".", url));
    let Some(step) = step_of(name) else { return Ok((url.to_owned(), committed_steps(&Store::open(url)?)?)) };
    if Store::open(run)?.exists(&format!("{name}/{MANIFEST}"))? {
        return Ok((run.to_owned(), vec![step]));
    }
    Err(CheckpointError::NoCheckpoint { url: url.to_owned() })
}

/// Returns true if an older checkpoint may be valid although this one is not. If a store cannot be reached, nothing is known
/// about the checkpoint.
fn is_damage(problem: &CheckpointError) -> bool {
    use CheckpointError::{Damaged, Store};
    use StoreError::{File, Missing, Size};
    matches!(problem, Damaged { .. } | Store(Missing { .. } | Size { .. } | File { .. }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn damaged(step: u64) -> CheckpointError {
        CheckpointError::Damaged { url: step_folder_name(step), what: "it is cut".to_owned() }
    }

    #[test]
    fn the_newest_valid_checkpoint_is_found_and_newer_problems_are_reported() {
        let check = |valid: u64| move |step: &u64| if *step <= valid { Ok(10 * step) } else { Err(damaged(*step)) };
        let found = newest_valid("run", [30, 20, 10], check(20)).unwrap().unwrap();
        assert_eq!((found.candidate, found.value, found.warnings.len()), (20, 200, 1));
        assert!(found.warnings[0].contains("step-00000030"), "{:?}", found.warnings);
        assert!(newest_valid("run", [], check(20)).unwrap().is_none());
        let error = newest_valid("run", [30, 20], check(0)).err().unwrap();
        assert!(matches!(&error, CheckpointError::NoneIntact { problems, .. } if problems.matches("cut").count() == 2));
    }

    #[test]
    fn a_store_that_cannot_be_reached_is_not_damage() {
        let unavailable = || StoreError::Unavailable { url: "s3://bucket".to_owned(), reason: "down".to_owned() };
        let result = newest_valid("run", [20, 10], |_| Err::<(), _>(unavailable().into()));
        assert!(matches!(result.err(), Some(CheckpointError::Store(StoreError::Unavailable { .. }))));
    }
}
