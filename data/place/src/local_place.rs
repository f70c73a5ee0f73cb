//! Places that must be local.

use std::path::{Path, PathBuf};

use crate::error::PlaceError;
use crate::local::absolute;
use crate::place::Place;
use crate::scheme;

/// Returns the absolute path that an option names whose value must be local, for example a folder of pictures. A path
/// that is not valid Unicode is taken literally.
///
/// # Errors
/// Returns an error for a remote place, and for a text that is not a usable place.
pub fn local_path(path: &Path) -> Result<PathBuf, PlaceError> {
    match path.to_str() {
        Some(text) => match Place::parse(text)? {
            Place::Local(path) => Ok(path),
            Place::Remote(_) => Err(PlaceError::new(
                text,
                "is in a remote store, and only a local path can be used here; copy the files to a local disk, and give \
                 their path",
            )),
        },
        None => absolute(path),
    }
}

/// Returns the path that a text names, like [`local_path`], but leaves a relative path relative.
///
/// # Errors
/// Returns the same errors as [`local_path`].
pub fn expand(text: &str) -> Result<PathBuf, PlaceError> {
    let absolute = local_path(Path::new(text))?;
    let is_relative = Path::new(text).is_relative() && !text.starts_with('~') && scheme::split(text).is_none();
    Ok(if is_relative { PathBuf::from(text) } else { absolute })
}
