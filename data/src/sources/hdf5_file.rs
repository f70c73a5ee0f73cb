//! HDF5 files of cached latents, as `util/convert_h5.py` of the official code writes them: one data set `CLASS/NAME.npz`
//! per picture, whose bytes are an .npz file.
//!
//! The script writes a list of all files when it ends, so that a file without a list may be incomplete.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use hdf5_reader::error::Error;
use hdf5_reader::group::Group;
use hdf5_reader::{FileStorage, Hdf5File, OpenOptions};

use super::error::SourceError;
use super::listing::{Content, Listing};
use super::member_path::{as_text, is_hidden, joined};
use super::read_file::read_regular;

/// Suffixes of HDF5 files.
const SUFFIXES: [&[u8]; 2] = [b"h5", b"hdf5"];
/// Name of the list that the official loader expects beside the file.
const LIST_NAME: &str = "file_list.json";
/// Maximum depth of groups. The official files have one level, a group per class.
const MAX_DEPTH: usize = 16;
/// Maximum size of a data set in bytes, as for other input files.
const MAX_BYTES: usize = 1 << 30;

/// An open HDF5 file.
pub(super) struct Hdf5Input(Hdf5File);

impl std::fmt::Debug for Hdf5Input {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Hdf5Input")
    }
}

/// Whether a suffix is that of an HDF5 file.
pub(super) fn is_hdf5_suffix(suffix: &[u8]) -> bool {
    SUFFIXES.iter().any(|known| suffix.eq_ignore_ascii_case(known))
}

/// Lists the data sets of an HDF5 file, and compares them with the list beside it, if there is one.
pub(super) fn list_hdf5(path: &Path, file: File) -> Result<(Hdf5Input, Listing), SourceError> {
    let damaged = |error: Error| SourceError::Hdf5 { place: path.display().to_string(), reason: error.to_string() };
    let options = OpenOptions::default().with_max_read_bytes(MAX_BYTES);
    let storage = FileStorage::from_file(file).map_err(damaged)?;
    let file = Hdf5File::from_storage_with_options(Arc::new(storage), options).map_err(damaged)?;
    let mut listing = Listing::default();
    add_group(&file.root_group().map_err(damaged)?, &[], MAX_DEPTH, &mut listing).map_err(damaged)?;
    compare_with_list(path, &mut listing)?;
    Ok((Hdf5Input(file), listing))
}

impl Hdf5Input {
    /// Returns the bytes of a data set.
    pub(super) fn read(&self, path: &[u8]) -> Result<Vec<u8>, String> {
        let read = || self.0.dataset(&as_text(path))?.read_raw_bytes();
        read().map_err(|error| format!("cannot be read: {error}"))
    }
}

fn add_group(group: &Group, path: &[u8], depth: usize, listing: &mut Listing) -> Result<(), Error> {
    let (groups, datasets) = group.member_names()?;
    for name in datasets {
        let below = joined(path, name.as_bytes());
        if is_hidden(&below) { listing.hidden.add(&below) } else { listing.add(below, Content::Hdf5) }
    }
    for name in groups {
        let below = joined(path, name.as_bytes());
        if is_hidden(&below) {
            listing.hidden.add(&below);
        } else if depth > 0 {
            if path.is_empty() {
                listing.folders.insert(below.clone());
            }
            add_group(&group.group(&name)?, &below, depth - 1, listing)?;
        }
    }
    Ok(())
}

/// Looks for the list under the names that the script and the official loader use.
fn compare_with_list(path: &Path, listing: &mut Listing) -> Result<(), SourceError> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let candidates = [path.with_file_name(LIST_NAME), path.with_file_name(format!("{stem}_h5.json"))];
    let Some(list) = candidates.iter().find(|list| list.exists()) else {
        listing.lacks_list = true;
        return Ok(());
    };
    let refused = |reason: String| SourceError::Hdf5 { place: list.display().to_string(), reason };
    let bytes = read_regular(list).map_err(|error| refused(error.to_string()))?;
    let listed: BTreeSet<String> = serde_json::from_slice(&bytes)
        .map_err(|error| refused(format!("is not a JSON list of file names: {error}")))?;
    let found: BTreeSet<String> = listing.members.iter().map(|member| as_text(&member.path)).collect();
    match listed.symmetric_difference(&found).next() {
        None => Ok(()),
        Some(name) if listed.contains(name) => {
            Err(refused(format!("lists {name}, which {} lacks; convert the cache again", path.display())))
        }
        Some(name) => Err(refused(format!("does not list {name}, which {} contains", path.display()))),
    }
}
