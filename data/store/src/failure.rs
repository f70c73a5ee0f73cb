//! Classification of failed requests by the status, the code in the body, or the failure of the connection.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::StoreError;

/// Codes of S3, STS and Azure for expired credentials.
const EXPIRED: [&str; 5] =
    ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidAuthenticationInfo"];
/// Codes of temporary failures whose status does not indicate a temporary failure.
const TEMPORARY: [&str; 6] = [
    "SlowDown",
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "OperationAborted",
    "ConditionalRequestConflict",
];
/// Codes for a clock that is wrong.
const CLOCK: [&str; 1] = ["RequestTimeTooSkewed"];
/// Codes for a request that was signed for another region than that of the bucket.
const REGION: [&str; 5] = [
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "TemporaryRedirect",
    "IllegalLocationConstraintException",
    "InvalidRegion",
];
/// Codes for denied access whose status does not say so, or whose remedy is a particular one.
const DENIED: [(&str, Denial); 15] = [
    ("AccessDenied", Denial::Permission),
    ("AllAccessDisabled", Denial::Permission),
    ("AccountProblem", Denial::Permission),
    ("NotSignedUp", Denial::Permission),
    ("InvalidPayer", Denial::Permission),
    ("AuthorizationPermissionMismatch", Denial::Permission),
    ("AuthorizationFailure", Denial::Permission),
    ("InsufficientAccountPermissions", Denial::Permission),
    ("InvalidAccessKeyId", Denial::Key),
    ("InvalidClientTokenId", Denial::Key),
    ("UnrecognizedClientException", Denial::Key),
    ("SignatureDoesNotMatch", Denial::Secret),
    ("AuthenticationFailed", Denial::Secret),
    ("InvalidSecurity", Denial::Secret),
    ("InvalidToken", Denial::Token),
];
/// Text of object_store for a redirection by a bucket of another region.
const REDIRECT: &str = "Received redirect without LOCATION";
/// Address of the metadata service of AWS machines, from which object_store requests credentials if it has none.
const INSTANCE_METADATA: &str = "169.254.169.254";
/// Maximum length of a text of a service in messages.
const MAX_CHARACTERS: usize = 240;

/// Kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The object does not exist.
    Missing,
    /// The bucket does not exist.
    NoBucket,
    /// The condition of a conditional request does not hold.
    Condition,
    /// The requested range begins after the end of the object.
    Range,
    /// Access is denied.
    Denied(Denial),
    /// Access is denied because the credentials have expired.
    Expired,
    /// There are no credentials.
    NoCredentials,
    /// The clock of this machine is wrong.
    Clock,
    /// The bucket is in another region.
    Region,
    /// The service does not have the operation.
    Unsupported,
    /// A retry may succeed: overload, an error of the service, a broken connection, or a timeout.
    Temporary,
    /// Any other failure, for which retries are useless.
    Permanent,
}

/// Reason why access is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The user lacks a permission, or the reason is unknown.
    Permission,
    /// The access key is unknown.
    Key,
    /// The secret key is wrong.
    Secret,
    /// The session token is wrong.
    Token,
}

impl Denial {
    fn remedy(self) -> &'static str {
        match self {
            Self::Permission => "check credentials and permissions",
            Self::Key => {
                "the store does not know this access key; correct AWS_ACCESS_KEY_ID or the profile, or the endpoint if \
                 the key is for another store"
            }
            Self::Secret => {
                "the secret key does not fit the access key; correct AWS_SECRET_ACCESS_KEY or the profile (for Azure and \
                 Google, the key in their variables)"
            }
            Self::Token => {
                "the session token does not fit the access key; set AWS_SESSION_TOKEN to the token that belongs to it, \
                 or unset it for a permanent key"
            }
        }
    }
}

