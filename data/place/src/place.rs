//! The grammar of places.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{KNOWN_KINDS, PlaceError};
use crate::local;
use crate::remote::RemoteFolder;
use crate::scheme;

/// A folder or file, local or in a remote store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An absolute local path.
    Local(PathBuf),
    /// A folder in a remote store.
    Remote(RemoteFolder),
}

impl Place {
    /// Parses a place; see the documentation of the crate. Relative paths refer to the current folder.
    ///
    /// # Errors
    /// Returns an error if the text looks like a URL and is none, or is a URL that cannot be used.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        Self::parse_with_home(text, std::env::home_dir().as_deref())
    }

    fn parse_with_home(text: &str, home: Option<&Path>) -> Result<Self, PlaceError> {
        if text.trim().is_empty() {
            return Err(PlaceError::new(text, format!("is empty; {KNOWN_KINDS}")));
        }
        if text.contains(char::is_control) {
            return Err(PlaceError::new(text, "contains a control character such as a line break; remove it"));
        }
        if ["/", "./", "../"].iter().any(|beginning| text.starts_with(beginning)) {
            return local::parse(text, home).map(Self::Local);
        }
        match scheme::split(text) {
            Some((scheme, rest)) => Self::parse_url(text, scheme, rest, home),
            None => {
                check_no_url(text)?;
                local::parse(text, home).map(Self::Local)
            }
        }
    }

    /// Parses a text that begins with a word and a colon.
    fn parse_url(text: &str, scheme: &str, rest: &str, home: Option<&Path>) -> Result<Self, PlaceError> {
        let fail = |problem: String| Err(PlaceError::new(text, problem));
        let provider = scheme::provider(scheme);
        if let Some(behind) = rest.strip_prefix("//") {
            if let Some(provider) = provider {
                return RemoteFolder::parse(text, scheme, provider, behind).map(Self::Remote);
            }
            if scheme == "file" {
                return local::parse_file_url(text).map(Self::Local);
            }
        }
        if scheme.len() == 1 {
            return fail(format!("has a drive letter of Windows; write a path of this machine, or ./{text}"));
        }
        if !scheme::is_known(scheme) && !rest.starts_with(['/', '\\']) {
            check_no_url(text)?;
            return local::parse(text, home).map(Self::Local);
        }
        let lower = scheme.to_ascii_lowercase();
        if lower != "file" && scheme::provider(&lower).is_none() {
            let credentials = if crate::redacted(text) == text { "" } else { "contains credentials, and " };
            return fail(format!("{credentials}{}", scheme::unsupported(scheme, rest)));
        }
        let (meant, name) = (url_meant(&lower, rest), crate::redacted(text));
        fail(format!("is not a URL; write {meant}, or ./{name} for a local folder of this name"))
    }
}

/// Returns the URL that was probably meant, without credentials.
fn url_meant(scheme: &str, rest: &str) -> String {
    let slashes = if scheme == "file" { "///" } else { "//" };
    crate::redacted(&format!("{scheme}:{slashes}{}", rest.trim_start_matches(['/', '\\'])))
}

/// Refuses URLs without their colon, and URLs behind something else, such as a quotation mark.
fn check_no_url(text: &str) -> Result<(), PlaceError> {
    let local = || format!("or ./{} for a local folder of this name", crate::redacted(text));
    if let Some((word, rest)) = text.split_once("//").filter(|(word, _)| scheme::is_known(word)) {
        let meant = url_meant(&word.to_ascii_lowercase(), rest);
        return Err(PlaceError::new(text, format!("is not a URL; write {meant}, {}", local())));
    }
    if text.contains("://") {
        let problem = format!("contains :// and is not a URL; write the URL without anything before it, {}", local());
        return Err(PlaceError::new(text, problem));
    }
    Ok(())
}

impl fmt::Display for Place {
    /// Formats the absolute path or the URL, which [`Place::parse`] parses to the same place.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(formatter),
            Self::Remote(folder) => folder.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests;
