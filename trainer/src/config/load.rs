//! Reading a configuration from a file and overrides.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ConfigError, TrainConfig, error::suggestion};

/// Reads the configuration `name` (see [`find`]), applies the overrides in order and checks it.
///
/// # Errors
/// Returns the first problem of the configuration.
pub fn load(name: &str, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let config = read(name, overrides)?;
    config.check()?;
    Ok(config)
}

/// Reads a configuration in the same way without checking its values. [`TrainConfig::problems`] returns all problems of the
/// values.
///
/// # Errors
/// Returns an error if the configuration cannot be parsed.
pub fn read(name: &str, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let path = find(name)?;
    let text =
        std::fs::read_to_string(&path).map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
    parse_unchecked(&text, &path.display().to_string(), overrides)
}

/// Parses and checks a configuration. `file` is the name of the file in messages.
///
/// # Errors
/// Returns the first problem of the configuration.
pub fn parse(text: &str, file: &str, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let config = parse_unchecked(text, file, overrides)?;
    config.check()?;
    Ok(config)
}

fn parse_unchecked(text: &str, file: &str, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let options = serde_saphyr::options! { with_snippet: false };
    let written: TrainConfig =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax_error(file, &error))?;
    apply(written, overrides)
}

/// Finds the file of a `--config` argument: a path, or a file in `configs/` in the current directory, next to the build
/// folder, or in the folder of `make install`.
///
/// # Errors
/// Returns [`ConfigError::NotFound`] with all paths that were tried.
pub fn find(name: &str) -> Result<PathBuf, ConfigError> {
    let mut places = vec![PathBuf::from(name)];
    if Path::new(name).is_relative() {
        places.push(Path::new("configs").join(name));
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
        let relative = ["../../configs", "../configs", "../share/arinar/configs"];
        places.extend(beside.iter().flat_map(|folder| relative.map(|place| folder.join(place).join(name))));
    }
    match places.iter().find(|place| place.is_file()) {
        Some(place) => Ok(place.clone()),
        None => Err(ConfigError::NotFound { name: name.to_owned(), looked: places }),
    }
}

fn syntax_error(file: &str, error: &serde_saphyr::Error) -> ConfigError {
    use serde_saphyr::Error;
    let location = error.location();
    let message = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown key {field:?}{}", suggestion(field, expected.iter().copied()))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("unknown value {variant:?}; one of {}", expected.join(", "))
        }
        Error::SerdeMissingField { field, .. } => format!("the key {field:?} is missing here"),
        other => without_position(&other.to_string()),
    };
    let (line, column) = location.map_or((1, 1), |at| (at.line(), at.column()));
    ConfigError::Syntax { file: file.to_owned(), line, column, message }
}

/// Returns the first line of the parser's message, without the position that it may repeat at the end.
fn without_position(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.split(" at line ").next().unwrap_or(line).trim_start_matches("error: ").to_owned()
}

/// Replaces values in the serialized configuration, which contains all known keys, and parses it again.
fn apply(config: TrainConfig, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let mut config = config;
    for argument in overrides {
        let fail = |message: String| ConfigError::Override { argument: argument.clone(), message };
        let (path, text) =
            argument.split_once('=').ok_or_else(|| fail("write it as key=value, e.g. optim.epochs=2".to_owned()))?;
        let mut tree = serde_json::to_value(&config).map_err(|error| fail(error.to_string()))?;
        let place = descend(&mut tree, path.trim()).map_err(fail)?;
        *place = override_value(text.trim(), place);
        config = serde_json::from_value(tree).map_err(|error| fail(error.to_string()))?;
    }
    Ok(config)
}

/// Returns the value at a dotted path.
fn descend<'a>(tree: &'a mut Value, path: &str) -> Result<&'a mut Value, String> {
    let mut place = tree;
    let mut walked = String::new();
    for key in path.split('.') {
        let Value::Object(fields) = place else {
            return Err(format!("{walked:?} has no keys inside"));
        };
        if !fields.contains_key(key) {
            let inside = if walked.is_empty() { String::new() } else { format!(" in {walked:?}") };
            let near = suggestion(key, fields.keys().map(String::as_str));
            return Err(format!("unknown key {key:?}{inside}{near}"));
        }
        place = &mut fields[key];
        walked = if walked.is_empty() { key.to_owned() } else { format!("{walked}.{key}") };
    }
    Ok(place)
}

/// Parses the text of an override that replaces `present`: a text if `present` is one, otherwise YAML. `null` is always null.
fn override_value(text: &str, present: &Value) -> Value {
    let flow = text.starts_with(['[', '{', '"', '\'']);
    match serde_saphyr::from_str::<Value>(text) {
        Ok(value) if flow || value.is_null() => value,
        Ok(value) if !(value.is_object() || value.is_string() || present.is_string()) => value,
        _ => Value::String(text.to_owned()),
    }
}
