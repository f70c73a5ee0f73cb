//! Downloading a shard: by one process at a time, into reserved space, verified before it gets its final name.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::folder::{self, PART};
use super::room::{Request, make_room};
use super::shard_cache::ShardCache;
use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::format::mapped::{MappedShard, OpenError};
use arinar_store::Store;
use arinar_store::file_lock::try_lock;
use arinar_store::plain_file::nofollow;

/// Number of times to download a shard that fails verification.
pub(super) const ATTEMPTS: usize = 3;
/// Time to wait for other jobs to release space.
const ROOM_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two checks of a lock or of the free space.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The behaviour of a download if every file in the cache is in use.
#[derive(Clone, Copy)]
pub(super) enum NoRoom<'a> {
    /// Give up, because the shard is not needed yet.
    GiveUp,
    /// Call the function, which releases the shards that this process holds, and wait for other processes.
    Wait(&'a dyn Fn()),
}

impl ShardCache {
    /// Downloads a shard unless another process does so first. Returns false if it gave up because there is no room.
    pub(super) fn fetch(
        &self,
        store: &Store,
        manifest: &Manifest,
        index: usize,
        no_room: NoRoom,
    ) -> Result<bool, DataError> {
        self.claim()?;
        let facts = &manifest.shards[index];
        let path = self.path(facts);
        let part = folder::with_suffix(&path, PART);
        let failed = |source| DataError::File { path: part.clone(), source };
        let Some(file) = self.lock_part(&path, &part).map_err(failed)? else { return Ok(true) };
        if !self.reserve(&file, &part, manifest, index, no_room)? {
            return std::fs::remove_file(&part).map(|()| false).map_err(failed);
        }
        let mut attempt = 1;
        loop {
            store.download(&facts.name, facts.bytes, &file)?;
            let same = file.try_clone().map_err(failed)?;
            match MappedShard::open(same, &part, facts, manifest.moments_shape()) {
                Ok(_) => return std::fs::rename(&part, &path).map(|()| true).map_err(failed),
                Err(OpenError::Damaged(damage)) if attempt < ATTEMPTS => {
                    let url = store.url_of(&facts.name);
                    self.reporter.warn(&format!("the download of {url} is damaged: {damage}; fetching it again"));
                }
                Err(error) => {
                    // Best effort: if this fails, the next process that needs space deletes the file.
                    let _ = std::fs::remove_file(&part);
                    return Err(error.into_data_error(store.url_of(&facts.name)));
                }
            }
            attempt += 1;
        }
    }

    /// Opens and locks the file to download into. Returns `None` if another process has completed the download.
    fn lock_part(&self, path: &Path, part: &Path) -> io::Result<Option<File>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        loop {
            let mut options = File::options();
            let file = nofollow(options.create(true).truncate(false).read(true).write(true)).open(part)?;
            // Polls instead of blocking: after the other process renames it, this file is the shard, which remains
            // locked while it is in use.
            let mut locked = try_lock(&file)?;
            while !locked && !path.exists() {
                std::thread::sleep(POLL_INTERVAL);
                locked = try_lock(&file)?;
            }
            let current = locked && folder::same_file(&file, part);
            if path.exists() {
                // This file may be a new one, created after the other was renamed.
                if current {
                    std::fs::remove_file(part)?;
                }
                return Ok(None);
            }
            if current {
                return Ok(Some(file));
            }
        }
    }

    /// Makes room for the file and reserves it, waiting for other processes if necessary. Returns false if it gave up.
    fn reserve(
        &self,
        file: &File,
        part: &Path,
        manifest: &Manifest,
        index: usize,
        no_room: NoRoom,
    ) -> Result<bool, DataError> {
        let bytes = manifest.shards[index].bytes;
        let failed = |source| DataError::File { path: part.to_path_buf(), source };
        let started = Instant::now();
        loop {
            let guard = folder::lock_folder(&self.folder).map_err(failed)?;
            let next_uses = self.next_uses();
            // A prefetched shard must not evict one that is needed no later.
            let keep_until = matches!(no_room, NoRoom::GiveUp).then(|| next_uses[index]);
            let dataset_id = &self.dataset_id;
            let request = Request { dataset_id, manifest, next_uses: &next_uses, part, bytes, keep_until };
            let missing = match self.limit {
                Some(limit) => make_room(&self.folder, limit, &request).map_err(failed)?,
                None => 0,
            };
            if missing == 0 {
                return file.set_len(bytes).map(|()| true).map_err(failed);
            }
            drop(guard);
            match no_room {
                NoRoom::GiveUp => return Ok(false),
                NoRoom::Wait(release) => release(),
            }
            if started.elapsed() > ROOM_TIMEOUT {
                let (folder, limit) = (self.folder.clone(), self.limit.unwrap_or(u64::MAX));
                return Err(DataError::CacheFull { folder, limit, missing });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
