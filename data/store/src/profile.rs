//! Profiles in the files of the AWS command line, `~/.aws/credentials` and `~/.aws/config`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use crate::environment::Environment;
use crate::profile_file::{Sections, Settings, nested, parse};
use crate::secrets::Secrets;

/// Settings of a profile from which only the AWS tools can obtain credentials.
const FOREIGN: [&str; 10] = [
    "sso_session",
    "sso_start_url",
    "sso_account_id",
    "sso_role_name",
    "role_arn",
    "source_profile",
    "credential_source",
    "credential_process",
    "web_identity_token_file",
    "login_session",
];
/// Settings, and variables with the same effect, that select other addresses of Amazon.
const ADDRESSES: [(&str, &str); 2] =
    [("use_fips_endpoint", "AWS_USE_FIPS_ENDPOINT"), ("use_dualstack_endpoint", "AWS_USE_DUALSTACK_ENDPOINT")];
/// Settings below `s3 =` with the same effect.
const S3_ADDRESSES: [&str; 2] = ["use_accelerate_endpoint", "use_dualstack_endpoint"];

/// A profile with the settings of both files.
pub(super) struct Profile {
    name: String,
    files: Files,
    settings: Settings,
    /// The section that the setting `services` names.
    services: Settings,
}

#[derive(Clone)]
struct Files {
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl Profile {
    /// Reads the profile that the environment names. Missing files count as empty. A profile that is named explicitly
    /// must be in one of the files.
    pub(super) fn read(environment: &Environment) -> Result<Self, String> {
        let named = environment.get("AWS_PROFILE").or(environment.get("AWS_DEFAULT_PROFILE"));
        let name = named.unwrap_or("default").to_owned();
        let files = Files {
            credentials: environment.file("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
            config: environment.file("AWS_CONFIG_FILE", "~/.aws/config"),
        };
        match files.read(&name)? {
            Some(settings) => {
                let services = match settings.get("services") {
                    Some(services) => files.services(&name, services)?,
                    None => Settings::new(),
                };
                Ok(Self { name, files, settings, services })
            }
            None if named.is_none() => Ok(Self { name, files, settings: Settings::new(), services: Settings::new() }),
            None => Err(format!("the profile {name} (AWS_PROFILE) is not in {}", files.names())),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn region(&self) -> Option<&str> {
        self.get("region")
    }

    /// The endpoint of S3: that of the section `services`, or else the one of the profile.
    pub(super) fn endpoint_url(&self) -> Option<&str> {
        nested(&self.services, "s3", "endpoint_url").or_else(|| self.get("endpoint_url"))
    }

    /// The setting that all configured endpoints are ignored.
    pub(super) fn ignores_endpoints(&self) -> Option<&str> {
        self.get("ignore_configured_endpoint_urls")
    }

    pub(super) fn addressing_style(&self) -> Option<&str> {
        nested(&self.settings, "s3", "addressing_style")
    }

    pub(super) fn ca_bundle(&self) -> Option<&str> {
        self.get("ca_bundle")
    }

    /// Refuses settings that select another address of Amazon, which this program cannot compute.
    ///
    /// # Errors
    /// Returns an error that names the setting.
    pub(super) fn check_addresses(&self, environment: &Environment) -> Result<(), String> {
        let is_true = |value: Option<&str>| value.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let refuse = |what: String| {
            Err(format!(
                "{what} selects another address of Amazon, which is not supported; unset it, or set AWS_ENDPOINT_URL_S3 to \
                 the address"
            ))
        };
        for (setting, variable) in ADDRESSES {
            match environment.get(variable) {
                Some(value) if is_true(Some(value)) => return refuse(format!("{variable}={value}")),
                Some(_) => {}
                None if is_true(self.get(setting)) => return refuse(self.describe(setting)),
                None => {}
            }
        }
        match S3_ADDRESSES.into_iter().find(|setting| is_true(nested(&self.settings, "s3", setting))) {
            Some(setting) => refuse(self.describe(&format!("s3.{setting}"))),
            None => Ok(()),
        }
    }

    /// Names a setting for messages.
    pub(super) fn describe(&self, setting: &str) -> String {
        format!("{setting} in the profile {}", self.name)
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = String> {
        secrets_of(&self.settings)
    }
}

fn secrets_of(settings: &Settings) -> impl Iterator<Item = String> {
    ["aws_secret_access_key", "aws_session_token"].into_iter().filter_map(|name| settings.get(name)).cloned()
}

impl Files {
    /// Returns the settings of a profile, or `None` if it is in neither file. The credentials file takes precedence.
    fn read(&self, profile: &str) -> Result<Option<Settings>, String> {
        let in_config = match profile {
            "default" => vec!["default".to_owned(), "profile default".to_owned()],
            other => vec![format!("profile {other}")],
        };
        let mut found = None;
        for (file, sections) in [(&self.config, in_config), (&self.credentials, vec![profile.to_owned()])] {
            let Some(mut there) = file.as_deref().map(parse).transpose()?.flatten() else { continue };
            for section in sections {
                if let Some(settings) = there.remove(&section) {
                    found.get_or_insert_with(Settings::new).extend(settings);
                }
            }
        }
        Ok(found)
    }

    /// Returns the section `[services NAME]` of the configuration file, which the profile `profile` refers to.
    fn services(&self, profile: &str, name: &str) -> Result<Settings, String> {
        let sections: Option<Sections> = self.config.as_deref().map(parse).transpose()?.flatten();
        sections.and_then(|mut sections| sections.remove(&format!("services {name}"))).ok_or_else(|| {
            format!(
                "the profile {profile} has services = {name}, and there is no section [services {name}] in {}; add it, \
                 or remove the setting",
                self.names()
            )
        })
    }

    /// Returns the modification times, or `None` if they are so recent that another change could have the same time.
    fn modified(&self) -> Option<Times> {
        let times =
            [&self.credentials, &self.config].map(|file| std::fs::metadata(file.as_ref()?).ok()?.modified().ok());
        let is_old = |time: &SystemTime| time.elapsed().is_ok_and(|age| age > TIME_RESOLUTION);
        times.iter().flatten().all(is_old).then_some(times)
    }

    fn names(&self) -> String {
        let names = [&self.credentials, &self.config].map(|file| file.as_ref().map(|file| file.display().to_string()));
        names.into_iter().flatten().collect::<Vec<_>>().join(" or ")
    }
}

/// Modification times of the credentials file and the configuration file, if they exist.
type Times = [Option<SystemTime>; 2];

/// Resolution of modification times: some milliseconds on most file systems, up to two seconds on others.
const TIME_RESOLUTION: Duration = Duration::from_secs(3);

/// Credentials from profile files. The files are reread when they change, so that keys can be renewed while a program
/// is running.
pub(super) struct FileCredentials {
    name: String,
    files: Files,
    known: Mutex<(Option<Times>, Arc<AwsCredential>)>,
    /// Receives every key before it is used.
    secrets: Arc<Secrets>,
}

impl std::fmt::Debug for FileCredentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("FileCredentials").field(&self.name).finish()
    }
}

impl FileCredentials {
    /// Returns `None` if the profile contains no credentials.
    pub(super) fn new(profile: Profile, secrets: Arc<Secrets>) -> Result<Option<Self>, String> {
        let Profile { name, files, settings, .. } = profile;
        if let Some(setting) = FOREIGN.into_iter().find(|setting| settings.contains_key(*setting)) {
            return Err(format!(
                "the profile {name} gets its credentials from {setting}, which only the AWS tools support; run: \
                 eval \"$(aws configure export-credentials --profile {name} --format env)\""
            ));
        }
        let Some(credential) = credential(&name, &settings)? else { return Ok(None) };
        // No times yet: the files may have changed since the settings were read.
        Ok(Some(Self { name, files, known: Mutex::new((None, Arc::new(credential))), secrets }))
    }

    fn current(&self) -> Arc<AwsCredential> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = self.files.modified();
        if modified.is_none() || modified != known.0 {
            // A file that is being written may be incomplete; until it is complete, the previous keys remain in use.
            let settings = self.files.read(&self.name).ok().flatten().unwrap_or_default();
            if let Ok(Some(credential)) = credential(&self.name, &settings) {
                self.secrets.add(secrets_of(&settings));
                *known = (modified, Arc::new(credential));
            }
        }
        Arc::clone(&known.1)
    }
}

#[async_trait]
impl CredentialProvider for FileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.current())
    }
}

fn credential(profile: &str, settings: &Settings) -> Result<Option<AwsCredential>, String> {
    let get = |name: &str| settings.get(name).filter(|value| !value.is_empty()).cloned();
    match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(key_id), Some(secret_key)) => {
            Ok(Some(AwsCredential { key_id, secret_key, token: get("aws_session_token") }))
        }
        (None, None) => Ok(None),
        _ => {
            Err(format!("the profile {profile} has only one of aws_access_key_id and aws_secret_access_key; set both"))
        }
    }
}
