//! Errors of input files.

use std::io;
use std::path::PathBuf;

use arinar_model::text::printable;
use thiserror::Error;

/// Reason why inputs cannot be used.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A folder or tar file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Path of the folder or file.
        path: PathBuf,
        /// Error reported by the system.
        source: io::Error,
    },
    /// The index of a tar file is damaged.
    #[error("{place} is not a readable tar file ({})", printable(&source.to_string()))]
    Tar {
        /// Path of the tar file.
        place: String,
        /// Description of the damage.
        source: io::Error,
    },
    /// An HDF5 file cannot be used.
    #[error("{place}: {reason}")]
    Hdf5 {
        /// Path of the HDF5 file or of the list beside it.
        place: String,
        /// Description of the problem.
        reason: String,
    },
    /// A file is of another kind than a tar file.
    #[error("{place} is not a tar file: it is {found}; {remedy}")]
    NotTar {
        /// Path of the file.
        place: String,
        /// Description of the file.
        found: &'static str,
        /// Remedy.
        remedy: &'static str,
    },
    /// A member of a tar file cannot be used.
    #[error("{place}: {member} {reason}")]
    Member {
        /// Path of the folder or tar file.
        place: String,
        /// Name of the member.
        member: String,
        /// Reason and remedy.
        reason: String,
    },
    /// A path is neither a folder nor a regular file.
    #[error("{} is neither a folder nor a regular file", path.display())]
    Kind {
        /// Path that was given.
        path: PathBuf,
    },
    /// A file is not in a class folder.
    #[error("{member} is not in a class folder; {what} are expected at CLASS/NAME below {place}")]
    NoClass {
        /// Path of the folder.
        place: String,
        /// Path of the file below it.
        member: String,
        /// Kind of the files, in the plural.
        what: &'static str,
    },
    /// A tar file has files in class folders and at its top level.
    #[error(
        "{place} holds class folders and, at its top level, {member}; \
         move the file into a class folder or pack it into a tar file of its own"
    )]
    MixedLevels {
        /// Path of the tar file.
        place: String,
        /// First file at the top level.
        member: String,
    },
    /// A class has no files.
    #[error(
        "class {class} in {place} has no {what} ({found}); \
         convert its files to a known format ({suffixes}) or remove it, because skipping it would renumber the classes"
    )]
    EmptyClass {
        /// Path of the input.
        place: String,
        /// Name of the class.
        class: String,
        /// Kind of the files, in the plural.
        what: &'static str,
        /// Description of the contents of the class.
        found: String,
        /// Known suffixes.
        suffixes: String,
    },
    /// Some inputs have class names, others class numbers.
    #[error(
        "{name} has a class name, and {number} a class number; encode class folders and WebDataset shards with \
         numbered classes separately"
    )]
    MixedClasses {
        /// A file with a class name.
        name: String,
        /// A file with a class number.
        number: String,
    },
    /// Two classes would have the same name in the manifest, which is UTF-8.
    #[error("two classes are named {class} once bytes that are not UTF-8 are escaped; rename one of them")]
    SameClass {
        /// The escaped name.
        class: String,
    },
    /// Two inputs contain a file with the same name.
    #[error("{name} exists twice: in {first} and in {second}")]
    Duplicate {
        /// Name of the file.
        name: String,
        /// First input that contains it.
        first: String,
        /// Second input that contains it.
        second: String,
    },
    /// The inputs contain no file.
    #[error("no {what} in {places}; known suffixes are {suffixes}")]
    Empty {
        /// Kind of the files, in the plural.
        what: &'static str,
        /// Paths that were given.
        places: String,
        /// Known suffixes.
        suffixes: String,
    },
}
