//! Text that comes from files, fit for an error's one line.

/// Characters shown of a text that comes from a file.
const LONGEST: usize = 200;

/// The text without line breaks and other control characters.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// As [`one_line`], and not endless.
pub fn printable(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        None => one_line(text),
        Some((end, _)) => one_line(&text[..end]) + "...",
    }
}
