//! Profiles in the files of the AWS command line, `~/.aws/credentials` and `~/.aws/config`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use configparser::ini::{Ini, IniDefault};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use crate::environment::Environment;
use crate::secrets::Secrets;

/// Settings of a profile from which only the AWS tools can obtain credentials.
const FOREIGN: [&str; 6] =
    ["sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file", "login_session"];

/// Settings of each section of a file.
type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// A profile with the settings of both files.
pub(super) struct Profile {
    name: String,
    files: Files,
    settings: BTreeMap<String, String>,
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
            Some(settings) => Ok(Self { name, files, settings }),
            None if named.is_none() => Ok(Self { name, files, settings: BTreeMap::new() }),
            None => Err(format!("the profile {name} (AWS_PROFILE) is not in {}", files.names())),
        }
    }

    pub(super) fn region(&self) -> Option<&str> {
        self.settings.get("region").map(String::as_str)
    }

    pub(super) fn endpoint_url(&self) -> Option<&str> {
        self.settings.get("endpoint_url").map(String::as_str)
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = String> {
        secrets_of(&self.settings)
    }
}

fn secrets_of(settings: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    ["aws_secret_access_key", "aws_session_token"].into_iter().filter_map(|name| settings.get(name)).cloned()
}

impl Files {
    /// Returns the settings of a profile, or `None` if it is in neither file. The credentials file takes precedence.
    fn read(&self, profile: &str) -> Result<Option<BTreeMap<String, String>>, String> {
        let in_config = match profile {
            "default" => vec!["default".to_owned(), "profile default".to_owned()],
            other => vec![format!("profile {other}")],
        };
        let mut found = None;
        for (file, sections) in [(&self.config, in_config), (&self.credentials, vec![profile.to_owned()])] {
            let Some(mut there) = file.as_deref().map(parse).transpose()?.flatten() else { continue };
            for section in sections {
                if let Some(settings) = there.remove(&section) {
                    found.get_or_insert_with(BTreeMap::new).extend(settings);
                }
            }
        }
        Ok(found)
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

/// Parses a file, or returns `None` if it does not exist. Messages never quote the file.
fn parse(file: &Path) -> Result<Option<Sections>, String> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| format!("{} cannot be read: {error}", file.display()))?,
    };
    let mut syntax = IniDefault::default();
    syntax.default_section = String::new();
    syntax.delimiters = vec!['='];
    syntax.case_sensitive = true;
    syntax.multiline = true; // indented lines are nested settings, not settings of the profile
    syntax.enable_inline_comments = false;
    let sections = Ini::new_from_defaults(syntax).read(text);
    let sections = sections.map_err(|_| format!("{} has an unmatched bracket", file.display()))?;
    if sections.get("").is_some_and(|settings| !settings.is_empty()) {
        return Err(format!("{} has settings before its first [section]", file.display()));
    }
    let whole = sections.into_iter().map(|(section, settings)| {
        let settings = settings.into_iter().map(|(name, value)| Some((name.to_ascii_lowercase(), value?)));
        match settings.collect::<Option<_>>() {
            Some(settings) => Ok((section, settings)),
            None => Err(format!("{}: a line in [{section}] has no `=`", file.display())),
        }
    });
    whole.collect::<Result<_, _>>().map(Some)
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
        let Profile { name, files, settings } = profile;
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

fn credential(profile: &str, settings: &BTreeMap<String, String>) -> Result<Option<AwsCredential>, String> {
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
