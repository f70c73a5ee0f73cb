//! The classes of the files of an input.

use std::collections::BTreeMap;

use super::error::SourceError;
use super::file_kind::{FileKind, suffix};
use super::listing::{Content, Listing, Member};
use super::member_path::{as_text, first_folder, joined};

/// The class of a file before the classes are numbered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// The name of a folder or tar file, or the name in a WebDataset sample.
    Name(Vec<u8>),
    /// The number in a WebDataset sample, which is the label.
    Number(u32),
}

/// A file with its class.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: Vec<u8>,
    pub(super) class: Class,
    pub(super) content: Content,
}

/// An input as its files are assigned to classes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// Path of the folder or tar file, for messages.
    pub(super) path: &'a str,
    /// File name of a tar file without `.tar`; `None` for a folder.
    pub(super) tar_name: Option<&'a [u8]>,
    pub(super) kind: &'a FileKind,
}

/// Assigns the files of `listing` to the classes named after their first folder, or after the tar file if they are at
/// its top level. Members that are not of `kind` are left in the listing.
pub(super) fn by_folder(listing: &mut Listing, origin: Origin<'_>) -> Result<Vec<Found>, SourceError> {
    let (wanted, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut listing.members).into_iter().partition(|member| origin.kind.matches(&member.path));
    listing.members = others;
    refuse_unreadable_classes(&listing.members, origin)?;
    let top = wanted.iter().find(|member| first_folder(&member.path).is_none());
    match (top, origin.tar_name) {
        (None, _) => {}
        (Some(file), None) => {
            let (place, what) = (origin.path.to_owned(), origin.kind.what);
            return Err(SourceError::NoClass { place, member: as_text(&file.path), what });
        }
        (Some(file), Some(_)) if wanted.iter().any(|member| first_folder(&member.path).is_some()) => {
            return Err(SourceError::MixedLevels { place: origin.path.to_owned(), member: as_text(&file.path) });
        }
        (Some(_), Some(tar_name)) => return Ok(of_one_class(wanted, tar_name)),
    }
    let found: Vec<_> = wanted.into_iter().filter_map(in_folder).collect();
    refuse_empty_classes(&found, listing, origin)?;
    Ok(found)
}

fn in_folder(member: Member) -> Option<Found> {
    let class = Class::Name(first_folder(&member.path)?.to_vec());
    Some(Found { path: member.path, class, content: member.content })
}

/// The files have the same names as in a folder that is named like the tar file.
fn of_one_class(members: Vec<Member>, tar_name: &[u8]) -> Vec<Found> {
    let found = |member: Member| Found {
        path: joined(tar_name, &member.path),
        class: Class::Name(tar_name.to_vec()),
        content: member.content,
    };
    members.into_iter().map(found).collect()
}

/// A link in the place of a class folder that cannot be followed may stand for a complete class.
fn refuse_unreadable_classes(others: &[Member], origin: Origin<'_>) -> Result<(), SourceError> {
    let broken = |member: &&Member| first_folder(&member.path).is_none() && suffix(&member.path).is_none();
    for member in others.iter().filter(broken) {
        if let Content::Unreadable(reason) = &member.content {
            let (member, reason) = (as_text(&member.path), reason.clone());
            return Err(SourceError::Member { place: origin.path.to_owned(), member, reason });
        }
    }
    Ok(())
}

fn refuse_empty_classes(found: &[Found], listing: &Listing, origin: Origin<'_>) -> Result<(), SourceError> {
    let mut empty = listing.folders.clone();
    found.iter().filter_map(|file| first_folder(&file.path)).for_each(|class| {
        empty.remove(class);
    });
    let Some(class) = empty.first() else { return Ok(()) };
    Err(SourceError::EmptyClass {
        place: origin.path.to_owned(),
        class: as_text(class),
        what: origin.kind.what,
        found: contents_text(class, &listing.members),
        suffixes: origin.kind.suffix_list(),
    })
}

/// Describes the files of other kinds in a class: ".avif files: 12".
fn contents_text(class: &[u8], others: &[Member]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for member in others.iter().filter(|member| first_folder(&member.path) == Some(class)) {
        let suffix = suffix(&member.path).map_or_else(|| "other".to_owned(), |suffix| format!(".{}", as_text(suffix)));
        *counts.entry(suffix).or_default() += 1;
    }
    match counts.into_iter().max_by_key(|(_, count)| *count) {
        Some((suffix, count)) => format!("{suffix} files: {count}"),
        None => "it is empty".to_owned(),
    }
}
