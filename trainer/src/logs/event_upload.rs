//! Event files of a run in a remote store, copied there now and then, so that the curves outlive the machine.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arinar_store::{Store, StoreError};

use crate::tensorboard;
use arinar_collective::machine::priority;

/// Time between two copies.
pub const COPY_EVERY: Duration = Duration::from_secs(60);
/// The folder in the run that they are copied to.
pub const LOGS: &str = "logs";
/// How long the end of a run waits for the last copy.
const LAST_COPY: Duration = Duration::from_secs(30);

/// A thread that copies event files.
pub struct LogCopy {
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
    /// What went wrong, once.
    problem: Option<String>,
}

impl LogCopy {
    /// Copies the event files of `folder` to `logs/` in the run at `url` from now on, soon for the first time.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(url: &str, folder: PathBuf, every: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (its, url) = (Arc::clone(&shared), url.to_owned());
        let work = move || {
            priority::lower_thread_priority();
            match Store::open(&url) {
                Ok(store) => Copier { shared: &its, store, folder, sizes: BTreeMap::new() }.run(every),
                Err(error) => its.lock().problem = Some(error.to_string()),
            }
        };
        let thread = std::thread::Builder::new().name("log copy".to_owned()).spawn(work)?;
        Ok(Self { shared, thread })
    }

    /// What went wrong; told once for the whole run.
    pub fn problem(&self) -> Option<String> {
        self.shared.lock().problem.take()
    }

    /// Copies a last time and ends. Returns what went wrong, if that was not told yet.
    pub fn finish(self) -> Option<String> {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let deadline = Instant::now() + LAST_COPY;
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                return Some(format!("the last event files are not copied after {} s", LAST_COPY.as_secs()));
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

    /// False once it is over.
    fn sleep(&self, time: Duration) -> bool {
        let going_on = |state: &mut State| !state.stop;
        let waited = self.changed.wait_timeout_while(self.lock(), time, going_on);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }
}

/// The thread.
struct Copier<'a> {
    shared: &'a Shared,
    store: Store,
    folder: PathBuf,
    /// What the store has, by name: event files only grow.
    sizes: BTreeMap<String, u64>,
}

impl Copier<'_> {
    fn run(mut self, every: Duration) {
        let mut told = false;
        let mut pause = every / 12;
        loop {
            let going_on = self.shared.sleep(pause);
            pause = every;
            if let Err(error) = self.copy()
                && !std::mem::replace(&mut told, true)
            {
                let url = self.store.url_of(LOGS);
                self.shared.lock().problem = Some(format!("event files cannot be copied to {url} for now: {error}"));
            }
            if !going_on {
                return;
            }
        }
    }

    /// Copies what has grown.
    fn copy(&mut self) -> Result<(), StoreError> {
        if self.sizes.is_empty() {
            let there = self.store.list(LOGS)?;
            self.sizes = there.into_iter().map(|object| (object.name, object.bytes)).collect();
        }
        let failed = |source| StoreError::File { path: self.folder.clone(), source };
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.file_name();
            let Some(file) = file.to_str().filter(|file| tensorboard::is_event_file(file)) else { continue };
            let name = format!("{LOGS}/{file}");
            // Read, so that the size is that of what is sent.
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
    fn what_has_grown_is_copied_and_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let (logs, run) = (temporary.path().join("tb"), temporary.path().join("run"));
        std::fs::create_dir(&logs).unwrap();
        let event_file = logs.join("events.out.tfevents.1.arinar");
        std::fs::write(&event_file, "one").unwrap();
        std::fs::write(logs.join("notes.txt"), "mine").unwrap();
        std::fs::write(logs.join("events.out.tfevents.1.another-program"), "theirs").unwrap();
        let copied = run.join("logs/events.out.tfevents.1.arinar");
        let copy = LogCopy::start(run.to_str().unwrap(), logs, Duration::from_millis(20)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while !copied.exists() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        std::fs::write(&event_file, "one, two").unwrap();
        assert_eq!(copy.finish(), None);
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "one, two");
        assert_eq!(std::fs::read_dir(run.join("logs")).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_is_told_once() {
        let temporary = tempfile::tempdir().unwrap();
        let run = temporary.path().join("run");
        let nowhere = temporary.path().join("nowhere");
        let copy = LogCopy::start(run.to_str().unwrap(), nowhere, Duration::from_millis(1)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let problem = loop {
            assert!(Instant::now() < deadline);
            if let Some(problem) = copy.problem() {
                break problem;
            }
        };
        assert!(problem.contains("nowhere"), "{problem}");
        assert_eq!(copy.finish(), None);
    }
}
