//! The syntax of the files of the AWS command line.

use std::collections::BTreeMap;
use std::path::Path;

use configparser::ini::{Ini, IniDefault};

/// Settings of a section. The nested settings of a setting are the lines of its value.
pub(super) type Settings = BTreeMap<String, String>;
/// Settings of each section of a file.
pub(super) type Sections = BTreeMap<String, Settings>;

/// Parses a file, or returns `None` if it does not exist. Messages never quote the file.
pub(super) fn parse(file: &Path) -> Result<Option<Sections>, String> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| format!("{} cannot be read: {error}", file.display()))?,
    };
    let mut syntax = IniDefault::default();
    syntax.default_section = String::new();
    syntax.delimiters = vec!['='];
    syntax.case_sensitive = true;
    syntax.multiline = true; // indented lines are nested settings, not settings of the profile
    syntax.enable_inline_comments = false;
    let sections = Ini::new_from_defaults(syntax).read(text);
    let sections = sections.map_err(|_| format!("{} has an unmatched bracket", file.display()))?;
    if sections.get("").is_some_and(|settings| !settings.is_empty()) {
        return Err(format!("{} has settings before its first [section]", file.display()));
    }
    let whole = sections.into_iter().map(|(section, settings)| {
        let settings = settings.into_iter().map(|(name, value)| Some((name.to_ascii_lowercase(), value?)));
        match settings.collect::<Option<_>>() {
            Some(settings) => Ok((section, settings)),
            None => Err(format!("{}: a line in [{section}] has no `=`", file.display())),
        }
    });
    whole.collect::<Result<_, _>>().map(Some)
}

/// Returns a setting that is nested in another one, such as `endpoint_url` in `s3 =`.
pub(super) fn nested<'a>(settings: &'a Settings, outer: &str, name: &str) -> Option<&'a str> {
    let lines = settings.get(outer)?.lines().filter_map(|line| line.split_once('='));
    let mut found = lines.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    found.next_back().map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
}
