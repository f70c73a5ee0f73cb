//! Overrides on the command line: `--set KEY=VALUE` has the effect of a file with `KEY: VALUE`.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{ConfigError, TrainConfig, error::suggestion, yaml};

/// Replaces values of a configuration, in order.
///
/// # Errors
/// Returns an error for the first override that cannot be applied, or for a number of the configuration that is not finite.
pub(super) fn apply(config: TrainConfig, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    overrides.iter().try_fold(config, |config, argument| {
        let fail = |message: String| ConfigError::Override { argument: argument.clone(), message };
        let (path, text) =
            argument.split_once('=').ok_or_else(|| fail("write it as key=value, e.g. optim.epochs=2".to_owned()))?;
        let tree = serde_json::to_value(&config).map_err(|error| fail(error.to_string()))?;
        // JSON has no infinity, which the checks of the values report.
        let is_complete = serde_json::from_value::<TrainConfig>(tree.clone()).is_ok_and(|copy| copy == config);
        if let Some(problem) = config.problems().into_iter().next().filter(|_| !is_complete) {
            return Err(problem);
        }
        let path: Vec<&str> = path.trim().split('.').collect();
        check_path(&tree, &path).map_err(fail)?;
        let value = one_value(text.trim()).map_err(fail)?;
        let Value::Object(fields) = tree else { return Err(fail("the configuration is not a mapping".to_owned())) };
        let mut document = String::new();
        write_document(&fields, &path, &value, "", &mut document);
        yaml::parse(&document).map_err(|error| fail(error.message))
    })
}

/// Checks that there is a key at the path.
fn check_path(tree: &Value, path: &[&str]) -> Result<(), String> {
    let mut place = tree;
    for (depth, key) in path.iter().enumerate() {
        let walked = path[..depth].join(".");
        let fields = match place {
            Value::Object(fields) => fields,
            Value::Null => {
                return Err(format!(
                    "{walked:?} is null; set all of its keys together: --set '{walked}={{KEY: VALUE, ...}}'"
                ));
            }
            _ => return Err(format!("{walked:?} has no keys inside")),
        };
        let Some(inside) = fields.get(*key) else {
            let section = if walked.is_empty() { String::new() } else { format!(" in {walked:?}") };
            let near = suggestion(key, fields.keys().map(String::as_str));
            return Err(format!("unknown key {key:?}{section}{near}"));
        };
        place = inside;
    }
    Ok(())
}

/// Returns the YAML of a value. The end of the argument is the end of the value, so that a colon at the end belongs to a text
/// such as `synthetic:`. A comment cannot be meant.
fn one_value(text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r']) {
        return Err("a value is one line; write \\n in double quotes for a line break".to_owned());
    }
    let is_plain = !text.starts_with(['"', '\'', '[', '{', '&', '*', '!', '|', '>', '@', '`', '%']);
    if is_plain && (text.starts_with('#') || text.contains(" #") || text.contains("\t#")) {
        return Err("'#' begins a comment in YAML; put the value in quotes, like 'KEY=\"VALUE\"'".to_owned());
    }
    if text.starts_with(['"', '\'', '[', '{']) {
        // In the whole document, the end would be searched in the values that follow.
        let alone = yaml::parse::<IgnoredAny>(text);
        if let Some(error) = alone.err().filter(|error| error.is_syntax) {
            return Err(error.message);
        }
    }
    let ends_with_colon = is_plain && text.ends_with(':') && !text.contains([' ', '\t']);
    Ok(if ends_with_colon { Value::from(text).to_string() } else { text.to_owned() })
}

/// Writes the configuration as YAML with `value` at `path`. The other values are in JSON, which is YAML too.
fn write_document(fields: &Map<String, Value>, path: &[&str], value: &str, indent: &str, document: &mut String) {
    for (key, other) in fields {
        let line = match (path, other) {
            ([last], _) if key == last => format!("{indent}{key}: {value}\n"),
            ([first, rest @ ..], Value::Object(inside)) if key == first => {
                document.push_str(&format!("{indent}{key}:\n"));
                write_document(inside, rest, value, &format!("{indent}  "), document);
                continue;
            }
            _ => format!("{indent}{key}: {}\n", ascii(other)),
        };
        document.push_str(&line);
    }
}

/// Returns a value in JSON, with YAML's escapes of the characters that YAML restricts and JSON does not.
fn ascii(value: &Value) -> String {
    let escape = |c: char| if matches!(c, ' '..='~') { c.to_string() } else { format!("\\U{:08x}", u32::from(c)) };
    value.to_string().chars().map(escape).collect()
}
