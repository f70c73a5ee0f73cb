//! Folders in remote stores.

use std::fmt;

use crate::error::PlaceError;
use crate::redact::redacted;
use crate::scheme::Provider;

/// A folder in a bucket, or the whole bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFolder {
    scheme: String,
    provider: Provider,
    authority: String,
    key: String,
}

impl RemoteFolder {
    /// Parses a URL whose scheme is that of `provider`; `rest` follows `SCHEME://`.
    pub(crate) fn parse(text: &str, scheme: &str, provider: Provider, rest: &str) -> Result<Self, PlaceError> {
        let fail = |problem: String| Err(PlaceError::new(text, problem));
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return fail(format!("names no bucket; write {scheme}://bucket/folder"));
        }
        if authority.starts_with("arn:") {
            return fail(
                "has the ARN of an access point, which is not supported; write its alias as the bucket".to_owned(),
            );
        }
        if has_query(key) || has_query(authority) {
            return fail(
                "has a query, which may hold credentials or a version; remove everything from the ? on, and give \
                 credentials in environment variables or profile files"
                    .to_owned(),
            );
        }
        if redacted(text) != text {
            return fail(
                "contains credentials; remove them, and give them in environment variables or profile files".to_owned(),
            );
        }
        if !is_bucket(authority, provider) {
            return fail(format!(
                "has the bucket name {authority:?}, which has other characters than letters, digits, dots, hyphens and \
                 underscores; correct it"
            ));
        }
        let folder = key.strip_suffix('/').unwrap_or(key);
        for part in folder.split('/').filter(|_| !key.is_empty()) {
            match part {
                "" => {
                    return fail(
                        "has an empty folder name (two slashes in a row); remove one of the slashes".to_owned(),
                    );
                }
                "." | ".." => {
                    return fail(format!("has the folder name {part}, which has no meaning in a bucket; remove it"));
                }
                _ => {}
            }
        }
        Ok(Self { scheme: scheme.to_owned(), provider, authority: authority.to_owned(), key: folder.to_owned() })
    }

    /// The provider of the store.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The part of the URL that names the bucket, `SCHEME://BUCKET`, for Azure with the account if it is given.
    pub fn bucket_url(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// Name of the bucket or container.
    pub fn bucket(&self) -> &str {
        self.authority.split_once('@').map_or(&self.authority, |(container, _)| container)
    }

    /// Name of the folder in the bucket, without slashes at its ends; empty for the whole bucket.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Splits the name of an object into its folder and its last part. Returns `None` for a whole bucket.
    pub(crate) fn split(&self) -> Option<(Self, String)> {
        let (folder, name) = self.key.rsplit_once('/').unwrap_or(("", &self.key));
        (!name.is_empty()).then(|| (Self { key: folder.to_owned(), ..self.clone() }, name.to_owned()))
    }
}

impl fmt::Display for RemoteFolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.key.is_empty() { "" } else { "/" };
        write!(formatter, "{}://{}{slash}{}", self.scheme, self.authority, self.key)
    }
}

/// Whether a name ends with something like `?versionId=x`. A question mark alone can be part of a name.
fn has_query(name: &str) -> bool {
    name.split_once('?').is_some_and(|(_, query)| query.contains('='))
}

fn is_bucket(authority: &str, provider: Provider) -> bool {
    // Azure has containers such as $root, and a URL of abfss:// names the account behind an @.
    let more = if provider == Provider::Azure { "._-@$" } else { "._-" };
    authority.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        && authority.contains(|c: char| c.is_ascii_alphanumeric())
}
