//! Tests of S3 credentials against a server that checks signatures: they are found as by the AWS command line, and are
//! never shown.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;
use std::process::Command;

use arinar_store::{Environment, Store, StoreError};
use arinar_tests::programs::program;
use arinar_tests::s3::{ACCESS_KEY_ID, Fault, Faults, REGION, S3Server, SECRET_ACCESS_KEY};
use arinar_tests::support::data::exit_status;

const WRONG_SECRET: &str = "Wr0ngS3cretThatNobodyMaySee/+=abcdef";
const RENEWED_SECRET: &str = "R3newedS3cretThatNobodyMaySee/+=abcde";
const TOKEN: &str = "T0kenThatNobodyMaySee//////////EaDYFakeFake";

struct Lab {
    folder: tempfile::TempDir,
    server: S3Server,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(&folder.path().join("s3"));
        server.create_bucket("bucket");
        std::fs::create_dir_all(folder.path().join(".aws")).unwrap();
        Self { folder, server }
    }

    fn write(&self, name: &str, text: &str) {
        // Write a new file and rename it, so that the modification time changes and no reader sees half of the file.
        let path = self.folder.path().join(".aws").join(name);
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn keys(section: &str, secret: &str) -> String {
        format!("# mine\n[{section}]\naws_access_key_id={ACCESS_KEY_ID}\naws_secret_access_key = {secret}\n")
    }

    /// Opens a store with only a home folder and these variables.
    fn open(&self, variables: &[(&str, &str)]) -> Result<Store, StoreError> {
        let home = self.folder.path().to_str().unwrap();
        let common = [("HOME", home), ("AWS_ALLOW_HTTP", "true"), ("ARINAR_STORE_PATIENCE", "4")];
        let all: Environment = common.into_iter().chain(variables.iter().copied()).collect();
        Store::open_with("s3://bucket/x", &all)
    }

    fn config(&self, section: &str) -> String {
        let endpoint = self.server.endpoint();
        format!("[{section}]\nregion = {REGION}\nendpoint_url = {endpoint}\ns3 =\n  endpoint_url = http://nested:1\n")
    }
}

fn configuration_error(result: Result<Store, StoreError>) -> String {
    let error = result.unwrap_err();
    assert!(error.is_configuration(), "{error}");
    error.to_string()
}

#[test]
fn profile_files_are_read_as_by_the_aws_command_line() {
    let lab = Lab::new();
    lab.write("credentials", &(Lab::keys("default", SECRET_ACCESS_KEY) + &Lab::keys("other", WRONG_SECRET)));
    lab.write("config", &(lab.config("default") + &lab.config("profile other")));
    lab.open(&[]).unwrap().put("a", "b").unwrap();
    let denied = lab.open(&[("AWS_PROFILE", "other")]).unwrap().put("a", "c").unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }) && !denied.is_transient(), "{denied}");
    assert!(denied.to_string().contains("SignatureDoesNotMatch"), "{denied}");
    // The environment takes precedence, first for the keys, then for the endpoint.
    let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)];
    let with_profile = [keys[0], keys[1], ("AWS_PROFILE", "other")];
    assert_eq!(lab.open(&with_profile).unwrap().get("a").unwrap().as_ref(), b"b");
    let error = lab.open(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]).unwrap().get("a").unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let both = [("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_ENDPOINT_URL_S3", &lab.server.endpoint())];
    lab.open(&both).unwrap().get("a").unwrap();
    assert!(configuration_error(lab.open(&[("AWS_PROFILE", "nobody")])).contains("nobody"));
    // A credentials file at another path.
    let moved = lab.folder.path().join("moved");
    std::fs::write(&moved, Lab::keys("third", SECRET_ACCESS_KEY) + "region = x\n").unwrap();
    let variables = [
        ("AWS_SHARED_CREDENTIALS_FILE", moved.to_str().unwrap()),
        ("AWS_PROFILE", "third"),
        ("AWS_REGION", REGION),
        ("AWS_ENDPOINT_URL", &lab.server.endpoint()),
    ];
    lab.open(&variables).unwrap().get("a").unwrap();
}

#[test]
fn keys_can_be_renewed_while_a_program_runs() {
    let lab = Lab::new();
    lab.write("config", &lab.config("default"));
    lab.write("credentials", &Lab::keys("default", WRONG_SECRET));
    let store = lab.open(&[]).unwrap();
    assert!(matches!(store.put("a", "b").unwrap_err(), StoreError::Denied { .. }));
    lab.write("credentials", &Lab::keys("default", SECRET_ACCESS_KEY));
    store.put("a", "b").unwrap();
    // A temporarily broken file changes nothing.
    lab.write("credentials", "[default\n");
    store.put("a", "c").unwrap();
}

