//! Values that people write with units or as words.

use std::{fmt, str::FromStr, time::Duration};

use arinar_data::Reporter;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An interval: a duration such as `30min`, or a number of steps such as `100 steps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    /// An interval of wall-clock time.
    Time(Duration),
    /// An interval of training steps.
    Steps(u64),
}

impl Default for Every {
    fn default() -> Self {
        Self::Time(Duration::from_secs(30 * 60))
    }
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim_end_matches("steps").trim_end_matches("step").trim();
        if let Ok(steps) = number.parse::<u64>() {
            return Self::steps(steps);
        }
        match humantime::parse_duration(text) {
            Ok(time) if !time.is_zero() => Ok(Self::Time(time)),
            _ => Err(format!("\"{text}\" is neither a duration like 30min nor a number of steps like \"100 steps\"")),
        }
    }
}

impl Every {
    fn steps(steps: u64) -> Result<Self, String> {
        if steps == 0 {
            return Err("every 0 steps is never; give at least 1".to_owned());
        }
        Ok(Self::Steps(steps))
    }
}

impl fmt::Display for Every {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(formatter, "{}", humantime::format_duration(*time)),
            Self::Steps(steps) => write!(formatter, "{steps} steps"),
        }
    }
}

/// A number of bytes, written without a unit or with one: `60GB`, `512MiB`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((text.strip_suffix('B').unwrap_or(text), 1));
        match number.trim().parse::<f64>() {
            Ok(number) if number >= 0.0 && number.is_finite() => Ok(Self((number * unit as f64) as u64)),
            _ => Err(format!("\"{text}\" is not a number of bytes like 60GB or 512MiB")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// A timeout, written as a duration such as `10min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeout(pub Duration);

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = humantime::parse_duration(text);
        time.map(Self).map_err(|_| format!("\"{text}\" is not a duration like 10min or 30s"))
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", humantime::format_duration(self.0))
    }
}

/// Visits a text with units, or a bare number, that `FromStr` parses.
struct Text<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text or a whole number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// (De)serialization of a value as text, for `#[serde(with = "text")]`.
pub(super) mod text {
    use super::{Deserializer, FromStr, Serializer, Text, fmt};

    pub(crate) fn deserialize<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        from.deserialize_any(Text(std::marker::PhantomData))
    }

    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(value: &T, into: S) -> Result<S::Ok, S::Error> {
        into.collect_str(value)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                text::deserialize(from)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
                text::serialize(self, into)
            }
        }
    };
}

as_text!(Every);
as_text!(ByteSize);
as_text!(Timeout);

/// The response to a loss or gradient that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Stop before the weights change.
    Stop,
    /// Skip the step, a limited number of times in a row.
    Skip,
}

/// The format of progress messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text
    Text,
    /// One JSON object per line
    Json,
}

impl LogFormat {
    /// Returns a reporter that writes this format.
    pub fn reporter(self) -> Reporter {
        match self {
            Self::Text => Reporter::console(),
            Self::Json => Reporter::json(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Resume;

    #[test]
    fn periods_come_as_time_or_steps() {
        assert_eq!("30min".parse(), Ok(Every::Time(Duration::from_secs(1800))));
        for text in ["100 steps", "100", "100steps"] {
            assert_eq!(text.parse(), Ok(Every::Steps(100)));
        }
        for text in ["0", "0 steps", "0s", "soon", ""] {
            assert!(text.parse::<Every>().is_err(), "{text}");
        }
    }

    #[test]
    fn byte_sizes_have_units() {
        assert_eq!("60GB".parse(), Ok(ByteSize(60_000_000_000)));
        assert_eq!("1.5 MiB".parse(), Ok(ByteSize(1_572_864)));
        assert_eq!("512".parse(), Ok(ByteSize(512)));
        assert!("lots".parse::<ByteSize>().is_err());
    }

    #[test]
    fn texts_survive_a_round_trip() {
        for every in [Every::Steps(7), Every::Time(Duration::from_secs(90))] {
            assert_eq!(every.to_string().parse(), Ok(every));
        }
        for timeout in ["10min", "0s", "1h 30s"] {
            let timeout: Timeout = timeout.parse().expect("a duration");
            assert_eq!(timeout.to_string().parse(), Ok(timeout));
        }
        assert!("ten".parse::<Timeout>().is_err());
        for resume in [Resume::Auto, Resume::None, Resume::From("runs/a".to_owned())] {
            assert_eq!(resume.to_string().parse(), Ok(resume));
        }
    }
}
