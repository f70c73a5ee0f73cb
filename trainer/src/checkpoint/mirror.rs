//! What of a run's checkpoints is in its remote store, and what is on its way there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use arinar_store::{RateLimiter, lease::Lease};

use super::{
    CheckpointError, FileEntry, Role,
    manifest::{Manifest, folder},
    parcel::{Group, Parcel},
    patience::{self, Backlog},
    publish::Publisher,
    retention::{Ledger, Retention},
    spool::{Spool, Stock},
    upload::{Destination, Uploader},
};

/// How far the store is behind, for the curves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UploadStatus {
    /// Bytes that wait in the spool.
    pub backlog_bytes: u64,
    /// False while the store cannot be reached.
    pub reachable: bool,
}

/// One process's part in mirroring the spool to the run's store.
pub(super) struct Mirror {
    role: Role,
    url: String,
    spool: Spool,
    ledger: Ledger,
    uploader: Uploader,
    pace: Arc<RateLimiter>,
    /// What is not in the store yet.
    waiting: BTreeMap<u64, Waiting>,
    /// The step the uploader works on.
    handed: Option<u64>,
    /// Whole checkpoints in the spool.
    spooled: BTreeSet<u64>,
    /// Since when the outage lasts that was told.
    told: Option<Instant>,
}

struct Waiting {
    parcel: Parcel,
    /// Of all files that this process knows of.
    bytes: u64,
    /// The files lie in the spool as the parcel says.
    ready: bool,
}

