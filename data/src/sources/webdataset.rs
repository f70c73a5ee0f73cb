//! WebDataset shards: tar files, or folders into which they were extracted, in which the members `KEY.jpg`, `KEY.cls` and
//! so on form a sample.
//!
//! A key ends at the first dot of the file name, as in the webdataset library. The class is the number or name in
//! `KEY.cls`, else in the member `cls`, `label` or `class` of `KEY.json`. Numbers are labels, names are sorted.

use std::collections::BTreeMap;

use serde_json::Value;

use super::classes::{Class, Found, Origin};
use super::error::SourceError;
use super::file_kind::FileKind;
use super::listing::{Content, Listing, Member};
use super::member_path::{as_text, first_folder, joined};

/// Suffixes of members that describe a picture. At the top level they indicate a WebDataset shard.
const SIDECARS: [&[u8]; 3] = [b"cls", b"json", b"txt"];
/// Keys of a JSON object that can contain the class.
const CLASS_KEYS: [&str; 3] = ["cls", "label", "class"];
/// Largest class number. The manifest names every class up to the largest.
const MAX_CLASS: u32 = 99_999;
/// Maximum length of the name of a class in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Whether the members are samples: some have a class, or the pictures at the top level have sidecars.
pub(super) fn is_webdataset(listing: &Listing, kind: &FileKind) -> bool {
    let members = &listing.members;
    if members.iter().any(|member| key_and_suffix(&member.path).1.eq_ignore_ascii_case(b"cls")) {
        return true;
    }
    let at_top = |member: &&Member| first_folder(&member.path).is_none();
    let Some(picture) = members.iter().filter(at_top).find(|member| kind.matches(&member.path)) else { return false };
    let (key, _) = key_and_suffix(&picture.path);
    let describes = |member: &Member| {
        let (other, suffix) = key_and_suffix(&member.path);
        other == key && is_sidecar(suffix)
    };
    members.iter().any(describes)
}

/// Reads the class of each sample. `read` returns the contents of a member.
///
/// # Errors
/// Returns an error if a picture has no class, several pictures have the same key, or a class cannot be parsed.
pub(super) fn samples(
    listing: &mut Listing,
    origin: Origin<'_>,
    read: impl Fn(&Member) -> Result<Vec<u8>, String>,
) -> Result<Vec<Found>, SourceError> {
    let members = std::mem::take(&mut listing.members);
    let mut samples: BTreeMap<&[u8], Sample<'_>> = BTreeMap::new();
    for member in &members {
        let (key, suffix) = key_and_suffix(&member.path);
        samples.entry(key).or_default().add(member, suffix, origin.kind);
    }
    let mut found = Vec::new();
    let mut others = Vec::new();
    for (key, sample) in &samples {
        let refused = |reason: String| SourceError::Member {
            place: origin.path.to_owned(),
            member: format!("sample {}", as_text(key)),
            reason,
        };
        match sample.found(key, origin, &read).map_err(refused)? {
            Some(file) => found.push(file),
            None => others.extend(sample.others.iter().map(|member| (*member).clone())),
        }
    }
    listing.members = others;
    Ok(found)
}

/// The members with the same key.
#[derive(Debug, Default)]
struct Sample<'a> {
    pictures: Vec<&'a Member>,
    cls: Option<&'a Member>,
    json: Option<&'a Member>,
    others: Vec<&'a Member>,
}

impl<'a> Sample<'a> {
    fn add(&mut self, member: &'a Member, suffix: &[u8], kind: &FileKind) {
        match suffix.to_ascii_lowercase().as_slice() {
            b"cls" => self.cls = Some(member),
            b"json" => self.json = Some(member),
            _ if kind.has_suffix(suffix) => self.pictures.push(member),
            _ => self.others.push(member),
        }
    }

    /// Returns the picture with its class. A class without a picture is unreadable, and a member that belongs to no
    /// sample is `None`.
    fn found(
        &self,
        key: &[u8],
        origin: Origin<'_>,
        read: impl Fn(&Member) -> Result<Vec<u8>, String>,
    ) -> Result<Option<Found>, String> {
        let name = |path: &[u8]| origin.tar_name.map_or_else(|| path.to_vec(), |tar_name| joined(tar_name, path));
        match self.pictures.as_slice() {
            [] if self.cls.is_none() => Ok(None),
            [] => {
                let content =
                    Content::Unreadable(format!("has no picture with a known suffix ({})", origin.kind.suffix_list()));
                Ok(Some(Found { path: name(key), class: self.class(read)?, content }))
            }
            [picture] => {
                let (path, content) = (name(&picture.path), picture.content.clone());
                Ok(Some(Found { path, class: self.class(read)?, content }))
            }
            [first, second, ..] => Err(format!(
                "has two pictures, {} and {}; remove one of them",
                as_text(&first.path),
                as_text(&second.path)
            )),
        }
    }

    fn class(&self, read: impl Fn(&Member) -> Result<Vec<u8>, String>) -> Result<Class, String> {
        if let Some(member) = self.cls {
            let bytes = read(member)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| "has a class in .cls that is not UTF-8".to_owned())?;
            return parse_class(text.trim());
        }
        let missing = || {
            format!(
                "has no class: there is no member .cls, and no {} in a member .json; \
                 add the classes, or pack the pictures into class folders",
                CLASS_KEYS.join(", ")
            )
        };
        let bytes = read(self.json.ok_or_else(missing)?)?;
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|error| format!("has a damaged .json member: {error}"))?;
        match CLASS_KEYS.iter().find_map(|key| json.get(key)) {
            Some(Value::String(text)) => parse_class(text.trim()),
            Some(value) => parse_class(&value.to_string()),
            None => Err(missing()),
        }
    }
}

/// Splits a path at the first dot of the file name.
fn key_and_suffix(path: &[u8]) -> (&[u8], &[u8]) {
    let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    match path[name..].iter().position(|&byte| byte == b'.') {
        Some(dot) => (&path[..name + dot], &path[name + dot + 1..]),
        None => (path, b""),
    }
}

fn is_sidecar(suffix: &[u8]) -> bool {
    SIDECARS.iter().any(|known| suffix.eq_ignore_ascii_case(known))
}

fn parse_class(text: &str) -> Result<Class, String> {
    let is_number =
        text.strip_prefix(['-', '+']).unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.parse() {
        Ok(number) if number <= MAX_CLASS => Ok(Class::Number(number)),
        _ if text.is_empty() => Err("has an empty class".to_owned()),
        _ if is_number => Err(format!("has the class {text}; class numbers are integers from 0 to {MAX_CLASS}")),
        _ if text.len() > MAX_NAME_BYTES || text.starts_with(['{', '[']) || text.contains(char::is_control) => {
            Err("has a class that is neither a number nor a name".to_owned())
        }
        _ => Ok(Class::Name(text.as_bytes().to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_file_name() {
        assert_eq!(key_and_suffix(b"a.b/0001.seg.png"), (&b"a.b/0001"[..], &b"seg.png"[..]));
        assert_eq!(key_and_suffix(b"README"), (&b"README"[..], &b""[..]));
    }

    #[test]
    fn classes_are_numbers_or_names() {
        assert_eq!(parse_class("7"), Ok(Class::Number(7)));
        assert_eq!(parse_class("n01440764"), Ok(Class::Name(b"n01440764".to_vec())));
        for text in ["", "-1", "1.5", "100000", "99999999999999999999", "{}", "[1]", "a\nb"] {
            assert!(parse_class(text).is_err(), "{text:?}");
        }
    }
}
