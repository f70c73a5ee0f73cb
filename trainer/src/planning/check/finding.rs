//! A finding: the result of one check, in one line.

use serde::{Deserialize, Serialize};
use serde_json::json;

use arinar_data::{OutputError, Reporter};

/// Width of the column with the subjects.
const SUBJECT_WIDTH: usize = 22;

/// The verdict of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The run has what it needs.
    Ok,
    /// The run works, but the user should know.
    Note,
    /// The run would end because of it, at once or after hours.
    Problem,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The configuration key or the part of the machine that was checked.
    #[serde(rename = "what")]
    pub subject: String,
    pub verdict: Verdict,
    /// The result, and for a problem how to fix it.
    #[serde(rename = "said")]
    pub text: String,
}

impl Finding {
    /// Creates a finding with [`Verdict::Ok`].
    pub(crate) fn ok(subject: &str, text: impl ToString) -> Self {
        Self::new(subject, Verdict::Ok, text)
    }

    /// Creates a finding with [`Verdict::Note`].
    pub(crate) fn note(subject: &str, text: impl ToString) -> Self {
        Self::new(subject, Verdict::Note, text)
    }

    /// Creates a finding with [`Verdict::Problem`].
    pub(crate) fn problem(subject: &str, text: impl ToString) -> Self {
        Self::new(subject, Verdict::Problem, text)
    }

    fn new(subject: &str, verdict: Verdict, text: impl ToString) -> Self {
        // An error may quote several lines of a file.
        Self { subject: subject.to_owned(), verdict, text: arinar_model::text::one_line(&text.to_string()) }
    }

    /// Returns true if the verdict is [`Verdict::Problem`].
    pub(crate) fn is_problem(&self) -> bool {
        self.verdict == Verdict::Problem
    }

    /// Reports the finding in one line.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub(crate) fn report(&self, reporter: &Reporter) -> Result<(), OutputError> {
        reporter.result_record(&self.line(), || json!(self))
    }

    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "PROBLEM",
        };
        format!("{verdict:<8} {:<SUBJECT_WIDTH$} {}", self.subject, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding::problem("run.dir", "cannot\nwrite");
        let line = finding.line();
        assert!(line.starts_with("PROBLEM  run.dir  ") && line.lines().count() == 1, "{line}");
        let line = json!(finding).to_string();
        assert!(line.contains(r#""verdict":"problem""#) && line.lines().count() == 1, "{line}");
        assert!(line.contains(r#""what":"run.dir""#) && line.contains(r#""said":"cannot"#), "{line}");
    }
}
