//! The upload queue: uploads the checkpoints in the spool to the remote store of the run.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Instant,
};

use arinar_collective::LaunchEnvironment;
use arinar_store::RateLimiter;

use crate::{
    error::CheckpointError,
    format::manifest::{FileEntry, Manifest, step_folder_name},
    remote::{
        outage::{Backlog, UploadStatus, outage_began, outage_ended, whole_seconds},
        spool::{Spool, SpoolInventory},
        upload_job::{RankFiles, UploadJob},
        upload_order::UploadOrder,
        uploader::{Destination, Uploader},
    },
    retention::Retention,
    write::publisher::Publisher,
};

/// The part of one process in uploading the spool.
pub(crate) struct UploadQueue {
    launch: LaunchEnvironment,
    url: String,
    spool: Spool,
    order: UploadOrder,
    uploader: Uploader,
    pace: Arc<RateLimiter>,
    /// Checkpoints that are not in the store yet.
    waiting: BTreeMap<u64, WaitingJob>,
    /// The step that the uploader works on.
    submitted: Option<u64>,
    /// Complete checkpoints in the spool.
    spooled: BTreeSet<u64>,
    /// Beginning of the outage that was reported to the user.
    reported_outage: Option<Instant>,
}

struct WaitingJob {
    job: UploadJob,
    /// Size of all files of the checkpoint.
    bytes: u64,
    /// True if the files of the job are in the spool.
    ready: bool,
}

impl UploadQueue {
    /// Starts with the checkpoints of an earlier start of the run that are not uploaded yet.
    ///
    /// # Errors
    /// Returns an error if the thread of the uploader cannot be started.
    pub(crate) fn start(
        launch: LaunchEnvironment,
        spool: Spool,
        inventory: &SpoolInventory,
        retention: Retention,
        destination: Destination,
    ) -> io::Result<Self> {
        let (url, pace) = (destination.url.clone(), Arc::clone(&destination.pace));
        let uploader = Uploader::start(destination)?;
        let not_uploaded: Vec<u64> = inventory.not_uploaded.iter().map(|manifest| manifest.step).collect();
        let mut queue = Self {
            launch,
            url,
            spool,
            order: UploadOrder::new(retention, &inventory.stored, &not_uploaded),
            uploader,
            pace,
            waiting: BTreeMap::new(),
            submitted: None,
            spooled: inventory.not_uploaded.iter().chain(&inventory.newest).map(|manifest| manifest.step).collect(),
            reported_outage: None,
        };
        for manifest in &inventory.not_uploaded {
            let waiting = queue.resumed_job(manifest);
            queue.waiting.insert(manifest.step, waiting);
        }
        queue.submit_next();
        Ok(queue)
    }

    /// Creates the job for a checkpoint of an earlier start. The leader of a node uploads all files that are on the node,
    /// whichever rank wrote them.
    fn resumed_job(&self, manifest: &Manifest) -> WaitingJob {
        let folder = self.spool.path().join(step_folder_name(manifest.step));
        let is_here = |rank: &RankFiles| rank.files.iter().all(|file| folder.join(&file.name).is_file());
        let mut files = if self.launch.is_node_leader() { RankFiles::all(manifest) } else { Vec::new() };
        files.retain(is_here);
        self.job(manifest, files, true)
    }

    fn job(&self, manifest: &Manifest, files: Vec<RankFiles>, resumed: bool) -> WaitingJob {
        let step = manifest.step;
        let job = UploadJob {
            step,
            folder: self.spool.path().join(step_folder_name(step)),
            files,
            manifest: (self.launch.rank == 0).then(|| manifest.clone()),
            resumed,
            replaces: self.order.replaces(step),
        };
        // Only rank 0 waits until the checkpoint is published; the files of the other ranks are already written.
        let ready = resumed || self.launch.rank != 0;
        WaitingJob { job, bytes: manifest.files.iter().map(|file| file.bytes).sum(), ready }
    }

    /// Adds a checkpoint whose files are written by all ranks. `own` are the files of this rank.
    pub(crate) fn add(&mut self, manifest: &Manifest, own: Vec<FileEntry>, publisher: Option<&Publisher>) {
        let step = manifest.step;
        let files = RankFiles { rank: self.launch.rank, world_size: self.launch.world_size, files: own };
        let waiting = self.job(manifest, vec![files], false);
        self.waiting.insert(step, waiting);
        self.spooled.insert(step);
        for dropped in self.order.add(step) {
            self.waiting.remove(&dropped);
        }
        self.prune_spool(publisher);
        self.submit_next();
    }

