//! Recognition of files that are given as weights by mistake: failed downloads, pointers, archives and pictures.

/// A file that is not a weights file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherKind {
    /// What the file is, after "it is".
    pub what: &'static str,
    /// How to get the weights.
    pub fix: &'static str,
}

/// Number of bytes at the start of a file that [`recognize`] needs.
pub const START_BYTES: usize = 512;

const DOWNLOAD: &str = "download the file again";
const DECOMPRESS: &str = "decompress it first";
const UNPACK: &str = "unpack it first, and give the weights file in it";
const CONVERT: &str = "save the weights as safetensors, or with torch.save";
const GIVE: &str = "give a safetensors file, or a file saved with torch.save";

/// First bytes of other kinds of files.
const MAGIC: [(&[u8], &str, &str); 14] = [
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself", "run `git lfs pull`"),
    (b"\x1f\x8b", "compressed with gzip", DECOMPRESS),
    (b"BZh", "compressed with bzip2", DECOMPRESS),
    (b"\xfd7zXZ\0", "compressed with xz", DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", DECOMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (b"GGUF", "a GGUF file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", GIVE),
    (b"\xff\xd8\xff", "a JPEG picture", GIVE),
    (b"%PDF-", "a PDF document", GIVE),
    (b"\x7fELF", "a program", GIVE),
];

/// Recognizes a file by its first bytes, all of them if it is shorter than [`START_BYTES`]. Returns `None` for a weights file
/// and for anything unknown.
pub fn recognize(start: &[u8]) -> Option<OtherKind> {
    let kind = |what, fix| Some(OtherKind { what, fix });
    if start.is_empty() {
        return kind("empty", DOWNLOAD);
    }
    // The ninth byte of a safetensors file is the first of its JSON, whatever its length in the first eight is.
    if start.get(8) == Some(&b'{') && start.get(7) == Some(&0) {
        return None;
    }
    if let Some((_, what, fix)) = MAGIC.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return kind(what, fix);
    }
    if start.get(257..262) == Some(b"ustar") {
        return kind("a tar archive", UNPACK);
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    match text.first() {
        Some(b'<') => kind("an HTML or XML page, such as an error or sign-in page instead of the download", DOWNLOAD),
        Some(b'{') if contains(text, b"\"weight_map\"") || contains(text, b"\"metadata\"") => {
            kind("the index of weights in several files", "merge them into one safetensors file")
        }
        Some(b'{' | b'[') => kind("a JSON file", GIVE),
        None => kind("blank", DOWNLOAD),
        Some(_) if start.iter().all(|&byte| byte == 0) => kind("filled with zeros", DOWNLOAD),
        Some(_) if is_text(start) => kind("a text file", GIVE),
        Some(_) => None,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn is_text(start: &[u8]) -> bool {
    // The last character may be cut off.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => return is_text(&start[..error.valid_up_to()]),
        Err(_) => return false,
    };
    !text.is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_kinds_are_recognized() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        let mut tar = vec![b'a'; 512];
        tar[100..200].fill(0);
        tar[257..262].copy_from_slice(b"ustar");
        for (start, what) in [
            (pointer.as_slice(), "Git LFS"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"\xef\xbb\xbf  \r\n<HTML>", "HTML"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "XML"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
            (b"{\"metadata\": {\"total_size\": 1}, \"weight_map\": {}}", "index"),
            (b"{\n  \"error\": \"not found\"}", "JSON"),
            (b"[]", "JSON"),
            (b"Not Found", "text"),
            (b"\xe4\xb8\xad\xe6\x96", "text"),
            (b"\x93NUMPY\x01\0v\0{'descr'", "NumPy"),
            (b"\x89HDF\r\n\x1a\n\0", "HDF5"),
            (&tar, "tar"),
            (&[0; 512], "zeros"),
            (b" \n\t", "blank"),
            (b"", "empty"),
        ] {
            let kind = recognize(start);
            assert!(kind.is_some_and(|kind| kind.what.contains(what)), "{what}: {kind:?}");
        }
    }

    #[test]
    fn weights_of_any_header_length_are_not_mistaken() {
        // A header length may have the bytes of any other kind.
        for length in [b"BZh\0\0\0\0\0", b"\x1f\x8b\0\0\0\0\0\0", b"<!--\0\0\0\0", b"GGUF\0\0\0\0", b"  \n\n\n\0\0\0"] {
            assert_eq!(recognize(&[length.as_slice(), b"{\"a\":{}}"].concat()), None, "{length:?}");
        }
        assert_eq!(recognize(b"PK\x03\x04\0\0\x08\x08"), None);
        assert_eq!(recognize(b"\x80\x02}q\0."), None);
    }
}
