//! The check of the local folders that a run writes to, before it starts and with `--check`.

use std::path::{Path, PathBuf};

use arinar_checkpoint::{Resume, spool_folder};
use arinar_collective::LaunchEnvironment;
use arinar_data::read::{cache::default_cache, synthetic_samples};
use arinar_store::{Store, local_folder::check_writable};

use crate::{config::TrainConfig, stop::Stop};

/// Checks that the folder that `key` sets can be written to or created. Returns it or its nearest parent that exists.
///
/// # Errors
/// Returns a message with the fix.
pub(crate) fn check(key: &str, path: &Path) -> Result<PathBuf, String> {
    check_writable(path).map_err(|problem| with_fix(key, path, &problem.to_string()))
}

/// Adds the path and the fix to a problem of the folder that `key` sets.
pub(crate) fn with_fix(key: &str, path: &Path, problem: &str) -> String {
    let path = path.display().to_string();
    let place = if problem.starts_with(&path) { String::new() } else { format!("{path}: ") };
    format!("{place}{problem}; set {key} to a writable folder")
}

/// Checks all local folders that this rank writes to. A full disk is reported when the space is needed.
///
/// # Errors
/// Returns [`Stop::Configuration`] for the first folder that cannot be written to.
pub(crate) fn check_all(config: &TrainConfig, launch: LaunchEnvironment) -> Result<(), Stop> {
    if !launch.is_node_leader() {
        return Ok(());
    }
    let mut folders: Vec<(&str, PathBuf)> = Vec::new();
    // An unusable URL is reported when it is opened.
    let run = Store::open(&config.run.dir).ok();
    folders.extend(run.as_ref().and_then(|run| Some(("run.dir", run.local_path("")?))));
    if launch.rank == 0 {
        folders.push(("run.log_dir", PathBuf::from(&config.run.log_dir)));
    }
    folders.extend(cache(config).map(|cache| ("data.cache_dir", cache)));
    if let Some(run) = run.as_ref().filter(|run| !run.is_local() || resumes_remotely(config)) {
        folders.push(("checkpoint.spool_dir", spool_folder(config.checkpoint.spool_dir.as_deref(), run.url())?));
    }
    for (key, path) in folders {
        match check_writable(&path) {
            Err(problem) if !problem.is_full_disk() => {
                return Err(Stop::configuration(format!("{key}: {}", with_fix(key, &path, &problem.to_string()))));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns whether the checkpoint to resume from is downloaded.
fn resumes_remotely(config: &TrainConfig) -> bool {
    match &config.checkpoint.resume {
        Resume::From(url) => Store::open(url).is_ok_and(|store| !store.is_local()),
        _ => false,
    }
}

/// Returns the folder of the shard cache, if shards are copied to one.
fn cache(config: &TrainConfig) -> Option<PathBuf> {
    let data = &config.data;
    if synthetic_samples(&data.url).is_some() {
        return None;
    }
    match &data.cache_dir {
        Some(cache) => Some(PathBuf::from(cache)),
        None => Store::open(&data.url).is_ok_and(|store| !store.is_local()).then(default_cache),
    }
}
