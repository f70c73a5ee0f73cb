//! Reading a configuration from a file and overrides.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    ConfigError, TrainConfig, overrides,
    yaml::{self, YamlError},
};

/// Maximum length of a configuration in bytes.
const LONGEST: u64 = 1 << 20;

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
    let text = read_text(&path)?;
    parse_unchecked(&text, &path.display().to_string(), overrides)
}

/// Reads a file of the size of a configuration.
fn read_text(path: &Path) -> Result<String, ConfigError> {
    let fail = |reason: String| ConfigError::NotText { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    let file = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    file.map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    if bytes.len() as u64 > LONGEST {
        return Err(fail(format!("it is longer than {} KiB", LONGEST / 1024)));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(fail("it is encoded as UTF-16".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        fail(format!("line {} is not UTF-8", before.iter().filter(|&&byte| byte == b'\n').count() + 1))
    })?;
    if text.contains('\0') { Err(fail("it is a binary file".to_owned())) } else { Ok(text) }
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
    let written = yaml::parse(text).map_err(|YamlError { line, column, message, .. }| ConfigError::Syntax {
        file: file.to_owned(),
        line,
        column,
        message,
    })?;
    overrides::apply(written, overrides)
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
    if let Some(place) = places.iter().find(|place| place.is_file()) {
        return Ok(place.clone());
    }
    match places.first().filter(|place| place.exists()) {
        Some(place) => Err(ConfigError::NotText { path: place.clone(), reason: "it is not a file".to_owned() }),
        None => Err(ConfigError::NotFound { name: name.to_owned(), looked: places }),
    }
}

#[cfg(test)]
mod tests;
