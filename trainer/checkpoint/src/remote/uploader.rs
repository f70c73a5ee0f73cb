//! The uploader: a thread that uploads checkpoints from the spool to the store of the run while training continues.
//!
//! Every rank uploads the files that it wrote, then a small marker `uploaded-R-of-W.json` that lists them. Rank 0 waits until
//! the markers of all ranks list the files of the manifest, and then uploads the manifest, so that the manifest never lists a
//! file that is missing. Ranks synchronize only through the store, so that no rank waits for another one in its training.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arinar_collective::machine::priority::lower_thread_priority;
use arinar_store::{
    RateLimiter, Store, StoreError,
    lease::{Lease, LeaseError},
};

use super::{
    backoff::Backoff,
    outage::Outage,
    upload_job::{RankFiles, UploadJob},
};
use crate::{
    error::CheckpointError,
    format::{
        manifest::{FileEntry, MANIFEST, Manifest, step_folder_name},
        step_folder,
    },
    retention::Retention,
    write::publisher,
};

/// The first and the longest time between two polls for the markers of other ranks.
const POLL_INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The store of the run and how to upload to it.
pub(crate) struct Destination {
    /// URL of the run.
    pub url: String,
    /// The checkpoints to keep in the store.
    pub retention: Retention,
    /// The lease of the run, held by rank 0.
    pub lease: Option<Arc<Mutex<Lease>>>,
    /// The rate limit while training continues.
    pub pace: Arc<RateLimiter>,
}

/// State shared by the training thread and the uploader.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    job: Option<UploadJob>,
    stop: bool,
    /// The step of the last job that was completed.
    delivered: Option<u64>,
    outage: Option<Outage>,
    failure: Option<CheckpointError>,
}

/// A handle to the thread, which works on one checkpoint at a time.
pub(crate) struct Uploader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Uploader {
    /// Starts the thread, without a job.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(destination: Destination) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread_shared = Arc::clone(&shared);
        let work = move || {
            // Signing, encrypting and sending must not slow the training. The store is opened here, so that its threads
            // inherit the priority of this one.
            lower_thread_priority();
            match Store::open(&destination.url) {
                Ok(store) => {
                    let store = store.with_rate_limiter(Arc::clone(&destination.pace));
                    Worker { shared: &thread_shared, store, destination }.run();
                }
                Err(error) => thread_shared.lock().failure = Some(error.into()),
            }
        };
        let thread = std::thread::Builder::new().name("uploader".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Submits the next job. A job that is still in progress is abandoned.
    pub(crate) fn submit(&self, job: UploadJob) {
        self.shared.lock().job = Some(job);
        self.shared.changed.notify_all();
    }

    /// Returns the step of the last completed job: its files are uploaded, and on rank 0 the checkpoint is valid.
    pub(crate) fn delivered(&self) -> Option<u64> {
        self.shared.lock().delivered
    }

    /// Returns the current outage, or `None` if the store can be reached.
    pub(crate) fn outage(&self) -> Option<Outage> {
        self.shared.lock().outage.clone()
    }

    /// Returns the error after which the uploader has given up, once.
    pub(crate) fn failure(&self) -> Option<CheckpointError> {
        self.shared.lock().failure.take()
    }
}

impl Drop for Uploader {
    /// Waits for the thread, unless a request is in progress, which then ends with the process.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let deadline = Instant::now() + Duration::from_millis(500);
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every unlock, even by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until the time has passed, a job is submitted, or the uploader is stopped.
    fn sleep(&self, time: Duration) {
        let _ = self.changed.wait_timeout(self.lock(), time);
    }
}

/// Why a job failed.
enum JobFailure {
    /// The store failed; a later attempt may succeed.
    Store(StoreError),
    /// No later attempt can succeed.
    Final(CheckpointError),
    /// The uploader was stopped or received another job.
    Abandoned,
}

impl From<StoreError> for JobFailure {
    fn from(error: StoreError) -> Self {
        match error {
            // An error of the spool's disk, not of the store.
            StoreError::File { .. } => Self::Final(error.into()),
            error => Self::Store(error),
        }
    }
}

impl From<LeaseError> for JobFailure {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(error) => Self::from(error),
            error => Self::Final(error.into()),
        }
    }
}

/// The state of the thread.
struct Worker<'a> {
    shared: &'a Shared,
    store: Store,
    destination: Destination,
}

