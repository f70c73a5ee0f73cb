//! Tests of the grammar. The right values follow from the rules in the documentation of the crate.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::{expand, local_path, split_file};

fn parse(text: &str) -> Result<String, String> {
    Place::parse_with_home(text, Some(Path::new("/home/u"))).map(|p| p.to_string()).map_err(|e| e.to_string())
}

/// Returns a path below the current folder.
fn here(name: &str) -> String {
    std::env::current_dir().unwrap().join(name).display().to_string()
}

#[test]
fn texts_that_look_like_urls_and_are_none_are_refused() {
    for (text, remedy) in [
        ("s3:/bucket/run", "write s3://bucket/run, or ./s3:/bucket/run"),
        ("s3:bucket/run", "write s3://bucket/run,"),
        ("s3:\\\\bucket\\run", "write s3://"),
        ("S3://bucket/run", "write s3://bucket/run,"),
        ("GS:/bucket", "write gs://bucket,"),
        ("gs:/bucket/x", "write gs://bucket/x,"),
        ("az:container", "write az://container,"),
        ("s3//b", "write s3://b,"),
        ("s3///b/x", "write s3://b/x,"),
        ("S3//b", "write s3://b,"),
        ("http//host/x", "write http://host/x,"),
        ("file//data", "write file:///data,"),
        ("file:/data", "write file:///data,"),
        ("file:data", "write file:///data,"),
        ("FILE:///data", "write file:///data,"),
        ("'s3://b/x'", "without anything before it"),
        ("\"s3://b/x\"", "without anything before it"),
        ("runs/s3://b/x", "without anything before it"),
        ("://b/x", "without anything before it"),
        ("hf://datasets/x", "download the files first"),
        ("gcs://b/x", "write gs://bucket/folder"),
        ("r2://b/x", "AWS_ENDPOINT_URL"),
        ("minio://b/x", "AWS_ENDPOINT_URL"),
        ("s3n://b/x", "write s3://bucket/folder"),
        ("wasbs://c@a.blob.core.windows.net/x", "write abfss://"),
        ("https://bucket.s3.amazonaws.com/x", "write s3://bucket/folder and set AWS_REGION"),
        ("https://storage.googleapis.com/b/x", "write gs://bucket/folder"),
        ("https://a.blob.core.windows.net/c/x", "write abfss://"),
        ("https://example.com/x", "download the files first"),
        ("host:/data/x", "write ./host:/data/x"),
        ("ssh://host/x", "mount the folder"),
        ("hdfs:x", "mount the folder"),
        ("memory:///x", "use a path"),
        ("C:\\data\\x", "drive letter"),
        ("c:/data", "drive letter"),
        ("\\\\server\\share", "write / instead"),
        ("data\\x", "write / instead"),
        ("$HOME/run", "write its value"),
        ("${SCRATCH}/run", "write its value"),
        ("~alice/run", "write its absolute path, or ./~alice/run"),
        ("~+/run", "write its absolute path"),
        (" s3://b/x", "without anything before it"),
        (" runs/a", "remove it"),
        ("runs/a ", "remove it"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("s3://b/x\n", "line break"),
        ("runs\0a", "control character"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(remedy), "{text}: {error}");
        assert!(error.lines().count() == 1, "{error}");
    }
}

#[test]
fn remote_urls_that_cannot_be_used_name_the_problem() {
    for (text, problem) in [
        ("s3://", "names no bucket; write s3://bucket/folder"),
        ("s3:///x", "names no bucket"),
        ("gs://", "names no bucket; write gs://bucket/folder"),
        ("s3://b//x", "two slashes in a row"),
        ("s3://b/x//", "two slashes in a row"),
        ("s3://b//", "two slashes in a row"),
        ("s3://b/a/../c", "the folder name .., which"),
        ("s3://b/./c", "the folder name ., which"),
        ("s3://b/..", "the folder name .., which"),
        ("s3://b/x?versionId=3", "has a query"),
        ("s3://b?versionId=3", "has a query"),
        ("az://c/x?sv=1&sig=S3CR3T", "has a query"),
        ("s3://KEY:S3CR3T@b/x", "contains credentials"),
        ("s3://KEY@b/x", "contains credentials"),
        ("s3://b:443/x", "contains credentials"),
        ("ftp://user:S3CR3T@host/x", "contains credentials, and has the scheme ftp:"),
        ("s3://my bucket/x", "the bucket name \"my bucket\""),
        ("s3://b%20c/x", "the bucket name"),
        ("s3://büro/x", "the bucket name"),
        ("s3://../x", "the bucket name"),
        ("s3://b#c/x", "the bucket name"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/x", "write its alias"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(problem) && !error.contains("S3CR3T"), "{text}: {error}");
    }
}

#[test]
fn the_name_behind_a_bucket_is_literal() {
    for key in ["a%20c", "a c", "a+b", "what?", "a#b", "größe/日本", "a=b, c", "x~", "a:b", "{x}", "a%2Fb", "a\\b"]
    {
        let text = format!("s3://b/{key}");
        let Place::Remote(folder) = Place::parse(&text).unwrap() else { panic!("{text}") };
        assert_eq!((folder.bucket(), folder.key()), ("b", key));
        assert_eq!(folder.to_string(), text);
    }
    for (text, bucket, key) in [
        ("s3://b", "b", ""),
        ("s3://b/", "b", ""),
        ("s3://My_Old.Bucket/x/", "My_Old.Bucket", "x"),
        ("s3a://b/x", "b", "x"),
        ("gs://b/x/y", "b", "x/y"),
        ("az://$root/x", "$root", "x"),
        ("azure://c/x", "c", "x"),
        ("abfss://c@account.dfs.core.windows.net/x", "c", "x"),
    ] {
        let Place::Remote(folder) = Place::parse(text).unwrap() else { panic!("{text}") };
        assert_eq!((folder.bucket(), folder.key()), (bucket, key), "{text}");
    }
}

#[test]
fn local_paths_are_absolute_and_literal() {
    for (text, path) in [
        ("/data/x", "/data/x".to_owned()),
        ("/data//x/./y/", "/data/x/y".to_owned()),
        ("/data/s3:/x", "/data/s3:/x".to_owned()),
        ("/", "/".to_owned()),
        ("runs/a", here("runs/a")),
        ("./s3:/x", here("s3:/x")),
        ("./s3://x", here("s3:/x")),
        ("./~", here("~")),
        ("./$HOME", here("$HOME")),
        ("./C:\\x", here("C:\\x")),
        ("run-12:30", here("run-12:30")),
        ("2026-01-01T12:30:00", here("2026-01-01T12:30:00")),
        ("a b#c?d%20", here("a b#c?d%20")),
        ("...", here("...")),
        (".", std::env::current_dir().unwrap().display().to_string()),
        ("~", "/home/u".to_owned()),
        ("~/", "/home/u".to_owned()),
        ("~/runs/a", "/home/u/runs/a".to_owned()),
        ("~//runs", "/home/u/runs".to_owned()),
        ("a/~/b", here("a/~/b")),
        ("file:///data/a%20b", "/data/a b".to_owned()),
        ("file://localhost/data", "/data".to_owned()),
        ("file:///data/%3F%23", "/data/?#".to_owned()),
    ] {
        assert_eq!(parse(text).unwrap(), path, "{text}");
    }
    for text in ["file://data/x", "file://", "file:///a?b", "file:///a#b", "file:///a%0Ab", "file:///%ff", "file:///a "]
    {
        assert!(parse(text).unwrap_err().contains("file"), "{text}");
    }
    let homeless = Place::parse_with_home("~/x", None).unwrap_err().to_string();
    assert!(homeless.contains("set HOME"), "{homeless}");
}

#[test]
fn two_dots_leave_the_folder_that_a_link_leads_to() {
    let root = tempdir();
    std::fs::create_dir_all(root.join("real/inner")).unwrap();
    std::os::unix::fs::symlink(root.join("real/inner"), root.join("link")).unwrap();
    let parsed = Place::parse(&format!("{}/link/../x", root.display())).unwrap();
    assert_eq!(parsed, Place::Local(std::fs::canonicalize(&root).unwrap().join("real/x")));
    std::fs::remove_dir_all(root).unwrap();
}

/// Returns a new folder.
fn tempdir() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("arinar-place-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn only_local_places_are_paths() {
    assert_eq!(local_path(Path::new("/a/b")).unwrap(), Path::new("/a/b"));
    let error = local_path(Path::new("s3://b/x")).unwrap_err().to_string();
    assert!(error.contains("\"s3://b/x\" is in a remote store") && error.contains("give their path"), "{error}");
    assert!(local_path(Path::new("s3:/b/x")).is_err());
    assert_eq!(expand("configs/a.yaml").unwrap(), Path::new("configs/a.yaml"));
    assert!(expand("~/a.yaml").unwrap().is_absolute());
    assert!(expand("gs://b/a.yaml").is_err());
}

#[test]
fn a_file_is_a_folder_and_a_name() {
    let split = |text: &str| split_file(text).map(|(folder, name)| (folder.to_string(), name)).unwrap();
    assert_eq!(split("/a/b.pth"), ("/a".to_owned(), "b.pth".to_owned()));
    assert_eq!(split("file:///a/b/c%20d"), ("/a/b".to_owned(), "c d".to_owned()));
    assert_eq!(split("/b.pth"), ("/".to_owned(), "b.pth".to_owned()));
    assert_eq!(split("b.pth").0, std::env::current_dir().unwrap().display().to_string());
    assert_eq!(split("s3://b/x"), ("s3://b".to_owned(), "x".to_owned()));
    assert_eq!(split("s3://b/x/a%20c"), ("s3://b/x".to_owned(), "a%20c".to_owned()));
    for text in ["/a/b/", "s3://b", "s3://b/", "s3://b/x/", "/", ".", "..", "~", "a/.", "a/.."] {
        assert!(split_file(text).unwrap_err().to_string().contains("names a folder"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    /// Whatever is accepted is shown as a text that means the same; everything else has an error in one line.
    #[test]
    fn places_survive_a_round_trip(
        scheme in "(|s3:|s3:/|s3://|S3://|gs://|az://|file://|file:///|hf://|C:|~|~/|\\./|\\.\\./|/|//|x:)",
        rest in "[a-zA-Z0-9 ./:?#%=~@$+\\\\&é_-]{0,20}",
    ) {
        let text = format!("{scheme}{rest}");
        match Place::parse(&text) {
            Ok(place) => {
                let shown = place.to_string();
                prop_assert_eq!(Place::parse(&shown), Ok(place.clone()), "{} is shown as {}", text, shown);
                if let Place::Remote(folder) = &place {
                    // Nothing of the name is lost or changed.
                    prop_assert_eq!(text.strip_suffix('/').unwrap_or(&text), folder.to_string());
                }
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.lines().count() == 1 && error.contains("; "), "{}", error);
            }
        }
    }

    /// A text in which a scheme is misspelled never becomes a relative path.
    #[test]
    fn nothing_like_a_url_is_local(
        scheme in "(s3|S3|gs|Gs|az|hf|http|https|gcs|r2|abfs|file|ftp)",
        separator in "(:|:/|:\\\\|//|///)",
        name in "[a-z][a-z0-9/]{0,10}",
    ) {
        let text = format!("{scheme}{separator}{name}");
        prop_assert!(Place::parse(&text).is_err(), "{}", text);
    }
}
