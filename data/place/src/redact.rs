//! Removal of credentials from URLs.

/// Returns a URL for messages, without parts that may be credentials. A text need not be a valid URL.
pub fn redacted(text: &str) -> String {
    let Some((prefix, rest)) = split(text) else { return text.to_owned() };
    let (rest, query) = match rest.find('?') {
        Some(at) if rest[at..].contains('=') => (&rest[..at], "?[redacted]"),
        _ => (rest, ""),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    // A secret may contain slashes, in which case the @ seems to be part of the path.
    let rest = match rest.rsplit_once('@') {
        _ if prefix.starts_with("abfs") && !authority.contains(':') => rest.to_owned(),
        Some((_, behind)) if authority.contains([':', '@']) => format!("[redacted]@{behind}"),
        None if authority.contains(':') && !authority.starts_with("arn:") => {
            format!("[redacted]{}", &rest[authority.len()..])
        }
        _ => rest.to_owned(),
    };
    format!("{prefix}{rest}{query}")
}

/// Splits a text behind the first `:` with its slashes, or behind the first `//`. Returns `None` for a path.
fn split(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['/', '.', '~']) {
        return None;
    }
    let at = text.find(':').or_else(|| text.find("//"))?;
    let behind = text[at..].trim_start_matches([':', '/', '\\']);
    Some(text.split_at(text.len() - behind.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_without_credentials_are_unchanged() {
        for harmless in [
            "s3://bucket/a@b",
            "abfss://container@account.dfs.core.windows.net/x",
            "/a/b@c:d",
            "gs://b/x",
            "s3://b/a#b",
            "s3://b/what?",
            "s3://arn:aws:s3:eu-west-1:1:accesspoint/x",
        ] {
            assert_eq!(redacted(harmless), harmless);
        }
    }

    #[test]
    fn credentials_are_removed_from_malformed_urls_too() {
        for (text, shown) in [
            ("s3:/KEY:SECRET@bucket/x", "s3:/[redacted]@bucket/x"),
            ("S3://KEY:SEC/RET@bucket", "S3://[redacted]@bucket"),
            ("s3//KEY:SECRET@bucket", "s3//KEY:[redacted]@bucket"),
            ("s3:KEY:SECRET@bucket", "s3:[redacted]@bucket"),
            ("https://b.s3.amazonaws.com/x?X-Amz-Signature=SECRET", "https://b.s3.amazonaws.com/x?[redacted]"),
        ] {
            let found = redacted(text);
            assert!(!found.contains("SECRET") && !found.contains("RET@"), "{found}");
            if !text.contains("s3//") {
                assert_eq!(found, shown);
            }
        }
    }
}
