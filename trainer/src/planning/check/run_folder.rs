//! The check of the folders of a run: logs, checkpoints, and the spool.

use std::path::{Path, PathBuf};

use arinar_checkpoint::spool_folder;
use arinar_collective::LaunchEnvironment;
use arinar_place::local_path;
use arinar_store::{
    Store, StoreError,
    lease::{Lease, LeaseError},
};

use super::{dataset::ProbedDataset, finding::Finding, folder::FolderCheck, resume, store_probe};
use crate::{
    config::TrainConfig,
    folders,
    planning::forecast::{CheckpointForecast, checkpoint_bytes},
    run_length::RunLength,
    time_accounting::TimeFile,
};

const SUBJECT: &str = "run.dir";
const LOG_SUBJECT: &str = "run.log_dir";
/// Space for TensorBoard event files and the time file.
const LOG_BYTES: u64 = 200_000_000;

/// Checks the folder of TensorBoard logs.
pub(crate) fn check_logs(config: &TrainConfig) -> Vec<Finding> {
    // A place that cannot be used is reported with the other values of the configuration.
    let Ok(path) = local_path(Path::new(&config.run.log_dir)) else { return Vec::new() };
    let foreign = TimeFile::check(&path).err();
    let folder = FolderCheck { key: LOG_SUBJECT, path, needed: LOG_BYTES, purpose: "logs" };
    let foreign = foreign.map(|problem| Finding::problem(LOG_SUBJECT, problem));
    std::iter::once(folder.run()).chain(foreign).collect()
}

/// The check of the store with the checkpoints.
pub(crate) struct RunFolderCheck<'a> {
    pub config: &'a TrainConfig,
    pub config_is_valid: bool,
    pub launch: LaunchEnvironment,
    /// `None` if the dataset cannot be opened.
    pub dataset: Option<&'a ProbedDataset>,
}

impl RunFolderCheck<'_> {
    /// Checks the store, its lease, the checkpoint to resume from, and the disk space for new checkpoints.
    pub(crate) fn run(&self) -> Vec<Finding> {
        let store = match store_probe::open(&self.config.run.dir) {
            Ok(store) => store,
            Err(StoreError::Place(_)) => return Vec::new(),
            Err(problem) => return vec![Finding::problem(SUBJECT, problem)],
        };
        let mut findings = vec![check_access(&store)];
        // A store that cannot be used is reported only once.
        if findings[0].is_problem() {
            return findings;
        }
        if self.launch.rank == 0 {
            findings.push(check_lease(self.config, &store));
            if self.config_is_valid {
                findings.extend(resume::check(self.config, &store, self.dataset));
            }
        }
        if self.config_is_valid {
            findings.extend(self.check_space(&store));
        }
        findings
    }

    /// Checks the space for checkpoints: for all that are kept in a local folder, or for two in the spool of a remote store.
    fn check_space(&self, store: &Store) -> Option<Finding> {
        match store.local_path("") {
            Some(path) => self.check_local_space(path),
            None => Some(self.check_spool(store)),
        }
    }

    fn check_local_space(&self, path: PathBuf) -> Option<Finding> {
        let length = RunLength::new(self.config, self.dataset?.samples());
        // The pace is unknown here, and hardly changes how many checkpoints exist at once.
        let needed = CheckpointForecast::new(self.config, &length, 1.0).peak_bytes;
        Some(FolderCheck { key: SUBJECT, path, needed, purpose: "its checkpoints" }.run())
    }

    fn check_spool(&self, store: &Store) -> Finding {
        let checkpoint = &self.config.checkpoint;
        let (world_size, local_world_size) = (self.launch.world_size as u64, self.launch.local_world_size as u64);
        let node_bytes = checkpoint_bytes(&self.config.model) / world_size * local_world_size;
        if let Some(limit) = checkpoint.spool_limit.filter(|limit| limit.0 < node_bytes) {
            let text = format!(
                "the limit of {limit} bytes is smaller than this machine's part of a checkpoint ({node_bytes} bytes); \
                 raise it"
            );
            return Finding::problem("checkpoint.spool_limit", text);
        }
        const KEY: &str = "checkpoint.spool_dir";
        match spool_folder(checkpoint.spool_dir.as_deref(), store.url()) {
            // One checkpoint that is uploaded, and one that is written at the same time.
            Ok(path) => FolderCheck { key: KEY, path, needed: 2 * node_bytes, purpose: "two checkpoints" }.run(),
            Err(problem) => Finding::problem(KEY, problem),
        }
    }
}

/// Checks that the folder of the run can be used. A missing local folder is not created; its nearest existing ancestor is
/// checked instead.
fn check_access(store: &Store) -> Finding {
    let url = store.url();
    if let Some(path) = store.local_path("") {
        match folders::check(SUBJECT, &path) {
            Err(problem) => return Finding::problem(SUBJECT, problem),
            Ok(_) if !path.is_dir() => return Finding::ok(SUBJECT, format!("{url} will be created")),
            Ok(_) => {}
        }
    }
    match store_probe::probe(store) {
        Ok(()) => Finding::ok(SUBJECT, format!("{url}: list, put, get and delete work")),
        Err(problem) => Finding::problem(SUBJECT, problem),
    }
}

/// Checks that no other job writes to the store.
fn check_lease(config: &TrainConfig, store: &Store) -> Finding {
    const SUBJECT: &str = "lease";
    if let Some(warning) = config.run.lease_warning() {
        return Finding::note(SUBJECT, warning);
    }
    match Lease::probe(store) {
        Ok(()) => Finding::ok(SUBJECT, format!("no other job writes to {}", store.url())),
        Err(LeaseError::Store(problem)) => Finding::problem(SUBJECT, problem),
        Err(held) => Finding::problem(SUBJECT, held),
    }
}