#[test]
fn unsupported_profiles_have_errors_with_advice() {
    let lab = Lab::new();
    for setting in [
        "sso_session = mine",
        "sso_account_id = 1",
        "role_arn = arn:aws:iam::1:role/x",
        "source_profile = default",
        "credential_source = Environment",
        "web_identity_token_file = /token",
        "credential_process = /bin/x",
    ] {
        lab.write("config", &format!("[profile work]\n{setting}\n"));
        let error = configuration_error(lab.open(&[("AWS_PROFILE", "work")]));
        assert!(error.contains("aws configure export-credentials --profile work --format env"), "{error}");
    }
}

#[test]
fn the_endpoint_of_a_services_section_is_used() {
    let lab = Lab::new();
    lab.write("credentials", &Lab::keys("default", SECRET_ACCESS_KEY));
    let endpoint = lab.server.endpoint();
    let config = format!(
        "[default]\nregion = {REGION}\nendpoint_url = http://127.0.0.1:1\nservices = mine\n\n[services mine]\ns3 =\n  \
         endpoint_url = {endpoint}\n"
    );
    lab.write("config", &config);
    lab.open(&[]).unwrap().put("a", "b").unwrap();
    let unreachable = lab.open(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]).unwrap().get("a").unwrap_err();
    assert!(matches!(unreachable, StoreError::Unavailable { .. }), "{unreachable}");
    lab.write("config", &config.replace("[services mine]", "[services theirs]"));
    assert!(configuration_error(lab.open(&[])).contains("there is no section [services mine] in"));
}

#[test]
fn other_addresses_of_amazon_are_rejected_by_name() {
    let lab = Lab::new();
    lab.write("credentials", &Lab::keys("default", SECRET_ACCESS_KEY));
    for (setting, name) in [
        ("use_fips_endpoint = true", "use_fips_endpoint in the profile default"),
        ("use_dualstack_endpoint = True", "use_dualstack_endpoint in the profile default"),
        ("s3 =\n  use_accelerate_endpoint = true", "s3.use_accelerate_endpoint in the profile default"),
        ("s3 =\n  addressing_style = sideways", "s3.addressing_style in the profile default is sideways"),
    ] {
        lab.write("config", &format!("[default]\nregion = {REGION}\n{setting}\n"));
        let error = configuration_error(lab.open(&[]));
        assert!(error.contains(name), "{error}");
    }
    lab.write("config", &format!("[default]\nregion = {REGION}\nuse_fips_endpoint = true\n"));
    assert!(lab.open(&[("AWS_USE_FIPS_ENDPOINT", "false")]).is_ok());
    // An endpoint replaces the address.
    let endpoint = lab.server.endpoint();
    lab.open(&[("AWS_ENDPOINT_URL_S3", &endpoint)]).unwrap().put("a", "b").unwrap();
    lab.write("config", &format!("[default]\nregion = {REGION}\n"));
    let error = configuration_error(lab.open(&[("AWS_USE_DUALSTACK_ENDPOINT", "true")]));
    assert!(error.contains("AWS_USE_DUALSTACK_ENDPOINT=true"), "{error}");
}

