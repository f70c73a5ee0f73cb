//! The description of a value that its key does not accept.

use arinar_model::text::printable;

use super::keys::{Rule, rule};

/// Describes the value at a dotted path, which has the wrong type. The path of the whole document is empty.
pub(super) fn describe_value(path: &str, value: &str) -> String {
    let Some(rule) = rule(path) else { return describe_section(path, value) };
    let expected = rule.expected();
    match value.chars().next() {
        None => format!("{path} has no value; it takes {expected}"),
        Some('[') => format!("{path}: a list is not {expected}"),
        Some('-') if value == "-" || value.starts_with("- ") => format!("{path}: a list is not {expected}"),
        Some('{') => format!("{path}: a mapping is not {expected}"),
        Some(_) => {
            let fix = plain_number(rule, value).map_or_else(String::new, |number| format!("; write {number}"));
            format!("{path}: {} is not {expected}{fix}", printable(value))
        }
    }
}

/// Describes a value in the place of a mapping.
fn describe_section(path: &str, value: &str) -> String {
    let place = if path.is_empty() { "the file" } else { path };
    let found = match value.chars().next() {
        None => return format!("{place} has no keys; it takes lines of the form KEY: VALUE"),
        Some('[') => "a list".to_owned(),
        Some('-') if value == "-" || value.starts_with("- ") => "a list".to_owned(),
        Some(_) => printable(value),
    };
    format!("{place}: {found} is not a mapping of keys to values, like {{KEY: VALUE}}")
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
