//! All files of the inputs, with classes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::classes::{Class, Found, Origin, by_folder};
use super::error::SourceError;
use super::file_kind::{FileKind, suffix};
use super::folder::{list_folder, read_error};
use super::hdf5_file::{Hdf5Input, is_hdf5_suffix, list_hdf5};
use super::listing::{Content, Examples, Listing, Member};
use super::member_path::{as_text, first_folder};
use super::read_file::{ReadError, read_regular, read_span};
use super::tar_file::TarFile;
use super::tar_index::{TarSpan, list_tar};
use super::webdataset::{is_webdataset, samples};

/// Maximum number of missing class numbers to list.
const MAX_LISTED: usize = 5;

/// All files of the inputs, sorted by name.
#[derive(Debug)]
pub struct InputFiles {
    kind: FileKind,
    inputs: Vec<Input>,
    classes: Vec<String>,
    files: Vec<InputFile>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Input {
    path: PathBuf,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Folder,
    Tar(TarFile),
    Hdf5(Hdf5Input),
}

#[derive(Debug)]
struct InputFile {
    path: Vec<u8>,
    label: u32,
    input: u32,
    content: Content,
}

impl InputFiles {
    /// Lists the files of `kind` in folders and tar files. The order of `paths` is irrelevant.
    ///
    /// # Errors
    /// Returns an error if an input cannot be read, if the class of a file is not certain, or if a class or all inputs
    /// have no files.
    pub fn open(paths: &[PathBuf], kind: FileKind) -> Result<Self, SourceError> {
        let mut opening = Opening { kind, inputs: Vec::new(), found: Vec::new(), notes: Vec::new() };
        for path in paths {
            opening.add_input(path)?;
        }
        opening.finish()
    }

    /// Class names, sorted; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are no files. Always false, because [`Self::open`] rejects such inputs.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Class of file `index`.
    pub fn label(&self, index: usize) -> u32 {
        self.files[index].label
    }

    /// Name of the picture in file `index`: its path relative to the folder or within the tar file. Bytes that are not
    /// UTF-8 are escaped.
    pub fn name(&self, index: usize) -> Cow<'_, str> {
        let name = self.kind.picture_name(&self.files[index].path);
        std::str::from_utf8(name).map_or_else(|_| Cow::Owned(as_text(name)), Cow::Borrowed)
    }

    /// Reads file `index`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a regular file; it never blocks on a named pipe.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, ReadError> {
        let file = &self.files[index];
        let input = &self.inputs[file.input as usize];
        match (&file.content, &input.contents) {
            (Content::Unreadable(reason), _) => Err(ReadError::Kind(reason.clone())),
            (&Content::Span { offset, length }, Contents::Tar(tar)) => tar.read(offset, length),
            (Content::Hdf5, Contents::Hdf5(hdf5)) => hdf5.read(&file.path).map_err(ReadError::Kind),
            _ => read_regular(&input.path.join(OsStr::from_bytes(&file.path))),
        }
    }

    /// Lines for the user about files that were left out of the list.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// A tar file that is being listed.
#[derive(Clone, Copy)]
struct OpenTar<'a> {
    /// File name without `.tar`.
    name: &'a [u8],
    /// The file that contains it.
    file: &'a File,
}

/// Inputs that are being listed.
struct Opening {
    kind: FileKind,
    inputs: Vec<Input>,
    /// Files with the index of their input.
    found: Vec<(Found, u32)>,
    notes: Vec<String>,
}

