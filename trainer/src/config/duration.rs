//! Durations, as people write them in a configuration.

use std::time::Duration;

/// Units of a duration, all understood by humantime. Its others are left out because no run has them: months (`M`) are
/// easily meant as minutes, and an interval is not measured in years or microseconds.
const UNITS: [&str; 19] = [
    "ms", "s", "sec", "secs", "second", "seconds", "m", "min", "mins", "minute", "minutes", "h", "hr", "hrs", "hour",
    "hours", "d", "day", "days",
];

/// The longest duration. [`humantime::format_duration`] writes longer ones with months.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// Parses a duration such as `30s`, `45min` or `1h 30min`: whole numbers, each directly followed by its unit.
///
/// # Errors
/// Returns a message that quotes the text and says what is wrong with it. It does not end with a fix, because that depends on
/// the key.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.is_empty() {
        return Err(format!("{text:?} is not a duration"));
    }
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let after = number.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let (digits, unit) = (rest.len() - number.len(), &number[..number.len() - after.len()]);
        if digits == 0 {
            return Err(format!("{text:?} is not a duration"));
        }
        if unit.is_empty() {
            return Err(format!("{text:?} has a number that is not directly followed by a unit"));
        }
        if !UNITS.contains(&unit) {
            return Err(format!("{text:?} has the unit {unit:?}, which is none of ms, s, min, h and d"));
        }
        rest = match after.strip_prefix(' ') {
            Some("") => return Err(format!("{text:?} is not a duration")),
            Some(next) => next,
            None => after,
        };
    }
    match humantime::parse_duration(text) {
        Ok(time) if time <= LONGEST => Ok(time),
        Ok(_) | Err(humantime::DurationError::NumberOverflow) => Err(format!("{text:?} is longer than 30 days")),
        Err(_) => Err(format!("{text:?} is not a duration")),
    }
}
