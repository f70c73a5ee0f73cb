//! The sampling loop: tokens are revealed step by step in a random order (official `sample_tokens`).
//!
//! Shapes: B pictures, L tokens of C features, D width, R tokens revealed in a step.

use tch::{Kind, Tensor};

use crate::arinar::Arinar;
use crate::config::{ConfigError, ModelConfig};
use crate::guidance::{FeatureSource, Resampler, Step};
use crate::mask::Mask;
use crate::schedule::{GuidanceSchedule, guidance_at, mask_lengths};

/// The label of the null class: a picture of no class in particular.
pub const NULL_CLASS: i64 = -1;

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// Steps that reveal the tokens; 256 in the paper, 64 is nearly as good.
    pub steps: i64,
    /// Classifier-free guidance; 1 is none and costs half.
    pub guidance_scale: f64,
    /// How guidance grows over the steps.
    pub guidance_schedule: GuidanceSchedule,
    /// Divides every standard deviation; above 1 sharpens.
    pub temperature: f64,
    /// Decides orders and features.
    pub seed: u64,
}

impl SampleOptions {
    /// Checks the options and the labels against a model.
    ///
    /// # Errors
    /// The first that is out of range, with the range.
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
    /// Samples one picture's latents for each label ([`NULL_CLASS`] for none); `observe(step, steps)` is
    /// called after every step. Labels and options must have passed [`SampleOptions::validate`].
    ///
    /// All random numbers come from libtorch's generator, which is seeded here.
    ///
    /// # Shapes
    /// Returns [B, C, H, W], still scaled.
    pub fn sample(&self, labels: &[i64], options: &SampleOptions, observe: &mut dyn FnMut(usize, usize)) -> Tensor {
        // Only the bits of the seed matter.
        tch::manual_seed(options.seed as i64);
        let shape = [labels.len() as i64, self.config().sequence_length()];
        let orders = Tensor::rand(shape, (Kind::Float, self.device())).argsort(1, false);
        self.sample_along(labels, &orders, options, &mut Resampler::new(options.temperature), observe)
    }

    /// Samples along given orders with features from `source`: the loop behind [`Arinar::sample`].
    ///
    /// # Shapes
    /// `orders` [B, L] i64; tokens are revealed from the end of each order. Returns [B, C, H, W].
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
                // With more steps than tokens some steps have nothing to reveal.
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

    /// Class embeddings, followed by as many of the null class with guidance.
    fn sampling_classes(&self, labels: &[i64], guided: bool) -> Tensor {
        let labels = Tensor::from_slice(labels).to_device(self.device());
        let classes = self.outer().class_embedding(&labels, &labels.eq(NULL_CLASS));
        if guided { Tensor::cat(&[&classes, &self.outer().null_embedding(labels.size()[0])], 0) } else { classes }
    }

    /// Predicts and writes the tokens of one step.
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
    /// Tokens masked before the step.
    masked: i64,
    /// Tokens masked after it.
    next: i64,
    guidance: f64,
}
