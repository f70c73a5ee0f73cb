//! Tests of object stores, with folders and with S3 servers.

mod credentials;
mod faults;
mod folder;
mod lease;
mod moto;
