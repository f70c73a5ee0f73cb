//! Finding the checkpoint that a run would resume from, without a lease, a download, or a new folder.

use arinar_store::Store;
use serde::de::DeserializeOwned;

use super::{
    found::Location,
    resolve::{Candidate, OwnCheckpoints, OwnRun, Resolved, resolve},
    state_file::{damaged, read_state},
};
use crate::{
    error::CheckpointError,
    format::{
        manifest::{self, committed_steps, step_folder_name},
        step_folder,
    },
    options::{CheckpointOptions, ModelIdentity},
    remote::spool::spool_folder,
    state::CheckpointState,
};

/// The checkpoint that a run would resume from, judged by the names and lengths of its files and by its state. The weights
/// are not read; they are verified when the run starts.
#[derive(Clone, Debug)]
pub struct ResumeCandidate<C> {
    /// URL of the checkpoint.
    pub url: String,
    /// Its state.
    pub state: CheckpointState<C>,
    /// Size of all its files in bytes.
    pub bytes: u64,
    /// Problems of newer checkpoints.
    pub warnings: Vec<String>,
    /// The place that `resume` names and that is not read, because the run itself has gone further.
    pub unread: Option<String>,
}

/// Returns the checkpoint that a run with these options would resume from, or `None` if it would start from step 0. `store`
/// is the folder of the run.
///
/// # Errors
/// Returns the error with which the run would not start: it must not be overwritten, there is no checkpoint where there must
/// be one, all are damaged, or the model is another one.
pub fn probe<C: DeserializeOwned>(
    options: &CheckpointOptions,
    store: &Store,
) -> Result<Option<ResumeCandidate<C>>, CheckpointError> {
    let checkpoints = RunAndSpool::open(options, store)?;
    let own = OwnRun { url: store.url(), store, checkpoints: &checkpoints };
    let foreign = |run: &Store, step| vec![Candidate { step, location: Location::Run, store: run.clone() }];
    let check = |candidate: &Candidate| inspect(&candidate.store, candidate.step, &options.model);
    let found = resolve(&own, &options.resume, foreign, check)?.map(|chosen| {
        let Resolved { candidate, value: (state, bytes), warnings, .. } = chosen.resolved;
        let url = candidate.store.url_of(&step_folder_name(candidate.step));
        ResumeCandidate { url, state, bytes, warnings, unread: chosen.unread }
    });
    step_folder::check_later_steps(store, found.as_ref().map_or(0, |found| found.state.step))?;
    Ok(found)
}

/// The checkpoints in the folder of the run, and those in the spool of this node that are not uploaded yet.
struct RunAndSpool {
    run: Store,
    in_run: Vec<u64>,
    spool: Option<Store>,
    in_spool: Vec<u64>,
}

impl RunAndSpool {
    fn open(options: &CheckpointOptions, run: &Store) -> Result<Self, CheckpointError> {
        let in_run = committed_steps(run)?;
        let mut own = Self { run: run.clone(), in_run, spool: None, in_spool: Vec::new() };
        if !run.is_local() {
            let path = spool_folder(options.spool_dir.as_deref(), run.url())?;
            if path.is_dir() {
                let spool = Store::open(&path.display().to_string())?;
                own.in_spool = committed_steps(&spool)?;
                // The run was continued on another machine: its checkpoints in the store take precedence.
                own.in_spool.retain(|step| own.in_run.last().is_none_or(|newest| step >= newest));
                own.spool = Some(spool);
            }
        }
        Ok(own)
    }
}

impl OwnCheckpoints for RunAndSpool {
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps = [self.in_run.as_slice(), self.in_spool.as_slice()].concat();
        steps.sort_unstable();
        steps.dedup();
        Ok(steps)
    }

    fn candidates(&self, step: u64) -> Vec<Candidate> {
        let in_run = self.in_run.contains(&step).then(|| (Location::Run, self.run.clone()));
        let in_spool = self.spool.as_ref().filter(|_| self.in_spool.contains(&step));
        let in_spool = in_spool.map(|spool| (Location::Spool, spool.clone()));
        // Both copies of a step are the same, but the spool of one node may lack the files of other nodes.
        let places = in_run.into_iter().chain(in_spool);
        places.map(|(location, store)| Candidate { step, location, store }).collect()
    }
}

/// Compares the names and lengths of a checkpoint's files with its manifest, and reads its state.
fn inspect<C: DeserializeOwned>(
    store: &Store,
    step: u64,
    model: &ModelIdentity,
) -> Result<(CheckpointState<C>, u64), CheckpointError> {
    let manifest = manifest::read(store, step)?;
    for entry in &manifest.files {
        let what = match store.size(&format!("{}/{}", step_folder_name(step), entry.name))? {
            Some(bytes) if bytes == entry.bytes => continue,
            Some(bytes) => format!("it has {bytes} bytes, the manifest says {}", entry.bytes),
            None => "it is missing".to_owned(),
        };
        return Err(damaged(store, step, &entry.name, what));
    }
    let state = read_state(store, &manifest, Some(model))?;
    Ok((state, manifest.files.iter().map(|entry| entry.bytes).sum()))
}
