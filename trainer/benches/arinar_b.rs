//! Times a whole training step of ARINAR-B in float32 on this machine: forward, backward, norm, clipping,
//! AdamW and EMA. `ops/bench/official.py` times the official PyTorch code on the same shapes.
//!
//! Environment: `BATCH` (16), `STEPS` (2 timed, after one to warm up), `THREADS` (all cores).

use std::time::Instant;

use arinar_model::{arinar::Arinar, config::ModelConfig, mask::Mask, weights};
use arinar_trainer::{
    allocator, clip,
    ema::Ema,
    optimizer::{AdamW, AdamWConfig, Update},
    parameters::FlatParameters,
};
use tch::{Device, Kind, Tensor, nn};

/// Masked tokens: the mean of the official distribution, so that one step stands for all.
const MASKED: i64 = 222;

fn main() -> Result<(), tch::TchError> {
    allocator::keep_freed_memory();
    let (batch, steps) = (setting("BATCH", 16), setting("STEPS", 2));
    tch::set_num_threads(setting("THREADS", i64::from(tch::get_num_threads())) as i32);
    let config = ModelConfig::arinar_b();
    tch::manual_seed(1);
    let store = nn::VarStore::new(Device::Cpu);
    let model = Arinar::new(&store.root(), &config);
    let mut parameters = FlatParameters::new(&weights::trainable(&store), weights::decays)?;
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
        println!(
            "step {step}: loss {:.4}, {elapsed:.2} s{}",
            loss.double_value(&[]),
            if step == 0 { " (warm-up)" } else { "" }
        );
        if step > 0 {
            seconds.push(elapsed);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "ARINAR-B, {} parameters, batch {batch}, {} threads, float32: {:.3} images/s",
        parameters.parameter_count(),
        tch::get_num_threads(),
        batch as f64 / median
    );
    println!("the official code on the same machine: ops/bench/official.py --help");
    Ok(())
}

fn setting(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|&value| value > 0).unwrap_or(default)
}
