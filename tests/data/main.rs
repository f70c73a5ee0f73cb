//! Tests of creating, storing, caching and reading datasets.

mod cache;
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
