//! The folder of a run, with its lease and its spool, as one rank sees it.

use std::sync::{Arc, Mutex};

use arinar_collective::{Collective, LaunchEnvironment, Reduction, agree};
use arinar_store::{RateLimiter, Store, lease::Lease};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::CheckpointError,
    format::{
        manifest::{self, Manifest, committed_steps, step_folder_name},
        step_folder,
    },
    layout::TensorSet,
    options::{CheckpointOptions, Resume},
    read::{
        download::download,
        found::{FoundCheckpoint, Location},
        resolve::{Candidate, OwnCheckpoints, OwnRun, Resolved, resolve},
        restore,
    },
    remote::{
        spool::{Spool, SpoolInventory},
        upload_queue::UploadQueue,
        uploader::Destination,
    },
    state::CheckpointState,
    write::{publisher::Publisher, writer::Writer},
};

/// The folder of a run. All ranks make the same calls together.
pub(crate) struct RunStore<'a> {
    collective: &'a dyn Collective,
    options: CheckpointOptions,
    launch: LaunchEnvironment,
    store: Arc<Store>,
    /// On rank 0, the lease that keeps other runs out.
    lease: Option<Arc<Mutex<Lease>>>,
    /// The spool, for downloads from a remote store and uploads to it.
    spool: Option<Spool>,
    /// The checkpoints in store and spool, if the run is in a remote store.
    inventory: Option<SpoolInventory>,
}

impl<'a> RunStore<'a> {
    /// Opens the folder of a run and acquires its lease.
    ///
    /// # Errors
    /// Returns an error on all ranks if the folder cannot be used, or if another run uses it.
    pub(crate) fn open(
        collective: &'a dyn Collective,
        options: CheckpointOptions,
        launch: LaunchEnvironment,
    ) -> Result<Self, CheckpointError> {
        let opened = Store::open(&options.run_url).map_err(CheckpointError::RunUrl);
        let store = Arc::new(agree(collective, opened)?);
        let lease = match launch.rank {
            0 if options.exclusive => {
                Lease::acquire(&store, &format!("arinar-trainer run {}", options.run_name)).map(Some)
            }
            _ => Ok(None),
        };
        let lease = agree(collective, lease.map_err(CheckpointError::from))?.map(|lease| Arc::new(Mutex::new(lease)));
        let mut run = Self { collective, options, launch, store, lease, spool: None, inventory: None };
        let is_resume_remote = matches!(&run.options.resume, Resume::From(url) if !is_local(url));
        if is_resume_remote || run.is_remote() {
            run.open_spool()?;
        }
        Ok(run)
    }

    pub(crate) fn is_remote(&self) -> bool {
        !self.store.is_local()
    }

    fn open_spool(&mut self) -> Result<(), CheckpointError> {
        let spool = Spool::open(self.options.spool_dir.as_deref(), self.options.spool_limit, self.store.url());
        let spool = agree(self.collective, spool)?;
        if self.is_remote() {
            self.inventory = Some(self.take_inventory(&spool)?);
        }
        self.spool = Some(spool);
        Ok(())
    }

    /// Returns true if checkpoints in the spool must be uploaded before the run can resume, because their files are spread
    /// over several nodes.
    pub(crate) fn must_upload_first(&self) -> bool {
        let spans_nodes = self.launch.local_world_size != self.launch.world_size;
        spans_nodes && self.inventory.as_ref().is_some_and(|inventory| !inventory.not_uploaded.is_empty())
    }

    /// Lists the checkpoints in store and spool again, after uploads.
    ///
    /// # Errors
    /// Returns an error on all ranks if store or spool cannot be read.
    pub(crate) fn refresh_inventory(&mut self) -> Result<(), CheckpointError> {
        if let Some(spool) = self.spool.clone() {
            self.inventory = Some(self.take_inventory(&spool)?);
        }
        Ok(())
    }

    /// Lists the checkpoints in store and spools, the same on all ranks. Deletes checkpoints from the spools that are not of
    /// use.
    fn take_inventory(&self, spool: &Spool) -> Result<SpoolInventory, CheckpointError> {
        let inventory = match self.launch.rank {
            0 => spool.inventory(&self.store),
            _ => Ok(SpoolInventory::default()),
        };
        let mut inventory: SpoolInventory = self.broadcast(agree(self.collective, inventory)?)?;
        // If a node has lost its files of a checkpoint, the checkpoint can never be completed.
        let is_leader = self.launch.is_node_leader();
        let count = |manifest| if is_leader { spool.count_files(manifest) as f64 } else { 0.0 };
        let mut counts: Vec<f64> = inventory.not_uploaded.iter().map(count).collect();
        self.collective.all_reduce_scalars(&mut counts, Reduction::Sum)?;
        let mut counts = counts.into_iter();
        // The state is on every node, so that there may be more files than the manifest lists.
        inventory
            .not_uploaded
            .retain(|manifest| counts.next().is_some_and(|count| count >= manifest.files.len() as f64));
        self.on_node_leaders(|| spool.delete_downloads().and_then(|()| spool.retain(&inventory)))?;
        Ok(inventory)
    }

