//! Parser of mpirun's tagged output, which interleaves the lines of all ranks as `[1,0]<stdout>:text`.
//!
//! mpirun forwards the output of a rank in pieces of at most 4 KiB and tags every piece and every line. A tag may therefore
//! occur in the middle of a line, and output of another rank between the two parts of a line. The parser buffers the
//! incomplete line of each rank until its newline arrives.

use std::collections::BTreeMap;

/// Maximum length of a line in bytes. Longer lines are split.
const MAX_LINE: usize = 1 << 20;
/// Maximum length of a tag in bytes.
const MAX_TAG: usize = 128;

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaggedLine {
    /// The rank that wrote the line; `None` for mpirun itself.
    pub(crate) rank: Option<usize>,
    /// The line without its newline.
    pub(crate) text: String,
}

/// A parser of one stream.
#[derive(Debug, Default)]
pub(crate) struct TagParser {
    /// The rank of the last tag; `None` for mpirun itself.
    current: Option<usize>,
    /// The incomplete line of each rank.
    open: BTreeMap<Option<usize>, Vec<u8>>,
    /// The end of the input so far, if it may be the beginning of a tag.
    held: Vec<u8>,
}

impl TagParser {
    /// Parses more input. Returns the lines that it completes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<TaggedLine> {
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match read_tag(rest) {
                Tag::Complete { rank, length } => {
                    self.current = Some(rank);
                    at += length;
                }
                Tag::Incomplete => {
                    self.held = rest.to_vec();
                    break;
                }
                Tag::None => {
                    let end = text_length(rest);
                    self.add(&rest[..end], &mut lines);
                    at += end;
                }
            }
        }
        lines
    }

    /// Returns the incomplete lines at the end of the stream.
    pub(crate) fn finish(&mut self) -> Vec<TaggedLine> {
        let mut lines = Vec::new();
        let held = std::mem::take(&mut self.held);
        self.add(&held, &mut lines);
        let open = std::mem::take(&mut self.open);
        lines.extend(open.into_iter().filter(|(_, text)| !text.is_empty()).map(|(rank, text)| line(rank, &text)));
        lines
    }

    /// Appends text to the line of the current rank. A newline may occur only at the end of the text.
    fn add(&mut self, text: &[u8], lines: &mut Vec<TaggedLine>) {
        let open = self.open.entry(self.current).or_default();
        open.extend_from_slice(text);
        if open.last() == Some(&b'\n') || open.len() >= MAX_LINE {
            lines.push(line(self.current, open));
            open.clear();
        }
        if text.last() == Some(&b'\n') {
            // A line without a tag is mpirun's own.
            self.current = None;
        }
    }
}

/// Returns the number of bytes up to the next newline, inclusive, or up to the next byte that may begin a tag.
fn text_length(bytes: &[u8]) -> usize {
    let end = bytes[1..].iter().position(|byte| matches!(byte, b'[' | b'\n'));
    match (bytes[0], end) {
        (b'\n', _) => 1,
        (_, Some(end)) if bytes[1 + end] == b'\n' => end + 2,
        (_, Some(end)) => end + 1,
        (_, None) => bytes.len(),
    }
}

fn line(rank: Option<usize>, bytes: &[u8]) -> TaggedLine {
    let text = String::from_utf8_lossy(bytes);
    TaggedLine { rank, text: text.trim_end_matches(['\n', '\r']).to_owned() }
}

/// The beginning of some input.
enum Tag {
    /// A tag of this rank and length in bytes.
    Complete { rank: usize, length: usize },
    /// Possibly the beginning of a tag.
    Incomplete,
    /// Not a tag.
    None,
}

/// Parses a tag such as `[1,0]<stdout>:`. mpirun 5 puts the name of the job before the comma.
fn read_tag(bytes: &[u8]) -> Tag {
    if bytes.first() != Some(&b'[') {
        return Tag::None;
    }
    let window = &bytes[..bytes.len().min(MAX_TAG)];
    let incomplete = if window.len() < MAX_TAG { Tag::Incomplete } else { Tag::None };
    let stop = |byte: &u8| matches!(byte, b']' | b'\n' | b' ' | b'<');
    let Some(close) = window.iter().position(stop) else { return incomplete };
    let name = std::str::from_utf8(&window[1..close]).unwrap_or_default();
    let rank = name.rsplit_once(',').and_then(|(_, rank)| rank.parse().ok());
    let (b']', Some(rank)) = (window[close], rank) else { return Tag::None };
    let after = &window[close + 1..];
    for stream in [&b"<stdout>:"[..], b"<stderr>:", b"<stddiag>:"] {
        if after.starts_with(stream) {
            return Tag::Complete { rank, length: close + 1 + stream.len() };
        }
        if stream.starts_with(after) {
            return Tag::Incomplete;
        }
    }
    Tag::None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], piece: usize) -> Vec<(Option<usize>, String)> {
        let mut parser = TagParser::default();
        let mut lines: Vec<TaggedLine> = input.chunks(piece).flat_map(|bytes| parser.push(bytes)).collect();
        lines.extend(parser.finish());
        lines.into_iter().map(|line| (line.rank, line.text)).collect()
    }

    #[test]
    fn interleaved_parts_of_lines_are_joined() {
        let input = b"[1,0]<stdout>:first ha[1,1]<stdout>:other line\n[1,0]<stdout>:lf\nfrom mpirun\n\
                      [1,1]<stderr>:[not a tag] [2,x]<stdout>: a[0]\n[1,12]<stdout>:no end";
        let wanted = [
            (Some(1), "other line"),
            (Some(0), "first half"),
            (None, "from mpirun"),
            (Some(1), "[not a tag] [2,x]<stdout>: a[0]"),
            (Some(12), "no end"),
        ]
        .map(|(rank, text)| (rank, text.to_owned()));
        for piece in 1..input.len() {
            assert_eq!(lines(input, piece), wanted, "in pieces of {piece}");
        }
    }

    #[test]
    fn empty_lines_are_kept() {
        let input = b"[1,0]<stdout>:\n[1,0]<stdout>:a\r\n[prterun-host-7@1,3]<stdout>:b\n[";
        let wanted = [(Some(0), ""), (Some(0), "a"), (Some(3), "b"), (None, "[")];
        assert_eq!(lines(input, 5), wanted.map(|(rank, text)| (rank, text.to_owned())));
    }

    #[test]
    fn an_endless_line_does_not_exhaust_memory() {
        let mut parser = TagParser::default();
        let lines = parser.push(&vec![b'x'; 3 * MAX_LINE]).len()
            + (0..3).map(|_| parser.push(&[b'['; 4096]).len()).sum::<usize>();
        assert!(lines >= 1);
        assert!(parser.open.values().all(|open| open.len() < MAX_LINE));
    }

    #[test]
    fn invalid_utf8_is_accepted() {
        let lines = lines(b"[1,0]<stdout>:\xff\xfe[\n[1,\xff]<stdout>:x\n", 3);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].0, Some(0));
    }
}
