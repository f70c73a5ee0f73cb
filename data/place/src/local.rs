//! Local paths.

use std::path::{Component, Path, PathBuf};

use url::Url;

use crate::error::PlaceError;

/// Parses a text that is neither a URL nor resembles one. `home` is the home folder.
pub(crate) fn parse(text: &str, home: Option<&Path>) -> Result<PathBuf, PlaceError> {
    let fail = |problem: String| Err(PlaceError::new(text, problem));
    let Some(below_home) = text.strip_prefix('~') else {
        check_relative(text)?;
        return absolute(Path::new(text));
    };
    if !below_home.is_empty() && !below_home.starts_with('/') {
        return fail(format!(
            "begins with the home folder of another user, which is not looked up; write its absolute path, or ./{text} \
             for a folder of this name"
        ));
    }
    match home.filter(|home| home.is_absolute()) {
        Some(home) => absolute(&home.join(below_home.trim_start_matches('/'))),
        None => fail("begins with ~, and there is no home folder; set HOME, or write the whole path".to_owned()),
    }
}

/// Refuses relative paths that mean something else in a shell or on Windows.
fn check_relative(text: &str) -> Result<(), PlaceError> {
    let fail = |problem: &str| Err(PlaceError::new(text, format!("{problem}, or ./{text} for a folder of this name")));
    if text.starts_with(['/', '.']) {
        return Ok(());
    }
    if text.starts_with('$') {
        return fail("begins with a variable, which only a shell replaces; write its value");
    }
    if text.contains('\\') {
        return fail("has backslashes, as paths of Windows have; write / instead");
    }
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return fail("begins or ends with a space; remove it");
    }
    Ok(())
}

/// Parses a file:// URL.
pub(crate) fn parse_file_url(text: &str) -> Result<PathBuf, PlaceError> {
    let fail = |problem: &str| Err(PlaceError::new(text, problem));
    if text.ends_with(char::is_whitespace) {
        return fail("ends with a space; remove it, or write it as %20");
    }
    if !text.trim_start_matches("file://").contains('/') {
        return fail("names no folder; a file URL needs three slashes: file:///folder");
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return fail(&format!("is not a valid URL ({error}); write file:///folder, or the path")),
    };
    if url.query().is_some() || url.fragment().is_some() {
        return fail("has a ? or #, which a file URL writes as %3F or %23; write them so, or give the path");
    }
    match url.to_file_path() {
        Ok(path) if path.to_str().is_some_and(|path| !path.contains(char::is_control)) => absolute(&path),
        Ok(_) => fail("stands for a name with unreadable characters; rename the folder"),
        Err(()) => fail("names another machine; a file URL needs three slashes: file:///folder"),
    }
}

/// Returns an absolute path without `.`, `..` and slashes at its end. As in the kernel, `..` leaves the folder that a
/// link leads to.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, PlaceError> {
    let fail = |error: std::io::Error| {
        let text = path.to_string_lossy();
        PlaceError::new(&text, format!("cannot be made an absolute path ({error}); write an absolute path"))
    };
    let mut found = PathBuf::new();
    for component in std::path::absolute(path).map_err(fail)?.components() {
        match component {
            Component::ParentDir => {
                found = std::fs::canonicalize(&found).unwrap_or(found);
                found.pop();
            }
            component => found.push(component),
        }
    }
    Ok(found)
}
