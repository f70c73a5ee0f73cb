//! The address of S3, with the precedence of the AWS command line.

use url::Url;

use crate::environment::Environment;
use crate::profile::Profile;

const IGNORE: &str = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";
const VIRTUAL: &str = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST";

/// Returns the configured endpoint: of the variables for S3 and for all services, of the section `services` that the
/// profile names, or of the profile, in this order. `None` stands for the address of Amazon.
///
/// # Errors
/// Returns an error if a setting is neither true nor false.
pub(super) fn configured(environment: &Environment, profile: &Profile) -> Result<Option<String>, String> {
    let (what, ignored) = match environment.get(IGNORE) {
        Some(value) => (IGNORE.to_owned(), Some(value)),
        None => (profile.describe("ignore_configured_endpoint_urls"), profile.ignores_endpoints()),
    };
    let is_ignored = match ignored.map(str::to_ascii_lowercase).as_deref() {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => return Err(format!("{what} is {other}; set it to true or false, or unset it")),
    };
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let endpoint = environment.first(&variables).or(profile.endpoint_url()).filter(|_| !is_ignored);
    Ok(endpoint.map(str::to_owned))
}

/// Where the name of the bucket is in the address of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// In the path.
    Path,
    /// In the host name, before the address of the endpoint.
    Virtual,
    /// In the host name, which the endpoint contains completely.
    Complete,
}

impl Style {
    /// Chooses the style of the environment, or of the profile, or the path.
    ///
    /// # Errors
    /// Returns an error if the profile has an unknown style.
    pub(super) fn choose(environment: &Environment, profile: &Profile) -> Result<Self, String> {
        if environment.get(VIRTUAL).is_some() {
            return Ok(if environment.is_true(VIRTUAL) { Self::Complete } else { Self::Path });
        }
        match profile.addressing_style() {
            None | Some("auto" | "path") => Ok(Self::Path),
            Some("virtual") => Ok(Self::Virtual),
            Some(other) => {
                let what = profile.describe("s3.addressing_style");
                Err(format!("{what} is {other}; set it to auto, path or virtual"))
            }
        }
    }

    pub(super) fn is_virtual(self) -> bool {
        self != Self::Path
    }

    /// Returns the endpoint of a bucket.
    ///
    /// # Errors
    /// Returns an error if the endpoint is not a URL.
    pub(super) fn endpoint(self, endpoint: &str, bucket: &str) -> Result<String, String> {
        if self != Self::Virtual {
            return Ok(endpoint.to_owned());
        }
        let refuse =
            || format!("the endpoint {endpoint} has no host name for a bucket; set s3.addressing_style = path");
        let mut url = Url::parse(endpoint).map_err(|_| refuse())?;
        let host = url.domain().map(|host| format!("{bucket}.{host}")).ok_or_else(refuse)?;
        url.set_host(Some(&host)).map_err(|_| refuse())?;
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}
