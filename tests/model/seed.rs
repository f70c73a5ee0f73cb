//! Tests that everything random in a model follows from its seeds. The test runs alone in its process, because all
//! threads of a process share libtorch's generator.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arinar_model::schedule::GuidanceSchedule;
use arinar_model::{Arinar, ModelConfig, SampleOptions, weights};
use arinar_tests::golden::Golden;
use tch::{Device, Tensor, nn};

fn model(config: &ModelConfig, seed: i64) -> (BTreeMap<String, Tensor>, Arinar) {
    tch::manual_seed(seed);
    let store = nn::VarStore::new(Device::Cpu);
    let model = Arinar::new(&store.root(), config);
    (weights::named(&store), model)
}

#[test]
fn parameters_and_samples_follow_their_seeds() {
    let config = Golden::read("full_sample").model_config();
    let (parameters, model_of_7) = model(&config, 7);
    assert_eq!(parameters, model(&config, 7).0);
    assert_ne!(parameters["class_emb.weight"], model(&config, 8).0["class_emb.weight"]);

    let labels: Vec<i64> = (0..config.classes).take(2).collect();
    let sample = |seed, steps, guidance_scale| {
        let guidance_schedule = GuidanceSchedule::Linear;
        let options = SampleOptions { steps, guidance_scale, guidance_schedule, temperature: 1.0, seed };
        options.validate(&labels, &config).unwrap();
        model_of_7.sample(&labels, &options, &mut |_, _| {})
    };
    for guidance_scale in [1.0, 3.0] {
        let latents = sample(1, 3, guidance_scale);
        assert_eq!(latents.size(), [labels.len() as i64, config.vae.channels, config.grid(), config.grid()]);
        assert_eq!(latents.isfinite().all(), Tensor::from(true));
        assert_eq!(latents, sample(1, 3, guidance_scale));
        assert_ne!(latents, sample(2, 3, guidance_scale));
    }
    // With more steps than tokens, some steps reveal nothing.
    let latents = sample(1, config.sequence_length() + 3, 3.0);
    assert_eq!(latents.isfinite().all(), Tensor::from(true));
    assert_eq!(latents.eq(0.0).any(), Tensor::from(false));
}
