//! Values that people write with units or as words.

use std::{fmt, str::FromStr, time::Duration};

use arinar_data::{Reporter, parse_bytes};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::duration::parse_duration;

/// An interval: a duration such as `30min`, or a number of steps such as `100 steps` or `100`.
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
        const FORMS: &str = "write a duration like 30s, 45min or 2h, or a number of steps like \"100 steps\"";
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.strip_suffix("steps").or_else(|| text.strip_suffix("step"));
        let number = number.map(|number| number.strip_suffix(' ').unwrap_or(number));
        if let Some(number) = number.or_else(|| is_number(text).then_some(text)) {
            let digits = is_number(number);
            return match number.parse() {
                Ok(0) => Err(format!("{text:?} is never; {FORMS}")),
                Ok(steps) if digits => Ok(Self::Steps(steps)),
                _ => Err(format!("{text:?} is not a number of steps; {FORMS}")),
            };
        }
        match parse_duration(text) {
            Ok(time) if !time.is_zero() => Ok(Self::Time(time)),
            Ok(_) => Err(format!("{text:?} is no interval; {FORMS}")),
            Err(problem) => Err(format!("{problem}; {FORMS}")),
        }
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

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Self)
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
        parse_duration(text).map(Self).map_err(|problem| format!("{problem}; write a duration like 30s, 10min or 1h"))
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", humantime::format_duration(self.0))
    }
}

/// Visits a text that `FromStr` parses.
struct Text<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// (De)serialization of a value as text, for `#[serde(with = "text")]`. YAML passes on the text as it is written, so that
/// `1e3` and `no` are not read as a number and a boolean first.
pub(super) mod text {
    use super::{Deserializer, FromStr, Serializer, Text, fmt};

    pub(crate) fn deserialize<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        from.deserialize_str(Text(std::marker::PhantomData))
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
mod tests;