impl Mirror {
    /// Begins with what the last run left.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        role: Role,
        url: &str,
        spool: Spool,
        stock: &Stock,
        retention: Retention,
        lease: Option<Arc<Mutex<Lease>>>,
        pace: Arc<RateLimiter>,
    ) -> io::Result<Self> {
        let destination = Destination { url: url.to_owned(), retention, lease, pace: Arc::clone(&pace) };
        let uploader = Uploader::start(destination)?;
        let leftovers: Vec<u64> = stock.leftovers.iter().map(|manifest| manifest.step).collect();
        let mut mirror = Self {
            role,
            url: url.to_owned(),
            spool,
            ledger: Ledger::new(retention, &stock.stored, &leftovers),
            uploader,
            pace,
            waiting: BTreeMap::new(),
            handed: None,
            spooled: stock.leftovers.iter().chain(&stock.newest).map(|manifest| manifest.step).collect(),
            told: None,
        };
        for manifest in &stock.leftovers {
            let waiting = mirror.left_over(manifest);
            mirror.waiting.insert(manifest.step, waiting);
        }
        mirror.hand_over();
        Ok(mirror)
    }

    /// The leader of a node sends all files of a leftover that lie there, whoever wrote them.
    fn left_over(&self, manifest: &Manifest) -> Waiting {
        let folder = self.spool.path().join(folder(manifest.step));
        let here = |group: &Group| group.files.iter().all(|file| folder.join(&file.name).is_file());
        let mut groups = if self.role.leads { Group::all(manifest) } else { Vec::new() };
        groups.retain(here);
        self.parcel(manifest, groups, true)
    }

    fn parcel(&self, manifest: &Manifest, groups: Vec<Group>, left_over: bool) -> Waiting {
        let step = manifest.step;
        let parcel = Parcel {
            step,
            folder: self.spool.path().join(folder(step)),
            groups,
            manifest: (self.role.rank == 0).then(|| manifest.clone()),
            left_over,
            replaces: self.ledger.replaces(step),
        };
        // What one rank publishes the others need not wait for: theirs is written.
        let ready = left_over || self.role.rank != 0;
        Waiting { parcel, bytes: manifest.files.iter().map(|file| file.bytes).sum(), ready }
    }

    /// All ranks' files of a checkpoint are written; `own` are those of this rank.
    pub fn saved(&mut self, manifest: &Manifest, own: Vec<FileEntry>, publisher: Option<&Publisher>) {
        let step = manifest.step;
        let group = Group { rank: self.role.rank, world: self.role.world, files: own };
        let waiting = self.parcel(manifest, vec![group], false);
        self.waiting.insert(step, waiting);
        self.spooled.insert(step);
        for dropped in self.ledger.saved(step) {
            self.waiting.remove(&dropped);
        }
        self.tidy(publisher);
        self.hand_over();
    }

    /// The spool's checkpoint of this step is valid.
    pub fn published(&mut self, step: u64) {
        if let Some(waiting) = self.waiting.get_mut(&step) {
            waiting.ready = true;
        }
        self.hand_over();
    }

    /// Rank 0 alone knows: the checkpoint being sent is valid in the store.
    pub fn is_uploaded(&self) -> bool {
        self.role.rank == 0 && self.handed.is_some() && self.uploader.delivered() == self.handed
    }

    /// All ranks have heard so. Returns its step.
    pub fn uploaded(&mut self, publisher: Option<&Publisher>) -> Option<u64> {
        let step = self.ledger.sending()?;
        self.ledger.uploaded();
        self.waiting.remove(&step);
        self.handed = None;
        self.tidy(publisher);
        self.hand_over();
        Some(step)
    }

    /// Training has ended: nothing holds the upload back any more.
    pub fn hurry(&self) {
        self.pace.lift();
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ledger.sending().is_none()
    }

    /// True if waiting for an upload is in vain: there is none, or the store is out of reach.
    pub fn is_stuck(&self) -> bool {
        self.is_empty() || self.uploader.outage().is_some()
    }

    /// The spool keeps what is not sent yet, and the newest.
    fn tidy(&mut self, publisher: Option<&Publisher>) {
        let kept: BTreeSet<u64> = self.ledger.unsent().chain(self.spooled.last().copied()).collect();
        let gone: Vec<u64> = self.spooled.difference(&kept).copied().collect();
        for step in gone {
            self.spooled.remove(&step);
            if let Some(publisher) = publisher {
                publisher.delete(step);
            }
        }
    }

    fn hand_over(&mut self) {
        let Some(step) = self.ledger.sending().filter(|_| self.handed.is_none()) else { return };
        if let Some(waiting) = self.waiting.get(&step).filter(|waiting| waiting.ready) {
            self.uploader.deliver(waiting.parcel.clone());
            self.handed = Some(step);
        }
    }

    /// Makes sure that the next checkpoint fits into the spool.
    ///
    /// # Errors
    /// [`CheckpointError::NoRoom`].
    pub fn make_room(&mut self, need: u64) -> Result<(), CheckpointError> {
        let unsent: BTreeSet<u64> = self.ledger.unsent().collect();
        let spare: Vec<u64> = self.spooled.difference(&unsent).copied().collect();
        self.spool.make_room(need, &spare).map_err(|error| match error {
            CheckpointError::SpoolFull { path, what } => {
                self.no_room(format!("{} has no room: {what}", path.display()))
            }
            other => other,
        })
    }

    /// What to tell when a checkpoint does not fit.
    pub fn no_room(&self, what: String) -> CheckpointError {
        let outage = self.uploader.outage().map_or(String::new(), |outage| {
            let since = patience::rounded(outage.since.elapsed());
            format!(", which cannot be reached since {since} ({})", outage.reason)
        });
        let backlog = self.backlog().tell(self.spool.path());
        CheckpointError::NoRoom { what, waits: format!("{backlog} for {}{outage}", self.url) }
    }

    fn backlog(&self) -> Backlog {
        Backlog { checkpoints: self.waiting.len(), bytes: self.waiting.values().map(|waiting| waiting.bytes).sum() }
    }

    /// For the curves.
    pub fn status(&self) -> UploadStatus {
        UploadStatus { backlog_bytes: self.backlog().bytes, reachable: self.uploader.outage().is_none() }
    }

    /// `2 checkpoints, 6.8 GB wait in SPOOL`
    pub fn tell_backlog(&self) -> String {
        self.backlog().tell(self.spool.path())
    }

    /// Where checkpoints go.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What there is to say since the last call: an outage began or ended.
    pub fn poll(&mut self) -> Option<String> {
        match (self.uploader.outage(), self.told) {
            (Some(outage), None) => {
                self.told = Some(outage.since);
                Some(patience::begins(&self.url, &outage, &self.backlog(), self.spool.path()))
            }
            (None, Some(since)) => {
                self.told = None;
                Some(patience::ends(&self.url, since.elapsed(), &self.backlog(), self.spool.path()))
            }
            _ => None,
        }
    }

    /// What went wrong for good.
    pub fn failure(&self) -> Option<CheckpointError> {
        self.uploader.failure()
    }
}
