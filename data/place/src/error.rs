//! Errors of places. Each message names the place, the problem and the fix.

use thiserror::Error;

use crate::redact::redacted;

/// The remedy for an unknown kind of place.
pub(crate) const KNOWN_KINDS: &str = "use a path, file://, s3://, gs:// or az://";

/// A text that is not a usable place. The message contains no credentials.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place:?} {problem}")]
pub struct PlaceError {
    place: String,
    problem: String,
}

impl PlaceError {
    /// Describes `problem`, a predicate with its remedy, of the place `text`.
    pub(crate) fn new(text: &str, problem: impl Into<String>) -> Self {
        Self { place: redacted(text), problem: problem.into() }
    }
}

/// An option of a command line whose value is not a usable place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{option}: {source}")]
pub struct OptionError {
    option: &'static str,
    source: PlaceError,
}

/// Adds the name of the option that has the place as its value.
///
/// # Errors
/// Returns the error of `place`.
pub fn of_option<T>(option: &'static str, place: Result<T, PlaceError>) -> Result<T, OptionError> {
    place.map_err(|source| OptionError { option, source })
}
