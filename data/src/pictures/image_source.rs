//! Lists of pictures in ImageFolder trees and tar files.
//!
//! The class of a picture is the first folder of its path. A picture at the top level of a tar file belongs to the
//! class named after the file (ImageNet's layout of one tar per class). Pictures and classes are sorted by name, so
//! that the same input gives the same numbers on every machine. Opening reads only the names; pictures are read one by
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Reason why input pictures cannot be used.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A folder, tar file or picture cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Path of the folder or file.
        path: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The index of a tar file is damaged.
    #[error("{} is not a readable tar file ({source}); a compressed tar must be unpacked to .tar first", path.display())]
    Tar {
        /// Path of the tar file.
        path: PathBuf,
        /// Description of the damage.
        source: io::Error,
    },
    /// A path is neither a folder nor a tar file.
    #[error("{} is neither a folder nor a .tar file", path.display())]
    Kind {
        /// Path that was given.
        path: PathBuf,
    },
    /// A picture is not in a class folder.
    #[error("{} is not in a class folder; pictures are expected at CLASS/NAME below the folder given", path.display())]
    NoClass {
        /// Path of the picture.
        path: PathBuf,
    },
    /// Two inputs contain a picture with the same name.
    #[error("picture {name} exists twice: in {} and in {}", first.display(), second.display())]
    Duplicate {
        /// Name of the picture.
        name: String,
        /// First input that contains it.
        first: PathBuf,
        /// Second input that contains it.
        second: PathBuf,
    },
    /// The inputs contain no picture.
    #[error("no pictures in {paths}; known suffixes are {}", SUFFIXES.join(", "))]
    Empty {
        /// Paths that were given.
        paths: String,
    },
}

const SUFFIXES: [&str; 9] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif"];

/// All pictures of the inputs, sorted by name.
#[derive(Debug)]
pub struct ImageSource {
    inputs: Vec<Input>,
    classes: Vec<String>,
    pictures: Vec<Picture>,
}

#[derive(Debug)]
enum Input {
    Folder(PathBuf),
    Tar { path: PathBuf, file: File },
}

#[derive(Debug)]
struct Picture {
    name: String,
    label: u32,
    input: u32,
    /// Offset and length of the contents in a tar file; `None` in a folder.
    span: Option<(u64, u64)>,
}

/// A picture before the numbering of the classes.
struct Found {
    name: String,
    class: String,
    input: u32,
    span: Option<(u64, u64)>,
}

impl ImageSource {
    /// Lists the pictures in folders and tar files. The order of `paths` is irrelevant.
    pub fn open(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let mut inputs = Vec::new();
        let mut found = Vec::new();
        for path in paths {
            let input = inputs.len() as u32;
            inputs.push(open_input(path, input, &mut found)?);
        }
        if found.is_empty() {
            let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
            return Err(SourceError::Empty { paths: paths.join(", ") });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        refuse_duplicates(&found, &inputs)?;
        let (classes, pictures) = number_classes(found);
        Ok(Self { inputs, classes, pictures })
    }

    /// Class names, sorted; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Whether there are no pictures. Always false, because [`Self::open`] rejects such inputs.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// Class of picture `index`.
    pub fn label(&self, index: usize) -> u32 {
        self.pictures[index].label
    }

    /// Name of picture `index`: its path relative to the folder or within the tar file.
    pub fn name(&self, index: usize) -> &str {
        &self.pictures[index].name
    }

    /// Reads the encoded file of picture `index`.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let picture = &self.pictures[index];
        match (&self.inputs[picture.input as usize], picture.span) {
            (Input::Tar { path, file }, Some((offset, length))) => {
                let mut bytes = vec![0; length as usize];
                file.read_exact_at(&mut bytes, offset)
                    .map_err(|source| read_error(&path.join(&picture.name), source))?;
                Ok(bytes)
            }
            (Input::Folder(path) | Input::Tar { path, .. }, _) => {
                let path = path.join(&picture.name);
                std::fs::read(&path).map_err(|source| read_error(&path, source))
            }
        }
    }
}

impl Input {
    fn path(&self) -> &Path {
        match self {
            Input::Folder(path) | Input::Tar { path, .. } => path,
        }
    }
}

