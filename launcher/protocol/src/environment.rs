//! Names of the environment variables that more than one program reads or sets.

/// Carries [`crate::Launcher`] from the launcher to its ranks, as JSON.
pub const LAUNCHER: &str = "ARINAR_LAUNCHER";

/// Seconds for which a rank retries a failing store operation; unset means [`DEFAULT_STORE_PATIENCE_SECS`]. The store
/// crate reads it, and the launcher allows at least as long before it declares a hang.
pub const STORE_PATIENCE: &str = "ARINAR_STORE_PATIENCE";

/// The value of [`STORE_PATIENCE`] where it is not set.
pub const DEFAULT_STORE_PATIENCE_SECS: f64 = 60.0;
