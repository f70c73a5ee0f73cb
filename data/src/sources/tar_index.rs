//! Index of a tar file: which members it has, and where their contents lie.
//!
//! Members are applied in order, as by extraction: a later member replaces an earlier one of the same name, and a hard
//! link stands for the contents that its target has at that moment.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use arinar_model::weights::{START_BYTES, recognize};
use tar::{Entry, EntryType};

use super::error::SourceError;
use super::listing::{Content, Examples, Listing};
use super::member_path::{as_text, normalized};
use super::tar_links::expand_links;
use super::tar_members::{Node, Nodes};

/// A part of a file that contains a tar archive: the whole file, or a member of another tar file.
#[derive(Clone, Copy, Debug)]
pub(super) struct TarSpan<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Lists the files of the tar archive in `span`, which is called `place` in errors.
///
/// # Errors
/// Returns [`SourceError::NotTar`] if the file is of a known other kind, and [`SourceError::Tar`] if it is damaged.
pub(super) fn list_tar(span: TarSpan<'_>, place: &str) -> Result<Listing, SourceError> {
    list_members(span, place).map_err(|error| match (error, span.other_kind()) {
        (SourceError::Tar { .. }, Some(found)) => {
            SourceError::NotTar { place: place.to_owned(), found, remedy: "give a folder or an uncompressed tar file" }
        }
        (error, _) => error,
    })
}

impl TarSpan<'_> {
    /// Returns what the file is, if it is recognized as another kind of file.
    fn other_kind(&self) -> Option<&'static str> {
        let mut start = Vec::new();
        SpanReader { span: *self, position: 0 }.take(START_BYTES as u64).read_to_end(&mut start).ok()?;
        // Weights are zip archives, too, so the recognition of other kinds leaves them out.
        if start.starts_with(b"PK\x03\x04") {
            return Some("a zip archive");
        }
        recognize(&start).map(|kind| kind.what).filter(|what| *what != "a tar archive")
    }
}

fn list_members(span: TarSpan<'_>, place: &str) -> Result<Listing, SourceError> {
    let damaged = |source| SourceError::Tar { place: place.to_owned(), source };
    let mut index = Index { span, nodes: Nodes::new(), replaced: Examples::default(), end: 0 };
    let mut archive = tar::Archive::new(SpanReader { span, position: 0 });
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        index.add(&mut entry, place)?;
    }
    let rest = archive.into_inner();
    let mut listing = expand_links(&index.nodes);
    listing.replaced = index.replaced;
    listing.lacks_end = rest.position <= index.end;
    if let Some(offset) = rest.find_data().map_err(damaged)? {
        let reason = format!(
            "has data after its end marker, at byte {offset}; if tar files were concatenated, pass them one by one"
        );
        return Err(SourceError::Member { place: place.to_owned(), member: "the archive".to_owned(), reason });
    }
    Ok(listing)
}

struct Index<'a> {
    span: TarSpan<'a>,
    nodes: Nodes,
    replaced: Examples,
    /// End of the last member, where the end marker must follow.
    end: u64,
}

impl Index<'_> {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, place: &str) -> Result<(), SourceError> {
        let raw = entry.path_bytes().into_owned();
        let refused = |reason: String| SourceError::Member { place: place.to_owned(), member: as_text(&raw), reason };
        let damaged = |source| SourceError::Tar { place: place.to_owned(), source };
        let kind = entry.header().entry_type();
        self.end =
            entry.raw_file_position().saturating_add(entry.size()).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        if is_bookkeeping(kind) {
            return Ok(());
        }
        let path = normalized(&raw).map_err(|fault| refused(fault.text().to_owned()))?;
        let node = match kind {
            _ if kind.is_dir() || kind.as_byte() == b'D' || raw.ends_with(b"/") => Node::Folder,
            EntryType::Regular | EntryType::Continuous if !is_sparse(entry).map_err(damaged)? => {
                Node::File(self.contents(entry).map_err(damaged)?)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                unreadable("is stored as a sparse file; create the tar file without --sparse (-S)")
            }
            EntryType::Link => self.hard_link(&entry.link_name_bytes().unwrap_or_default()),
            EntryType::Symlink => Node::Link(entry.link_name_bytes().unwrap_or_default().into_owned()),
            EntryType::Fifo => unreadable("is a named pipe, not a regular file"),
            EntryType::Char | EntryType::Block => unreadable("is a device, not a regular file"),
            other if other.as_byte() == b'M' => {
                return Err(refused(
                    "continues a file of another volume; multi-volume tar files cannot be read".to_owned(),
                ));
            }
            other => unreadable(&format!("has the unknown member type {:?}", char::from(other.as_byte()))),
        };
        if path.is_empty() {
            return Ok(());
        }
        if !matches!(node, Node::Folder) && self.nodes.contains_key(&path) {
            self.replaced.add(&path);
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    fn contents<R: Read>(&self, entry: &Entry<'_, R>) -> io::Result<Content> {
        let (start, length) = (entry.raw_file_position(), entry.size());
        if start.checked_add(length).is_none_or(|end| end > self.span.length) {
            let name = as_text(&entry.path_bytes());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends inside {name}")));
        }
        Ok(Content::Span { offset: self.span.offset + start, length })
    }

    fn hard_link(&self, target: &[u8]) -> Node {
        match normalized(target).ok().and_then(|path| self.nodes.get(&path)) {
            Some(node) => node.clone(),
            None => unreadable(&format!(
                "is a hard link to {}, which the tar file does not hold before it",
                as_text(target)
            )),
        }
    }
}

/// Size of a block of a tar file.
const BLOCK: u64 = 512;

fn unreadable(reason: &str) -> Node {
    Node::File(Content::Unreadable(reason.to_owned()))
}

/// Whether a member carries facts about the archive rather than a file: global pax headers and GNU volume labels.
fn is_bookkeeping(kind: EntryType) -> bool {
    kind.is_pax_global_extensions() || kind.as_byte() == b'V'
}

/// Whether a regular member contains the map of a sparse file, in the pax format of GNU tar.
fn is_sparse<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the part of a file that contains the archive.
struct SpanReader<'a> {
    span: TarSpan<'a>,
    position: u64,
}

impl SpanReader<'_> {
    /// Returns the offset of the first byte from the current position on that is not zero.
    fn find_data(mut self) -> io::Result<Option<u64>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let start = self.position;
            let count = self.read(&mut buffer)?;
            if count == 0 {
                return Ok(None);
            }
            if let Some(at) = buffer[..count].iter().position(|&byte| byte != 0) {
                return Ok(Some(start + at as u64));
            }
        }
    }
}

impl Read for SpanReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.span.length.saturating_sub(self.position);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.span.file.read_at(&mut buffer[..wanted], self.span.offset.saturating_add(self.position))?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for SpanReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
            SeekFrom::End(delta) => self.span.length.checked_add_signed(delta),
        };
        self.position = position.ok_or_else(|| io::Error::other("a member has an impossible size"))?;
        Ok(self.position)
    }
}
