//! Listing of a folder.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::error::SourceError;
use super::listing::{Content, Listing};
use super::member_path::joined;

/// Lists the files below `root`. Links are followed, because ImageNet trees often consist of links.
pub(super) fn list_folder(root: &Path) -> Result<Listing, SourceError> {
    let metadata = fs::metadata(root).map_err(|source| read_error(root, source))?;
    let mut walk = Walk { listing: Listing::default(), ancestors: vec![(metadata.dev(), metadata.ino())] };
    walk.folder(root, &[])?;
    Ok(walk.listing)
}

/// Describes a file that is neither a regular file nor a folder.
pub(super) fn describe_special(kind: FileType) -> &'static str {
    if kind.is_fifo() {
        "is a named pipe, not a regular file"
    } else if kind.is_socket() {
        "is a socket, not a regular file"
    } else {
        "is a device, not a regular file"
    }
}

struct Walk {
    listing: Listing,
    /// Device and inode of each folder that contains the current one, to detect loops of links.
    ancestors: Vec<(u64, u64)>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, below: &[u8]) -> Result<(), SourceError> {
        for entry in fs::read_dir(folder).map_err(|source| read_error(folder, source))? {
            let entry = entry.map_err(|source| read_error(folder, source))?;
            let kind = entry.file_type().map_err(|source| read_error(&entry.path(), source))?;
            let name = entry.file_name();
            let path = joined(below, name.as_bytes());
            if name.as_bytes().first() == Some(&b'.') {
                self.listing.hidden.add(&path);
            } else if kind.is_symlink() {
                self.link(&entry.path(), path)?;
            } else {
                self.entry(&entry.path(), path, kind)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, place: &Path, path: Vec<u8>, kind: FileType) -> Result<(), SourceError> {
        if !kind.is_dir() {
            let content =
                if kind.is_file() { Content::OnDisk } else { Content::Unreadable(describe_special(kind).to_owned()) };
            self.listing.add(path, content);
            return Ok(());
        }
        let metadata = fs::metadata(place).map_err(|source| read_error(place, source))?;
        let identity = (metadata.dev(), metadata.ino());
        if self.ancestors.contains(&identity) {
            self.listing.loops.add(&path);
            return Ok(());
        }
        if !path.contains(&b'/') {
            self.listing.folders.insert(path.clone());
        }
        self.ancestors.push(identity);
        self.folder(place, &path)?;
        self.ancestors.pop();
        Ok(())
    }

    fn link(&mut self, place: &Path, path: Vec<u8>) -> Result<(), SourceError> {
        match fs::metadata(place) {
            Ok(metadata) => self.entry(place, path, metadata.file_type()),
            Err(error) => {
                let target = fs::read_link(place).map(|target| target.display().to_string()).unwrap_or_default();
                self.listing
                    .add(path, Content::Unreadable(format!("is a link to {target}, which cannot be read: {error}")));
                Ok(())
            }
        }
    }
}

pub(super) fn read_error(path: &Path, source: io::Error) -> SourceError {
    SourceError::Read { path: path.to_path_buf(), source }
}
