//! Checks of the values of a configuration, individually and together.

use super::{BatchShare, ConfigError, TrainConfig, keys::rule};

impl TrainConfig {
    /// Checks what the types do not, and returns the first problem as an error.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// Returns all values that are out of range.
    pub fn problems(&self) -> Vec<ConfigError> {
        let numbers = self.numbers().into_iter().filter_map(|(key, number)| Some(check_number(key, number?)));
        let mut problems: Vec<_> = numbers.chain(self.texts().map(check_text)).filter_map(Result::err).collect();
        // The relations between values of the model are only checked if each of them is in range.
        if !problems
            .iter()
            .any(|problem| matches!(problem, ConfigError::Value { key, .. } if key.starts_with("model.")))
        {
            problems.extend(self.model.validate().map_err(ConfigError::from).err());
        }
        let is_known = |known: &ConfigError, other: &ConfigError| match (known, other) {
            (ConfigError::Value { key, .. }, ConfigError::Value { key: other, .. }) => key == other,
            _ => false,
        };
        // An empty text is reported once.
        let mut places = self.place_problems();
        places.retain(|place| !problems.iter().any(|known| is_known(known, place)));
        problems.extend(places);
        problems
    }

    /// Returns all numbers with their keys; `None` for a number that is null.
    fn numbers(&self) -> Vec<(&'static str, Option<f64>)> {
        let (model, optim, train, eval) = (&self.model, &self.optim, &self.train, self.eval.as_ref());
        let whole = |number: usize| Some(number as f64);
        let size = |number: i64| Some(number as f64);
        vec![
            ("model.image_size", size(model.image_size)),
            ("model.classes", size(model.classes)),
            ("model.vae.stride", size(model.vae.stride)),
            ("model.vae.channels", size(model.vae.channels)),
            ("model.vae.scale", Some(model.vae.scale)),
            ("model.outer.width", size(model.outer.width)),
            ("model.outer.heads", size(model.outer.heads)),
            ("model.outer.encoder_depth", size(model.outer.encoder_depth)),
            ("model.outer.decoder_depth", size(model.outer.decoder_depth)),
            ("model.outer.buffer_tokens", size(model.outer.buffer_tokens)),
            ("model.outer.mask_ratio_min", Some(model.outer.mask_ratio_min)),
            ("model.outer.dropout", Some(model.outer.dropout)),
            ("model.outer.label_drop", Some(model.outer.label_drop)),
            ("model.head.width", size(model.head.width)),
            ("model.head.depth", size(model.head.depth)),
            ("model.head.heads", size(model.head.heads)),
            ("model.head.gaussians", size(model.head.gaussians)),
            ("data.look_ahead", whole(self.data.look_ahead)),
            ("optim.lr_per_256", Some(optim.lr_per_256)),
            ("optim.betas[0]", Some(optim.betas[0])),
            ("optim.betas[1]", Some(optim.betas[1])),
            ("optim.eps", Some(optim.eps)),
            ("optim.weight_decay", Some(optim.weight_decay)),
            ("optim.grad_clip", Some(optim.grad_clip)),
            ("optim.ema", Some(optim.ema)),
            ("optim.warmup_epochs", Some(optim.warmup_epochs)),
            ("optim.epochs", Some(optim.epochs)),
            ("batch.global", whole(self.batch.global)),
            ("batch.micro", self.batch.micro.and_then(whole)),
            ("checkpoint.keep_last", whole(self.checkpoint.keep_last)),
            ("checkpoint.keep_every_epochs", self.checkpoint.keep_every_epochs),
            ("eval.every_epochs", eval.map(|eval| eval.every_epochs)),
            ("eval.num_images", eval.map(|eval| eval.num_images as f64)),
            ("eval.guidance_scale", eval.map(|eval| eval.guidance_scale)),
            ("train.max_steps", train.max_steps.map(|steps| steps as f64)),
            ("train.threads", train.threads.and_then(whole)),
        ]
    }

    /// Returns the texts that must not be empty, with their keys.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let (run, data, checkpoint) = (&self.run, &self.data, &self.checkpoint);
        let required = [("run.name", &run.name), ("run.dir", &run.dir), ("run.log_dir", &run.log_dir)];
        let optional = [("data.cache_dir", &data.cache_dir), ("checkpoint.spool_dir", &checkpoint.spool_dir)];
        let optional = optional.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?)));
        required.into_iter().chain([("data.url", &data.url)]).chain(optional).map(|(key, text)| (key, text.as_str()))
    }

    /// Returns how ranks share the samples of a step: the size of micro-batches, and their number per rank. If hosts are
    /// missing, so that there are fewer ranks than `full_world`, micro-batches are no larger than with all ranks, because
    /// larger ones may not fit into memory.
    ///
    /// # Errors
    /// Returns an error if the ranks cannot share the global batch evenly. It names the nearest batch that they can share.
    pub fn share_batch(&self, ranks: usize, full_world: usize) -> Result<BatchShare, ConfigError> {
        BatchShare::choose(self.batch.global, ranks, full_world, self.batch.micro)
            .map_err(|error| ConfigError::Value { key: "batch.global", message: error.to_string() })
    }
}

