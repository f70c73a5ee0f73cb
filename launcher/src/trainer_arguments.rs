//! The command line of the trainer.

use crate::arguments::{Arguments, LogFormat};

/// Arguments that make the trainer inspect something and exit instead of training. Such a job is neither watched nor
/// restarted.
const INSPECTIONS: [&str; 2] = ["--check", "--plan"];

/// Returns true if this argument makes the trainer inspect something instead of training.
pub(crate) fn is_inspection(word: &str) -> bool {
    INSPECTIONS.contains(&word)
}

/// Returns the arguments of every rank.
pub(crate) fn trainer_arguments(arguments: &Arguments) -> Vec<String> {
    let mut words = vec!["--config".to_owned(), arguments.config.clone()];
    for value in &arguments.overrides {
        words.extend(["--set".to_owned(), value.clone()]);
    }
    words.extend(arguments.trainer_arguments.iter().cloned());
    if arguments.log_format == LogFormat::Json && !words.iter().any(|word| word.starts_with("--log-format")) {
        words.extend(["--log-format", "json"].map(str::to_owned));
    }
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranks_use_the_launchers_log_format() {
        let of = |line: &str| {
            let words = line.split(' ').map(Into::into);
            trainer_arguments(&Arguments::read(words).unwrap()).join(" ")
        };
        let line = "arinar-launcher --config a --set b=1 --log-format json";
        assert_eq!(of(line), "--config a --set b=1 --log-format json");
        let line = "arinar-launcher --config a --log-format json -- --check --log-format=text";
        assert_eq!(of(line), "--config a --check --log-format=text");
    }

    #[test]
    fn check_and_plan_are_inspections() {
        assert!(is_inspection("--check") && is_inspection("--plan"));
        assert!(!is_inspection("--export") && !is_inspection("check"));
    }
}
