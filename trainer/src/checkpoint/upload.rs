//! Mirroring a spooled checkpoint to the run's store, beside the training and however long it takes.
//!
//! Every rank sends the files that it wrote, then a small marker `uploaded-R-of-W.json` that names them. Rank 0 waits
//! for the markers of all ranks to name what the manifest names, and then puts the manifest: it never names a file that
//! is not there. The store alone is what ranks meet at, so that no rank waits for another in its training.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arinar_store::{
    RateLimiter, Store, StoreError,
    lease::{Lease, LeaseError},
};

use super::{
    CheckpointError, FileEntry,
    manifest::{MANIFEST, Manifest, folder},
    parcel::{Group, Parcel},
    patience::{Outage, Patience},
    publish,
    retention::Retention,
    step_folder,
};
use crate::priority;

/// The first and the longest time between two looks for the markers of other ranks.
const LOOK_EVERY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Where an uploader works and for whom.
pub(super) struct Destination {
    pub url: String,
    pub retention: Retention,
    /// On rank 0, what keeps other runs away.
    pub lease: Option<Arc<Mutex<Lease>>>,
    /// How fast files are sent while training goes on.
    pub pace: Arc<RateLimiter>,
}

/// What the training may ask.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parcel: Option<Parcel>,
    stop: bool,
    /// The step of the last parcel that was delivered whole.
    delivered: Option<u64>,
    outage: Option<Outage>,
    failure: Option<CheckpointError>,
}

/// A thread that delivers one checkpoint at a time.
pub(super) struct Uploader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Uploader {
    /// Starts without anything to do.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(destination: Destination) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let work = move || {
            // Signing, encrypting and sending must not slow the training. The store is opened here, so that its
            // threads give way like this one.
            priority::give_way();
            match Store::open(&destination.url) {
                Ok(store) => {
                    let store = store.with_rate_limiter(Arc::clone(&destination.pace));
                    Delivery { shared: &its, store, destination }.run();
                }
                Err(error) => its.lock().failure = Some(error.into()),
            }
        };
        let thread = std::thread::Builder::new().name("uploader".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Gives the next checkpoint to deliver, after the last one is delivered or in place of it.
    pub fn deliver(&self, parcel: Parcel) {
        self.shared.lock().parcel = Some(parcel);
        self.shared.changed.notify_all();
    }

    /// The step of the last parcel that is whole: sent, or on rank 0 valid in the store.
    pub fn delivered(&self) -> Option<u64> {
        self.shared.lock().delivered
    }

    /// Since when the store cannot be reached, and why; `None` when it can.
    pub fn outage(&self) -> Option<Outage> {
        self.shared.lock().outage.clone()
    }

    /// What went wrong for good; told once.
    pub fn failure(&self) -> Option<CheckpointError> {
        self.shared.lock().failure.take()
    }
}

impl Drop for Uploader {
    /// Waits for the thread unless it is in the middle of a request, which ends with the process.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let patience = Instant::now() + Duration::from_millis(500);
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at every unlock, also by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps, but not on after a new parcel or the end.
    fn sleep(&self, time: Duration) {
        let _ = self.changed.wait_timeout(self.lock(), time);
    }
}

/// Why a delivery did not succeed.
enum Trouble {
    /// The store may be better later.
    Store(StoreError),
    /// It never will.
    Final(CheckpointError),
    /// Nobody wants it any more.
    Stopped,
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            // The spool's disk, not the store.
            StoreError::File { .. } => Self::Final(error.into()),
            error => Self::Store(error),
        }
    }
}

impl From<LeaseError> for Trouble {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(error) => Self::from(error),
            error => Self::Final(error.into()),
        }
    }
}

/// The uploader's thread.
struct Delivery<'a> {
    shared: &'a Shared,
    store: Store,
    destination: Destination,
}

