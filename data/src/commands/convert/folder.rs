//! The list of files to convert, in the order of torchvision's DatasetFolder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::ConvertError;
use crate::commands::dataset_writer::picture_list::PictureList;

/// Suffix of a file of cached latents.
const SUFFIX: &str = ".npz";

/// All .npz files below class folders, sorted by name.
#[derive(Debug)]
pub(super) struct NpzFolder {
    root: PathBuf,
    classes: Vec<String>,
    /// The name of each file below the root without its suffix, which is the name of the picture, and its class.
    files: Vec<(String, u32)>,
}

impl NpzFolder {
    /// Lists the files. A class is a folder directly below `root` that contains such a file at any depth.
    pub(super) fn open(root: &Path) -> Result<Self, ConvertError> {
        let mut names = Vec::new();
        walk(root, "", &mut names)?;
        names.sort();
        let class_of = |name: &String| name.split_once('/').map(|(class, _)| class.to_owned());
        let mut numbers: BTreeMap<String, u32> = names.iter().filter_map(class_of).map(|class| (class, 0)).collect();
        numbers.values_mut().zip(0..).for_each(|(number, next)| *number = next);
        let files: Vec<_> =
            names.into_iter().filter_map(|name| Some((*numbers.get(&class_of(&name)?)?, name))).collect();
        if files.is_empty() {
            return Err(ConvertError::Empty { path: root.to_owned() });
        }
        let files = files.into_iter().map(|(class, name)| (name, class)).collect();
        Ok(Self { root: root.to_owned(), classes: numbers.into_keys().collect(), files })
    }

    /// Returns the path of the folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the file of picture `index`.
    pub(super) fn path(&self, index: usize) -> PathBuf {
        self.root.join(format!("{}{SUFFIX}", self.files[index].0))
    }
}

impl PictureList for NpzFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.files[index].1
    }

    fn name(&self, index: usize) -> &str {
        &self.files[index].0
    }
}

/// Appends the names of all files below `folder`, whose path relative to the root is `name`. Links are followed, as in
/// the official loader.
fn walk(folder: &Path, name: &str, names: &mut Vec<String>) -> Result<(), ConvertError> {
    let failed = |source| ConvertError::Read { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(file) = entry.file_name().into_string() else {
            let source = std::io::Error::other(format!("the name {:?} is not UTF-8", entry.file_name()));
            return Err(failed(source));
        };
        let below = if name.is_empty() { file.clone() } else { format!("{name}/{file}") };
        if entry.path().is_dir() {
            walk(&entry.path(), &below, names)?;
        } else if let Some(picture) = below.strip_suffix(SUFFIX) {
            names.push(picture.to_owned());
        }
    }
    Ok(())
}
