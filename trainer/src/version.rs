//! The version of this program.

/// Returns the name and version of this program.
pub(crate) fn version() -> String {
    format!("arinar-trainer {}", env!("CARGO_PKG_VERSION"))
}