#[test]
fn secrets_are_never_shown() {
    let lab = Lab::new();
    let endpoint = lab.server.endpoint();
    let mut shown = Vec::new();
    let secret =
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", WRONG_SECRET), ("AWS_SESSION_TOKEN", TOKEN)];
    let at = |endpoint| [secret[0], secret[1], secret[2], ("AWS_ENDPOINT_URL", endpoint)];
    let record = |shown: &mut Vec<String>, error: StoreError| shown.push(format!("{error} {error:?} {error:#?}"));
    let store = lab.open(&at(&endpoint)).unwrap();
    shown.push(format!("{store:?} {store:#?} {:?}", at("x").into_iter().collect::<Environment>()));
    for plan in [
        Faults::default(),
        Faults::always(Fault::ExpiredToken, &[]),
        Faults::always(Fault::InternalError, &[]),
        Faults::always(Fault::Reset, &[]),
        Faults { down: true, ..Faults::default() },
    ] {
        lab.server.set_faults(plan);
        record(&mut shown, store.get("x").unwrap_err());
        record(&mut shown, store.size("x").unwrap_err());
        record(&mut shown, store.list("").unwrap_err());
        record(&mut shown, store.put("x", vec![0; 17 << 20]).unwrap_err());
        record(&mut shown, store.put_new("x", "y").unwrap_err());
    }
    let login = format!("http://{ACCESS_KEY_ID}:{WRONG_SECRET}@127.0.0.1:1");
    for broken in ["not a url", "http://", "ftp://127.0.0.1", "https://127.0.0.1:1", &login] {
        match lab.open(&at(broken)) {
            Err(error) => record(&mut shown, error),
            Ok(store) => record(&mut shown, store.get("x").unwrap_err()),
        }
    }
    record(&mut shown, lab.open(&[secret[1]]).unwrap_err());
    let no_equals_sign = format!("[default]\naws_access_key_id = a\naws_secret_access_key {WRONG_SECRET}\n");
    for file in
        [no_equals_sign, format!("[default]\naws_secret_access_key = {WRONG_SECRET}\n"), WRONG_SECRET.to_owned()]
    {
        lab.write("credentials", &file);
        let error = lab.open(&[]).unwrap_err();
        assert!(error.is_configuration(), "{error}");
        assert!(error.to_string().contains("credentials") | error.to_string().contains("default"), "{error}");
        record(&mut shown, error);
    }
    lab.write("credentials", &Lab::keys("default", WRONG_SECRET));
    let store = lab.open(&[("AWS_ENDPOINT_URL", &endpoint)]).unwrap();
    record(&mut shown, store.get("x").unwrap_err());
    for url in [format!("s3://{ACCESS_KEY_ID}:{WRONG_SECRET}@bucket/x"), "s3://Wr0ngS3cret@bucket".to_owned()] {
        record(&mut shown, Store::open_with(&url, &Environment::default()).unwrap_err());
        shown.push(output(lab.folder.path(), &url, &[]));
    }
    lab.server.set_faults(Faults::default());
    shown.push(output(lab.folder.path(), "s3://bucket/x", &at(&endpoint)));
    for text in &shown {
        for secret in [WRONG_SECRET, TOKEN, "Wr0ng", "T0ken"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn secrets_echoed_by_a_server_are_not_shown() {
    let lab = Lab::new();
    let endpoint = lab.server.endpoint();
    lab.server.set_faults(Faults::always(Fault::Echo(WRONG_SECRET), &[]));
    let profile = Lab::keys("default", WRONG_SECRET) + &format!("aws_session_token = {TOKEN}\n");
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", WRONG_SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
    ];
    let mut shown = Vec::new();
    for (profile, variables) in [(profile.as_str(), &variables[..1]), ("", &variables)] {
        lab.write("credentials", profile);
        let store = lab.open(variables).unwrap();
        let copy = File::create(lab.folder.path().join("copy")).unwrap();
        let errors = [
            store.get("x").unwrap_err(),
            store.get_range("x", 0, 1).unwrap_err(),
            store.download("x", 1, &copy).unwrap_err(),
            store.size("x").unwrap_err(),
            store.list("").unwrap_err(),
            store.put("x", "y").unwrap_err(),
            store.put("x", vec![0; 17 << 20]).unwrap_err(),
            store.put_new("x", "y").unwrap_err(),
            store.delete("x").unwrap_err(),
        ];
        shown.extend(errors.map(|error| format!("{error} {error:?} {error:#?}")));
        shown.push(output(lab.folder.path(), "s3://bucket/x", variables));
    }
    // The same holds for keys that were renewed after the store was opened.
    lab.write("credentials", &profile);
    let store = lab.open(&variables[..1]).unwrap();
    lab.write("credentials", &profile.replace(WRONG_SECRET, RENEWED_SECRET));
    lab.server.set_faults(Faults::always(Fault::Echo(RENEWED_SECRET), &[]));
    shown.push(format!("{:?}", store.get("x").unwrap_err()));
    for text in &shown {
        // The server's message is shown with its secrets removed.
        assert!(text.contains("The token [secret] and the key [secret] do not match."), "{text}");
        for secret in ["Wr0ng", "R3newed", "T0ken", "AWS4-HMAC", "Signature="] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// Returns the output of `arinar-data inspect`, which must fail.
fn output(home: &Path, url: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(program("arinar-data"))
        .args(["inspect", url])
        .env("HOME", home)
        .env("AWS_ALLOW_HTTP", "true")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let (code, stdout, stderr) = exit_status(&output);
    assert!(code != 0 && stderr.trim().lines().count() == 1, "{code} {stderr}");
    stdout + &stderr
}
