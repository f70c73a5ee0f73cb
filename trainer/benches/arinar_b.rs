//! Measures a training step of ARINAR-B (forward, backward, gradient norm, clipping, AdamW and EMA), and a step of
//! sampling one image with guidance, on the CPU. `ops/bench/official.py` measures training with the official PyTorch
//! code on the same shapes (with `--bf16`, under autocast).
//!
//! Environment variables, with their defaults: `PRECISION` (fp32; or bf16), `BATCH` (16), `STEPS` (2; one more step
//! warms up), `THREADS` (all cores).

use std::time::Instant;

use arinar_collective::machine::allocator;
use arinar_model::{
    Precision,
    arinar::Arinar,
    config::ModelConfig,
    guidance::{FeatureSource, Resampler, Step},
    mask::Mask,
    weights,
};
use arinar_trainer::{
    clip,
    ema::Ema,
    optimizer::{AdamW, AdamWConfig, Update},
    parameters::FlatParameters,
};
use tch::{Device, Kind, Tensor, nn};

/// Number of masked tokens: the mean of the official distribution, so that one step represents all.
const MASKED: i64 = 222;
/// Number of timed sampling steps, after one that warms up.
const SAMPLING_STEPS: usize = 5;

fn main() -> Result<(), tch::TchError> {
    allocator::keep_freed_memory();
    tch::set_num_threads(setting("THREADS", i64::from(tch::get_num_threads())) as i32);
    let precision = precision();
    let config = ModelConfig::arinar_b();
    tch::manual_seed(1);
    let store = nn::VarStore::new(Device::Cpu);
    let mut model = Arinar::new(&store.root(), &config);
    model.set_precision(precision);
    let (batch, steps) = (setting("BATCH", 16), setting("STEPS", 2));
    let kind = format!("{} threads, {}", tch::get_num_threads(), precision.name());
    let seconds = train(&store, &model, batch, steps)?;
    println!("ARINAR-B training, batch {batch}, {kind}: {:.3} images/s", batch as f64 / seconds);
    model.freeze();
    let seconds = sample(&model);
    println!("ARINAR-B sampling, one image with guidance, {kind}: {seconds:.3} s per step");
    println!("the official code on the same machine: ops/bench/official.py --help");
    Ok(())
}

/// Returns the median duration of a training step in seconds.
fn train(store: &nn::VarStore, model: &Arinar, batch: i64, steps: i64) -> Result<f64, tch::TchError> {
    let config = model.config();
    let mut parameters = FlatParameters::new(&weights::trainable(store), weights::decays)?;
    println!("{} parameters", parameters.parameter_count());
    let adamw = AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.02 };
    let mut optimizer = AdamW::new(&parameters, adamw);
    let mut ema = Ema::new(&parameters, 0.9999);
    let float = (Kind::Float, Device::Cpu);
    let latents = Tensor::randn([batch, config.vae.channels, config.grid(), config.grid()], float);
    let labels = Tensor::randint(config.classes, [batch], (Kind::Int64, Device::Cpu));
    let drop_label = Tensor::rand([batch], float).lt(config.outer.label_drop);
    let mut seconds = Vec::new();
    for step in 0..=steps {
        let started = Instant::now();
        let orders = Tensor::rand([batch, config.sequence_length()], float).argsort(1, false);
        let mask = Mask::from_orders(&orders, MASKED);
        let loss = model.loss(&latents, &labels, &drop_label, &mask, true);
        loss.f_backward()?;
        let norm = clip::grad_norm(&parameters.gradients());
        let update = Update { learning_rate: 1e-4, gradient_scale: clip::clip_coefficient(norm, 3.0) };
        optimizer.step(&mut parameters, &mut ema, update);
        let elapsed = started.elapsed().as_secs_f64();
        let note = if step == 0 { " (warm-up)" } else { "" };
        println!("step {step}: loss {:.4}, {elapsed:.2} s{note}", loss.double_value(&[]));
        if step > 0 {
            seconds.push(elapsed);
        }
    }
    Ok(median(seconds))
}

/// Returns the median duration in seconds of a step that samples one token of one image with guidance, when half of the
/// tokens are known.
fn sample(model: &Arinar) -> f64 {
    let (length, channels) = (model.config().sequence_length(), model.config().vae.channels);
    let masked = length / 2;
    let float = (Kind::Float, Device::Cpu);
    let orders = Tensor::rand([1, length], float).argsort(1, false);
    let mask = Mask::from_orders(&orders.repeat([2, 1]), masked);
    let tokens = Tensor::randn([1, length, channels], float).repeat([2, 1, 1]);
    let classes = model.outer().null_embedding(2);
    let mut source = Resampler::new(1.0);
    let mut step = || {
        let started = Instant::now();
        let encoded = model.outer().encode(&tokens, &classes, &mask, false);
        let z = model.outer().decode(&encoded, &mask, false).select(1, length - 1);
        source.begin_step(&Step { index: 0, positions: &orders.narrow(1, masked - 1, 1), z: &z, guidance: 4.5 });
        let _ = model.head().decode(&z, true, &mut source);
        started.elapsed().as_secs_f64()
    };
    tch::no_grad(|| {
        step();
        median((0..SAMPLING_STEPS).map(|_| step()).collect())
    })
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn precision() -> Precision {
    match std::env::var("PRECISION").as_deref() {
        Ok("bf16") => Precision::Bf16,
        _ => Precision::Fp32,
    }
}

fn setting(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|&value| value > 0).unwrap_or(default)
}
