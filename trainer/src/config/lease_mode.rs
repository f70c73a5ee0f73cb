//! Whether a run acquires the lease of its folder.

use serde::{Deserialize, Serialize};

use super::{RunConfig, places};

/// Whether a run acquires the lease of its folder, which keeps a second run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseMode {
    /// Acquire it. A store that cannot keep two writers apart is rejected.
    #[default]
    Auto,
    /// Start without it. The user makes sure that nothing else writes to the folder.
    None,
}

impl RunConfig {
    /// Returns the warning for a run without a lease.
    pub(crate) fn lease_warning(&self) -> Option<String> {
        let dir = places::absolute(&self.dir);
        (self.lease == LeaseMode::None).then(|| {
            format!(
                "run.lease is none: nothing keeps a second run from writing to {dir}, which would damage its checkpoints; \
                 make sure that only one run writes there"
            )
        })
    }
}
