//! Tests of creating, storing, caching and reading datasets.

mod cache;
mod changed_pictures;
mod convert;
mod crop;
mod encode;
mod hostile_bytes;
mod output;
mod pillow;
mod repair;
mod s3;
mod simulate;
mod source;
mod source_trees;
mod tar_members;
mod unusable_pictures;
mod webdataset;