    /// Records that the checkpoint of a step is valid in the spool.
    pub(crate) fn on_published(&mut self, step: u64) {
        if let Some(waiting) = self.waiting.get_mut(&step) {
            waiting.ready = true;
        }
        self.submit_next();
    }

    /// Returns true if the checkpoint that is being uploaded is valid in the store. Only rank 0 knows.
    pub(crate) fn is_uploaded(&self) -> bool {
        self.launch.rank == 0 && self.submitted.is_some() && self.uploader.delivered() == self.submitted
    }

    /// Moves on to the next checkpoint, after all ranks have agreed that the current one is uploaded. Returns its step.
    pub(crate) fn on_uploaded(&mut self, publisher: Option<&Publisher>) -> Option<u64> {
        let step = self.order.uploading()?;
        self.order.complete();
        self.waiting.remove(&step);
        self.submitted = None;
        self.prune_spool(publisher);
        self.submit_next();
        Some(step)
    }

    /// Lifts the limit of the upload rate, because training has ended.
    pub(crate) fn lift_rate_limit(&self) {
        self.pace.lift();
    }

    /// Returns true if nothing is waiting.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.uploading().is_none()
    }

    /// Returns true if waiting for an upload is pointless: there is none, or the store cannot be reached.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_empty() || self.uploader.outage().is_some()
    }

    /// Deletes checkpoints from the spool, except those that are not uploaded yet and the newest.
    fn prune_spool(&mut self, publisher: Option<&Publisher>) {
        let kept: BTreeSet<u64> = self.order.not_uploaded().chain(self.spooled.last().copied()).collect();
        let superseded: Vec<u64> = self.spooled.difference(&kept).copied().collect();
        for step in superseded {
            self.spooled.remove(&step);
            if let Some(publisher) = publisher {
                publisher.delete(step);
            }
        }
    }

    fn submit_next(&mut self) {
        let Some(step) = self.order.uploading().filter(|_| self.submitted.is_none()) else { return };
        if let Some(waiting) = self.waiting.get(&step).filter(|waiting| waiting.ready) {
            self.uploader.submit(waiting.job.clone());
            self.submitted = Some(step);
        }
    }

    /// Makes room in the spool for the next checkpoint.
    ///
    /// # Errors
    /// Returns [`CheckpointError::NoRoom`] if there is none.
    pub(crate) fn make_room(&mut self, need: u64) -> Result<(), CheckpointError> {
        let not_uploaded: BTreeSet<u64> = self.order.not_uploaded().collect();
        let uploaded: Vec<u64> = self.spooled.difference(&not_uploaded).copied().collect();
        self.spool.make_room(need, &uploaded).map_err(|error| match error {
            CheckpointError::SpoolFull { path, what } => {
                self.no_room(format!("{} has no room: {what}", path.display()))
            }
            other => other,
        })
    }

    /// Returns the error for a checkpoint that does not fit.
    pub(crate) fn no_room(&self, what: String) -> CheckpointError {
        let outage = self.uploader.outage().map_or(String::new(), |outage| {
            let since = whole_seconds(outage.since.elapsed());
            format!(", which cannot be reached since {since} ({})", outage.reason)
        });
        let backlog = self.describe_backlog();
        CheckpointError::NoRoom { what, waits: format!("{backlog} for {}{outage}", self.url) }
    }

    fn backlog(&self) -> Backlog {
        Backlog { checkpoints: self.waiting.len(), bytes: self.waiting.values().map(|waiting| waiting.bytes).sum() }
    }

    /// Returns the status for logs and metrics.
    pub(crate) fn status(&self) -> UploadStatus {
        UploadStatus { backlog_bytes: self.backlog().bytes, reachable: self.uploader.outage().is_none() }
    }

    /// Returns a phrase such as `2 checkpoints, 6.8 GB wait in SPOOL`.
    pub(crate) fn describe_backlog(&self) -> String {
        self.backlog().describe(self.spool.path())
    }

    /// Returns the URL of the run.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns a message if an outage has begun or ended since the last call.
    pub(crate) fn poll(&mut self) -> Option<String> {
        match (self.uploader.outage(), self.reported_outage) {
            (Some(outage), None) => {
                self.reported_outage = Some(outage.since);
                Some(outage_began(&self.url, &outage, &self.backlog(), self.spool.path()))
            }
            (None, Some(since)) => {
                self.reported_outage = None;
                Some(outage_ended(&self.url, since.elapsed(), &self.backlog(), self.spool.path()))
            }
            _ => None,
        }
    }

    /// Returns the error after which uploads cannot continue, once.
    pub(crate) fn failure(&self) -> Option<CheckpointError> {
        self.uploader.failure()
    }
}
