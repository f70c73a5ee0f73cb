//! Schemes of URLs: those of supported stores, and others that people try.

use crate::error::KNOWN_KINDS;

/// A provider of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon S3 and other stores with its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// Supported schemes of remote stores.
const SUPPORTED: [(&str, Provider); 8] = [
    ("s3", Provider::S3),
    ("s3a", Provider::S3),
    ("gs", Provider::Google),
    ("az", Provider::Azure),
    ("azure", Provider::Azure),
    ("adl", Provider::Azure),
    ("abfs", Provider::Azure),
    ("abfss", Provider::Azure),
];
/// Other schemes that are certainly not the beginning of a file name.
const UNSUPPORTED: [&str; 28] = [
    "b2", "cos", "dbfs", "dropbox", "ftp", "ftps", "gcs", "gdrive", "gsiftp", "hdfs", "hf", "http", "https", "memory",
    "minio", "nfs", "obs", "oss", "r2", "rclone", "s3n", "scp", "sftp", "smb", "ssh", "swift", "wasb", "wasbs",
];

/// Returns the provider of a scheme in lower case.
pub(crate) fn provider(scheme: &str) -> Option<Provider> {
    SUPPORTED.iter().find(|(name, _)| *name == scheme).map(|(_, provider)| *provider)
}

/// Whether a word, in any case, is a scheme that people use for files or stores.
pub(crate) fn is_known(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    word == "file" || provider(&word).is_some() || UNSUPPORTED.contains(&word.as_str())
}

/// Splits a text behind a word that could be a scheme and its colon.
pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some((scheme, rest))
}

/// Describes the problem of a URL with a scheme that is not supported, and the remedy. `rest` follows the colon.
pub(crate) fn unsupported(scheme: &str, rest: &str) -> String {
    let path = rest.trim_start_matches('/');
    let remedy = match scheme.to_ascii_lowercase().as_str() {
        "gcs" => "write gs://bucket/folder for Google Cloud Storage".to_owned(),
        "s3n" => "write s3://bucket/folder".to_owned(),
        "wasb" | "wasbs" => "write abfss://container@account.dfs.core.windows.net/folder for Azure".to_owned(),
        "r2" | "minio" | "b2" | "oss" | "cos" | "obs" | "swift" => "for a store with the protocol of S3, write \
             s3://bucket/folder and set AWS_ENDPOINT_URL to the address of the store"
            .to_owned(),
        "hf" => "download the files first, and give their folder".to_owned(),
        "http" | "https" => of_web_address(path),
        "ssh" | "scp" | "sftp" | "ftp" | "ftps" | "nfs" | "smb" | "hdfs" | "gsiftp" | "dbfs" => {
            "copy the files or mount the folder first, and give its path".to_owned()
        }
        _ => format!("for a local folder of this name, write ./{scheme}:{rest}"),
    };
    format!("has the scheme {scheme}:, which is not supported; {KNOWN_KINDS}; {remedy}")
}

/// Returns the remedy for the web address of an object.
fn of_web_address(address: &str) -> String {
    let host = address.split(['/', '?', '#']).next().unwrap_or_default();
    if host.ends_with("amazonaws.com") {
        "for a bucket of Amazon, write s3://bucket/folder and set AWS_REGION".to_owned()
    } else if host.ends_with("storage.googleapis.com") {
        "for a bucket of Google, write gs://bucket/folder".to_owned()
    } else if host.ends_with("core.windows.net") || host.ends_with("fabric.microsoft.com") {
        "for a container of Azure, write abfss://container@account.dfs.core.windows.net/folder".to_owned()
    } else {
        "download the files first; for a store with the protocol of S3, write s3://bucket/folder and set AWS_ENDPOINT_URL"
            .to_owned()
    }
}
