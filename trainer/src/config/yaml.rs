//! Parsing of YAML, with errors in the words of someone who writes a configuration.

use arinar_model::text::printable;
use serde::de::DeserializeOwned;
use serde_saphyr::Error;

use super::{
    error::suggestion,
    keys::rule,
    value_error::{Value, describe_value},
};

/// An error in a YAML text.
#[derive(Debug)]
pub(super) struct YamlError {
    /// Line, counted from 1.
    pub line: u64,
    /// Column, counted from 1.
    pub column: u64,
    /// The problem and the fix, in one line.
    pub message: String,
    /// The text is not valid YAML.
    pub is_syntax: bool,
}

/// Parses one YAML document.
///
/// # Errors
/// Returns the first error of the text.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
    };
    let mut path = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    });
    parsed.map_err(|error| {
        let location = error.location();
        let (line, column) = location.map_or((1, 1), |at| (at.line(), at.column()));
        let length = location.map_or(0, |at| at.span().len() as usize);
        let place = ErrorPosition { text, path: &path, line, column, length };
        let error = innermost(&error);
        let is_syntax = matches!(error, Error::ExternalMessage { .. });
        YamlError { line, column, message: place.describe(error), is_syntax }
    })
}

/// Returns the error that occurred in the value of an anchor, instead of the one that names the alias.
fn innermost(error: &Error) -> &Error {
    match error {
        Error::AliasError { error, .. } | Error::WithSnippet { error, .. } => innermost(error),
        error => error,
    }
}

/// The place of an error.
struct ErrorPosition<'a> {
    /// The whole text.
    text: &'a str,
    /// Dotted path of the value, as far as it is known.
    path: &'a str,
    line: u64,
    column: u64,
    /// Length of the value in characters.
    length: usize,
}

