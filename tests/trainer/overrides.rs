//! Tests that `--set KEY=VALUE` and a file with `KEY: VALUE` are judged alike, and that values with units are never
//! taken for others.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use arinar_data::parse_bytes;
use arinar_tests::support::trainer::{Lab, ProcessOutput};
use arinar_trainer::config::{self, ByteSize, ConfigError, Every, Timeout, TrainConfig};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A configuration in which every key has a line.
const BASE: &str = "\
seed: 1
run:
  name: a
  dir: runs/a
  log_dir: runs/a/logs
model:
  image_size: 16
  classes: 3
  vae:
    stride: 4
    channels: 4
    scale: 0.5
  outer:
    kind: mar
    width: 32
    heads: 4
    encoder_depth: 1
    decoder_depth: 1
    buffer_tokens: 4
    mask_ratio_min: 0.7
    dropout: 0.1
    label_drop: 0.1
  head:
    kind: arinar
    width: 32
    depth: 1
    heads: 2
    gaussians: 2
data:
  url: 'synthetic:'
  cache_dir: null
  cache_limit: null
  shuffle_window: null
  look_ahead: 4
optim:
  lr_per_256: 0.1
  betas: [0.9, 0.95]
  eps: 1e-8
  weight_decay: 0.02
  grad_clip: 3.0
  ema: 0.9
  schedule: constant
  warmup_epochs: 0
  epochs: 4
batch:
  global: 8
  micro: null
precision: fp32
checkpoint:
  every: 30min
  keep_last: 3
  keep_every_epochs: null
  resume: auto
  spool_dir: null
  spool_limit: null
  upload_rate: 16MB
  upload_timeout: 10min
eval: null
train:
  max_steps: null
  device: auto
  threads: null
  non_finite: stop
  max_skips: 10
log:
  every: 10s
  format: text
";

/// Returns the dotted path and the number of every line with a value.
fn keys() -> Vec<(String, usize)> {
    let mut sections: Vec<&str> = Vec::new();
    let mut keys = Vec::new();
    for (number, line) in BASE.lines().enumerate() {
        let (key, value) = line.split_once(':').unwrap();
        sections.truncate((key.len() - key.trim_start().len()) / 2);
        sections.push(key.trim());
        if !value.is_empty() {
            keys.push((sections.join("."), number));
        }
    }
    keys
}

/// Returns the base with another value in one line.
fn file_with(line: usize, value: &str) -> String {
    let lines = BASE.lines().enumerate();
    let replaced = lines.map(|(number, text)| match number == line {
        true => format!("{}: {value}\n", text.split_once(':').unwrap().0),
        false => format!("{text}\n"),
    });
    replaced.collect()
}

/// Returns the configuration, or the message without the place in the file or on the command line.
fn verdict(result: Result<TrainConfig, ConfigError>) -> Result<String, String> {
    match result {
        // Debug also shows the sign of zero.
        Ok(config) => Ok(format!("{config:?}")),
        Err(ConfigError::Syntax { message, .. } | ConfigError::Override { message, .. }) => Err(message),
        Err(error) => Err(error.to_string()),
    }
}

fn assert_alike(path: &str, line: usize, value: &str) -> Result<(), TestCaseError> {
    let file = verdict(config::parse(&file_with(line, value), "a.yaml", &[]));
    let set = verdict(config::parse(BASE, "a.yaml", &[format!("{path}={value}")]));
    if value.starts_with(['"', '\'']) && file.is_err() && set.is_err() {
        // A quote that is not closed ends somewhere in the rest of the file, but at the end of an argument.
        return Ok(());
    }
    prop_assert_eq!(file, set, "{}={:?}", path, value);
    Ok(())
}

/// Scalars that parsers disagree about.
const SCALARS: [&str; 62] = [
    "",
    "null",
    "~",
    "Null",
    "true",
    "False",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
    "0",
    "-0",
    "1",
    "-1",
    "+1",
    "01",
    "0x10",
    "0o10",
    "0b11",
    "1_000",
    "1__0",
    "1e3",
    "1e-4",
    "1.",
    ".5",
    "1e400",
    "-1e400",
    ".inf",
    "-.inf",
    ".nan",
    "inf",
    "nan",
    "infinity",
    "'1'",
    "\"1\"",
    "'a",
    "\"a",
    "'a'b",
    "\"\\q\"",
    "\"\\x41\"",
    "''",
    "'it''s'",
    "@a",
    "`a",
    "%a",
    "*a",
    "&a",
    "&a b",
    "!a b",
    "!!int 1",
    "a: b",
    "- a",
    "? a",
    ": a",
    "18446744073709551616",
    "2026-11-27",
    "12:30:45",
    "=",
    "<<",
    "auto",
];

