//! Takes apart what mpirun writes: `[1,0]<stdout>:text` of all ranks in one stream.
//!
//! mpirun passes on what a rank wrote in pieces of at most 4 KiB and tags every piece and every line, so that a tag may
//! stand in the middle of a line, and a piece of another rank between the two halves of one. So the halves of each
//! rank's line are kept apart until its end has come.

use std::collections::BTreeMap;

/// Longest line kept in one piece, in bytes; what is longer is passed on in several.
const LONGEST: usize = 1 << 20;
/// Longest tag that is looked for.
const LONGEST_TAG: usize = 128;

/// A line, of a rank, or of mpirun itself if there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaggedLine {
    /// Who wrote it.
    pub rank: Option<usize>,
    /// Its text, without its end.
    pub text: String,
}

/// Takes one stream apart.
#[derive(Debug, Default)]
pub struct Tags {
    /// Who is speaking.
    speaker: Option<usize>,
    /// Unfinished lines.
    open: BTreeMap<Option<usize>, Vec<u8>>,
    /// The last bytes of what was read, which may be the beginning of a tag.
    held: Vec<u8>,
}

impl Tags {
    /// Takes bytes in, gives the lines that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<TaggedLine> {
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match read_tag(rest) {
                Tag::Whole { rank, length } => {
                    self.speaker = Some(rank);
                    at += length;
                }
                Tag::Unfinished => {
                    self.held = rest.to_vec();
                    break;
                }
                Tag::None => {
                    // Up to the next line's end, or to what may be a tag.
                    let end = rest[1..].iter().position(|byte| matches!(byte, b'[' | b'\n'));
                    let end = match (rest[0], end) {
                        (b'\n', _) => 1,
                        (_, Some(end)) if rest[1 + end] == b'\n' => end + 2,
                        (_, Some(end)) => end + 1,
                        (_, None) => rest.len(),
                    };
                    self.add(&rest[..end], &mut lines);
                    at += end;
                }
            }
        }
        lines
    }

    /// The stream has ended: gives what had no line's end.
    pub fn finish(&mut self) -> Vec<TaggedLine> {
        let mut lines = Vec::new();
        let held = std::mem::take(&mut self.held);
        self.add(&held, &mut lines);
        let open = std::mem::take(&mut self.open);
        lines.extend(open.into_iter().filter(|(_, text)| !text.is_empty()).map(|(rank, text)| line(rank, &text)));
        lines
    }

    /// Adds text to the speaker's line; a line's end can stand at the end of it alone.
    fn add(&mut self, text: &[u8], lines: &mut Vec<TaggedLine>) {
        let open = self.open.entry(self.speaker).or_default();
        open.extend_from_slice(text);
        if open.last() == Some(&b'\n') || open.len() >= LONGEST {
            lines.push(line(self.speaker, open));
            open.clear();
        }
        if text.last() == Some(&b'\n') {
            // What follows without a tag is mpirun's.
            self.speaker = None;
        }
    }
}

fn line(rank: Option<usize>, bytes: &[u8]) -> TaggedLine {
    let text = String::from_utf8_lossy(bytes);
    TaggedLine { rank, text: text.trim_end_matches(['\n', '\r']).to_owned() }
}

enum Tag {
    Whole { rank: usize, length: usize },
    Unfinished,
    None,
}

/// Reads `[1,0]<stdout>:`; mpirun 5 puts the name of the job before the comma.
fn read_tag(bytes: &[u8]) -> Tag {
    if bytes.first() != Some(&b'[') {
        return Tag::None;
    }
    let window = &bytes[..bytes.len().min(LONGEST_TAG)];
    let unfinished = if window.len() < LONGEST_TAG { Tag::Unfinished } else { Tag::None };
    let stop = |byte: &u8| matches!(byte, b']' | b'\n' | b' ' | b'<');
    let Some(close) = window.iter().position(stop) else { return unfinished };
    let name = std::str::from_utf8(&window[1..close]).unwrap_or_default();
    let rank = name.rsplit_once(',').and_then(|(_, rank)| rank.parse().ok());
    let (b']', Some(rank)) = (window[close], rank) else { return Tag::None };
    let after = &window[close + 1..];
    for stream in [&b"<stdout>:"[..], b"<stderr>:", b"<stddiag>:"] {
        if after.starts_with(stream) {
            return Tag::Whole { rank, length: close + 1 + stream.len() };
        }
        if stream.starts_with(after) {
            return Tag::Unfinished;
        }
    }
    Tag::None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], piece: usize) -> Vec<(Option<usize>, String)> {
        let mut tags = Tags::default();
        let mut lines: Vec<TaggedLine> = input.chunks(piece).flat_map(|bytes| tags.push(bytes)).collect();
        lines.extend(tags.finish());
        lines.into_iter().map(|line| (line.rank, line.text)).collect()
    }

    #[test]
    fn halves_of_lines_find_each_other_however_they_are_read() {
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
    fn an_empty_line_is_a_line() {
        let input = b"[1,0]<stdout>:\n[1,0]<stdout>:a\r\n[prterun-host-7@1,3]<stdout>:b\n[";
        let wanted = [(Some(0), ""), (Some(0), "a"), (Some(3), "b"), (None, "[")];
        assert_eq!(lines(input, 5), wanted.map(|(rank, text)| (rank, text.to_owned())));
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let mut tags = Tags::default();
        let lines =
            tags.push(&vec![b'x'; 3 * LONGEST]).len() + (0..3).map(|_| tags.push(&[b'['; 4096]).len()).sum::<usize>();
        assert!(lines >= 1);
        assert!(tags.open.values().all(|open| open.len() < LONGEST));
    }

    #[test]
    fn bytes_that_are_no_text_harm_nothing() {
        let lines = lines(b"[1,0]<stdout>:\xff\xfe[\n[1,\xff]<stdout>:x\n", 3);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].0, Some(0));
    }
}
