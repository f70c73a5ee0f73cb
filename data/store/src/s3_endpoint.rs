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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Settings of a profile and variables that all name another endpoint.
    const CONFIG: &str = "\
        [default]\nregion = x\nendpoint_url = http://profile\nservices = mine\ns3 =\n  addressing_style = virtual\n  \
        endpoint_url = http://ignored\n[services mine]\ndynamodb =\n  endpoint_url = http://other\ns3 =\n  \
        endpoint_url = http://services\n  max_queue_size = 5\n";

    fn environment(config: &str, variables: &[(&str, &str)]) -> (tempfile::TempDir, Environment) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(folder.path().join(".aws/config"), config).unwrap();
        let home = folder.path().display().to_string();
        let environment = variables.iter().copied().chain([("HOME", home.as_str())]).collect();
        (folder, environment)
    }

    fn configured_by(config: &str, variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let (_folder, environment) = environment(config, variables);
        configured(&environment, &Profile::read(&environment)?)
    }

    /// The order in the AWS SDKs and Tools Reference Guide, "Service-specific endpoints".
    #[test]
    fn endpoints_have_the_precedence_of_the_aws_command_line() {
        let global = ("AWS_ENDPOINT_URL", "http://global");
        let s3 = ("AWS_ENDPOINT_URL_S3", "http://s3");
        let found = |variables: &[(&str, &str)]| configured_by(CONFIG, variables).unwrap();
        assert_eq!(found(&[global, s3]).as_deref(), Some("http://s3"));
        assert_eq!(found(&[global]).as_deref(), Some("http://global"));
        assert_eq!(found(&[]).as_deref(), Some("http://services"));
        let without_services = CONFIG.replace("services = mine\n", "");
        assert_eq!(configured_by(&without_services, &[]).unwrap().as_deref(), Some("http://profile"));
        let without_s3 = CONFIG.replace("http://services", "");
        assert_eq!(configured_by(&without_s3, &[]).unwrap().as_deref(), Some("http://profile"));
        assert_eq!(configured_by("", &[]).unwrap(), None);
        for ignored in ["true", "True"] {
            assert_eq!(found(&[global, s3, (IGNORE, ignored)]), None);
        }
        assert_eq!(found(&[s3, (IGNORE, "false")]).as_deref(), Some("http://s3"));
        let ignoring = CONFIG.replace("region = x", "ignore_configured_endpoint_urls = true");
        assert_eq!(configured_by(&ignoring, &[s3]).unwrap(), None);
        assert_eq!(configured_by(&ignoring, &[s3, (IGNORE, "false")]).unwrap().as_deref(), Some("http://s3"));
        for (config, variable, part) in [
            (CONFIG, "1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS is 1; set it to true or false"),
            (CONFIG, "yes", "is yes"),
            (&ignoring.replace("= true", "= 1"), "", "ignore_configured_endpoint_urls in the profile default is 1"),
            (&CONFIG.replace("[services mine]", "[services other]"), "", "there is no section [services mine] in"),
        ] {
            let error = configured_by(config, &[(IGNORE, variable)]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_bucket_is_in_the_path_or_in_the_host_name() {
        let style = |config: &str, variables: &[(&str, &str)]| {
            let (_folder, environment) = environment(config, variables);
            Style::choose(&environment, &Profile::read(&environment).unwrap())
        };
        assert_eq!(style(CONFIG, &[]), Ok(Style::Virtual));
        assert_eq!(style(CONFIG, &[(VIRTUAL, "false")]), Ok(Style::Path));
        assert_eq!(style("", &[(VIRTUAL, "true")]), Ok(Style::Complete));
        for name in ["auto", "path"] {
            assert_eq!(style(&CONFIG.replace("virtual", name), &[]), Ok(Style::Path));
        }
        assert!(style(&CONFIG.replace("virtual", "virtuel"), &[]).unwrap_err().contains("auto, path or virtual"));
        let endpoint = |style: Style, endpoint: &str| style.endpoint(endpoint, "b");
        assert_eq!(endpoint(Style::Path, "https://host:1").as_deref(), Ok("https://host:1"));
        assert_eq!(endpoint(Style::Complete, "https://b.host").as_deref(), Ok("https://b.host"));
        assert_eq!(endpoint(Style::Virtual, "https://host:1/").as_deref(), Ok("https://b.host:1"));
        assert!(endpoint(Style::Virtual, "https://127.0.0.1").unwrap_err().contains("addressing_style = path"));
    }
}
