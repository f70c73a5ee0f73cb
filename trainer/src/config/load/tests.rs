#![allow(clippy::unwrap_used)]

use super::*;

const BASE: &str = include_str!("../../../../configs/arinar_b.yaml");

/// Returns the message for a file in which `from` is replaced, without the comments at its beginning.
fn message(from: &str, to: &str) -> String {
    let base = &BASE[BASE.find("seed:").unwrap()..];
    assert!(base.contains(from), "{from:?}");
    let error = parse(&base.replacen(from, to, 1), "a.yaml", &[]).expect_err(to);
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn values_of_another_type_are_named_with_key_place_and_accepted_values() {
    let mut wrong = Vec::new();
    for (from, to, expected) in [
        ("seed: 1", "seed: one", "a.yaml:1:7: seed: one is not a whole number of at least 0"),
        ("seed: 1", "seed: -1", "a.yaml:1:7: seed: -1 is not a whole number of at least 0"),
        ("seed: 1", "seed:", "a.yaml:1:5: seed has no value; it takes a whole number of at least 0"),
        ("seed: 1", "seed: null", "a.yaml:1:7: seed: null is not a whole number of at least 0"),
        ("seed: 1", "seed: ~", "a.yaml:1:7: seed: ~ is not a whole number of at least 0"),
        ("seed: 1", "seed: yes", "a.yaml:1:7: seed: yes is not a whole number of at least 0"),
        ("seed: 1", "seed: [1]", "a.yaml:1:7: seed: a list is not a whole number of at least 0"),
        ("seed: 1", "seed: {a: 1}", "a.yaml:1:7: seed: a mapping is not a whole number of at least 0"),
        ("seed: 1", "seed:\n- 1", "a.yaml:2:3: seed: a list is not a whole number of at least 0"),
        ("seed: 1", "seed: 1e3", "a.yaml:1:7: seed: 1e3 is not a whole number of at least 0; write 1000"),
        ("seed: 1", "seed: 010", "a.yaml:1:7: seed: 010 is not a whole number of at least 0; write 10"),
        ("seed: 1", "seed: 1.0", "a.yaml:1:7: seed: 1.0 is not a whole number of at least 0; write 1"),
        ("epochs: 400", "epochs: 1_000", "optim.epochs: 1_000 is not a finite number above 0; write 1000"),
        ("epochs: 400", "epochs: 1e400", "optim.epochs: 1e400 is not a finite number above 0"),
        ("epochs: 400", "epochs: inf", "optim.epochs: inf is not a finite number above 0"),
        ("epochs: 400", "epochs: .inf", "optim.epochs: inf is not a finite number above 0"),
        ("epochs: 400", "epochs: .nan", "optim.epochs: NaN is not a finite number above 0"),
        ("epochs: 400", "epochs: -0", "optim.epochs: -0 is not a finite number above 0"),
        ("epochs: 400", "epochs: 0x10", "optim.epochs: 0x10 is not a finite number above 0"),
        ("ema: 0.9999", "ema: on", "optim.ema: on is not a number of at least 0 and below 1"),
        ("[0.9, 0.95]", "[0.9]", "optim.betas: a list of 1 value is not a list of two numbers"),
        ("[0.9, 0.95]", "[0.9, 0.95, 0.99]", "optim.betas: a list of 3 values is not a list of two numbers"),
        ("[0.9, 0.95]", "0.9", "optim.betas: 0.9 is not a list of two numbers of at least 0 and below 1"),
        ("[0.9, 0.95]", "[0.9, x]", "optim.betas[1]: x is not a number of at least 0 and below 1"),
        ("[0.9, 0.95]", "[0.9, 1]", "optim.betas[1]: 1 is not a number of at least 0 and below 1"),
        ("name: arinar_b", "name: null", "run.name: null is not a text"),
        ("name: arinar_b", "name: ~", "run.name: ~ is not a text"),
        ("name: arinar_b", "name: [a]", "run.name: a list is not a text"),
        ("name: arinar_b", "name: \"\"", "run.name: the text is empty"),
        ("kind: mar", "kind: Mar", "model.outer.kind: unknown value \"Mar\"; it takes mar"),
        ("kind: mar", "kind: [mar]", "model.outer.kind: a list is not mar"),
        ("kind: mar", "kind: null", "model.outer.kind: unknown value \"null\"; it takes mar"),
        ("precision: bf16", "precision: fp16", "precision: unknown value \"fp16\"; it takes fp32 or bf16"),
        ("resume: auto", "resume: false", "checkpoint.resume: \"false\" is none of its values; write auto, none"),
        ("resume: auto", "resume: null", "checkpoint.resume: null is not auto, none, or the path"),
        ("resume: auto", "resume:", "checkpoint.resume has no value; it takes auto, none, or the path"),
        ("resume: auto", "resume: [a]", "checkpoint.resume: a list is not auto, none, or the path"),
        ("every: 30min", "every: 30M", "checkpoint.every: \"30M\" has the unit \"M\""),
        (
            "every: 30min",
            "every: 1h30",
            "checkpoint.every: \"1h30\" has a number that is not directly followed by a unit",
        ),
        ("every: 30min", "every: [30min]", "checkpoint.every: a list is not a duration like 30s"),
        ("batch: {global: 256}", "batch: 256", "batch: 256 is not a mapping of keys to values"),
        ("batch: {global: 256}", "batch: [256]", "batch: a list is not a mapping of keys to values"),
        ("batch: {global: 256}", "batch:", "batch has no keys"),
        ("batch: {global: 256}", "batch: null", "batch: null is not a mapping of keys to values"),
    ] {
        let message = message(from, to);
        if !message.contains(expected) {
            wrong.push(format!("{to:?}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn keys_and_syntax_are_described_with_the_fix() {
    let mut wrong = Vec::new();
    for (from, to, expected) in [
        (
            "batch: {global: 256}",
            "batch: {}",
            "the key \"global\" is missing in \"batch\"; it takes a whole number from 1",
        ),
        ("data: {url: \"synthetic:\"}", "", "the key \"data\" is missing; it takes keys of its own"),
        ("seed: 1", "seeds: 1", "a.yaml:1:1: unknown key \"seeds\"; did you mean \"seed\"?"),
        ("global: 256", "globl: 256", "unknown key \"globl\" in \"batch\"; did you mean \"global\"?"),
        ("lr_per_256: 1.0e-4", "lr_per_256: 1,5", "unknown key \"5\" in \"optim\""),
        ("seed: 1", "seed: 1\nseed: 2", "a.yaml:2:1: the key \"seed\" occurs twice; delete one of the two"),
        ("global: 256", "global: 256, global: 8", "the key \"global\" occurs twice in \"batch\"; delete one"),
        ("batch: {global: 256}", "batch:\n\tglobal: 256", "replace the tab"),
        ("batch: {global: 256}", "batch:\n  global: 256\n\tmicro: 8", "replace the tab"),
        ("batch: {global: 256}", "batch:\n  global: 256\n micro: 8", "the indentation does not match"),
        ("seed: 1", "seed 1", "the file: a text of several lines is not a mapping"),
        ("batch: {global: 256}", "batch:\n  global: 256\n  micro 8", "this line is not KEY: VALUE"),
        ("batch: {global: 256}", "batch:\n  global: 256\n  micro:8", "this line is not KEY: VALUE"),
        ("\"synthetic:\"", "'synthetic:", "the quote that opens here is not closed"),
        (
            "256}",
            "256",
            "batch.global: a text of several lines is not a whole number from 1 to 1000000000; close the bracket",
        ),
        ("resume: auto}", "resume: auto", "or a bracket that opens above it is not closed"),
        ("max_skips: 10}", "max_skips: 10", "the bracket that opens here is not closed"),
        ("seed: 1", "seed: ]", "this bracket closes nothing"),
        ("seed: 1", "seed: @x", "'@' is not allowed here; put the value in quotes"),
        ("seed: 1", "seed: 1: 2", "put a value that contains \": \" or ends with ':' in quotes"),
        ("seed: 1", "seed: \"\\q\"", "unknown escape; write \\\\"),
        ("seed: 1", "seed: 'a'b", "there is text after the closing quote"),
        ("seed: 1", "seed: - a", "a list begins here"),
        ("seed: 1", "seed: *x", "no anchor of this name precedes this alias"),
        ("seed: 1", "<<: 3\nseed: 1", "the merge key << takes a mapping"),
        ("seed: 1", "seed: !new 1", "a configuration has no tags"),
        ("seed: 1", "!new seed: 1", "a configuration has no tags"),
        ("every: 30min", "every: &a 1y, keep_last: *a", "checkpoint.every: \"1y\" has the unit \"y\""),
    ] {
        let message = message(from, to);
        if !(message.contains(expected) && message.starts_with("a.yaml:")) {
            wrong.push(format!("{to:?}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_message_is_meant_for_programmers_of_the_parser() {
    // Every value of the file is replaced in turn by every kind of value.
    let values = [
        "null", "[1]", "{a: 1}", "yes", "-1", "'x", "*x", "<<", "!t x", "1e999", "\"\\q\"", "@", "? a", "- a", "\t", "",
    ];
    let base = &BASE[BASE.find("seed:").unwrap()..];
    let ends = |text: &str| text.find([',', '}', '\n']).unwrap_or(text.len());
    for (start, _) in base.match_indices(": ") {
        for value in values {
            let rest = &base[start + 2..];
            let text = format!("{}: {value}{}", &base[..start], &rest[ends(rest)..]);
            let Err(error) = parse(&text, "a.yaml", &[]) else { continue };
            let message = error.to_string();
            for word in [
                "Option",
                "Policy",
                "struct",
                "enum",
                "variant",
                "u64",
                "usize",
                "i64",
                "scalar",
                "deserializ",
                "invalid",
            ] {
                assert!(!message.contains(word), "{value:?} at {start}: {message}");
            }
        }
    }
}

#[test]
fn equivalent_spellings_are_accepted() {
    let plain = parse(BASE, "a.yaml", &[]).unwrap();
    for text in [
        format!("\u{feff}{BASE}"),
        BASE.replace('\n', "\r\n"),
        format!("---\n{BASE}...\n"),
        BASE.replace("1.0e-4", "'1e-4'"),
        BASE.replace("epochs: 400", "epochs: 4e2"),
        BASE.replace("global: 256", "global: 0x100"),
        BASE.replace("resume: auto", "resume: 'auto'"),
        BASE.replace("seed: 1", "seed: &one 1").replace("depth: 1,", "depth: *one,"),
        serde_json::to_string(&plain).unwrap(),
    ] {
        assert_eq!(parse(&text, "a.yaml", &[]).unwrap(), plain, "{text}");
    }
}

#[test]
fn files_that_are_not_text_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    let refused = |contents: &[u8], part: &str| {
        std::fs::write(&path, contents).unwrap();
        let error = load(path.to_str().unwrap(), &[]).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("a.yaml") && error.lines().count() == 1, "{error}");
    };
    refused(b"", "a.yaml:1:1: the file is empty");
    refused(b"# only a comment\n", "the file is empty");
    refused(b"---\n", "the file has no keys");
    refused(b"text", "the file: text is not a mapping");
    refused(b"- seed: 1\n", "the file: a list is not a mapping");
    refused(b"<html><body>404</body></html>", "is not a mapping");
    refused(b"seed: 1\nrun: \xff", "line 2 is not UTF-8");
    refused(b"\xff\xfes\0e\0", "UTF-16");
    refused(b"seed: \0", "it is a binary file");
    refused(&vec![b'#'; 2 << 20], "it is longer than 1024 KiB");
    refused(format!("seed: {}1", "[".repeat(100_000)).as_bytes(), "a.yaml:1:");
    refused([BASE.as_bytes(), b"---\nseed: 2\n"].concat().as_slice(), "a second YAML document begins here");
    let error = load(folder.path().to_str().unwrap(), &[]).unwrap_err().to_string();
    assert!(error.contains("it is not a file"), "{error}");
}
