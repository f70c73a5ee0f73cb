//! Sizes in bytes, as people write them in configurations and on command lines.

/// Units and their sizes. The order matters: `B` is the end of every other unit.
const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Maximum number of digits after the decimal point.
const MAX_DECIMALS: usize = 12;

/// Parses a size of at least one byte: `60GB`, `1.5 MiB`, or a whole number of bytes without a unit.
///
/// # Errors
/// Returns a message that quotes the text and names the accepted forms.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, Some(*unit)))).unwrap_or((text, None));
    let number = if unit.is_some() { number.strip_suffix(' ').unwrap_or(number) } else { number };
    // Without a unit, a fraction of a byte is meant for some unit.
    let size = match unit {
        Some(unit) => decimal(number).map(|(digits, scale)| digits.saturating_mul(unit.into()) / scale),
        None => decimal(number).and_then(|(digits, scale)| (scale == 1).then_some(digits)),
    };
    match size {
        Some(0) => {
            Err(format!("{text:?} is less than one byte; write a size of at least one byte, like 60GB or 512MiB"))
        }
        Some(size) => match i64::try_from(size) {
            Ok(size) => Ok(size.unsigned_abs()),
            Err(_) => Err(format!("{text:?} is too large; write a size like 60GB or 512MiB")),
        },
        None => Err(format!(
            "{text:?} is not a size; write a number directly followed by KB, MB, GB, TB, KiB, MiB, GiB or TiB, like 60GB \
             or 512MiB, or a whole number of bytes"
        )),
    }
}

/// Parses a decimal number without sign and exponent as an integer and the power of ten that divides it.
fn decimal(text: &str) -> Option<(u128, u128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || text.ends_with('.') || !digits(whole) || !digits(fraction) || fraction.len() > MAX_DECIMALS {
        return None;
    }
    // A number with more digits than fit is too large in any unit.
    let number = format!("{whole}{fraction}").parse().unwrap_or(u128::MAX);
    Some((number, 10u128.pow(fraction.len() as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_units() {
        for (text, size) in [
            ("60GB", 60_000_000_000),
            ("64MiB", 67_108_864),
            ("1.5 MiB", 1_572_864),
            ("0.5KB", 500),
            ("1.1KiB", 1126),
            ("12kB", 12_000),
            ("2TiB", 2_199_023_255_552),
            ("7B", 7),
            ("512", 512),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(parse_bytes(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_accepted_forms() {
        for (text, part) in [
            ("60 gb", "60GB"),
            ("60gb", "60GB"),
            ("60G", "GiB"),
            ("60Gb", "GB"),
            ("60  GB", "directly"),
            ("6e10", "is not a size"),
            ("6e10B", "is not a size"),
            ("-1GB", "is not a size"),
            ("+1GB", "is not a size"),
            ("1_000", "is not a size"),
            ("1,5GB", "is not a size"),
            ("1.GB", "is not a size"),
            (".5GB", "is not a size"),
            ("1.5", "is not a size"),
            ("0x10", "is not a size"),
            ("GB", "is not a size"),
            ("", "is not a size"),
            (" 1GB", "is not a size"),
            ("∞", "is not a size"),
            ("NaN", "is not a size"),
            ("infGB", "is not a size"),
            ("١GB", "is not a size"),
            ("12parsecs", "parsecs"),
            ("0", "at least one byte"),
            ("0GB", "at least one byte"),
            ("0.0001KB", "at least one byte"),
            ("9223372036854775808", "too large"),
            ("10000000TB", "too large"),
            ("99999999999999999999999999999999999999999999GB", "too large"),
        ] {
            let message = parse_bytes(text).expect_err(text);
            assert!(message.contains(part) && message.contains(&format!("{text:?}")), "{text}: {message}");
        }
    }
}
