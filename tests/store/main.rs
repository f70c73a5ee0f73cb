//! Tests of object stores on folders and on S3 servers.

mod credentials;
mod faults;
mod folder;
mod lease;
mod moto;
