//! What was looked at and how it is, in one line each.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::reporter::Reporter;

/// Width of the names in front of what was found.
const NAME: usize = 22;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As a run needs it.
    Ok,
    /// A run does without it, but its user should know.
    Note,
    /// A run would end because of it, at once or after hours.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What: a key of the configuration, or a part of the machine.
    pub what: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found; of a problem also the cure.
    pub said: String,
}

impl Finding {
    /// All is well.
    pub fn ok(what: &str, said: impl ToString) -> Self {
        Self::new(what, Verdict::Ok, said)
    }

    /// Worth knowing.
    pub fn note(what: &str, said: impl ToString) -> Self {
        Self::new(what, Verdict::Note, said)
    }

    /// Must be changed.
    pub fn problem(what: &str, said: impl ToString) -> Self {
        Self::new(what, Verdict::Problem, said)
    }

    fn new(what: &str, verdict: Verdict, said: impl ToString) -> Self {
        // What is wrong may quote a file.
        Self { what: what.to_owned(), verdict, said: arinar_model::text::one_line(&said.to_string()) }
    }

    /// Reports the finding in one line.
    pub fn report(&self, reporter: &Reporter) {
        reporter.record(&self.text(), || json!(self));
    }

    fn text(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "PROBLEM",
        };
        format!("{verdict:<8} {:<NAME$} {}", self.what, self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding::problem("run.dir", "cannot\nwrite");
        let line = finding.text();
        assert!(line.starts_with("PROBLEM  run.dir  ") && line.lines().count() == 1, "{line}");
        let line = json!(finding).to_string();
        assert!(line.contains(r#""verdict":"problem""#) && line.lines().count() == 1, "{line}");
    }
}
