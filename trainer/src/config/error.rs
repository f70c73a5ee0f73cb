//! Errors of a configuration, in one line that names the fix.

use std::path::PathBuf;

/// An error of a configuration. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists neither at the given path nor among the configurations of the program.
    #[error("no configuration {name:?}; looked for {}", join(.looked))]
    NotFound {
        /// The name given.
        name: String,
        /// All paths that were tried.
        looked: Vec<PathBuf>,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{} is not a configuration: {reason}; give a YAML file in UTF-8", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The YAML cannot be parsed into a configuration.
    #[error("{file}:{line}:{column}: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// Line, counted from 1.
        line: u64,
        /// Column, counted from 1.
        column: u64,
        /// The problem; for an unknown key, with the nearest known key.
        message: String,
    },
    /// A `--set` override cannot be applied.
    #[error("--set {argument}: {message}")]
    Override {
        /// The argument given.
        argument: String,
        /// The problem.
        message: String,
    },
    /// A value is out of range, or does not fit to other values.
    #[error("{key}: {message}")]
    Value {
        /// The key to change, dotted.
        key: &'static str,
        /// The problem and the fix.
        message: String,
    },
    /// An option of the command line is not a usable place.
    #[error(transparent)]
    Place(#[from] arinar_place::OptionError),
    /// The model description is inconsistent.
    #[error(transparent)]
    Model(#[from] arinar_model::config::ConfigError),
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Returns `; did you mean "x"?` with the known key nearest to `unknown`, or a list of all known keys if none is near.
pub(super) fn suggestion<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest =
        known.iter().map(|key| (strsim::damerau_levenshtein(unknown, key), *key)).min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, key)) if distance <= key.len().max(unknown.len()).div_ceil(2) => {
            format!("; did you mean {key:?}?")
        }
        _ if known.is_empty() => String::new(),
        _ => format!("; known keys: {}", known.join(", ")),
    }
}
