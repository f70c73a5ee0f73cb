//! Getting a shard from the store: one process at a time, into a reserved file, verified before it gets its name.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::folder::{self, PART};
use super::room::{Request, make_room};
use super::{ATTEMPTS, ShardCache, lock, warn};
use crate::error::DataError;
use crate::format::manifest::Manifest;
use crate::format::mapped::{MappedShard, OpenError};
use arinar_store::Store;
use arinar_store::plain_file::nofollow;

/// How long other jobs may keep all space of the cache in use.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether they still do.
const POLL: Duration = Duration::from_millis(20);

/// What to do when everything in the cache is in use.
#[derive(Clone, Copy)]
pub(super) enum NoRoom<'a> {
    /// Leave it: the shard is not needed yet.
    GiveUp,
    /// Let go of what this process holds itself, and wait for others to do so.
    Wait(&'a dyn Fn()),
}

impl ShardCache {
    /// Fetches a shard unless another process does so first; false where there is no room and it gave up.
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
        let Some(file) = self.take_part(&path, &part).map_err(failed)? else { return Ok(true) };
        if !self.reserve(&file, &part, manifest, index, no_room)? {
            return std::fs::remove_file(&part).map(|()| false).map_err(failed);
        }
        let mut attempt = 1;
        loop {
            store.download(&facts.name, facts.bytes, &file)?;
            let same = file.try_clone().map_err(failed)?;
            match MappedShard::check(same, &part, facts, manifest.moments_shape()) {
                Ok(_) => return std::fs::rename(&part, &path).map(|()| true).map_err(failed),
                Err(OpenError::Damaged(damage)) if attempt < ATTEMPTS => {
                    warn(&format!(
                        "what came of {} is damaged: {damage}; fetching it again",
                        store.url_of(&facts.name)
                    ));
                }
                Err(error) => {
                    // Best effort: the next one to make room deletes it otherwise.
                    let _ = std::fs::remove_file(&part);
                    return Err(error.of_shard(store.url_of(&facts.name)));
                }
            }
            attempt += 1;
        }
    }

    /// The file to download into, locked; None when another process has completed it meanwhile.
    fn take_part(&self, path: &Path, part: &Path) -> io::Result<Option<File>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        loop {
            let mut options = File::options();
            let file = nofollow(options.create(true).truncate(false).read(true).write(true)).open(part)?;
            // Not a blocking lock: after the other's rename this very file is the shard, which stays in use.
            let mut locked = try_lock(&file)?;
            while !locked && !path.exists() {
                std::thread::sleep(POLL);
                locked = try_lock(&file)?;
            }
            let current = locked && folder::same_file(&file, part);
            if path.exists() {
                // Ours may be a new one, made after the other was renamed.
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

    /// Makes room for the file and takes it, waiting a while for others to let go of theirs; false if it gave up.
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
        let began = Instant::now();
        loop {
            let guard = folder::lock_folder(&self.folder).map_err(failed)?;
            let next_uses = lock(&self.next_uses).clone();
            // What is fetched ahead must not push out what is needed as soon.
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
            if began.elapsed() > PATIENCE {
                let (folder, limit) = (self.folder.clone(), self.limit.unwrap_or(u64::MAX));
                return Err(DataError::CacheFull { folder, limit, missing });
            }
            std::thread::sleep(POLL);
        }
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
