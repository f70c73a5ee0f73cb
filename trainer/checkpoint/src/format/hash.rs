//! Hashing a file while it is written or read.

use std::io::{self, Write};

use xxhash_rust::xxh3::Xxh3;

use super::manifest::FileEntry;

/// Bytes that are hashed and written at a time: they stay in the cache of a core between the two.
const CHUNK: usize = 1 << 20;

/// A writer that computes the manifest entry of what passes through it.
pub(crate) struct HashingWriter<W> {
    inner: W,
    hash: Xxh3,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hash: Xxh3::new(), bytes: 0 }
    }

    /// Returns the writer and the entry of a file with the contents written so far.
    pub(crate) fn finish(self, name: &str) -> (W, FileEntry) {
        let xxh3_128 = format!("{:032x}", self.hash.digest128());
        (self.inner, FileEntry { name: name.to_owned(), bytes: self.bytes, xxh3_128 })
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(&bytes[..bytes.len().min(CHUNK)])?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_describes_what_was_written() {
        let contents: Vec<u8> = (0..3 * CHUNK + 17).map(|index| index as u8).collect();
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(&contents).unwrap();
        let (written, entry) = writer.finish("a file");
        assert!(written == contents);
        assert_eq!(entry, FileEntry::of("a file", &contents));
    }
}
