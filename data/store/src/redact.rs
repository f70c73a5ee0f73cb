//! Removal of credentials from URLs.

/// Returns a URL for messages, without parts that may be credentials.
pub(crate) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (rest, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?[redacted]"),
        None => (rest, ""),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    // A secret may contain slashes, in which case the @ seems to be part of the path.
    let rest = match rest.rsplit_once('@') {
        _ if scheme.starts_with("abfs") && !authority.contains(':') => rest.to_owned(),
        Some((_, behind)) if authority.contains([':', '@']) => format!("[redacted]@{behind}"),
        None if authority.contains(':') => format!("[redacted]{}", &rest[authority.len()..]),
        _ => rest.to_owned(),
    };
    format!("{scheme}://{rest}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_without_credentials_are_unchanged() {
        for harmless in ["s3://bucket/a@b", "abfss://container@account.dfs.core.windows.net/x", "/a/b@c", "gs://b/x"] {
            assert_eq!(redacted(harmless), harmless);
        }
    }
}