    /// Runs an operation on one rank of each node. Returns an error on all ranks if it fails anywhere.
    fn on_node_leaders(&self, operation: impl FnOnce() -> Result<(), CheckpointError>) -> Result<(), CheckpointError> {
        agree(self.collective, if self.launch.is_node_leader() { operation() } else { Ok(()) })
    }

    /// Returns the value of rank 0 on all ranks.
    fn broadcast<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<T, CheckpointError> {
        let bytes = self.collective.broadcast_bytes(serde_json::to_vec(&value)?, 0)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Finds the checkpoint to resume from and makes it available on every node.
    ///
    /// # Errors
    /// Returns an error on all ranks if the run must not be overwritten, if there is no checkpoint where there must be one,
    /// if none is valid, or if a store fails.
    pub(crate) fn find(&mut self) -> Result<Option<FoundCheckpoint>, CheckpointError> {
        let found = match self.launch.rank {
            0 => self.resolve(),
            _ => Ok(None),
        };
        let mut found: Option<FoundCheckpoint> = self.broadcast(agree(self.collective, found)?)?;
        self.check_later_steps(found.as_ref())?;
        self.download_to_other_nodes(found.as_ref())?;
        if let Some(inventory) = &mut self.inventory {
            let dropped = drop_newer(inventory, found.as_ref(), &self.options.run_url);
            if let Some(found) = &mut found {
                found.warnings.extend(dropped);
            }
        }
        if let (Some(spool), Some(inventory)) = (&self.spool, &self.inventory) {
            self.on_node_leaders(|| spool.retain(inventory))?;
        }
        Ok(found)
    }

    fn resolve(&self) -> Result<Option<FoundCheckpoint>, CheckpointError> {
        let spool = self.spool.as_ref();
        let foreign = |run: &Store, step| vec![candidate_in(run, step)];
        let check = |candidate: &Candidate| match (candidate.location, spool) {
            (Location::Downloaded, Some(spool)) => download(&candidate.store, candidate.step, spool),
            _ => manifest::verify(&candidate.store, candidate.step).map(drop),
        };
        let own = OwnRun { url: &self.options.run_url, store: &self.store, checkpoints: self };
        let chosen = resolve(&own, &self.options.resume, foreign, check)?;
        Ok(chosen.map(|chosen| {
            let Resolved { run, candidate, warnings, .. } = chosen.resolved;
            let (step, location) = (candidate.step, candidate.location);
            FoundCheckpoint { run, step, location, warnings, is_own: chosen.is_own, unread: chosen.unread }
        }))
    }

    /// Checks that no files of another program are where the run will save its checkpoints.
    fn check_later_steps(&self, found: Option<&FoundCheckpoint>) -> Result<(), CheckpointError> {
        let step = found.map_or(0, |found| found.step);
        let checked = match self.launch.rank {
            0 => step_folder::check_later_steps(&self.store, step),
            _ => Ok(()),
        };
        agree(self.collective, checked)
    }

    /// Downloads a checkpoint to the other nodes. Rank 0 has already downloaded it to its own node.
    fn download_to_other_nodes(&self, found: Option<&FoundCheckpoint>) -> Result<(), CheckpointError> {
        let found = found.filter(|found| found.location == Location::Downloaded && self.launch.rank != 0);
        self.on_node_leaders(|| match (found, &self.spool) {
            (Some(found), Some(spool)) => download(&Store::open(&found.run)?, found.step, spool),
            _ => Ok(()),
        })
    }

    /// Reads a checkpoint into the tensors of this rank.
    ///
    /// # Errors
    /// Returns an error on all ranks if the checkpoint is damaged or holds another model.
    pub(crate) fn restore<C: DeserializeOwned>(
        &self,
        found: &FoundCheckpoint,
        into: TensorSet<'_>,
    ) -> Result<CheckpointState<C>, CheckpointError> {
        let restored =
            self.local_store(found).and_then(|store| restore::restore(&store, found.step, &self.options.model, into));
        let restored = agree(self.collective, restored)?;
        self.on_node_leaders(|| self.spool.as_ref().map_or(Ok(()), Spool::delete_downloads))?;
        Ok(restored)
    }

    /// Returns the local folder that holds the files of a checkpoint.
    fn local_store(&self, found: &FoundCheckpoint) -> Result<Arc<Store>, CheckpointError> {
        match (found.location, &self.spool) {
            (Location::Spool, Some(spool)) => Ok(Arc::clone(spool.store())),
            (Location::Downloaded, Some(spool)) => Ok(Arc::new(spool.downloads()?)),
            _ => Ok(Arc::new(Store::open(&found.run)?)),
        }
    }

    /// Creates the writer of the run's checkpoints.
    ///
    /// # Errors
    /// Returns an error on all ranks if a background thread cannot be started.
    pub(crate) fn writer(&self) -> Result<Writer, CheckpointError> {
        let spawned = |publisher: std::io::Result<Option<Publisher>>| {
            agree(self.collective, publisher.map_err(CheckpointError::SpawnThread))
        };
        let (Some(spool), Some(inventory)) = (&self.spool, &self.inventory) else {
            let publisher = match self.launch.rank {
                0 => Publisher::start(Arc::clone(&self.store), Some(self.options.retention)).map(Some),
                _ => Ok(None),
            };
            return Ok(Writer::new(self.launch, Arc::clone(&self.store), spawned(publisher)?, None));
        };
        let publishes = self.launch.is_node_leader() || self.launch.rank == 0;
        let publisher = publishes.then(|| Publisher::start(Arc::clone(spool.store()), None)).transpose();
        let publisher = spawned(publisher)?;
        let destination = Destination {
            url: self.options.run_url.clone(),
            retention: self.options.retention,
            lease: self.lease.clone(),
            pace: Arc::new(RateLimiter::new(self.options.upload_rate)),
        };
        let uploads = UploadQueue::start(self.launch, spool.clone(), inventory, self.options.retention, destination);
        let uploads = agree(self.collective, uploads.map_err(CheckpointError::SpawnThread))?;
        Ok(Writer::new(self.launch, Arc::clone(spool.store()), publisher, Some(uploads)))
    }
}

fn candidate_in(run: &Store, step: u64) -> Candidate {
    let location = if run.is_local() { Location::Run } else { Location::Downloaded };
    Candidate { step, location, store: run.clone() }
}

impl OwnCheckpoints for RunStore<'_> {
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let Some(inventory) = &self.inventory else { return Ok(committed_steps(&self.store)?) };
        let not_uploaded = inventory.not_uploaded.iter().map(|manifest| manifest.step);
        Ok(inventory.stored.iter().copied().chain(not_uploaded).collect())
    }

    fn candidates(&self, step: u64) -> Vec<Candidate> {
        let in_run = candidate_in(&self.store, step);
        let (Some(inventory), Some(spool)) = (&self.inventory, &self.spool) else { return vec![in_run] };
        let is_step = |manifest: &Manifest| manifest.step == step;
        let in_spool = Candidate { step, location: Location::Spool, store: Store::clone(spool.store()) };
        if inventory.not_uploaded.iter().any(is_step) {
            vec![in_spool]
        } else if inventory.newest.iter().any(is_step) {
            vec![in_spool, in_run]
        } else {
            vec![in_run]
        }
    }
}

