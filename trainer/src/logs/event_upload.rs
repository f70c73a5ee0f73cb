//! Uploading the event files of a run in a remote store at regular intervals, so that the curves outlive the machine.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arinar_store::{Store, StoreError};

use super::tensorboard::is_event_file;
use arinar_collective::machine::priority;

/// Time between two uploads.
pub(crate) const UPLOAD_INTERVAL: Duration = Duration::from_secs(60);
/// The folder in the run to which the files are uploaded.
const LOGS: &str = "logs";
/// How long the end of a run waits for the last upload.
const LAST_UPLOAD: Duration = Duration::from_secs(30);

/// Returns the name of the last event file of the run at `url`, which a start on another machine may have uploaded.
///
/// # Errors
/// Returns an error if the store cannot be listed.
pub(crate) fn newest_event_file(url: &str) -> Result<Option<String>, StoreError> {
    let stored = Store::open(url)?.list(LOGS)?;
    let names = stored.into_iter().filter_map(|object| Some(object.name.rsplit_once('/')?.1.to_owned()));
    Ok(names.filter(|name| is_event_file(name)).max())
}

/// A handle to the thread that uploads event files.
pub(crate) struct EventUpload {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    /// A problem that is not reported yet.
    problem: Option<String>,
}

impl EventUpload {
    /// Uploads the event files of `folder` to `logs/` in the run at `url` from now on.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(url: &str, folder: PathBuf, every: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (thread_shared, url) = (Arc::clone(&shared), url.to_owned());
        let work = move || {
            priority::lower_thread_priority();
            match Store::open(&url) {
                Ok(store) => Worker { shared: &thread_shared, store, folder, sizes: BTreeMap::new() }.run(every),
                Err(error) => thread_shared.lock().problem = Some(error.to_string()),
            }
        };
        let thread = std::thread::Builder::new().name("log copy".to_owned()).spawn(work)?;
        Ok(Self { shared, thread })
    }

    /// Returns a problem, at most once in a run.
    pub(crate) fn problem(&self) -> Option<String> {
        self.shared.lock().problem.take()
    }

    /// Uploads a last time and ends the thread. Returns a problem that is not reported yet.
    pub(crate) fn finish(self) -> Option<String> {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let deadline = Instant::now() + LAST_UPLOAD;
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                return Some(format!("the last event files are not copied after {} s", LAST_UPLOAD.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.problem()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps, and returns false once the thread must end.
    fn sleep(&self, time: Duration) -> bool {
        let continues = |state: &mut State| !state.stop;
        let waited = self.changed.wait_timeout_while(self.lock(), time, continues);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }
}

/// The state of the thread.
struct Worker<'a> {
    shared: &'a Shared,
    store: Store,
    folder: PathBuf,
    /// Sizes of the files in the store, by name. Event files only grow.
    sizes: BTreeMap<String, u64>,
}

impl Worker<'_> {
    fn run(mut self, every: Duration) {
        let mut reported = false;
        let mut pause = every / 12;
        loop {
            let continues = self.shared.sleep(pause);
            pause = every;
            if let Err(error) = self.upload()
                && !std::mem::replace(&mut reported, true)
            {
                let url = self.store.url_of(LOGS);
                self.shared.lock().problem = Some(format!("event files cannot be copied to {url} for now: {error}"));
            }
            if !continues {
                return;
            }
        }
    }

    /// Uploads the files that have grown.
    fn upload(&mut self) -> Result<(), StoreError> {
        if self.sizes.is_empty() {
            let stored = self.store.list(LOGS)?;
            self.sizes = stored.into_iter().map(|object| (object.name, object.bytes)).collect();
        }
        let failed = |source| StoreError::File { path: self.folder.clone(), source };
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.file_name();
            let Some(file) = file.to_str().filter(|file| is_event_file(file)) else { continue };
            let name = format!("{LOGS}/{file}");
            // The size is taken again from the bytes that are uploaded.
            let unreadable = |source| StoreError::File { path: entry.path(), source };
            let size = entry.metadata().map_err(unreadable)?.len();
            if self.sizes.get(&name) == Some(&size) {
                continue;
            }
            let bytes = std::fs::read(entry.path()).map_err(unreadable)?;
            let size = bytes.len() as u64;
            self.store.put(&name, bytes)?;
            self.sizes.insert(name, size);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_event_files_that_have_grown_are_uploaded() {
        let temporary = tempfile::tempdir().unwrap();
        let (logs, run) = (temporary.path().join("tb"), temporary.path().join("run"));
        std::fs::create_dir(&logs).unwrap();
        let event_file = logs.join("events.out.tfevents.1.arinar");
        std::fs::write(&event_file, "one").unwrap();
        std::fs::write(logs.join("notes.txt"), "mine").unwrap();
        std::fs::write(logs.join("events.out.tfevents.1.another-program"), "theirs").unwrap();
        let copied = run.join("logs/events.out.tfevents.1.arinar");
        let upload = EventUpload::start(run.to_str().unwrap(), logs, Duration::from_millis(20)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while !copied.exists() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        std::fs::write(&event_file, "one, two").unwrap();
        assert_eq!(upload.finish(), None);
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "one, two");
        let newest = newest_event_file(run.to_str().unwrap()).unwrap();
        assert_eq!(newest.as_deref(), Some("events.out.tfevents.1.arinar"));
        assert_eq!(std::fs::read_dir(run.join("logs")).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_is_reported_once() {
        let temporary = tempfile::tempdir().unwrap();
        let run = temporary.path().join("run");
        let nowhere = temporary.path().join("nowhere");
        let upload = EventUpload::start(run.to_str().unwrap(), nowhere, Duration::from_millis(1)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let problem = loop {
            assert!(Instant::now() < deadline);
            if let Some(problem) = upload.problem() {
                break problem;
            }
        };
        assert!(problem.contains("nowhere"), "{problem}");
        assert_eq!(upload.finish(), None);
    }
}
