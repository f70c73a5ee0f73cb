//! The layout of a checkpoint on disk.

pub(crate) mod hash;
pub(crate) mod manifest;
pub(crate) mod step_folder;
pub(crate) mod tensor_files;
