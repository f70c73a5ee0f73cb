//! A dataset that is being written.

use arinar_store::Store;
use arinar_store::lease::Lease;
use arinar_store::local_folder::check_writable;

use super::encoder::RecordEncoder;
use super::error::EncodeError;
use super::ownership::EarlierDataset;
use super::plan::ShardPlan;
use super::settings::DatasetSettings;
use crate::reporter::Reporter;

/// Everything a rank needs to write shards.
pub(crate) struct Job<E> {
    pub(super) encoder: E,
    pub(super) settings: DatasetSettings,
    pub(super) store: Store,
    pub(super) plan: ShardPlan,
    /// Shape of the moments of a record: [2C, H, W].
    pub(super) shape: [usize; 3],
    /// Dataset at `--out`, whose files may be replaced.
    pub(super) earlier: EarlierDataset,
}

impl<E: RecordEncoder> Job<E> {
    /// Plans the shards and examines the files at `out`.
    ///
    /// # Errors
    /// Returns an error if `out` contains another dataset or a foreign file with the name of a dataset's file, or if
    /// the store fails.
    pub(crate) fn new(
        encoder: E,
        settings: DatasetSettings,
        shape: [usize; 3],
        out: &str,
    ) -> Result<Self, EncodeError> {
        let plan = ShardPlan::new(encoder.pictures(), &settings, shape);
        let store = Store::open(out)?;
        if let Some(path) = store.local_path("") {
            check_writable(&path).map_err(|source| EncodeError::Out { out: out.to_owned(), source })?;
        }
        let earlier = EarlierDataset::find(&store, &plan.encode_id, settings.overwrite)?;
        if let Some(weights) = encoder.tokenizer()? {
            earlier.check_tokenizer(&store, &weights)?;
        }
        Ok(Self { encoder, settings, store, plan, shape, earlier })
    }

    /// Acquires the lease for all ranks, then examines `out` again in case another job has written to it.
    pub(super) fn lease(&self, reporter: &Reporter) -> Result<Lease, EncodeError> {
        if self.settings.no_lease {
            let url = self.store.url();
            reporter.warn(&format!(
                "--no-lease: nothing keeps a second job from writing to {url} and damaging the dataset"
            ));
            return Ok(Lease::without_exclusion());
        }
        let lease = Lease::acquire(&self.store, "arinar-data, making a dataset")?;
        EarlierDataset::find(&self.store, &self.plan.encode_id, self.settings.overwrite)?;
        Ok(lease)
    }
}
