//! What one failed request to a cloud means: the status and the code in its body, or how the connection broke.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::StoreError;

/// Codes of S3, STS and Azure for credentials that were good once.
const EXPIRED: [&str; 5] =
    ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidAuthenticationInfo"];
/// Codes that come with a status which is not that of a passing failure.
const PASSING: [&str; 6] = [
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "OperationAborted",
    "ConditionalRequestConflict",
];
/// Where a machine of Amazon's gets credentials from; object_store asks there when it has none.
const INSTANCE_METADATA: &str = "169.254.169.254";
/// Longest text of a service that is shown.
const SHOWN_CHARACTERS: usize = 240;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No such object.
    Missing,
    /// No such bucket.
    NoBucket,
    /// The condition of a conditional request does not hold.
    Condition,
    /// The range lies beyond the end.
    Range,
    /// Refused.
    Denied,
    /// Refused, and new credentials are the cure.
    Expired,
    /// There are no credentials at all.
    NoCredentials,
    /// Worth trying again: overload, failure of the service, a broken connection, too long a wait.
    Passing,
    /// Anything else that trying again does not cure.
    Lasting,
}

/// One failed request.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// One line, from the service or the system.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self { kind: Kind::Passing, text: text.into() }
    }

    pub(super) fn lasting(text: impl Into<String>) -> Self {
        Self { kind: Kind::Lasting, text: text.into() }
    }

    /// The error of the operation that ended so. The text must be free of secrets by now.
    pub(super) fn into_error(self, url: String) -> StoreError {
        let Self { kind, text } = self;
        match kind {
            Kind::Missing => StoreError::Missing { url },
            Kind::NoBucket => StoreError::NoBucket { url },
            Kind::Denied => StoreError::Denied { url, source: text.into() },
            Kind::Expired => StoreError::Expired { url, source: text.into() },
            Kind::NoCredentials => StoreError::Setup {
                url,
                reason: "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to \
                         a profile in ~/.aws/credentials"
                    .to_owned(),
            },
            Kind::Passing => StoreError::Unavailable { url, reason: text },
            Kind::Condition | Kind::Range | Kind::Lasting => StoreError::Other { url, source: text.into() },
        }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        let texts = chain(&error);
        let answer = texts.iter().find_map(|text| Answer::parse(text));
        let code = answer.as_ref().map_or("", |answer| answer.code.as_str());
        let http = http_kind(&error);
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let kind = match &error {
            // Nobody is there, or has a role for this machine; an overloaded service would answer otherwise.
            _ if texts.iter().any(|text| text.contains(INSTANCE_METADATA))
                && (matches!(http, Some(HttpErrorKind::Connect | HttpErrorKind::Timeout)) || status / 100 == 4)
                && status != 429 =>
            {
                Kind::NoCredentials
            }
            _ if EXPIRED.contains(&code) => Kind::Expired,
            _ if PASSING.contains(&code) => Kind::Passing,
            _ if matches!(code, "NoSuchBucket" | "ContainerNotFound") => Kind::NoBucket,
            object_store::Error::NotFound { .. } => Kind::Missing,
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. }
            | object_store::Error::NotModified { .. } => Kind::Condition,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Kind::Denied,
            // A refused listing comes as any other failure.
            _ if matches!(status, 401 | 403) => Kind::Denied,
            _ if status == 416 => Kind::Range,
            _ if (status >= 500 && status != 501) || matches!(status, 408 | 429) => Kind::Passing,
            _ if status != 0 => Kind::Lasting,
            // A body that ends early or a connection that breaks is of one of these kinds, or of none that is known.
            _ if http.is_some() => Kind::Passing,
            // object_store could not read an answer that it must understand, as one that was cut short.
            _ if texts.iter().any(|text| text.contains("Got invalid")) => Kind::Passing,
            _ => Kind::Lasting,
        };
        let deepest = texts.last().cloned().unwrap_or_default();
        let text = match (answer, http) {
            (Some(answer), _) => answer.text(),
            (None, Some(HttpErrorKind::Connect)) => format!("no connection: {deepest}"),
            (None, Some(HttpErrorKind::Timeout)) => format!("no answer in time: {deepest}"),
            (None, Some(_)) => format!("the connection broke: {deepest}"),
            (None, None) => deepest,
        };
        Self { kind, text: one_line(&text) }
    }
}

/// What a service answered.
struct Answer {
    status: u16,
    code: String,
    message: String,
}

impl Answer {
    /// From the words of object_store, whose type for it is private; a unit test sees to it that these stay so.
    fn parse(text: &str) -> Option<Self> {
        let (status, body) = if let Some((_, rest)) = text.split_once("non-2xx status code: ") {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            (digits.parse().ok()?, rest)
        } else {
            (200, text.split_once("Server returned error response: ")?.1)
        };
        let tag = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            Some(rest.split_once(&format!("</{name}>"))?.0.trim().to_owned())
        };
        Some(Self { status, code: tag("Code").unwrap_or_default(), message: tag("Message").unwrap_or_default() })
    }

    /// Only code and message: the rest of the body can hold the token that was sent.
    fn text(&self) -> String {
        let mut text = format!("the store answers {}", self.status);
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                text.push_str(if text.contains(' ') && part == &self.code { " " } else { ": " });
                text.push_str(part);
            }
        }
        text
    }
}

/// The texts of an error and of its causes, from the outermost to the deepest.
fn chain(error: &object_store::Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts
}

fn http_kind(error: &object_store::Error) -> Option<HttpErrorKind> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        cause = error.source();
    }
    None
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some((end, _)) = text.char_indices().nth(SHOWN_CHARACTERS) else { return text };
    // Whole words only: of a secret that was cut, a part would be left for all to see.
    let end = if text[end..].starts_with(' ') { end } else { text[..end].rfind(' ').unwrap_or(0) };
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_code_and_shows_nothing_else() {
        let body = "<Error><Code>ExpiredToken</Code><Message>The token\n has expired.</Message><Token-0>S3CR3T</Token-0></Error>";
        let text = format!("Server returned non-2xx status code: 400 Bad Request: {body}");
        let failure = Failure::from(object_store::Error::Generic { store: "S3", source: text.into() });
        assert_eq!(failure.kind, Kind::Expired);
        assert_eq!(failure.text, "the store answers 400 ExpiredToken: The token has expired.");
    }

    #[test]
    fn a_long_text_ends_with_a_whole_word() {
        let words = "word ".repeat(47);
        assert_eq!(one_line(&format!("{words}{}", "s3cr3t".repeat(6))), format!("{}...", words.trim_end()));
        assert_eq!(one_line(&"s3cr3t".repeat(100)), "...");
        let exact = format!("{words}words");
        assert_eq!((one_line(&exact), one_line(&format!("{exact} more"))), (exact.clone(), format!("{exact}...")));
    }

    #[test]
    fn a_status_decides_where_there_is_no_code() {
        let kind = |status: &str| {
            let text = format!("Server returned non-2xx status code: {status}: ");
            Failure::from(object_store::Error::Generic { store: "S3", source: text.into() }).kind
        };
        assert_eq!(kind("503 Service Unavailable"), Kind::Passing);
        assert_eq!(kind("429 Too Many Requests"), Kind::Passing);
        assert_eq!(kind("416 Range Not Satisfiable"), Kind::Range);
        assert_eq!(kind("403 Forbidden"), Kind::Denied);
        assert_eq!(kind("400 Bad Request"), Kind::Lasting);
        assert_eq!(kind("501 Not Implemented"), Kind::Lasting);
    }
}