impl Worker<'_> {
    fn run(&self) {
        while let Some(job) = self.next_job() {
            let step = job.step;
            let result = self.upload(job);
            let mut state = self.shared.lock();
            match result {
                Ok(()) => state.delivered = Some(step),
                Err(JobFailure::Final(error)) => state.failure = Some(error),
                Err(_) => {}
            }
        }
    }

    fn next_job(&self) -> Option<UploadJob> {
        let mut state = self.shared.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(job) = state.job.take() {
                return Some(job);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn check_not_abandoned(&self) -> Result<(), JobFailure> {
        let state = self.shared.lock();
        if state.stop || state.job.is_some() { Err(JobFailure::Abandoned) } else { Ok(()) }
    }

    /// Uploads the files of this process. On rank 0, also makes the checkpoint valid and deletes superseded ones.
    fn upload(&self, job: UploadJob) -> Result<(), JobFailure> {
        if job.replaces {
            self.retry(|| self.store.delete(&format!("{}/{MANIFEST}", step_folder_name(job.step))))?;
        }
        if !job.files.is_empty() {
            self.retry(|| step_folder::mark_unfinished(&self.store, job.step))?;
        }
        for files in &job.files {
            self.upload_files(&job, files)?;
        }
        let Some(manifest) = &job.manifest else { return Ok(()) };
        self.wait_for_markers(manifest)?;
        self.commit(manifest)?;
        self.retry(|| publisher::prune(&self.store, job.step, self.destination.retention))
    }

    /// Uploads the files of one rank, then the marker that lists them.
    fn upload_files(&self, job: &UploadJob, files: &RankFiles) -> Result<(), JobFailure> {
        let marker = format!("{}/{}", step_folder_name(job.step), files.marker());
        let ours = serde_json::to_vec_pretty(&files.files).map_err(|error| self.cannot_write(&marker, error))?;
        if job.resumed && self.retry(|| self.read(&marker))?.is_some_and(|theirs| theirs == ours) {
            return Ok(());
        }
        for file in &files.files {
            let name = format!("{}/{}", step_folder_name(job.step), file.name);
            self.retry(|| self.store.put_file(&name, &job.folder.join(&file.name)))?;
        }
        self.retry(|| self.store.put(&marker, ours.clone()))
    }

    fn wait_for_markers(&self, manifest: &Manifest) -> Result<(), JobFailure> {
        let mut missing = RankFiles::all(manifest);
        let mut pause = POLL_INTERVALS[0];
        loop {
            let mut still = Vec::new();
            for files in missing {
                let marker = format!("{}/{}", step_folder_name(manifest.step), files.marker());
                let sent = self.retry(|| self.read(&marker))?;
                let sent = sent.and_then(|bytes| serde_json::from_slice::<Vec<FileEntry>>(&bytes).ok());
                if sent.is_none_or(|sent| sent != files.files) {
                    still.push(files);
                }
            }
            missing = still;
            if missing.is_empty() {
                return Ok(());
            }
            self.shared.sleep(pause);
            self.check_not_abandoned()?;
            pause = (pause * 2).min(POLL_INTERVALS[1]);
        }
    }

    /// Uploads the manifest, then deletes the markers and the files that a killed run of another world size has left.
    fn commit(&self, manifest: &Manifest) -> Result<(), JobFailure> {
        let folder = step_folder_name(manifest.step);
        let name = format!("{folder}/{MANIFEST}");
        let bytes = serde_json::to_vec_pretty(manifest).map_err(|error| self.cannot_write(&name, error))?;
        if let Some(lease) = &self.destination.lease {
            // The lock is never contended: only this thread checks the lease.
            self.retry(|| lease.lock().unwrap_or_else(PoisonError::into_inner).check())?;
        }
        self.retry(|| self.store.put(&name, bytes.clone()))?;
        let names: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).chain([MANIFEST]).collect();
        self.retry(|| {
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

    /// Retries an operation with backoff until it succeeds, cannot succeed, or the job is abandoned.
    fn retry<T, E: Into<JobFailure>>(&self, mut operation: impl FnMut() -> Result<T, E>) -> Result<T, JobFailure> {
        let mut backoff = Backoff::default();
        loop {
            self.check_not_abandoned()?;
            let began = Instant::now();
            match operation().map_err(E::into) {
                Ok(value) => {
                    self.shared.lock().outage = None;
                    return Ok(value);
                }
                Err(JobFailure::Store(error)) => {
                    let mut state = self.shared.lock();
                    match &mut state.outage {
                        Some(outage) => outage.reason = error.to_string(),
                        none => *none = Some(Outage { since: began, reason: error.to_string() }),
                    }
                    drop(state);
                    self.shared.sleep(backoff.next_pause());
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    fn cannot_write(&self, name: &str, source: serde_json::Error) -> JobFailure {
        let url = self.store.url_of(name);
        JobFailure::Final(StoreError::Other { url, source: source.into() }.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::format::manifest::FORMAT_VERSION;

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
            assert!(Instant::now() < deadline, "timed out");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Replaces a file by a symbolic link to itself. Reading it fails, and the reader reports an outage.
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
        store.put("step-00000007/notes.txt", b"of a user".to_vec()).unwrap();
        store.put("step-00000007/model-00001-of-00003.safetensors", b"of a killed run".to_vec()).unwrap();
        let marker = "step-00000007/uploaded-00002-of-00002.json";
        store.put(marker, b"[]".to_vec()).unwrap();
        make_unreadable(&run.join(marker));
        let manifest = manifest(7, &FILES);
        let job = |rank: usize| UploadJob {
            step: 7,
            folder: spool.clone(),
            files: vec![RankFiles::all(&manifest).remove(rank)],
            manifest: (rank == 0).then(|| manifest.clone()),
            resumed: false,
            replaces: false,
        };
        let (first, second) = (uploader(&url), uploader(&url));
        // It must read the marker of the second rank rather than continue without it.
        let reads_the_marker = || {
            wait(|| first.outage().is_some() || first.delivered().is_some());
            assert!(first.delivered().is_none() && !store.exists("step-00000007/manifest.json").unwrap());
        };
        first.submit(job(0));
        reads_the_marker();
        // A marker that lists other files is not accepted either: it is read again.
        store.put(marker, b"[]".to_vec()).unwrap();
        wait(|| first.outage().is_none());
        make_unreadable(&run.join(marker));
        reads_the_marker();
        second.submit(job(1));
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
    fn a_missing_file_ends_the_upload_with_its_name() {
        let temporary = tempfile::tempdir().unwrap();
        let url = temporary.path().join("run").display().to_string();
        let uploader = uploader(&url);
        let manifest = manifest(7, &FILES[..2]);
        uploader.submit(UploadJob {
            step: 7,
            folder: temporary.path().join("nowhere"),
            files: RankFiles::all(&manifest),
            manifest: Some(manifest),
            resumed: true,
            replaces: true,
        });
        wait(|| uploader.shared.lock().failure.is_some());
        assert!(uploader.failure().unwrap().to_string().contains("nowhere"));
        assert!(uploader.delivered().is_none());
    }
}
