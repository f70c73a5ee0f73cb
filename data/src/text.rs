//! Durations and sizes as text.

use std::time::Duration;

/// Formats a duration as "42 s", "3 min 20 s" or "5 h 12 min".
pub(crate) fn duration_text(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Formats a number of bytes as "512 B" or "1.2 MB", with powers of 1000.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_what_a_person_would_write() {
        assert_eq!(duration_text(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration_text(Duration::from_secs(18_725)), "5 h 12 min");
        assert_eq!((bytes_text(512), bytes_text(67_108_864)), ("512 B".to_owned(), "67.1 MB".to_owned()));
    }
}