impl ErrorPosition<'_> {
    fn describe(&self, error: &Error) -> String {
        match error {
            Error::SerdeUnknownField { field, expected, .. } => {
                let near = suggestion(field, expected.iter().copied());
                format!("unknown key {field:?}{}{near}", self.inside(self.parent()))
            }
            Error::SerdeMissingField { field, .. } => {
                let expected = rule(&self.child(field)).map_or("keys of its own".to_owned(), |rule| rule.expected());
                format!("the key {field:?} is missing{}; it takes {expected}", self.inside(self.section()))
            }
            Error::DuplicateMappingKey { key, .. } => {
                let key = key.as_ref().map_or_else(|| "this key".to_owned(), |key| format!("the key {key:?}"));
                format!("{key} occurs twice{}; delete one of the two", self.inside(self.parent()))
            }
            Error::SerdeUnknownVariant { variant, .. } => {
                let expected = rule(self.section()).map_or_else(String::new, |rule| rule.expected());
                format!("{}: unknown value {variant:?}; it takes {expected}", self.section())
            }
            Error::SerdeInvalidLength { len, .. } => {
                let values = if *len == 1 { "value" } else { "values" };
                let expected = rule(self.section()).map_or_else(String::new, |rule| rule.expected());
                format!("{}: a list of {len} {values} is not {expected}", self.section())
            }
            // A type that parses its own text has worded the error.
            Error::Message { msg, .. } => format!("{}: {}", self.section(), printable(msg)),
            Error::Eof { .. } => "the file is empty; configs/ contains examples".to_owned(),
            Error::MultipleDocuments { .. } => {
                "a second YAML document begins here; keep one, without the line `---` or `...` between them".to_owned()
            }
            Error::UnknownAnchor { .. } => {
                "no anchor of this name precedes this alias; define it with &NAME, or put a text that begins with * in \
                 quotes"
                    .to_owned()
            }
            Error::MergeValueNotMapOrSeqOfMaps { .. } => {
                "the merge key << takes a mapping or an alias of one, like `<<: *NAME`".to_owned()
            }
            Error::UnsupportedTag { .. } | Error::TaggedStructFieldName { .. } => {
                "a configuration has no tags; delete the word that begins with !, or put the text in quotes".to_owned()
            }
            Error::Budget { .. }
            | Error::AliasReplayCounterOverflow { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => {
                "the file is too long or too deeply nested for a configuration".to_owned()
            }
            Error::ExternalMessage { msg, .. } => describe_syntax(msg),
            Error::RecursiveReferencesRequireWeakTypes { .. } => "an alias must not refer to itself".to_owned(),
            Error::FoldedBlockScalarMustIndentContent { .. } | Error::IndentationError { .. } => {
                describe_syntax("did not find expected key")
            }
            // All other errors are about a value of another type than that of the key.
            _ => describe_value(self.section(), &self.value()),
        }
    }

    /// Returns the path of the mapping or value, empty at the top of the document.
    fn section(&self) -> &str {
        let known = self.path.trim_end_matches('?').trim_end_matches('.');
        if known.is_empty() { "" } else { known }
    }

    /// Returns the path of the mapping that contains the key at the path.
    fn parent(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    fn child(&self, key: &str) -> String {
        match self.section() {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        }
    }

    fn inside(&self, path: &str) -> String {
        if path.is_empty() { String::new() } else { format!(" in {path:?}") }
    }

    /// Returns the text of the value.
    fn value(&self) -> Value {
        let line = self.text.lines().nth(self.line.saturating_sub(1) as usize).unwrap_or_default();
        let line: Vec<char> = line.strip_prefix('\u{feff}').unwrap_or(line).chars().collect();
        let (before, rest) = line.split_at(line.len().min(self.column.saturating_sub(1) as usize));
        // The location of a list or mapping is that of its first character, or of its first item.
        let is_item = self.length == 0 && before.ends_with(&['-', ' ']);
        match rest {
            ['[', ..] | ['-'] | ['-', ' ', ..] => Value::List,
            _ if is_item => Value::List,
            ['{', ..] => Value::Mapping,
            _ if self.length > rest.len() => Value::SeveralLines,
            _ => match rest[..self.length].iter().collect::<String>() {
                text if text.is_empty() => Value::None,
                text => Value::Text(text),
            },
        }
    }
}

/// Describes an error of YAML's syntax, given the message of the parser.
fn describe_syntax(message: &str) -> String {
    const KNOWN: [(&str, &str); 13] = [
        ("tab", "YAML is indented with spaces; replace the tab"),
        (
            "mapping values are not allowed",
            "a ':' is not allowed here; put a value that contains \": \" or ends with ':' in quotes, or correct the indentation",
        ),
        ("simple key expected", "this line is not KEY: VALUE; write a colon and a space after the key"),
        ("did not find expected key", "the indentation does not match that of the keys above"),
        (
            "while parsing a flow",
            "a comma is missing before this place, or a bracket that opens above it is not closed; put a value that \
             contains brackets or commas in quotes",
        ),
        ("unclosed quote", "the quote that opens here is not closed"),
        ("unclosed bracket", "the bracket that opens here is not closed"),
        ("misplaced bracket", "this bracket closes nothing; put a value that begins with a bracket in quotes"),
        ("unknown escape", "unknown escape; write \\\\ for a backslash in double quotes, or use single quotes"),
        ("invalid trailing content", "there is text after the closing quote; put the whole value in quotes"),
        (
            "block sequence entries are not allowed",
            "a list begins here; write a list as [A, B], or put the text in quotes",
        ),
        ("mapping keys are not allowed", "a value must not begin with '? '; put it in quotes"),
        ("unexpected EOF", "the value is incomplete; put it in quotes"),
    ];
    let known = KNOWN.iter().find(|(part, _)| message.contains(part));
    match (known, message.strip_prefix("unexpected character: ")) {
        (Some((_, text)), _) => (*text).to_owned(),
        (None, Some(character)) => {
            let character = character.trim_matches(['`', '\'']);
            format!("'{}' is not allowed here; put the value in quotes", printable(character))
        }
        (None, None) => format!("this is not valid YAML ({}); put the value in quotes", printable(message)),
    }
}
