//! Input files of a dataset: pictures or cached latents in folders, tar files and HDF5 files.
//!
//! One rule applies to folders and tar files, so that a tree gives the same dataset in either form:
//!
//! - The class of a file is the first folder of its path. Files at the top of a tar file belong to the class named
//!   after it (ImageNet's tar files of one class), and a tar file at the top of another input is such a class, too
//!   (ImageNet's tar file of tar files).
//! - Hidden files and folders, whose names begin with a dot, and files with other suffixes are skipped and reported. A
//!   class without any file is an error, because leaving it out would renumber the classes after it.
//! - Links are followed. A file that cannot be read, such as a dangling link or a named pipe, is listed as unreadable,
//!   so that it is reported like a damaged picture.
//! - Tar files of samples with a class in `KEY.cls` or `KEY.json` are WebDataset shards (`webdataset.rs`).
//!
//! An HDF5 file of cached latents is read like a folder (`hdf5_file.rs`).
//!
//! Files and classes are sorted by the bytes of their names, so that the same input gives the same numbers on every
//! machine. Names need not be UTF-8. Opening reads only the names; files are read one by one.

mod classes;
mod error;
mod file_kind;
mod folder;
mod hdf5_file;
mod input_files;
mod listing;
mod member_path;
mod read_file;
mod tar_file;
mod tar_index;
mod tar_links;
mod tar_members;
mod webdataset;

pub use error::SourceError;
pub use file_kind::FileKind;
pub use input_files::InputFiles;
pub use read_file::ReadError;