/// A failed request.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// Description by the service or the system, on one line.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn temporary(text: impl Into<String>) -> Self {
        Self { kind: Kind::Temporary, text: text.into() }
    }

    pub(super) fn permanent(text: impl Into<String>) -> Self {
        Self { kind: Kind::Permanent, text: text.into() }
    }

    /// Converts to the error of the operation on `url`. Secrets must have been removed from the text.
    pub(super) fn into_error(self, url: String) -> StoreError {
        let Self { kind, text } = self;
        match kind {
            Kind::Missing => StoreError::Missing { url },
            Kind::NoBucket => StoreError::NoBucket { url },
            Kind::Denied(denial) => StoreError::Denied { url, source: text.into(), remedy: denial.remedy() },
            Kind::Clock => StoreError::Clock { url, source: text.into() },
            Kind::Region => StoreError::Region { url, source: text.into() },
            Kind::Unsupported => StoreError::Unsupported { url, source: text.into() },
            Kind::Expired => StoreError::Expired { url, source: text.into() },
            Kind::NoCredentials => StoreError::Setup {
                url,
                reason: "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to \
                         a profile in ~/.aws/credentials"
                    .to_owned(),
            },
            Kind::Temporary => StoreError::Unavailable { url, reason: text },
            Kind::Condition | Kind::Range | Kind::Permanent => StoreError::Other { url, source: text.into() },
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
        // The missing object of a request with a condition is reported by the variant of the error.
        let is_deletion = answer.as_ref().is_some_and(|answer| answer.status == 0);
        let by_code = kind_of_code(code).or((is_deletion && code == "NoSuchKey").then_some(Kind::Missing));
        let kind = match &error {
            // There is no metadata service, or it has no role for this machine. An overloaded service has other
            // statuses.
            _ if texts.iter().any(|text| text.contains(INSTANCE_METADATA))
                && (matches!(http, Some(HttpErrorKind::Connect | HttpErrorKind::Timeout)) || status / 100 == 4)
                && status != 429 =>
            {
                Kind::NoCredentials
            }
            _ if by_code.is_some() => by_code.unwrap_or(Kind::Permanent),
            _ if texts.iter().any(|text| text.contains(REDIRECT)) || matches!(status, 301 | 307 | 308) => Kind::Region,
            object_store::Error::NotFound { .. } => Kind::Missing,
            object_store::Error::NotImplemented { .. } => Kind::Unsupported,
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. }
            | object_store::Error::NotModified { .. } => Kind::Condition,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Kind::Denied(Denial::Permission)
            }
            // object_store reports a denied listing as a generic error.
            _ if matches!(status, 401 | 403) => Kind::Denied(Denial::Permission),
            _ if status == 416 => Kind::Range,
            _ if matches!(status, 405 | 501) => Kind::Unsupported,
            _ if status >= 500 || matches!(status, 408 | 429) => Kind::Temporary,
            _ if status != 0 => Kind::Permanent,
            // A truncated body or a broken connection has one of these kinds.
            _ if http.is_some() => Kind::Temporary,
            // object_store could not parse an answer, for example because it was truncated.
            _ if texts.iter().any(|text| text.contains("Got invalid")) => Kind::Temporary,
            _ => Kind::Permanent,
        };
        let innermost = texts.last().cloned().unwrap_or_default();
        let text = match (answer, http) {
            (Some(answer), _) => answer.text(),
            (None, Some(HttpErrorKind::Connect)) => format!("no connection: {innermost}"),
            (None, Some(HttpErrorKind::Timeout)) => format!("no answer in time: {innermost}"),
            (None, Some(_)) => format!("the connection broke: {innermost}"),
            (None, None) => innermost,
        };
        Self { kind, text: one_line(&text) }
    }
}

/// Returns the kind of a failure whose code says more than its status.
fn kind_of_code(code: &str) -> Option<Kind> {
    if EXPIRED.contains(&code) {
        return Some(Kind::Expired);
    }
    if TEMPORARY.contains(&code) {
        return Some(Kind::Temporary);
    }
    if CLOCK.contains(&code) {
        return Some(Kind::Clock);
    }
    if REGION.contains(&code) {
        return Some(Kind::Region);
    }
    match code {
        "NoSuchBucket" | "ContainerNotFound" => Some(Kind::NoBucket),
        "NotImplemented" | "MethodNotAllowed" => Some(Kind::Unsupported),
        _ => DENIED.iter().find(|(name, _)| *name == code).map(|(_, denial)| Kind::Denied(*denial)),
    }
}

/// Answer of a service.
struct Answer {
    /// 0 for the answer about one object of a request to delete several.
    status: u16,
    code: String,
    message: String,
}

impl Answer {
    /// Parses the text of an error of object_store, because its type is private. A unit test detects changes of the
    /// text.
    fn parse(text: &str) -> Option<Self> {
        if let Some((_, rest)) = text.split_once("DeleteObjects request failed for key ") {
            let (rest, code) = rest.strip_suffix(')')?.rsplit_once(" (code: ")?;
            // The name of the object may contain the separator; the message follows the last one.
            let message = rest.rsplit_once(": ").map_or(rest, |(_, message)| message).to_owned();
            return Some(Self { status: 0, code: code.to_owned(), message });
        }
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

    /// Formats the status, the code and the message. The rest of the body may contain the token that was sent.
    fn text(&self) -> String {
        let status = if self.status == 0 { String::new() } else { format!(" {}", self.status) };
        let mut text = format!("the store answers{status}");
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                text.push_str(if text.contains(' ') && part == &self.code { " " } else { ": " });
                text.push_str(part);
            }
        }
        text
    }
}

