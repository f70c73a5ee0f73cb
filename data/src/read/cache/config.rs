//! Location and limit of a cache.

use std::path::PathBuf;

/// Options of a shard cache.
#[derive(Clone, Debug, Default)]
pub struct CacheConfig {
    /// Folder of the cache. Without one, a remote dataset uses the user's cache folder, and a local one has no cache.
    pub folder: Option<PathBuf>,
    /// Limit in bytes on the shards of all datasets and jobs together; `None` for no limit.
    pub limit: Option<u64>,
}

/// Returns the user's cache folder, `$XDG_CACHE_HOME/arinar/shards` or `~/.cache/arinar/shards`, or a folder in the
/// temporary folder for a user without a home.
pub fn default_cache() -> PathBuf {
    let home_cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home_cache);
    cache.unwrap_or_else(std::env::temp_dir).join("arinar").join("shards")
}