impl Opening {
    fn add_input(&mut self, path: &Path) -> Result<(), SourceError> {
        let metadata = std::fs::metadata(path).map_err(|source| read_error(path, source))?;
        let place = path.display().to_string();
        if metadata.is_dir() {
            let input = self.push(path, Contents::Folder);
            return self.add_listing(list_folder(path)?, input, &place, None);
        }
        if !metadata.is_file() {
            return Err(SourceError::Kind { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(|source| read_error(path, source))?;
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if self.kind.is_in_hdf5 && suffix(name).is_some_and(is_hdf5_suffix) {
            let (hdf5, listing) = list_hdf5(path, file)?;
            let input = self.push(path, Contents::Hdf5(hdf5));
            return self.add_listing(listing, input, &place, None);
        }
        if self.kind.matches(name) {
            let (found, remedy) = ("a single input file", "give the folder that contains its class folder");
            return Err(SourceError::NotTar { place, found, remedy });
        }
        let tar = TarFile::new(path, &file).map_err(|source| read_error(path, source))?;
        let listing = list_tar(TarSpan { file: &file, offset: 0, length: metadata.len() }, &place)?;
        let input = self.push(path, Contents::Tar(tar));
        self.add_listing(listing, input, &place, Some(OpenTar { name: tar_name(name), file: &file }))
    }

    /// Adds an input and returns its index.
    fn push(&mut self, path: &Path, contents: Contents) -> u32 {
        self.inputs.push(Input { path: path.to_path_buf(), contents });
        self.inputs.len() as u32 - 1
    }

    fn add_listing(
        &mut self,
        mut listing: Listing,
        input: u32,
        place: &str,
        tar: Option<OpenTar<'_>>,
    ) -> Result<(), SourceError> {
        let kind = self.kind;
        let here = Origin { path: place, tar_name: tar.map(|tar| tar.name), kind: &kind };
        if is_webdataset(&listing, &kind) {
            let root = self.inputs[input as usize].path.clone();
            let read = |member: &Member| read_member(tar.map(|tar| tar.file), &root, member);
            let found = samples(&mut listing, here, read)?;
            self.found.extend(found.into_iter().map(|file| (file, input)));
        } else {
            let nested = self.take_archives(&mut listing);
            let found = by_folder(&mut listing, here)?;
            if tar.is_some() && found.is_empty() && nested.is_empty() {
                return Err(self.empty(place.to_owned()));
            }
            self.found.extend(found.into_iter().map(|file| (file, input)));
            for (path, content) in nested {
                self.add_nested(&path, &content, input, place, tar)?;
            }
        }
        self.note_omissions(&listing, place);
        Ok(())
    }

    /// Removes the archives at the top level of a listing and returns them: tar files, each of which is a class or a
    /// WebDataset shard, and HDF5 files in a folder.
    fn take_archives(&self, listing: &mut Listing) -> Vec<(Vec<u8>, Content)> {
        let is_archive = |member: &Member| match suffix(&member.path) {
            Some(_) if first_folder(&member.path).is_some() => false,
            Some(suffix) if suffix.eq_ignore_ascii_case(b"tar") => true,
            Some(suffix) => self.kind.is_in_hdf5 && member.content == Content::OnDisk && is_hdf5_suffix(suffix),
            None => false,
        };
        let (archives, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut listing.members).into_iter().partition(is_archive);
        listing.members = others;
        archives.into_iter().map(|member| (member.path, member.content)).collect()
    }

    /// Adds an archive at the top of another input, which is the open tar file or a folder.
    fn add_nested(
        &mut self,
        path: &[u8],
        content: &Content,
        input: u32,
        place: &str,
        tar: Option<OpenTar<'_>>,
    ) -> Result<(), SourceError> {
        match (content, tar) {
            (&Content::Span { offset, length }, Some(OpenTar { file, .. })) => {
                let inner = format!("{place}/{}", as_text(path));
                let listing = list_tar(TarSpan { file, offset, length }, &inner)?;
                self.add_listing(listing, input, &inner, Some(OpenTar { name: tar_name(path), file }))
            }
            (Content::Unreadable(reason), _) => {
                let (member, reason) = (as_text(path), reason.clone());
                Err(SourceError::Member { place: place.to_owned(), member, reason })
            }
            _ => self.add_input(&self.inputs[input as usize].path.join(OsStr::from_bytes(path))),
        }
    }

    fn note_omissions(&mut self, listing: &Listing, place: &str) {
        let mut note = |examples: &Examples, what: &str| {
            if examples.count > 0 {
                self.notes.push(format!("{place}: {what}: {}", examples.text()));
            }
        };
        let mut others = Examples::default();
        listing.members.iter().for_each(|member| others.add(&member.path));
        note(&listing.hidden, "hidden files and folders are skipped");
        note(&others, &format!("files that are not {} are skipped", self.kind.what));
        note(&listing.loops, "links to a folder that contains them are skipped");
        note(&listing.replaced, "members are replaced by later ones of the same name");
        if listing.lacks_list {
            self.notes.push(format!("{place} has no file_list.json beside it and may be incomplete"));
        }
        if listing.lacks_end {
            self.notes.push(format!("{place} has no end marker and may be truncated"));
        }
    }

    fn finish(mut self) -> Result<InputFiles, SourceError> {
        if self.found.is_empty() {
            let places: Vec<_> = self.inputs.iter().map(|input| input.path.display().to_string()).collect();
            return Err(self.empty(places.join(", ")));
        }
        self.found.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        self.refuse_duplicates()?;
        let (classes, labels) = self.number_classes()?;
        let file = |(found, input): (Found, u32)| InputFile {
            label: labels[&found.class],
            path: found.path,
            input,
            content: found.content,
        };
        let files = self.found.into_iter().map(file).collect();
        Ok(InputFiles { kind: self.kind, inputs: self.inputs, classes, files, notes: self.notes })
    }

    fn empty(&self, places: String) -> SourceError {
        SourceError::Empty { what: self.kind.what, places, suffixes: self.kind.suffix_list() }
    }

    /// Compares the names of pictures, from which some kinds leave out the suffix.
    fn refuse_duplicates(&self) -> Result<(), SourceError> {
        let name = |(found, _): &(Found, u32)| self.kind.picture_name(&found.path).to_vec();
        let place = |(_, input): &(Found, u32)| self.inputs[*input as usize].path.display().to_string();
        match self.found.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            None => Ok(()),
            Some(pair) => Err(SourceError::Duplicate {
                name: as_text(&name(&pair[0])),
                first: place(&pair[0]),
                second: place(&pair[1]),
            }),
        }
    }

    /// Returns the names of the classes and the label of each. A class number is the label; names are sorted.
    fn number_classes(&mut self) -> Result<(Vec<String>, BTreeMap<Class, u32>), SourceError> {
        let classes: BTreeSet<Class> = self.found.iter().map(|(found, _)| found.class.clone()).collect();
        match (classes.first(), classes.last()) {
            (Some(Class::Number(_)), Some(&Class::Number(last))) => self.numbered(last, classes),
            (Some(Class::Name(_)), Some(Class::Number(_))) => {
                let first = |wanted: bool| self.found.iter().find(|(found, _)| is_number(&found.class) == wanted);
                let name = |wanted| first(wanted).map(|(found, _)| as_text(&found.path)).unwrap_or_default();
                Err(SourceError::MixedClasses { name: name(false), number: name(true) })
            }
            _ => named(classes),
        }
    }

    fn numbered(
        &mut self,
        last: u32,
        classes: BTreeSet<Class>,
    ) -> Result<(Vec<String>, BTreeMap<Class, u32>), SourceError> {
        let missing: Vec<String> =
            (0..=last).filter(|&number| !classes.contains(&Class::Number(number))).map(|n| n.to_string()).collect();
        if !missing.is_empty() {
            let more = if missing.len() > MAX_LISTED {
                format!(" and {} more", missing.len() - MAX_LISTED)
            } else {
                String::new()
            };
            let listed = missing[..missing.len().min(MAX_LISTED)].join(", ");
            self.notes.push(format!("there are no {} of these classes: {listed}{more}", self.kind.what));
        }
        let labels = (0..=last).map(|number| (Class::Number(number), number)).collect();
        Ok(((0..=last).map(|number| number.to_string()).collect(), labels))
    }
}

fn is_number(class: &Class) -> bool {
    matches!(class, Class::Number(_))
}

fn named(classes: BTreeSet<Class>) -> Result<(Vec<String>, BTreeMap<Class, u32>), SourceError> {
    let text = |class: &Class| match class {
        Class::Name(name) => as_text(name),
        Class::Number(number) => number.to_string(),
    };
    let names: Vec<String> = classes.iter().map(text).collect();
    let mut seen = BTreeSet::new();
    if let Some(class) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(SourceError::SameClass { class: class.clone() });
    }
    Ok((names, classes.into_iter().zip(0..).collect()))
}

/// Returns the file name of a tar file without its suffix.
fn tar_name(name: &[u8]) -> &[u8] {
    suffix(name).map_or(name, |suffix| &name[..name.len() - suffix.len() - 1])
}

/// Reads a member of the open tar file, or of the folder `root`.
fn read_member(tar: Option<&File>, root: &Path, member: &Member) -> Result<Vec<u8>, String> {
    let read = match (&member.content, tar) {
        (&Content::Span { offset, length }, Some(tar)) => read_span(tar, offset, length),
        (Content::Unreadable(reason), _) => Err(ReadError::Kind(reason.clone())),
        _ => read_regular(&root.join(OsStr::from_bytes(&member.path))),
    };
    read.map_err(|error| format!("has a member {} that {error}", as_text(&member.path)))
}