/// Returns the texts of an error and of its causes, from the outermost to the innermost.
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
    let Some((end, _)) = text.char_indices().nth(MAX_CHARACTERS) else { return text };
    // Cut between words, because part of a secret would not be recognized and removed.
    let end = if text[end..].starts_with(' ') { end } else { text[..end].rfind(' ').unwrap_or(0) };
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_classified_by_its_code_and_shows_nothing_else() {
        let body = "<Error><Code>ExpiredToken</Code><Message>The token\n has expired.</Message><Token-0>S3CR3T</Token-0></Error>";
        let text = format!("Server returned non-2xx status code: 400 Bad Request: {body}");
        let failure = Failure::from(object_store::Error::Generic { store: "S3", source: text.into() });
        assert_eq!(failure.kind, Kind::Expired);
        assert_eq!(failure.text, "the store answers 400 ExpiredToken: The token has expired.");
    }

    /// Returns the failure for an answer of S3.
    fn answer(status: &str, code: &str) -> Failure {
        let text = format!("Server returned non-2xx status code: {status}: <Error><Code>{code}</Code></Error>");
        Failure::from(object_store::Error::Generic { store: "S3", source: text.into() })
    }

    #[test]
    fn every_refusal_has_its_own_remedy() {
        for (status, code, remedy) in [
            ("403 Forbidden", "AccessDenied", "check credentials and permissions"),
            ("403 Forbidden", "SomethingNew", "check credentials and permissions"),
            ("403 Forbidden", "InvalidAccessKeyId", "correct AWS_ACCESS_KEY_ID or the profile"),
            ("403 Forbidden", "SignatureDoesNotMatch", "correct AWS_SECRET_ACCESS_KEY or the profile"),
            ("400 Bad Request", "InvalidToken", "set AWS_SESSION_TOKEN"),
            ("403 Forbidden", "RequestTimeTooSkewed", "set the clock of this machine"),
            ("400 Bad Request", "ExpiredToken", "renew them in the profile file"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", "set AWS_REGION"),
            ("301 Moved Permanently", "PermanentRedirect", "set AWS_REGION"),
            ("307 Temporary Redirect", "", "set AWS_REGION"),
            ("404 Not Found", "NoSuchBucket", "create it, or correct the URL or the region"),
            ("501 Not Implemented", "NotImplemented", "use another store"),
        ] {
            let error = answer(status, code).into_error("s3://b/x".to_owned());
            let text = error.to_string();
            assert!(error.is_configuration() && text.contains(remedy) && text.contains("s3://b/x"), "{code}: {text}");
            assert!(!text.contains("credentials") || !code.contains("Skewed"), "{text}");
        }
        let source = object_store::Error::Generic { store: "S3", source: REDIRECT.into() };
        assert_eq!(Failure::from(source).kind, Kind::Region);
    }

    #[test]
    fn the_answer_about_one_object_of_a_deletion_is_classified_by_its_code() {
        let kind = |code: &str| {
            let text = format!("DeleteObjects request failed for key a (code: b): c: it failed (code: {code})");
            let failure = Failure::from(object_store::Error::Generic { store: "S3", source: text.into() });
            assert_eq!(failure.text, format!("the store answers {code}: it failed"));
            failure.kind
        };
        assert_eq!(kind("AccessDenied"), Kind::Denied(Denial::Permission));
        assert_eq!(kind("SlowDown"), Kind::Temporary);
        assert_eq!(kind("InternalError"), Kind::Temporary);
        assert_eq!(kind("NoSuchKey"), Kind::Missing);
        assert_eq!(kind("ExpiredToken"), Kind::Expired);
        assert_eq!(kind("SomethingNew"), Kind::Permanent);
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
    fn an_answer_without_a_code_is_classified_by_its_status() {
        let kind = |status: &str| {
            let text = format!("Server returned non-2xx status code: {status}: ");
            Failure::from(object_store::Error::Generic { store: "S3", source: text.into() }).kind
        };
        assert_eq!(kind("503 Service Unavailable"), Kind::Temporary);
        assert_eq!(kind("429 Too Many Requests"), Kind::Temporary);
        assert_eq!(kind("416 Range Not Satisfiable"), Kind::Range);
        assert_eq!(kind("403 Forbidden"), Kind::Denied(Denial::Permission));
        assert_eq!(kind("400 Bad Request"), Kind::Permanent);
        assert_eq!(kind("501 Not Implemented"), Kind::Unsupported);
    }
}
