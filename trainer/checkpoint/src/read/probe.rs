//! Looking at what a run would go on from, without a lease, a download or a folder made.

use arinar_store::Store;

use super::{
    CheckpointError, State,
    find::{committed, is_damage, steps_at},
    load::{damaged, read_state},
    manifest::{self, Manifest, folder},
    spool::Spool,
    step_folder,
};
use crate::config::{Resume, TrainConfig};

/// The checkpoint that a run would go on from, as far as its files' names and lengths and its state tell: the weights
/// themselves are read and verified when the run starts.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Its folder.
    pub url: String,
    /// Its state.
    pub state: State,
    /// Bytes of all its files.
    pub bytes: u64,
    /// What is wrong with newer ones.
    pub warnings: Vec<String>,
}

/// What `checkpoint.resume` asks for, `store` being the run's folder; `None` where the run begins anew.
///
/// # Errors
/// As when the run starts: one that must not be overwritten, none where there should be one, one of another model.
pub fn look(config: &TrainConfig, store: &Store) -> Result<Option<Outlook>, CheckpointError> {
    let outlook = wanted(config, store)?;
    step_folder::check_later_steps(store, outlook.as_ref().map_or(0, |outlook| outlook.state.step))?;
    Ok(outlook)
}

fn wanted(config: &TrainConfig, store: &Store) -> Result<Option<Outlook>, CheckpointError> {
    match &config.checkpoint.resume {
        Resume::None => match committed(store)?.last() {
            None => Ok(None),
            Some(&newest) => Err(CheckpointError::RunExists { url: store.url().to_owned(), newest: folder(newest) }),
        },
        Resume::Auto => {
            let mut places = places(store, committed(store)?);
            places.extend(spooled(config, store)?);
            // A step that is in both places is the same; the store's has all files.
            places.sort_by_key(|(place, step)| (*step, place.url() == store.url()));
            newest(config, places, store.url())
        }
        Resume::From(place) => {
            let (run, steps) = steps_at(place)?;
            let found = newest(config, places(&Store::open(&run)?, steps), &run)?;
            found.map(Some).ok_or_else(|| CheckpointError::NoCheckpoint { url: place.clone() })
        }
    }
}

fn places(store: &Store, steps: Vec<u64>) -> Vec<(Store, u64)> {
    steps.into_iter().map(|step| (store.clone(), step)).collect()
}

/// Checkpoints of a remote run that wait on this machine to be sent.
fn spooled(config: &TrainConfig, store: &Store) -> Result<Vec<(Store, u64)>, CheckpointError> {
    if store.is_local() {
        return Ok(Vec::new());
    }
    let path = Spool::folder_of(config.checkpoint.spool_dir.as_deref(), store.url())?;
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let spool = Store::open(&path.display().to_string())?;
    let steps = committed(&spool)?;
    Ok(places(&spool, steps))
}

/// The last of `places`, which are in ascending order, that looks whole.
fn newest(config: &TrainConfig, places: Vec<(Store, u64)>, run: &str) -> Result<Option<Outlook>, CheckpointError> {
    let mut warnings = Vec::new();
    for (store, step) in places.into_iter().rev() {
        match look_at(config, &store, step) {
            Ok((state, bytes)) => {
                return Ok(Some(Outlook { url: store.url_of(&folder(step)), state, bytes, warnings }));
            }
            Err(problem) if is_damage(&problem) => warnings.push(problem.to_string()),
            Err(problem) => return Err(problem),
        }
    }
    if warnings.is_empty() {
        return Ok(None);
    }
    Err(CheckpointError::NoneWhole { url: run.to_owned(), problems: warnings.join("; ") })
}

fn look_at(config: &TrainConfig, store: &Store, step: u64) -> Result<(State, u64), CheckpointError> {
    let manifest: Manifest = manifest::read(store, step)?;
    for entry in &manifest.files {
        let what = match store.size(&format!("{}/{}", folder(step), entry.name))? {
            Some(bytes) if bytes == entry.bytes => continue,
            Some(bytes) => format!("it has {bytes} bytes, the manifest says {}", entry.bytes),
            None => "it is missing".to_owned(),
        };
        return Err(damaged(store, step, &entry.name, what));
    }
    let state = read_state(store, &manifest, Some(config))?;
    Ok((state, manifest.files.iter().map(|entry| entry.bytes).sum()))
}
