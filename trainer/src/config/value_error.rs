//! The description of a value that its key does not accept.

use arinar_model::text::printable;

use super::keys::{Rule, rule};

/// A value as it is written in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// There is no value after the colon.
    None,
    /// A list.
    List,
    /// A mapping.
    Mapping,
    /// A text that continues on the next line.
    SeveralLines,
    /// The text of anything else.
    Text(String),
}

impl Value {
    fn description(&self) -> String {
        match self {
            Self::None => "nothing".to_owned(),
            Self::List => "a list".to_owned(),
            Self::Mapping => "a mapping".to_owned(),
            Self::SeveralLines => "a text of several lines".to_owned(),
            Self::Text(text) => printable(text),
        }
    }
}

/// Describes the value at a dotted path, which has the wrong type. The path of the whole document is empty.
pub(super) fn describe_value(path: &str, value: &Value) -> String {
    let rule = rule(path);
    let place = if path.is_empty() { "the file" } else { path };
    let fix = match (rule, value) {
        (None, Value::None) => return format!("{place} has no keys; it takes lines of the form KEY: VALUE"),
        (Some(rule), Value::None) => return format!("{place} has no value; it takes {}", rule.expected()),
        (_, Value::SeveralLines) => {
            "; close the bracket of this line, or correct the indentation of the next".to_owned()
        }
        (Some(rule), Value::Text(text)) => {
            plain_number(rule, text).map_or_else(String::new, |number| format!("; write {number}"))
        }
        _ => String::new(),
    };
    let expected = rule.map_or("a mapping of keys to values, like {KEY: VALUE}".to_owned(), Rule::expected);
    format!("{place}: {} is not {expected}{fix}", value.description())
}

/// Returns the number that was probably meant, in a form that is accepted.
fn plain_number(rule: Rule, value: &str) -> Option<String> {
    let value = value.replace('_', "");
    let number: f64 = value.parse().ok().filter(|number: &f64| number.is_finite() && rule.allows(*number))?;
    match rule {
        // Larger numbers have no exact f64.
        Rule::Count(..) => (number.fract() == 0.0 && number < 9e15).then(|| format!("{number}")),
        Rule::Positive | Rule::NotNegative | Rule::Fraction => Some(value),
        Rule::Text(_) | Rule::Other(_) => None,
    }
}
