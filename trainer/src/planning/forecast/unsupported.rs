//! Parts of a configuration that this version only checks.

/// The note for a configuration with a section `eval`.
pub(crate) const NO_EVALUATION: &str = "eval is configured, but this version does not evaluate yet";