fn check_number(key: &'static str, number: f64) -> Result<(), ConfigError> {
    match rule(key) {
        Some(rule) if !rule.allows(number) => {
            Err(ConfigError::Value { key, message: format!("{number} is not {}", rule.expected()) })
        }
        _ => Ok(()),
    }
}

fn check_text((key, text): (&'static str, &str)) -> Result<(), ConfigError> {
    match rule(key) {
        Some(rule) if text.trim().is_empty() => {
            Err(ConfigError::Value { key, message: format!("the text is empty; it takes {}", rule.expected()) })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EvalConfig;

    /// Returns the problems of a shipped configuration with one changed value.
    fn problems(change: impl FnOnce(&mut TrainConfig)) -> Vec<String> {
        let parsed = crate::config::parse(include_str!("../../../configs/arinar_b.yaml"), "arinar_b.yaml", &[]);
        let mut config = parsed.expect("a shipped configuration");
        config.eval = Some(EvalConfig { every_epochs: 40.0, num_images: 50_000, guidance_scale: 4.5 });
        change(&mut config);
        config.problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn numbers_of_an_evaluation_are_above_zero() {
        assert!(problems(|_| ()).is_empty());
        let wrong = EvalConfig { every_epochs: 0.0, num_images: 0, guidance_scale: -1.0 };
        assert_eq!(problems(|config| config.eval = Some(wrong)).len(), 3);
    }

    #[test]
    fn numbers_that_are_not_finite_are_named_with_the_range_of_the_key() {
        type Change = fn(&mut TrainConfig, f64);
        let keys: [(&str, Change); 14] = [
            ("optim.lr_per_256", |config, number| config.optim.lr_per_256 = number),
            ("optim.betas[0]", |config, number| config.optim.betas[0] = number),
            ("optim.betas[1]", |config, number| config.optim.betas[1] = number),
            ("optim.eps", |config, number| config.optim.eps = number),
            ("optim.weight_decay", |config, number| config.optim.weight_decay = number),
            ("optim.grad_clip", |config, number| config.optim.grad_clip = number),
            ("optim.ema", |config, number| config.optim.ema = number),
            ("optim.warmup_epochs", |config, number| config.optim.warmup_epochs = number),
            ("optim.epochs", |config, number| config.optim.epochs = number),
            ("checkpoint.keep_every_epochs", |config, number| config.checkpoint.keep_every_epochs = Some(number)),
            ("model.vae.scale", |config, number| config.model.vae.scale = number),
            ("model.outer.mask_ratio_min", |config, number| config.model.outer.mask_ratio_min = number),
            ("model.outer.dropout", |config, number| config.model.outer.dropout = number),
            ("model.outer.label_drop", |config, number| config.model.outer.label_drop = number),
        ];
        for (key, change) in keys {
            for number in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -1.0] {
                let found = problems(|config| change(config, number));
                assert_eq!(found.len(), 1, "{key}: {found:?}");
                assert!(found[0].starts_with(&format!("{key}: {number} is not a ")), "{found:?}");
            }
            // Zero is allowed where its range includes it; -0 is the same number.
            let found = [0.0, -0.0].map(|zero| problems(|config| change(config, zero)).len());
            let expected = usize::from(rule(key).expect("a key").expected().contains("above 0"));
            assert_eq!(found, [expected; 2], "{key}");
        }
    }

    #[test]
    fn sizes_that_no_run_has_are_refused() {
        assert_eq!(problems(|config| config.train.max_steps = Some(0)).len(), 1);
        assert_eq!(problems(|config| config.train.threads = Some(1 << 40)).len(), 1);
        assert_eq!(problems(|config| config.batch.global = usize::MAX).len(), 1);
        assert_eq!(problems(|config| config.model.outer.width = i64::MAX).len(), 1);
        let found = problems(|config| config.run.log_dir.clear());
        assert_eq!(found, ["run.log_dir: the text is empty; it takes the path of a local folder"]);
    }
}
