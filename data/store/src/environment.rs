//! Environment variables with credentials and options of the clouds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// Parts of the names of variables whose values are secret.
const SECRET_NAMES: [&str; 5] = ["SECRET", "TOKEN", "_KEY", "PASSWORD", "SAS"];

/// Environment variables, from which stores take credentials and options.
///
/// **s3://** follows the AWS command line, and prefers the environment to files:
/// - `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; otherwise `AWS_WEB_IDENTITY_TOKEN_FILE` with
///   `AWS_ROLE_ARN`; otherwise the profile `AWS_PROFILE` (or `default`) of `~/.aws/credentials` and `~/.aws/config`
///   (`AWS_SHARED_CREDENTIALS_FILE`, `AWS_CONFIG_FILE`), which are reread when they change; otherwise the roles of a
///   container or machine;
/// - `AWS_REGION`, `AWS_DEFAULT_REGION`, or the profile's `region`;
/// - `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or the profile's `endpoint_url`, for other stores with the S3 protocol.
///   The bucket is then part of the path, or of the host name with `AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true`. `http://`
///   requires `AWS_ALLOW_HTTP=true`, and a private certificate authority `AWS_CA_BUNDLE`.
///
/// **gs://** and **az://** use the names of object_store: `GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_SERVICE_ACCOUNT`
/// and others; `AZURE_STORAGE_ACCOUNT_NAME` with `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN`, and others.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    /// Formats the names only, because values can be secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Environment {
    /// Returns the variables of this process that are valid Unicode.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Sets `name` to `value` unless it is set.
    pub fn with_default(mut self, name: &str, value: &str) -> Self {
        self.0.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        self
    }

    /// Returns the value of a variable if it is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the value of the first of these variables that is set and not empty.
    pub(super) fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str()))
    }

    /// Returns the path in a variable, or a default; both may begin with `~/`.
    pub(super) fn file(&self, variable: &str, default: &str) -> Option<PathBuf> {
        let name = self.get(variable).unwrap_or(default);
        match name.strip_prefix("~/") {
            Some(below) => Some(PathBuf::from(self.get("HOME")?).join(below)),
            None => Some(PathBuf::from(name)),
        }
    }

    /// Returns the variables with the prefix of a cloud as keys of object_store.
    pub(super) fn options<K: FromStr>(&self, prefix: &str) -> impl Iterator<Item = (K, &str)> {
        let named = self.0.iter().filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty());
        named.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
    }

    pub(super) fn secrets(&self) -> Vec<String> {
        let secret = |name: &str| SECRET_NAMES.iter().any(|part| name.contains(part)) && name != "AWS_ACCESS_KEY_ID";
        let clouds = ["AWS_", "AZURE_", "GOOGLE_"];
        let named =
            self.0.iter().filter(|(name, _)| clouds.iter().any(|cloud| name.starts_with(cloud)) && secret(name));
        // Short values are words such as "true" and not secret.
        named.map(|(_, value)| value.clone()).filter(|value| value.len() >= 8).collect()
    }
}