/// Removes checkpoints from the inventory that are newer than the one to resume from, and the spool's copy of a checkpoint
/// that had to be downloaded because the copy is damaged. Returns messages for the user.
fn drop_newer(inventory: &mut SpoolInventory, found: Option<&FoundCheckpoint>, run: &str) -> Vec<String> {
    // A run begins from another one only if it has no checkpoints itself.
    let step = found.filter(|found| found.is_own).map_or(0, |found| found.step);
    let is_copy_damaged = found.is_some_and(|found| found.location == Location::Downloaded);
    inventory.newest =
        inventory.newest.take().filter(|newest| newest.step < step || newest.step == step && !is_copy_damaged);
    let (kept, newer): (Vec<_>, Vec<_>) =
        std::mem::take(&mut inventory.not_uploaded).into_iter().partition(|manifest| manifest.step <= step);
    inventory.not_uploaded = kept;
    let message = |manifest: &Manifest| {
        let folder = step_folder_name(manifest.step);
        format!("{folder}, which the last start of the run could not upload to {run}, is deleted")
    };
    newer.iter().map(message).collect()
}

fn is_local(url: &str) -> bool {
    Store::open(url).is_ok_and(|store| store.is_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(step: u64) -> Manifest {
        Manifest { format_version: 1, step, files: Vec::new() }
    }

    fn found(step: u64, location: Location) -> FoundCheckpoint {
        let run = "s3://bucket/run/".to_owned();
        FoundCheckpoint { run, step, location, warnings: Vec::new(), is_own: true, unread: None }
    }

    #[test]
    fn checkpoints_newer_than_the_resumed_one_are_dropped() {
        let inventory = SpoolInventory {
            stored: vec![10, 20],
            not_uploaded: vec![manifest(30), manifest(40)],
            newest: Some(manifest(20)),
        };
        let steps =
            |inventory: &SpoolInventory| inventory.not_uploaded.iter().map(|left| left.step).collect::<Vec<_>>();
        let mut own = inventory.clone();
        assert!(drop_newer(&mut own, Some(&found(40, Location::Spool)), "s3://bucket/run").is_empty());
        assert_eq!(steps(&own), [30, 40]);
        let mut damaged = inventory.clone();
        let messages = drop_newer(&mut damaged, Some(&found(30, Location::Spool)), "s3://bucket/run");
        assert!(messages.len() == 1 && messages[0].starts_with("step-00000040,"), "{messages:?}");
        assert_eq!(steps(&damaged), [30]);
        let mut downloaded = inventory.clone();
        drop_newer(&mut downloaded, Some(&found(20, Location::Downloaded)), "s3://bucket/run");
        assert!(downloaded.not_uploaded.is_empty() && downloaded.newest.is_none());
        let mut older = inventory;
        drop_newer(&mut older, Some(&found(10, Location::Downloaded)), "s3://bucket/run");
        assert!(older.not_uploaded.is_empty() && older.newest.is_none(), "the spool's newest is damaged");
    }
}