impl Delivery<'_> {
    fn run(&self) {
        while let Some(parcel) = self.next() {
            let step = parcel.step;
            let delivered = self.deliver(parcel);
            let mut state = self.shared.lock();
            match delivered {
                Ok(()) => state.delivered = Some(step),
                Err(Trouble::Final(error)) => state.failure = Some(error),
                Err(_) => {}
            }
        }
    }

    fn next(&self) -> Option<Parcel> {
        let mut state = self.shared.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(parcel) = state.parcel.take() {
                return Some(parcel);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn check_wanted(&self) -> Result<(), Trouble> {
        let state = self.shared.lock();
        if state.stop || state.parcel.is_some() { Err(Trouble::Stopped) } else { Ok(()) }
    }

    /// Sends this process's files; on rank 0 also makes the checkpoint valid and deletes what it supersedes.
    fn deliver(&self, parcel: Parcel) -> Result<(), Trouble> {
        if parcel.replaces {
            self.patiently(|| self.store.delete(&format!("{}/{MANIFEST}", folder(parcel.step))))?;
        }
        if !parcel.groups.is_empty() {
            self.patiently(|| step_folder::mark_unfinished(&self.store, parcel.step))?;
        }
        for group in &parcel.groups {
            self.send(&parcel, group)?;
        }
        let Some(manifest) = &parcel.manifest else { return Ok(()) };
        self.wait_for_markers(manifest)?;
        self.commit(manifest)?;
        self.patiently(|| publish::clean_up(&self.store, parcel.step, self.destination.retention))
    }

    /// One rank's files, then the marker that names them.
    fn send(&self, parcel: &Parcel, group: &Group) -> Result<(), Trouble> {
        let marker = format!("{}/{}", folder(parcel.step), group.marker());
        let ours = serde_json::to_vec_pretty(&group.files).map_err(|error| self.cannot_write(&marker, error))?;
        if parcel.left_over && self.patiently(|| self.read(&marker))?.is_some_and(|theirs| theirs == ours) {
            return Ok(());
        }
        for file in &group.files {
            let name = format!("{}/{}", folder(parcel.step), file.name);
            self.patiently(|| self.store.put_file(&name, &parcel.folder.join(&file.name)))?;
        }
        self.patiently(|| self.store.put(&marker, ours.clone()))
    }

    fn wait_for_markers(&self, manifest: &Manifest) -> Result<(), Trouble> {
        let mut missing = Group::all(manifest);
        let mut pause = LOOK_EVERY[0];
        loop {
            let mut still = Vec::new();
            for group in missing {
                let marker = format!("{}/{}", folder(manifest.step), group.marker());
                let sent = self.patiently(|| self.read(&marker))?;
                let sent = sent.and_then(|bytes| serde_json::from_slice::<Vec<FileEntry>>(&bytes).ok());
                if sent.is_none_or(|sent| sent != group.files) {
                    still.push(group);
                }
            }
            missing = still;
            if missing.is_empty() {
                return Ok(());
            }
            self.shared.sleep(pause);
            self.check_wanted()?;
            pause = (pause * 2).min(LOOK_EVERY[1]);
        }
    }

    /// The manifest, last; then the markers go, and files that a killed run of another number of ranks has left.
    fn commit(&self, manifest: &Manifest) -> Result<(), Trouble> {
        let folder = folder(manifest.step);
        let name = format!("{folder}/{MANIFEST}");
        let bytes = serde_json::to_vec_pretty(manifest).map_err(|error| self.cannot_write(&name, error))?;
        if let Some(lease) = &self.destination.lease {
            // A lease is of one thread at a time; nobody else asks.
            self.patiently(|| lease.lock().unwrap_or_else(PoisonError::into_inner).check())?;
        }
        self.patiently(|| self.store.put(&name, bytes.clone()))?;
        let names: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).chain([MANIFEST]).collect();
        self.patiently(|| {
            for object in self.store.list(&folder)? {
                let file = object.name.strip_prefix(&folder).and_then(|file| file.strip_prefix('/'));
                if file.is_some_and(|file| !names.contains(file) && step_folder::is_checkpoint_file(file)) {
                    self.store.delete(&object.name)?;
                }
            }
            Ok::<(), StoreError>(())
        })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.store.get(name) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tries until it succeeds, ever less often, unless nobody wants it any more or it never can.
    fn patiently<T, E: Into<Trouble>>(&self, mut what: impl FnMut() -> Result<T, E>) -> Result<T, Trouble> {
        let mut patience = Patience::default();
        loop {
            self.check_wanted()?;
            let began = Instant::now();
            match what().map_err(E::into) {
                Ok(value) => {
                    self.shared.lock().outage = None;
                    return Ok(value);
                }
                Err(Trouble::Store(error)) => {
                    let mut state = self.shared.lock();
                    match &mut state.outage {
                        Some(outage) => outage.reason = error.to_string(),
                        none => *none = Some(Outage { since: began, reason: error.to_string() }),
                    }
                    drop(state);
                    self.shared.sleep(patience.next());
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    fn cannot_write(&self, name: &str, source: serde_json::Error) -> Trouble {
        let url = self.store.url_of(name);
        Trouble::Final(StoreError::Other { url, source: source.into() }.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::FORMAT_VERSION;

    fn manifest(step: u64, files: &[(&str, &str)]) -> Manifest {
        let files = files.iter().map(|(name, contents)| FileEntry::of(name, contents.as_bytes())).collect();
        Manifest { format_version: FORMAT_VERSION, step, files }
    }

    const FILES: [(&str, &str); 3] = [
        ("state.json", "state"),
        ("model-00001-of-00002.safetensors", "first"),
        ("model-00002-of-00002.safetensors", "second"),
    ];

    fn uploader(url: &str) -> Uploader {
        let retention = Retention { keep_last: 1, keep_every_steps: None };
        Uploader::start(Destination {
            url: url.to_owned(),
            retention,
            lease: None,
            pace: Arc::new(RateLimiter::new(None)),
        })
        .unwrap()
    }

    fn wait(until: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !until() {
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Puts a link to itself in the place of a file: reading it is an error, which whoever reads it shows as an outage.
    fn make_unreadable(file: &Path) {
        let link = file.with_extension("link");
        std::os::unix::fs::symlink(file, &link).unwrap();
        std::fs::rename(&link, file).unwrap();
    }

    #[test]
    fn the_manifest_waits_for_every_rank() {
        let temporary = tempfile::tempdir().unwrap();
        let (spool, run) = (temporary.path().join("spool"), temporary.path().join("run"));
        std::fs::create_dir(&spool).unwrap();
        for (name, contents) in FILES {
            std::fs::write(spool.join(name), contents).unwrap();
        }
        let url = run.display().to_string();
        let store = Store::open(&url).unwrap();
        store.put("step-00000005/manifest.json", b"{\"format_version\":1,\"step\":5,\"files\":[]}".to_vec()).unwrap();
        store.put("step-00000007/notes.txt", b"of a person".to_vec()).unwrap();
        store.put("step-00000007/model-00001-of-00003.safetensors", b"of a killed run".to_vec()).unwrap();
        let marker = "step-00000007/uploaded-00002-of-00002.json";
        store.put(marker, b"[]".to_vec()).unwrap();
        make_unreadable(&run.join(marker));
        let manifest = manifest(7, &FILES);
        let parcel = |rank: usize| Parcel {
            step: 7,
            folder: spool.clone(),
            groups: vec![Group::all(&manifest).remove(rank)],
            manifest: (rank == 0).then(|| manifest.clone()),
            left_over: false,
            replaces: false,
        };
        let (first, second) = (uploader(&url), uploader(&url));
        // Either it reads the marker of the second rank, or it goes on without.
        let reads_the_marker = || {
            wait(|| first.outage().is_some() || first.delivered().is_some());
            assert!(first.delivered().is_none() && !store.exists("step-00000007/manifest.json").unwrap());
        };
        first.deliver(parcel(0));
        reads_the_marker();
        // One that names other files is no reason to go on either: it is read again.
        store.put(marker, b"[]".to_vec()).unwrap();
        wait(|| first.outage().is_none());
        make_unreadable(&run.join(marker));
        reads_the_marker();
        second.deliver(parcel(1));
        wait(|| first.delivered() == Some(7));
        wait(|| second.delivered() == Some(7));
        let names: Vec<String> = store.list("").unwrap().into_iter().map(|object| object.name).collect();
        let mut expected: Vec<String> = FILES
            .iter()
            .map(|(name, _)| *name)
            .chain(["manifest.json", "notes.txt"])
            .map(|n| format!("step-00000007/{n}"))
            .collect();
        expected.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_vanished_file_ends_it_with_its_name() {
        let temporary = tempfile::tempdir().unwrap();
        let url = temporary.path().join("run").display().to_string();
        let uploader = uploader(&url);
        let manifest = manifest(7, &FILES[..2]);
        uploader.deliver(Parcel {
            step: 7,
            folder: temporary.path().join("nowhere"),
            groups: Group::all(&manifest),
            manifest: Some(manifest),
            left_over: true,
            replaces: true,
        });
        wait(|| uploader.shared.lock().failure.is_some());
        assert!(uploader.failure().unwrap().to_string().contains("nowhere"));
        assert!(uploader.delivered().is_none());
    }
}
