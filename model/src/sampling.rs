//! The sampling loop, which reveals tokens step by step in a random order (official `sample_tokens`).
//!
//! Shapes: B images, L tokens of C features, D width, R tokens revealed in a step.

use tch::{Kind, Tensor};

use crate::arinar::Arinar;
use crate::config::{ConfigError, ModelConfig};
use crate::guidance::{FeatureSource, Resampler, Step};
use crate::mask::Mask;
use crate::schedule::{GuidanceSchedule, guidance_at, mask_lengths};

/// The label of the null class, which samples without a class condition.
pub const NULL_CLASS: i64 = -1;

/// Options for sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// Number of sampling steps: 256 in the paper's timings, 64 by default in the official code.
    pub steps: i64,
    /// Scale of classifier-free guidance; 1 disables guidance and halves the cost.
    pub guidance_scale: f64,
    /// Growth of guidance over the steps.
    pub guidance_schedule: GuidanceSchedule,
    /// Divisor of every standard deviation; values above 1 sharpen.
    pub temperature: f64,
    /// Seed of the orders and features.
    pub seed: u64,
}

impl SampleOptions {
    /// Checks the options, and the labels against a model.
    ///
    /// # Errors
    /// Returns an error for the first value that is out of range; it names the range.
    pub fn validate(&self, labels: &[i64], config: &ModelConfig) -> Result<(), ConfigError> {
        let checks = [
            ("steps", self.steps as f64, self.steps >= 1, "at least 1"),
            ("guidance_scale", self.guidance_scale, self.guidance_scale.is_finite(), "a finite number"),
            (
                "temperature",
                self.temperature,
                self.temperature > 0.0 && self.temperature.is_finite(),
                "a positive number",
            ),
        ];
        if let Some((option, value, _, range)) = checks.into_iter().find(|&(_, _, good, _)| !good) {
            return Err(ConfigError::Sampling { option, value, range });
        }
        let known = |label: &&i64| **label == NULL_CLASS || (0..config.classes).contains(*label);
        match labels.iter().find(|label| !known(label)) {
            Some(&label) => Err(ConfigError::Label { label, classes: config.classes }),
            None => Ok(()),
        }
    }

    fn guided(&self) -> bool {
        self.guidance_scale != 1.0
    }
}

impl Arinar {
    /// Samples the latent of one image for each label; [`NULL_CLASS`] stands for no class. Calls `observe(step, steps)`
    /// after every step. Labels and options must have passed [`SampleOptions::validate`].
    ///
    /// All random numbers come from libtorch's global generator, which this function seeds.
    ///
    /// # Shapes
    /// Returns [B, C, H, W], still scaled.
    pub fn sample(&self, labels: &[i64], options: &SampleOptions, observe: &mut dyn FnMut(usize, usize)) -> Tensor {
        // The cast keeps all bits of the seed.
        tch::manual_seed(options.seed as i64);
        let shape = [labels.len() as i64, self.config().sequence_length()];
        let orders = Tensor::rand(shape, (Kind::Float, self.device())).argsort(1, false);
        self.sample_along(labels, &orders, options, &mut Resampler::new(options.temperature), observe)
    }

    /// Samples in given orders with features from `source`. This is the loop of [`Arinar::sample`].
    ///
    /// # Shapes
    /// `orders` [B, L] i64, each row a permutation whose tokens are revealed from the end. Returns [B, C, H, W].
    pub fn sample_along(
        &self,
        labels: &[i64],
        orders: &Tensor,
        options: &SampleOptions,
        source: &mut dyn FeatureSource,
        observe: &mut dyn FnMut(usize, usize),
    ) -> Tensor {
        tch::no_grad(|| {
            let length = self.config().sequence_length();
            let classes = self.sampling_classes(labels, options.guided());
            let shape = [labels.len() as i64, length, self.config().vae.channels];
            let mut tokens = Tensor::zeros(shape, (Kind::Float, self.device()));
            let lengths = mask_lengths(length, options.steps);
            let mut masked = length;
            for (index, &next) in lengths.iter().enumerate() {
                // With more steps than tokens, some steps reveal nothing.
                if next < masked {
                    let guidance = guidance_at(options.guidance_schedule, options.guidance_scale, next, length);
                    let step = Reveal { index, masked, next, guidance };
                    self.reveal(&mut tokens, &classes, orders, &step, options.guided(), source);
                    masked = next;
                }
                observe(index + 1, lengths.len());
            }
            self.unpatchify(&tokens)
        })
    }

    /// Returns the class embeddings, followed with guidance by the same number of null-class embeddings.
    fn sampling_classes(&self, labels: &[i64], guided: bool) -> Tensor {
        let labels = Tensor::from_slice(labels).to_device(self.device());
        let classes = self.outer().class_embedding(&labels, &labels.eq(NULL_CLASS));
        if guided { Tensor::cat(&[&classes, &self.outer().null_embedding(labels.size()[0])], 0) } else { classes }
    }

    /// Samples the tokens revealed by one step and writes them to `tokens`.
    fn reveal(
        &self,
        tokens: &mut Tensor,
        classes: &Tensor,
        orders: &Tensor,
        step: &Reveal,
        guided: bool,
        source: &mut dyn FeatureSource,
    ) {
        let copies = if guided { 2 } else { 1 };
        let mask = Mask::from_orders(&orders.repeat([copies, 1]), step.masked);
        let encoded = self.outer().encode(&tokens.repeat([copies, 1, 1]), classes, &mask, false);
        let revealed = step.masked - step.next;
        let z = self.outer().decode(&encoded, &mask, false).narrow(1, mask.num_kept() + step.next, revealed);
        let z = z.reshape([-1, z.size()[2]]); // [copies B R, D]
        let positions = orders.narrow(1, step.next, revealed);
        source.begin_step(&Step { index: step.index, positions: &positions, z: &z, guidance: step.guidance });
        let features = self.head().decode(&z, guided, source).view([-1, revealed, self.config().vae.channels]);
        let _ = tokens.scatter_(1, &positions.unsqueeze(-1).expand_as(&features), &features);
    }
}

/// One step of the schedule.
struct Reveal {
    index: usize,
    /// Number of tokens masked before the step.
    masked: i64,
    /// Number of tokens masked after the step.
    next: i64,
    guidance: f64,
}
