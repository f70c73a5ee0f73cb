//! Opening of stores in clouds.

use std::sync::Arc;
use std::time::Duration;

use arinar_place::{Provider, RemoteFolder, redacted};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, RetryConfig};
use url::Url;

use crate::environment::Environment;
use crate::error::StoreError;
use crate::profile::{FileCredentials, Profile};
use crate::remote::Remote;
use crate::retry::{RETRY_TIMEOUT_VARIABLE, RetryPolicy};
use crate::s3_endpoint;
use crate::secrets::Secrets;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a store in a cloud without sending a request.
pub(super) fn open(folder: &RemoteFolder, environment: &Environment) -> Result<Remote, StoreError> {
    let setup = |reason: String| StoreError::Setup { url: folder.to_string(), reason };
    let retry = RetryPolicy::parse(environment.get(RETRY_TIMEOUT_VARIABLE)).map_err(setup)?;
    let secrets = Arc::new(Secrets::default());
    secrets.add(environment.secrets());
    let refused = |error: object_store::Error| setup(secrets.redact(&error.to_string()));
    let (objects, parts) = match folder.provider() {
        Provider::S3 => {
            let profile = Profile::read(environment).map_err(setup)?;
            secrets.add(profile.secrets());
            let builder = amazon(folder.bucket(), environment, profile, &secrets).map_err(setup)?;
            let store = Arc::new(builder.with_retry(no_retries()).build().map_err(refused)?);
            (
                store.clone() as Arc<dyn object_store::ObjectStore>,
                store as Arc<dyn object_store::multipart::MultipartStore>,
            )
        }
        Provider::Google => {
            let options = client_options(environment, "GOOGLE_ALLOW_HTTP", None).map_err(setup)?;
            let mut builder = GoogleCloudStorageBuilder::new().with_client_options(options);
            for (key, value) in environment.options("GOOGLE_") {
                builder = builder.with_config(key, value);
            }
            let builder = builder.with_bucket_name(folder.bucket());
            let store = Arc::new(builder.with_retry(no_retries()).build().map_err(refused)?);
            (store.clone() as _, store as _)
        }
        Provider::Azure => {
            let options = client_options(environment, "AZURE_ALLOW_HTTP", None).map_err(setup)?;
            let mut builder = MicrosoftAzureBuilder::new().with_url(folder.bucket_url()).with_client_options(options);
            for (key, value) in environment.options("AZURE_") {
                builder = builder.with_config(key, value);
            }
            let store = Arc::new(builder.with_retry(no_retries()).build().map_err(refused)?);
            (store.clone() as _, store as _)
        }
    };
    let unusable =
        |source: object_store::path::Error| StoreError::Name { url: folder.to_string(), source: source.into() };
    let prefix = Path::parse(folder.key()).map_err(unusable)?;
    Ok(Remote { objects, parts, prefix, retry, secrets })
}