#[test]
fn special_scalars_are_judged_alike_in_a_file_and_on_the_command_line() {
    for (path, line) in keys() {
        for value in SCALARS {
            assert_alike(&path, line, value).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn random_scalars_are_judged_alike_in_a_file_and_on_the_command_line(
        key in proptest::sample::select(keys()),
        value in prop_oneof![
            "-?[0-9]{1,20}", "-?[0-9]{0,3}\\.[0-9]{0,3}(e-?[0-9]{1,3})?", "[0-9_]{1,6}", "[0-9]{1,4} ?[a-zA-Z]{1,5}",
            "[a-z./:-]{1,12}", "['\"]?[ -~éü]{1,10}['\"]?",
        ],
    ) {
        let value = value.trim();
        // Lists and mappings of one line are not scalars, and a comment or a colon at the end is treated differently.
        prop_assume!(!value.starts_with(['[', '{', '#', '|', '>']) && !value.contains(" #") && !value.ends_with(':'));
        assert_alike(&key.0, key.1, value)?;
    }

    #[test]
    fn durations_survive_a_round_trip_or_are_refused(
        days in 0u64..31, hours in 0u64..48, minutes in 0u64..100, seconds in 0u64..100, millis in 0u64..2000, space: bool,
        text in "[0-9]{0,3}[.,-]?[0-9]{0,3} ?(M|y|w|us|ns|s|m|min|h|d|H|)[0-9]{0,2}",
    ) {
        let parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"), (millis, "ms")];
        let parts: Vec<String> =
            parts.iter().filter(|part| part.0 > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
        let written = parts.join(if space { " " } else { "" });
        let millis = (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 + millis;
        let time = Duration::from_millis(millis);
        let is_valid = millis > 0 && time <= Duration::from_secs(30 * 86_400);
        prop_assert_eq!(written.parse::<Every>().ok(), is_valid.then_some(Every::Time(time)), "{}", written);
        for text in [written, text] {
            if let Ok(Every::Time(time)) = text.parse() {
                prop_assert_eq!(Every::Time(time).to_string().parse(), Ok(Every::Time(time)));
                // The meaning does not depend on the unit it is written in.
                prop_assert_eq!(format!("{}ms", time.as_millis()).parse(), Ok(Every::Time(time)));
            }
            if let Ok(timeout) = text.parse::<Timeout>() {
                prop_assert_eq!(timeout.to_string().parse(), Ok(timeout));
                prop_assert!(!text.contains(['M', 'y', 'w', '.', ',', '-', 'H']), "{}", text);
            }
        }
    }

    #[test]
    fn sizes_survive_a_round_trip_or_are_refused(
        number in 0u64..100_000, decimals in 0u32..4,
        unit in proptest::sample::select(vec![
            ("", 1u64), ("B", 1), ("KB", 1000), ("kB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000), ("KiB", 1024), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40),
        ]),
        other in "[0-9]{1,3}(G|gb|Gb|g|e10|E3B|bytes|PB|%|\\.)",
    ) {
        let scale = 10u64.pow(decimals);
        let (whole, fraction) = (number / scale, number % scale);
        let text = if decimals == 0 {
            format!("{number}{}", unit.0)
        } else {
            format!("{whole}.{fraction:0width$}{}", unit.0, width = decimals as usize)
        };
        let bytes = u128::from(number) * u128::from(unit.1) / u128::from(scale);
        let is_valid = bytes > 0 && (decimals == 0 || !unit.0.is_empty());
        prop_assert_eq!(parse_bytes(&text).ok(), is_valid.then_some(bytes as u64), "{}", text);
        if let Ok(size) = text.parse::<ByteSize>() {
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
        prop_assert!(parse_bytes(&other).is_err(), "{}", other);
    }
}

#[test]
fn the_command_line_takes_what_a_shell_suggests() {
    let parsed = |argument: &str| config::parse(BASE, "a.yaml", &[argument.to_owned()]);
    assert_eq!(parsed("data.url=synthetic:").unwrap().data.url, "synthetic:");
    assert_eq!(parsed("run.dir=s3://bucket/a b").unwrap().run.dir, "s3://bucket/a b");
    assert_eq!(parsed("run.name=\"a\\x7f\\tb #c\"").unwrap().run.name, "a\u{7f}\tb #c");
    // A later override keeps the value of an earlier one, whatever its characters are.
    let both = ["run.name=\"a\\x7f: ü😀\"", "seed=7"].map(str::to_owned);
    assert_eq!(config::parse(BASE, "a.yaml", &both).unwrap().run.name, "a\u{7f}: ü😀");
    for (argument, part) in [
        ("run.name=a #b", "'#' begins a comment"),
        ("data.cache_dir=#b", "'#' begins a comment"),
        ("run.name=a\nseed: 2", "a value is one line"),
        ("eval.num_images=3", "\"eval\" is null; set all of its keys together"),
        ("seed.x=3", "\"seed\" has no keys inside"),
        ("optim=2", "optim: 2 is not a mapping of keys to values"),
        ("optim={lr: 2}", "unknown key \"lr\" in \"optim\""),
        ("batch={global: 8, global: 9}", "the key \"global\" occurs twice in \"batch\""),
        ("checkpoint.resume=false", "write auto, none, or the path"),
        ("checkpoint.resume=", "checkpoint.resume has no value"),
    ] {
        let message = parsed(argument).unwrap_err().to_string();
        assert!(message.starts_with("--set ") && message.contains(part), "{argument}: {message}");
    }
    // Numbers of the file that are not finite are reported whatever is overridden.
    let infinite = BASE.replace("eps: 1e-8", "eps: .inf");
    let message = config::parse(&infinite, "a.yaml", &["seed=2".to_owned()]).unwrap_err().to_string();
    assert_eq!(message, "optim.eps: inf is not a finite number above 0");
}

#[test]
fn printed_configurations_are_configurations() {
    let lab = Lab::new();
    let mut command = lab.command(0, &["checkpoint.every=90min", "data.cache_limit=1.5GiB", "train.max_steps=1_000"]);
    let printed = ProcessOutput::of(command.arg("--print-config").output().unwrap()).succeeded().stdout;
    let parsed: TrainConfig = serde_json::from_str(&printed).unwrap();
    assert_eq!(parsed.checkpoint.every, Every::Time(Duration::from_secs(5400)));
    assert_eq!(parsed.data.cache_limit, Some(ByteSize(1_610_612_736)));
    assert_eq!(parsed.train.max_steps, Some(1000));
    // JSON is YAML, so that the output is a configuration.
    assert_eq!(config::parse(&printed, "printed.yaml", &[]).unwrap(), parsed);
}
