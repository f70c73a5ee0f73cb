//! Checks of the values of a configuration, individually and together.

use super::{BatchShare, ConfigError, EvalConfig, TrainConfig};

impl TrainConfig {
    /// Checks what the types do not, and returns the first problem as an error.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// Returns all values that are out of range.
    pub fn problems(&self) -> Vec<ConfigError> {
        let optim = &self.optim;
        let of_eval = |key: &'static str, value: fn(&EvalConfig) -> f64| {
            self.eval.as_ref().map_or(Ok(()), |eval| positive(key, value(eval)))
        };
        let checks = [
            self.model.validate().map_err(ConfigError::from),
            positive("optim.lr_per_256", optim.lr_per_256),
            positive("optim.grad_clip", optim.grad_clip),
            positive("optim.epochs", optim.epochs),
            positive("optim.eps", optim.eps),
            not_negative("optim.weight_decay", optim.weight_decay),
            not_negative("optim.warmup_epochs", optim.warmup_epochs),
            share("optim.ema", optim.ema),
            share("optim.betas", optim.betas[0]),
            share("optim.betas", optim.betas[1]),
            at_least_one("batch.global", Some(self.batch.global)),
            at_least_one("batch.micro", self.batch.micro),
            at_least_one("checkpoint.keep_last", Some(self.checkpoint.keep_last)),
            at_least_one("train.threads", self.train.threads),
            at_least_one("data.look_ahead", Some(self.data.look_ahead)),
            self.checkpoint.keep_every_epochs.map_or(Ok(()), |epochs| positive("checkpoint.keep_every_epochs", epochs)),
            of_eval("eval.every_epochs", |eval| eval.every_epochs),
            of_eval("eval.num_images", |eval| eval.num_images as f64),
            of_eval("eval.guidance_scale", |eval| eval.guidance_scale),
        ];
        checks.into_iter().filter_map(Result::err).chain(self.place_problems()).collect()
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

fn positive(key: &'static str, value: f64) -> Result<(), ConfigError> {
    require(value > 0.0 && value.is_finite(), key, || format!("{value} is not above 0"))
}

fn not_negative(key: &'static str, value: f64) -> Result<(), ConfigError> {
    require(value >= 0.0 && value.is_finite(), key, || format!("{value} is below 0"))
}

fn share(key: &'static str, value: f64) -> Result<(), ConfigError> {
    require((0.0..1.0).contains(&value), key, || format!("{value} is not within [0, 1)"))
}

fn at_least_one(key: &'static str, value: Option<usize>) -> Result<(), ConfigError> {
    require(value != Some(0), key, || "0 is too few; give at least 1".to_owned())
}

fn require(holds: bool, key: &'static str, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Value { key, message: message() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_an_evaluation_are_above_zero() {
        let parsed = crate::config::parse(include_str!("../../../configs/arinar_b.yaml"), "arinar_b.yaml", &[]);
        let mut config = parsed.expect("a shipped configuration");
        let mut problems = |every_epochs, num_images, guidance_scale| {
            config.eval = Some(EvalConfig { every_epochs, num_images, guidance_scale });
            config.problems().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(problems(40.0, 50_000, 4.5).is_empty());
        assert_eq!(problems(0.0, 0, -1.0).len(), 3);
        let told = problems(f64::INFINITY, 1, 1.0);
        assert!(told.len() == 1 && told[0].contains("eval.every_epochs"), "{told:?}");
    }
}
