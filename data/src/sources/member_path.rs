//! Paths below a folder or within a tar file, as bytes: names need not be UTF-8.

/// Reason why a tar member's path cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathFault {
    /// It begins with a slash.
    Absolute,
    /// It has a component `..`.
    Parent,
}

impl PathFault {
    /// Describes the fault and its remedy.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Absolute => "has an absolute path; create the tar file without --absolute-names (-P), as in tar -C",
            Self::Parent => "has a path with `..`; create the tar file from within the folder, as in tar -C FOLDER .",
        }
    }
}

/// Returns a path without empty components and components `.`.
pub(super) fn normalized(path: &[u8]) -> Result<Vec<u8>, PathFault> {
    if path.first() == Some(&b'/') {
        return Err(PathFault::Absolute);
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathFault::Parent),
            name => push(&mut clean, name),
        }
    }
    Ok(clean)
}

/// Appends a component to a path.
pub(super) fn push(path: &mut Vec<u8>, component: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// Joins two paths.
pub(super) fn joined(folder: &[u8], path: &[u8]) -> Vec<u8> {
    let mut whole = folder.to_vec();
    push(&mut whole, path);
    whole
}

/// Returns the folder that contains `path`; empty at the top level.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(&[], |slash| &path[..slash])
}

/// Returns the first folder of a path, or `None` at the top level.
pub(super) fn first_folder(path: &[u8]) -> Option<&[u8]> {
    path.iter().position(|&byte| byte == b'/').map(|slash| &path[..slash])
}

/// Whether `path` lies in `folder`, at any depth. Every path lies in the empty folder.
pub(super) fn is_below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Whether a component begins with a dot.
pub(super) fn is_hidden(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').any(|component| component.first() == Some(&b'.'))
}

/// Returns a path as text. Bytes that are not UTF-8 are escaped as in `\xe9`.
pub(super) fn as_text(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalized_or_refused() {
        for (path, clean) in [("./a//b/./c", "a/b/c"), ("a/", "a"), (".", ""), ("..a/b", "..a/b")] {
            assert_eq!(normalized(path.as_bytes()), Ok(clean.as_bytes().to_vec()), "{path}");
        }
        assert_eq!(normalized(b"/a"), Err(PathFault::Absolute));
        assert_eq!(normalized(b"a/../b"), Err(PathFault::Parent));
    }

    #[test]
    fn only_complete_components_count() {
        assert!(
            is_below(b"ab/c", b"ab") && is_below(b"ab/c", b"") && !is_below(b"ab/c", b"a") && !is_below(b"ab", b"ab")
        );
        assert!(is_hidden(b"a/.b/c") && !is_hidden(b"a./b"));
        assert_eq!((parent(b"a/b/c"), parent(b"a")), (&b"a/b"[..], &b""[..]));
        assert_eq!((first_folder(b"a/b/c"), first_folder(b"a")), (Some(&b"a"[..]), None));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_escaped() {
        assert_eq!(as_text(b"caf\xe9/\xc3\xa9\xff"), "caf\\xe9/\u{e9}\\xff");
    }
}
