//! The place that `checkpoint.resume` names: a run, or one checkpoint of a run.

use std::path::Path;

use arinar_store::Store;

use crate::{error::CheckpointError, format::manifest::step_of};

/// A run, or one of its checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct ResumePlace {
    /// URL of the run, as given by the user.
    pub run: String,
    /// The folder of the run.
    pub store: Store,
    /// Step of the checkpoint; `None` for the whole run.
    pub step: Option<u64>,
}

impl ResumePlace {
    /// Parses a URL. Nothing is read.
    ///
    /// # Errors
    /// Returns [`CheckpointError::RunUrl`] if the URL cannot be used.
    pub(crate) fn parse(url: &str) -> Result<Self, CheckpointError> {
        let url = url.trim_end_matches('/');
        let (run, name) = url.rsplit_once('/').unwrap_or((".", url));
        let (run, step) = match step_of(name) {
            Some(step) => (run, Some(step)),
            None => (url, None),
        };
        // Slashes alone name the root folder.
        let run = if run.is_empty() { "/" } else { run };
        let store = Store::open(run).map_err(CheckpointError::RunUrl)?;
        Ok(Self { run: run.to_owned(), store, step })
    }

    /// Returns whether the place is in the run whose folder is `own`. The same folder may have several paths.
    pub(crate) fn is_in(&self, own: &Store) -> bool {
        match (self.store.local_path(""), own.local_path("")) {
            (Some(theirs), Some(ours)) => canonical(&theirs) == canonical(&ours),
            _ => self.store.url().trim_end_matches('/') == own.url().trim_end_matches('/'),
        }
    }
}

/// Returns the path without symbolic links. A folder that does not exist has none below its parent.
fn canonical(path: &Path) -> std::path::PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => canonical(parent).join(name),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(url: &str) -> (String, Option<u64>) {
        let place = ResumePlace::parse(url).unwrap();
        (place.run, place.step)
    }

    #[test]
    fn a_place_is_a_run_or_a_checkpoint() {
        assert_eq!(parse("runs/a/step-00000100/"), ("runs/a".to_owned(), Some(100)));
        assert_eq!(parse("runs/a//"), ("runs/a".to_owned(), None));
        assert_eq!(parse("step-00000100"), (".".to_owned(), Some(100)));
        assert_eq!(parse("/step-00000100"), ("/".to_owned(), Some(100)));
        assert_eq!(parse("runs/step-1"), ("runs/step-1".to_owned(), None));
        assert!(matches!(ResumePlace::parse("ftp://host/run").unwrap_err(), CheckpointError::RunUrl(_)));
    }

    #[test]
    fn a_run_is_recognized_by_all_of_its_paths() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir_all(path("runs/a")).unwrap();
        std::os::unix::fs::symlink(path("runs"), path("link")).unwrap();
        let own = Store::open(&path("runs/a")).unwrap();
        for same in ["runs/a/step-00000001", "runs/a/", "link/a", "link/a/step-00000002", "runs/./a"] {
            assert!(ResumePlace::parse(&path(same)).unwrap().is_in(&own), "{same}");
        }
        for other in ["runs", "runs/b/step-00000001", "link/ab"] {
            assert!(!ResumePlace::parse(&path(other)).unwrap().is_in(&own), "{other}");
        }
        // Neither exists yet.
        let missing = Store::open(&path("link/new")).unwrap();
        assert!(ResumePlace::parse(&path("runs/new/step-00000001")).unwrap().is_in(&missing));
    }
}
