//! Sampling as defined by the official code (`sample_tokens` in `mar.py` and `sample` in `arhead.py`): the tokens that
//! a step reveals, guidance by resampling candidates, temperature, and the conversion of latents to pixels.

use arinar_model::Arinar;
use arinar_model::gmm::Mixture;
use arinar_model::guidance::{FeatureSource, Step};
use arinar_model::mask::{Mask, gather};
use arinar_model::vae::AutoencoderKl;
use tch::{Device, Kind, Tensor};

use super::generator;
use super::schedule::{guidance, masked_after};

/// Number of candidates for a feature.
const CANDIDATES: i64 = 1000;

/// Sampling options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of steps that reveal tokens.
    pub steps: i64,
    /// Guidance scale of the last step, or of all steps.
    pub scale: f64,
    /// Whether guidance grows linearly with the number of known tokens; otherwise it is constant.
    pub linear: bool,
    /// Divisor of every standard deviation.
    pub temperature: f64,
    /// Seed of libtorch's generator.
    pub seed: i64,
}

/// Samples pictures of these classes as one batch; returns their scaled latents, [B, C, H, W].
pub fn latents(model: &Arinar, labels: &[i64], options: &Options) -> Tensor {
    let _generator = generator();
    let (length, channels, grid) =
        (model.config().sequence_length(), model.config().vae.channels, model.config().grid());
    let (pictures, guided) = (labels.len() as i64, options.scale != 1.0);
    tch::manual_seed(options.seed);
    // Tokens are revealed from the end of the random order.
    let order = Tensor::rand([pictures, length], (Kind::Float, Device::Cpu)).argsort(1, false);
    let classes = class_embeddings(model, labels, guided);
    let twice = |tensor: &Tensor| if guided { Tensor::cat(&[tensor, tensor], 0) } else { tensor.shallow_clone() };
    let mut tokens = Tensor::zeros([pictures, length, channels], (Kind::Float, Device::Cpu));
    let mut masked = length;
    for next in masked_after(length, options.steps) {
        let mask = Mask::from_orders(&twice(&order), masked);
        let encoded = model.outer().encode(&twice(&tokens), &classes, &mask, false);
        let decoded = model.outer().decode(&encoded, &mask, false);
        let conditions = gather(&decoded, &mask.order().argsort(1, false)); // in the order of positions
        let revealed = order.narrow(1, next, masked - next);
        let z = gather(&conditions, &twice(&revealed)).flatten(0, 1);
        let guidance = guidance(options.linear, options.scale, next, length);
        let mut source = Candidates { temperature: options.temperature, guidance };
        let features = model.head().decode(&z, guided, &mut source).view([pictures, -1, channels]);
        tokens = tokens.scatter(1, &revealed.unsqueeze(-1).expand_as(&features), &features);
        masked = next;
    }
    tokens.transpose(1, 2).reshape([pictures, channels, grid, grid])
}

/// Returns the embedding of each class, followed by as many embeddings of the null class if `guided`.
fn class_embeddings(model: &Arinar, labels: &[i64], guided: bool) -> Tensor {
    let labels = Tensor::from_slice(labels);
    let embedding =
        |null: bool| model.outer().class_embedding(&labels, &labels.full_like(i64::from(null)).to_kind(Kind::Bool));
    if guided { Tensor::cat(&[embedding(false), embedding(true)], 0) } else { embedding(false) }
}

/// Draws candidates from the class-conditional mixture and chooses one with probability proportional to
/// (p_class / p_null)^(scale - 1).
struct Candidates {
    temperature: f64,
    guidance: f64,
}

impl FeatureSource for Candidates {
    fn begin_step(&mut self, _step: &Step<'_>) {}

    fn choose(&mut self, _feature: i64, class: &Mixture, null: Option<&Mixture>) -> Tensor {
        let count = if null.is_some() { CANDIDATES } else { 1 };
        let component = class.log_weight.exp().multinomial(count, true); // [N, V]
        let mean = class.mean.gather(1, &component, false);
        let deviation = ((&class.logvar / 2.0).exp() / self.temperature).gather(1, &component, false);
        let candidates = mean.addcmul(&deviation, &mean.randn_like());
        let Some(null) = null else { return candidates.squeeze_dim(1) };
        // Use the product's arithmetic, since a rounding difference could change which candidate is chosen.
        let ratio = (class.log_density(&candidates) - null.log_density(&candidates)) * (self.guidance - 1.0);
        let chosen = ratio.softmax(-1, None::<Kind>).multinomial(1, true);
        candidates.gather(1, &chosen, false).squeeze_dim(1)
    }
}

/// Returns the pixels of scaled latents, [B, H, W, 3], as unrounded levels from 0 to 255.
pub fn pixels(vae: &AutoencoderKl, latents: &Tensor, scale: f64) -> Tensor {
    let decoded = vae.decode(&(latents / scale)).to_kind(Kind::Double);
    ((decoded + 1.0) * 127.5).clamp(0.0, 255.0).permute([0, 2, 3, 1])
}
