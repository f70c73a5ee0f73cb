//! The settings of a dataset.

use crate::format::facts::VaeFacts;

/// Settings of a dataset and of the run that writes it.
#[derive(Clone, Debug)]
pub(crate) struct DatasetSettings {
    /// Distinguishes datasets that are not made of encoded pictures.
    pub(crate) kind: Option<&'static str>,
    pub(crate) image_size: u32,
    pub(crate) vae: VaeFacts,
    pub(crate) seed: u64,
    pub(crate) shard_bytes: u64,
    pub(crate) skip_bad: bool,
    pub(crate) overwrite: bool,
    /// Do not acquire the lease of the output.
    pub(crate) no_lease: bool,
}
