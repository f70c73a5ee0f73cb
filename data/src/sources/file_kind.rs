//! The kinds of input files.

/// A kind of input files, which is recognized by the suffix of the name.
#[derive(Clone, Copy, Debug)]
pub struct FileKind {
    /// Name of the kind, in the plural.
    pub(super) what: &'static str,
    /// Suffixes in lower case, without the dot.
    suffixes: &'static [&'static str],
    /// Whether HDF5 files contain such files.
    pub(super) is_in_hdf5: bool,
    /// Whether the suffix is part of the name of the picture.
    keeps_suffix: bool,
}

impl FileKind {
    /// Encoded pictures.
    pub const PICTURES: Self = Self {
        what: "pictures",
        suffixes: &["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif"],
        is_in_hdf5: false,
        keeps_suffix: true,
    };
    /// Latents that the official code has cached: one .npz file per picture, named after it.
    pub const CACHED_LATENTS: Self = Self {
        what: "cached latents (.npz files of main_cache.py)",
        suffixes: &["npz"],
        is_in_hdf5: true,
        keeps_suffix: false,
    };

    /// Whether a suffix, in any case, is that of this kind.
    pub(super) fn has_suffix(&self, suffix: &[u8]) -> bool {
        self.suffixes.iter().any(|known| suffix.eq_ignore_ascii_case(known.as_bytes()))
    }

    /// Whether the name of a file is that of this kind.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        suffix(path).is_some_and(|suffix| self.has_suffix(suffix))
    }

    /// Returns the name of the picture in file `path`.
    pub(super) fn picture_name<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        match suffix(path) {
            Some(suffix) if !self.keeps_suffix => &path[..path.len() - suffix.len() - 1],
            _ => path,
        }
    }

    /// Lists the suffixes for a message.
    pub(super) fn suffix_list(&self) -> String {
        self.suffixes.join(", ")
    }
}

/// Returns what follows the last dot of the file name. The dot of a hidden file does not count.
pub(super) fn suffix(path: &[u8]) -> Option<&[u8]> {
    let name = path.rsplit(|&byte| byte == b'/').next()?;
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    (dot > 0).then(|| &name[dot + 1..])
}
