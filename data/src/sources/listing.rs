//! The files of one input before they are assigned to classes.

use std::collections::BTreeSet;

use super::member_path::as_text;

/// Contents of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A file below the folder that was given.
    OnDisk,
    /// A part of the tar file that was given.
    Span {
        /// Offset in the tar file.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// A data set of the HDF5 file that was given.
    Hdf5,
    /// A file that cannot be read, with the reason.
    Unreadable(String),
}

/// A file in a folder or tar file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Path below the folder or within the tar file.
    pub(super) path: Vec<u8>,
    pub(super) content: Content,
}

/// A number of files and the name of the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Examples {
    pub(super) count: usize,
    pub(super) first: Vec<u8>,
}

impl Examples {
    pub(super) fn add(&mut self, path: &[u8]) {
        if self.count == 0 {
            self.first = path.to_vec();
        }
        self.count += 1;
    }

    /// Returns the name of the first file, and the number of the others.
    pub(super) fn text(&self) -> String {
        match self.count {
            0 | 1 => as_text(&self.first),
            count => format!("{} and {} more", as_text(&self.first), count - 1),
        }
    }
}

/// All files of a folder or tar file except hidden ones.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) members: Vec<Member>,
    /// Folders at the top level, with or without files.
    pub(super) folders: BTreeSet<Vec<u8>>,
    /// Hidden files and folders.
    pub(super) hidden: Examples,
    /// Links to a folder that contains the link.
    pub(super) loops: Examples,
    /// Members of a tar file that a later member of the same name replaces.
    pub(super) replaced: Examples,
    /// Whether an HDF5 file has no list of its files beside it.
    pub(super) lacks_list: bool,
    /// Whether a tar file ends without the blocks of zeros that mark its end.
    pub(super) lacks_end: bool,
}

impl Listing {
    pub(super) fn add(&mut self, path: Vec<u8>, content: Content) {
        self.members.push(Member { path, content });
    }
}
