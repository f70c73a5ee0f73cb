//! Resolving `resume` to a checkpoint: the newest one that passes a check.

use arinar_store::{Store, StoreError};

use super::{found::Location, resume_place::ResumePlace, state_file::read_resume};
use crate::{
    error::CheckpointError,
    format::manifest::{self, MANIFEST, committed_steps, step_folder_name},
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

/// The checkpoint to resume from.
pub(crate) struct Chosen<T> {
    pub resolved: Resolved<Candidate, T>,
    /// True if it is a checkpoint of the run itself.
    pub is_own: bool,
    /// The place that `resume` names and that is not read, because the run itself has gone further.
    pub unread: Option<String>,
}

/// The run that is about to start.
pub(crate) struct OwnRun<'a> {
    /// URL of the run, as given by the user.
    pub url: &'a str,
    /// The folder of the run.
    pub store: &'a Store,
    pub checkpoints: &'a dyn OwnCheckpoints,
}

/// Returns the checkpoint that `resume` asks for, or `None` if the run starts from step 0. `foreign` returns where a checkpoint
/// of another run can be read. `check` decides whether a candidate is valid.
///
/// A place that `resume` names is where the run begins. Once the run has checkpoints of its own, it continues from the newest of
/// them, so that a job that is started again with the same command line resumes.
///
/// # Errors
/// Returns an error if the run must not be overwritten, if there is no checkpoint where there must be one, if none is valid,
/// or if a store fails.
pub(crate) fn resolve<T>(
    own: &OwnRun<'_>,
    resume: &Resume,
    foreign: impl Fn(&Store, u64) -> Vec<Candidate>,
    check: impl FnMut(&Candidate) -> Result<T, CheckpointError>,
) -> Result<Option<Chosen<T>>, CheckpointError> {
    let steps = own.checkpoints.steps()?;
    let chosen = |resolved, is_own| Chosen { resolved, is_own, unread: None };
    let url = match resume {
        Resume::Auto => return Ok(own.newest_valid(steps, check)?.map(|resolved| chosen(resolved, true))),
        Resume::None => return own.require_none(&steps).map(|()| None),
        Resume::From(url) => url,
    };
    let none = || CheckpointError::NoCheckpoint { url: url.clone() };
    let place = ResumePlace::parse(url)?;
    if place.is_in(own.store) {
        let steps = own.steps_from(&place, url, steps)?;
        let resolved = own.newest_valid(steps, check)?.ok_or_else(none)?;
        let is_later = place.step.is_some_and(|step| step < resolved.candidate.step);
        return Ok(Some(Chosen { unread: is_later.then(|| url.clone()), ..chosen(resolved, true) }));
    }
    if !steps.is_empty() {
        let resolved = own.newest_valid(steps, check)?;
        return Ok(resolved.map(|resolved| Chosen { unread: Some(url.clone()), ..chosen(resolved, true) }));
    }
    let newest_first = steps_of(&place)?.into_iter().rev().flat_map(|step| foreign(&place.store, step));
    let resolved = newest_valid(&place.run, newest_first, check)?.ok_or_else(none)?;
    Ok(Some(chosen(resolved, false)))
}

impl OwnRun<'_> {
    fn newest_valid<T>(
        &self,
        steps: Vec<u64>,
        check: impl FnMut(&Candidate) -> Result<T, CheckpointError>,
    ) -> Result<Option<Resolved<Candidate, T>>, CheckpointError> {
        newest_valid(self.url, steps.into_iter().rev().flat_map(|step| self.checkpoints.candidates(step)), check)
    }

    fn require_none(&self, steps: &[u64]) -> Result<(), CheckpointError> {
        let exists =
            |&newest| CheckpointError::RunExists { url: self.url.to_owned(), newest: step_folder_name(newest) };
        steps.last().map(exists).map_or(Ok(()), Err)
    }

    /// Returns those of the run's steps that a run that begins at `place` may continue from: all for the whole run; for a
    /// checkpoint, itself and later ones that were saved by a start with the same place.
    ///
    /// # Errors
    /// Returns [`CheckpointError::NoCheckpoint`] if the checkpoint does not exist, and [`CheckpointError::LaterCheckpoints`] if
    /// there are later ones that another start has saved: training would replace them.
    fn steps_from(&self, place: &ResumePlace, url: &str, mut steps: Vec<u64>) -> Result<Vec<u64>, CheckpointError> {
        let Some(first) = place.step else { return Ok(steps) };
        if !steps.contains(&first) {
            return Err(CheckpointError::NoCheckpoint { url: url.to_owned() });
        }
        steps.retain(|step| *step >= first);
        for step in steps.iter().copied().filter(|step| *step > first) {
            if !self.began_at(place, step)? {
                let newest = step_folder_name(steps.last().copied().unwrap_or(step));
                return Err(CheckpointError::LaterCheckpoints { place: url.to_owned(), newest });
            }
        }
        Ok(steps)
    }

    /// Returns whether the checkpoint of `step` was saved by a start whose `resume` was the same place. A damaged checkpoint
    /// counts as such, because it is skipped anyway.
    fn began_at(&self, place: &ResumePlace, step: u64) -> Result<bool, CheckpointError> {
        for candidate in self.checkpoints.candidates(step) {
            match manifest::read(&candidate.store, step).and_then(|entry| read_resume(&candidate.store, &entry)) {
                Ok(Some(text)) => {
                    let began = ResumePlace::parse(&text).ok();
                    return Ok(began.is_some_and(|began| began.step == place.step && began.is_in(self.store)));
                }
                Ok(None) => return Ok(false),
                Err(problem) if is_damage(&problem) => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(true)
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

/// Returns the steps of the checkpoints at a place, in ascending order.
///
/// # Errors
/// Returns [`CheckpointError::NoCheckpoint`] if the place is a checkpoint that does not exist, or an error of the store.
pub(crate) fn steps_of(place: &ResumePlace) -> Result<Vec<u64>, CheckpointError> {
    let Some(step) = place.step else { return Ok(committed_steps(&place.store)?) };
    let folder = step_folder_name(step);
    if place.store.exists(&format!("{folder}/{MANIFEST}"))? {
        return Ok(vec![step]);
    }
    Err(CheckpointError::NoCheckpoint { url: place.store.url_of(&folder) })
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
