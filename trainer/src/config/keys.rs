//! The keys of a configuration, and the values that each of them accepts.

/// The values that a key accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// A finite number above 0.
    Positive,
    /// A finite number of at least 0.
    NotNegative,
    /// A number of at least 0 and below 1.
    Fraction,
    /// A whole number from the first to the second limit.
    Count(u64, u64),
    /// A text that is not empty, with a description.
    Text(&'static str),
    /// Anything else, which its own type checks; with a description.
    Other(&'static str),
}

use Rule::{Count, Fraction, NotNegative, Other, Positive, Text};

/// The largest size of a part of the model, and of other small numbers.
const MANY: u64 = 65_536;
const BATCH: u64 = 1_000_000_000;
const SIZE: Rule = Other("a size like 60GB or 512MiB");
const INTERVAL: Rule = Other("a duration like 30s, 45min or 2h, or a number of steps like \"100 steps\"");
const FOLDER: Rule = Text("the path of a local folder");

/// Every key that is not a mapping, and the values that it accepts.
const KEYS: &[(&str, Rule)] = &[
    ("seed", Count(0, u64::MAX)),
    ("run.name", Text("a text")),
    ("run.dir", Text("a path or store URL")),
    ("run.log_dir", FOLDER),
    ("run.lease", Other("auto or none")),
    ("model.image_size", Count(1, MANY)),
    ("model.classes", Count(1, MANY)),
    ("model.vae.stride", Count(1, MANY)),
    ("model.vae.channels", Count(1, MANY)),
    ("model.vae.scale", Positive),
    ("model.outer.kind", Other("mar")),
    ("model.outer.width", Count(1, MANY)),
    ("model.outer.heads", Count(1, MANY)),
    ("model.outer.encoder_depth", Count(1, MANY)),
    ("model.outer.decoder_depth", Count(1, MANY)),
    ("model.outer.buffer_tokens", Count(1, MANY)),
    ("model.outer.mask_ratio_min", Fraction),
    ("model.outer.dropout", Fraction),
    ("model.outer.label_drop", Fraction),
    ("model.head.kind", Other("arinar")),
    ("model.head.width", Count(1, MANY)),
    ("model.head.depth", Count(1, MANY)),
    ("model.head.heads", Count(1, MANY)),
    ("model.head.gaussians", Count(1, MANY)),
    ("data.url", Text("a path or store URL, or \"synthetic:\"")),
    ("data.cache_dir", FOLDER),
    ("data.cache_limit", SIZE),
    ("data.shuffle_window", Count(0, u64::MAX)),
    ("data.look_ahead", Count(1, 1024)),
    ("optim.lr_per_256", Positive),
    ("optim.betas", Other("a list of two numbers of at least 0 and below 1, like [0.9, 0.95]")),
    ("optim.betas[0]", Fraction),
    ("optim.betas[1]", Fraction),
    ("optim.eps", Positive),
    ("optim.weight_decay", NotNegative),
    ("optim.grad_clip", Positive),
    ("optim.ema", Fraction),
    ("optim.schedule", Other("constant or cosine")),
    ("optim.warmup_epochs", NotNegative),
    ("optim.epochs", Positive),
    ("batch.global", Count(1, BATCH)),
    ("batch.micro", Count(1, BATCH)),
    ("precision", Other("fp32 or bf16")),
    ("checkpoint.every", INTERVAL),
    ("checkpoint.keep_last", Count(1, u64::MAX)),
    ("checkpoint.keep_every_epochs", Positive),
    ("checkpoint.resume", Text("auto, none, or the path or URL of a run or checkpoint")),
    ("checkpoint.spool_dir", FOLDER),
    ("checkpoint.spool_limit", SIZE),
    ("checkpoint.upload_rate", SIZE),
    ("checkpoint.upload_timeout", Other("a duration like 30s, 10min or 1h")),
    ("eval.every_epochs", Positive),
    ("eval.num_images", Count(1, u64::MAX)),
    ("eval.guidance_scale", Positive),
    ("train.max_steps", Count(1, u64::MAX)),
    ("train.device", Other("auto, cpu or cuda")),
    ("train.threads", Count(1, 1024)),
    ("train.non_finite", Other("stop or skip")),
    ("train.max_skips", Count(0, u64::MAX)),
    ("log.every", INTERVAL),
    ("log.format", Other("text or json")),
];

/// Returns the values that the key at a dotted path accepts, or `None` if it is a mapping or unknown.
pub(super) fn rule(path: &str) -> Option<Rule> {
    KEYS.iter().find(|(key, _)| *key == path).map(|(_, rule)| *rule)
}

impl Rule {
    /// Returns the accepted values in words.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Positive => "a finite number above 0".to_owned(),
            Self::NotNegative => "a finite number of at least 0".to_owned(),
            Self::Fraction => "a number of at least 0 and below 1".to_owned(),
            Self::Count(least, u64::MAX) => format!("a whole number of at least {least}"),
            Self::Count(least, most) => format!("a whole number from {least} to {most}"),
            Self::Text(description) | Self::Other(description) => description.to_owned(),
        }
    }

    /// Returns whether a number is accepted.
    pub(super) fn allows(self, number: f64) -> bool {
        match self {
            Self::Positive => number > 0.0 && number.is_finite(),
            Self::NotNegative => number >= 0.0 && number.is_finite(),
            Self::Fraction => (0.0..1.0).contains(&number),
            Self::Count(least, most) => number >= least as f64 && number <= most as f64,
            Self::Text(_) | Self::Other(_) => true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn leaves(path: &str, value: &serde_json::Value, into: &mut Vec<String>) {
        match value.as_object() {
            Some(fields) => {
                let inside = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                fields.iter().for_each(|(key, value)| leaves(&inside(key), value, into));
            }
            None => into.push(path.to_owned()),
        }
    }

    #[test]
    fn the_table_has_exactly_the_keys_of_a_configuration() {
        let eval = "eval={every_epochs: 1, num_images: 1, guidance_scale: 1}".to_owned();
        let text = include_str!("../../../configs/arinar_b.yaml");
        let config = crate::config::parse(text, "arinar_b.yaml", &[eval]).unwrap();
        let mut keys = Vec::new();
        leaves("", &serde_json::to_value(&config).unwrap(), &mut keys);
        let mut table: Vec<_> =
            KEYS.iter().map(|(key, _)| (*key).to_owned()).filter(|key| !key.ends_with(']')).collect();
        keys.sort();
        table.sort();
        assert_eq!(keys, table);
    }
}
