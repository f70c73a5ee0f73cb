//! Tests of inputs that cannot be read: everything that is wrong with one picture is named, skipped on request, and
//! never blocks the run.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arinar_data::format::Manifest;
use arinar_store::Store;
use arinar_tests::programs::program;
use arinar_tests::support::data::{exit_status, files, gnu_tar, picture_tree, text, tiny_vae};

/// Runs `arinar-data`, which is killed if it blocks.
fn within_a_minute(arguments: &[&str]) -> (i32, String, String) {
    let output: Output =
        Command::new("timeout").arg("60").arg(program("arinar-data")).args(arguments).output().expect("run timeout");
    exit_status(&output)
}

fn encode(images: &Path, vae: &Path, out: &Path, more: &[&str]) -> (i32, String, String) {
    let fixed = ["encode", "--images", text(images), "--vae", text(vae), "--out", text(out), "--image-size=8"];
    within_a_minute(&[&fixed[..], more].concat())
}

fn pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

#[test]
fn whatever_is_wrong_with_a_picture_is_named_and_can_be_skipped() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { work.path().join(name) };
    let (tree, vae) = (path("tree"), path("vae.safetensors"));
    picture_tree(&tree, 9);
    tiny_vae(&vae);
    symlink("/nowhere/1.png", tree.join("apes/dangling.png")).unwrap();
    symlink("self.png", tree.join("apes/self.png")).unwrap();
    pipe(&tree.join("apes/pipe.png"));
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("apes/socket.png")).unwrap();
    symlink("/dev/zero", tree.join("apes/zero.png")).unwrap();
    std::fs::File::create(tree.join("apes/huge.png")).unwrap().set_len((1 << 30) + 1).unwrap();
    std::fs::write(tree.join("apes/empty.png"), "").unwrap();
    pipe(&tree.join("apes/pipe-without-suffix"));
    let reasons = [
        "apes/dangling.png: is a link to /nowhere/1.png, which cannot be read: No such file",
        "apes/self.png: is a link to self.png, which cannot be read: Too many levels",
        "apes/pipe.png: is a named pipe, not a regular file",
        "apes/socket.png: is a socket, not a regular file",
        "apes/zero.png: is a device, not a regular file",
        "apes/huge.png: has 1073741825 bytes",
        "apes/empty.png: ",
    ];
    let (code, _, stderr) = encode(&tree, &vae, &path("out"), &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("7 of 16 pictures cannot be used")
            && stderr.contains("files that are not pictures are skipped: apes/pipe-without-suffix"),
        "{stderr}"
    );
    let (code, stdout, stderr) = encode(&tree, &vae, &path("out"), &["--skip-bad"]);
    assert_eq!(code, 0, "{stderr}");
    for reason in reasons {
        assert!(stdout.contains(reason), "{reason:?} is not in {stdout}");
    }
    let manifest = Manifest::read(&Store::open(text(&path("out"))).unwrap()).unwrap();
    assert_eq!((manifest.num_samples, manifest.skipped.len()), (9, 7));
}

#[test]
fn names_that_are_not_utf8_are_encoded() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { work.path().join(name) };
    let (tree, vae) = (path("tree"), path("vae.safetensors"));
    picture_tree(&tree, 3);
    tiny_vae(&vae);
    for name in [&b"caf\xe8"[..], b"caf\xe9"] {
        let class = tree.join(OsStr::from_bytes(name));
        std::fs::create_dir(&class).unwrap();
        std::fs::copy(tree.join("apes/0001.png"), class.join("1.png")).unwrap();
        std::fs::copy(tree.join("apes/0001.png"), class.join(OsStr::from_bytes(b"\xff\xfe.png"))).unwrap();
    }
    std::fs::write(tree.join(OsStr::from_bytes(b"caf\xe9/\xfd.png")), "no picture").unwrap();
    let tar = path("tree.tar");
    gnu_tar(&tar, &tree, &["."]);
    for (input, out) in [(&tree, "from-tree"), (&tar, "from-tar")] {
        let (code, stdout, stderr) = encode(input, &vae, &path(out), &["--skip-bad", "--threads=1"]);
        assert!(code == 0 && stdout.contains("caf\\xe9/\\xfd.png: "), "{stdout} {stderr}");
        let manifest = Manifest::read(&Store::open(text(&path(out))).unwrap()).unwrap();
        assert_eq!(manifest.classes, ["apes", "birds", "caf\\xe8", "caf\\xe9"]);
        assert_eq!((manifest.num_samples, &manifest.skipped[..]), (7, &["caf\\xe9/\\xfd.png".to_owned()][..]));
    }
    assert!(files(&path("from-tree")) == files(&path("from-tar")));
}

#[test]
fn cached_latents_in_pipes_do_not_block() {
    let work = tempfile::tempdir().unwrap();
    let from = work.path().join("from");
    std::fs::create_dir_all(from.join("n0")).unwrap();
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/npz/cached/n01440764/n01440764_18.JPEG.npz");
    std::fs::copy(good, from.join("n0/1.npz")).unwrap();
    pipe(&from.join("n0/0.npz"));
    std::fs::create_dir(from.join(".ipynb_checkpoints")).unwrap();
    std::fs::write(from.join(".ipynb_checkpoints/1.npz"), "no latents").unwrap();
    let out = work.path().join("out");
    let (code, stdout, stderr) =
        within_a_minute(&["convert", "--from", text(&from), "--out", text(&out), "--skip-bad"]);
    assert!(code == 0 && stdout.contains("n0/0: is a named pipe"), "{stdout} {stderr}");
    assert!(stdout.contains("1 pictures of 1 classes"), "{stdout}");
}

#[test]
fn an_input_that_is_no_file_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let (input, vae, out) =
        (work.path().join("pipe.tar"), work.path().join("vae.safetensors"), work.path().join("out"));
    pipe(&input);
    tiny_vae(&vae);
    let (code, _, stderr) = encode(&input, &vae, &out, &[]);
    assert!(code == 78 && stderr.contains("pipe.tar is neither a folder nor a regular file"), "{code} {stderr}");
}