fn amazon(
    bucket: &str,
    environment: &Environment,
    profile: Profile,
    secrets: &Arc<Secrets>,
) -> Result<AmazonS3Builder, String> {
    let options = client_options(environment, "AWS_ALLOW_HTTP", profile.ca_bundle())?;
    let mut builder = AmazonS3Builder::new().with_client_options(options);
    for (key, value) in environment.options::<AmazonS3ConfigKey>("AWS_") {
        // The region and the endpoint also come from the profile, in an order of precedence of their own.
        let is_place = matches!(
            key,
            AmazonS3ConfigKey::Endpoint
                | AmazonS3ConfigKey::S3Endpoint
                | AmazonS3ConfigKey::Region
                | AmazonS3ConfigKey::DefaultRegion
                | AmazonS3ConfigKey::Bucket
                | AmazonS3ConfigKey::VirtualHostedStyleRequest
        );
        if !is_place {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder.with_bucket_name(bucket);
    let region = environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).or(profile.region());
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    let style = s3_endpoint::Style::choose(environment, &profile)?;
    builder = builder.with_virtual_hosted_style_request(style.is_virtual());
    match s3_endpoint::configured(environment, &profile)? {
        Some(endpoint) => {
            check_endpoint(&endpoint, environment)?;
            builder = builder.with_endpoint(style.endpoint(&endpoint, bucket)?);
        }
        None => profile.check_addresses(environment)?,
    }
    with_credentials(builder, environment, profile, secrets)
}

fn with_credentials(
    builder: AmazonS3Builder,
    environment: &Environment,
    profile: Profile,
    secrets: &Arc<Secrets>,
) -> Result<AmazonS3Builder, String> {
    match (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
        (Some(_), Some(_)) => Ok(builder),
        (Some(_), None) => {
            Err("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; set both or none".to_owned())
        }
        (None, Some(_)) => {
            Err("AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not; set both or none".to_owned())
        }
        (None, None) if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() => Ok(builder),
        (None, None) if environment.is_true("AWS_SKIP_SIGNATURE") => Ok(builder),
        (None, None) => match FileCredentials::new(profile, Arc::clone(secrets))? {
            Some(credentials) => Ok(builder.with_credentials(Arc::new(credentials))),
            None => Ok(builder),
        },
    }
}

fn check_endpoint(endpoint: &str, environment: &Environment) -> Result<(), String> {
    let parsed = Url::parse(endpoint).ok().filter(|parsed| parsed.has_host());
    let Some(parsed) = parsed else {
        return Err(format!("the endpoint {} is not a URL like https://host:port", redacted(endpoint)));
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(
            "the endpoint URL contains credentials; give them in environment variables or profile files".to_owned()
        );
    }
    match parsed.scheme() {
        "https" => Ok(()),
        "http" if environment.is_true("AWS_ALLOW_HTTP") => Ok(()),
        "http" => Err(format!(
            "the endpoint {endpoint} would send everything unencrypted; set AWS_ALLOW_HTTP=true to allow it"
        )),
        other => Err(format!("the endpoint {endpoint} begins with {other}://; use https:// or http://")),
    }
}

/// Returns the options of the HTTP client. This crate has its own timeouts, which depend on the progress of a request
/// and not on its duration; see [`crate::retry`].
fn client_options(
    environment: &Environment,
    allow_http: &str,
    ca_bundle: Option<&str>,
) -> Result<ClientOptions, String> {
    let mut options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_allow_http(environment.is_true(allow_http));
    let bundle = environment.file("AWS_CA_BUNDLE", ca_bundle.unwrap_or_default());
    if let Some(bundle) = bundle.filter(|file| !file.as_os_str().is_empty()) {
        let unusable = |reason: String| {
            format!("the certificates in {} (AWS_CA_BUNDLE) cannot be used: {reason}", bundle.display())
        };
        let text = std::fs::read(&bundle).map_err(|error| unusable(error.to_string()))?;
        for certificate in Certificate::from_pem_bundle(&text).map_err(|error| unusable(error.to_string()))? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// Disables the retries of object_store, because this crate has its own; see [`crate::retry`].
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

#[cfg(test)]
mod tests {
    use arinar_place::Place;

    use super::*;

    fn open(url: &str, environment: &Environment) -> Result<Remote, StoreError> {
        match Place::parse(url)? {
            Place::Remote(folder) => super::open(&folder, environment),
            Place::Local(path) => panic!("{} is local", path.display()),
        }
    }

    #[test]
    fn credentials_in_a_url_are_never_shown() {
        for url in [
            "s3://AKIA:S3CR3T@bucket/x",
            "s3://AKIA:S3CR/3T@bucket/x",
            "s3://S3CR3T@bucket",
            "s3://AKIA:S3CR3T/x",
            "s3://bucket/x?X-Amz-Signature=S3CR3T",
            "az://container/x?sig=S3CR3T",
            "gs://user:S3CR3T@bucket/x",
            "ftp://user:S3CR3T@host/x",
        ] {
            let error = open(url, &Environment::default()).map(|_| ()).expect_err(url).to_string();
            assert!(!error.contains("S3CR") && error.contains("credentials"), "{url}: {error}");
        }
    }

    #[test]
    fn http_endpoints_must_be_allowed() {
        let variables = |allow: &str| -> Environment {
            let all = [
                ("AWS_ACCESS_KEY_ID", "a"),
                ("AWS_SECRET_ACCESS_KEY", "b"),
                ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
                ("AWS_ALLOW_HTTP", allow),
            ];
            all.into_iter().collect()
        };
        let error = open("s3://bucket", &variables("")).map(|_| ()).expect_err("http").to_string();
        assert!(error.contains("AWS_ALLOW_HTTP=true"), "{error}");
        assert!(open("s3://bucket", &variables("true")).is_ok());
    }

    #[test]
    fn half_a_key_is_refused() {
        let environment: Environment = [("AWS_ACCESS_KEY_ID", "a"), ("HOME", "/nonexistent")].into_iter().collect();
        let error = open("s3://bucket", &environment).map(|_| ()).expect_err("half").to_string();
        assert!(error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
    }

    #[test]
    fn all_clouds_open() {
        let environment: Environment = [
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("AWS_SKIP_SIGNATURE", "true"),
        ]
        .into_iter()
        .collect();
        for url in ["gs://bucket/x", "az://container/x", "abfss://container@account.dfs.core.windows.net/x", "s3://b/x"]
        {
            let remote = open(url, &environment).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(remote.prefix.as_ref(), "x");
        }
    }
}
