//! Single files and objects.

use std::path::Path;

use crate::error::PlaceError;
use crate::place::Place;

/// Parses the place of a file or object, and splits it into its folder and its name.
///
/// # Errors
/// Returns an error for a text that is not a usable place, and for the place of a folder.
pub fn split_file(text: &str) -> Result<(Place, String), PlaceError> {
    let place = Place::parse(text)?;
    let folder = || PlaceError::new(text, "names a folder, and a file is needed; add the name of the file");
    if text.ends_with('/') || text.ends_with("/.") || text.ends_with("/..") {
        return Err(folder());
    }
    let split = match &place {
        Place::Remote(remote) => remote.split().map(|(folder, name)| (Place::Remote(folder), name)),
        Place::Local(path) => split_path(path).filter(|_| !matches!(text, "." | ".." | "~")),
    };
    split.ok_or_else(folder)
}

fn split_path(path: &Path) -> Option<(Place, String)> {
    let name = path.file_name()?.to_str()?.to_owned();
    Some((Place::Local(path.parent()?.to_path_buf()), name))
}