fn read_error(path: &Path, source: io::Error) -> SourceError {
    SourceError::Read { path: path.to_path_buf(), source }
}

fn open_input(path: &Path, input: u32, found: &mut Vec<Found>) -> Result<Input, SourceError> {
    let metadata = std::fs::metadata(path).map_err(|source| read_error(path, source))?;
    if metadata.is_dir() {
        let mut ancestors = vec![(metadata.dev(), metadata.ino())];
        walk(path, "", input, &mut ancestors, found)?;
        return Ok(Input::Folder(path.to_path_buf()));
    }
    if !metadata.is_file() {
        return Err(SourceError::Kind { path: path.to_path_buf() });
    }
    let file = File::open(path).map_err(|source| read_error(path, source))?;
    index_tar(path, &file, input, found).map_err(|source| SourceError::Tar { path: path.to_path_buf(), source })?;
    Ok(Input::Tar { path: path.to_path_buf(), file })
}

/// Lists `folder` recursively. Links are followed, because ImageNet trees often consist of links; `ancestors` contains
/// the device and inode of each parent folder to detect cycles.
fn walk(
    folder: &Path,
    prefix: &str,
    input: u32,
    ancestors: &mut Vec<(u64, u64)>,
    found: &mut Vec<Found>,
) -> Result<(), SourceError> {
    let entries = std::fs::read_dir(folder).map_err(|source| read_error(folder, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| read_error(folder, source))?;
        let path = entry.path();
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        if file_name.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{file_name}");
        let listed = entry.file_type().map_err(|source| read_error(&path, source))?;
        let is_folder = listed.is_dir() || (listed.is_symlink() && path.is_dir());
        if !is_folder {
            if is_picture(&name) {
                let class = first_folder(&name).ok_or_else(|| SourceError::NoClass { path: path.clone() })?.to_owned();
                found.push(Found { name, class, input, span: None });
            }
            continue;
        }
        let metadata = std::fs::metadata(&path).map_err(|source| read_error(&path, source))?;
        let identity = (metadata.dev(), metadata.ino());
        if !ancestors.contains(&identity) {
            ancestors.push(identity);
            walk(&path, &format!("{name}/"), input, ancestors, found)?;
            ancestors.pop();
        }
    }
    Ok(())
}

fn index_tar(path: &Path, file: &File, input: u32, found: &mut Vec<Found>) -> io::Result<()> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./");
        if !is_picture(name) {
            continue;
        }
        let class = first_folder(name).unwrap_or(&stem).to_owned();
        let span = (entry.raw_file_position(), entry.size());
        if span.0 + span.1 > file.metadata()?.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends inside {name}")));
        }
        found.push(Found { name: name.to_owned(), class, input, span: Some(span) });
    }
    Ok(())
}

fn first_folder(name: &str) -> Option<&str> {
    name.split_once('/').map(|(folder, _)| folder)
}

fn is_picture(name: &str) -> bool {
    let path = Path::new(name);
    let hidden = path.file_name().is_none_or(|file_name| file_name.to_string_lossy().starts_with('.'));
    let suffix = path.extension().map(|e| e.to_ascii_lowercase());
    !hidden && suffix.is_some_and(|suffix| SUFFIXES.iter().any(|known| suffix == *known))
}

fn refuse_duplicates(sorted: &[Found], inputs: &[Input]) -> Result<(), SourceError> {
    match sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        None => Ok(()),
        Some(pair) => Err(SourceError::Duplicate {
            name: pair[0].name.clone(),
            first: inputs[pair[0].input as usize].path().to_path_buf(),
            second: inputs[pair[1].input as usize].path().to_path_buf(),
        }),
    }
}

fn number_classes(found: Vec<Found>) -> (Vec<String>, Vec<Picture>) {
    let classes: BTreeSet<&str> = found.iter().map(|picture| picture.class.as_str()).collect();
    let classes: Vec<String> = classes.into_iter().map(str::to_owned).collect();
    let labels: BTreeMap<&str, u32> =
        classes.iter().enumerate().map(|(label, class)| (class.as_str(), label as u32)).collect();
    let pictures = found
        .into_iter()
        .map(|picture| Picture {
            label: labels[picture.class.as_str()],
            name: picture.name,
            input: picture.input,
            span: picture.span,
        })
        .collect();
    (classes, pictures)
}
