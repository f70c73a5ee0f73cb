//! What can be wrong with a configuration, in one line that names the cure.

use std::path::PathBuf;

/// A configuration that cannot be used. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, neither as given nor among the shipped configurations.
    #[error("no configuration {name:?}; looked for {}", join(.looked))]
    NotFound {
        /// As given.
        name: String,
        /// Every place tried.
        looked: Vec<PathBuf>,
    },
    /// The file exists and cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The YAML does not parse into a configuration.
    #[error("{file}:{line}:{column}: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong, with the nearest known key where a key is unknown.
        message: String,
    },
    /// An override does not fit.
    #[error("--set {argument}: {message}")]
    Override {
        /// As given.
        argument: String,
        /// What is wrong.
        message: String,
    },
    /// Each value is well-formed but they cannot be used together.
    #[error("{key}: {message}")]
    Value {
        /// The key to change, dotted.
        key: &'static str,
        /// What is wrong and the cure.
        message: String,
    },
    /// The model description is inconsistent.
    #[error(transparent)]
    Model(#[from] arinar_model::config::ConfigError),
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// `; did you mean "x"?` for the known key nearest to `unknown`, or the list of all known keys when
/// none is near.
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
