//! Compares the KL-VAE with the official one.

use std::collections::BTreeMap;

use arinar_model::vae::{AutoencoderKl, Moments, VaeConfig, load_vae, save_vae};
use arinar_model::weights::{self, WeightsError};
use arinar_tests::golden::{Golden, shapes};
use tch::{Device, Kind, Tensor, nn};

struct Case {
    golden: Golden,
    store: nn::VarStore,
    config: VaeConfig,
    vae: AutoencoderKl,
}

fn case() -> Case {
    let golden = Golden::read("vae");
    let config = VaeConfig {
        ch: golden.size("ch"),
        ch_mult: golden.integers("/config/ch_mult"),
        num_res_blocks: golden.size("num_res_blocks"),
        embed_dim: golden.size("embed_dim"),
    };
    let store = nn::VarStore::new(Device::Cpu);
    let vae = AutoencoderKl::new(&store.root(), &config);
    golden.fill(&store);
    Case { golden, store, config, vae }
}

/// Scale of the production tokenizer's latents, also used by the golden latents.
const SCALE: f64 = arinar_model::vae::KL16_SCALE;

#[test]
fn encoded_moments_match_the_official_ones() {
    let case = case();
    let moments = case.vae.encode(&case.golden.tensor("in.image"));
    let latent = moments.sample(&case.golden.tensor("in.eps")) * SCALE;
    let mut comparison = case.golden.comparison();
    comparison.check("out.mean", &moments.mean);
    comparison.check("out.logvar", &moments.logvar);
    comparison.check("out.std", &(&moments.logvar * 0.5).exp());
    comparison.check("out.latent", &latent);
    comparison.finish();
}

#[test]
fn decoded_pictures_match_the_official_ones() {
    let case = case();
    let decode = |latents: &Tensor| case.vae.decode(latents);
    let mut comparison = case.golden.comparison();
    comparison.check("out.decode_mean", &decode(&case.golden.tensor("out.mean")));
    comparison.check("out.decode_rand", &decode(&case.golden.tensor("in.z")));
    comparison.check("out.decode_latent", &decode(&(case.golden.tensor("out.latent") / SCALE)));
    comparison.finish();
}

#[test]
fn moments_survive_concatenation() {
    let case = case();
    let official = case.golden.tensor("out.moments");
    let moments = Moments::from_concatenated(&official);
    assert!(official.chunk(2, 1)[1].min().double_value(&[]) < -30.0, "no golden value is below the clamp");
    assert_eq!(moments.logvar, case.golden.tensor("out.logvar"));
    assert_eq!(Moments::from_concatenated(&moments.concatenated()).mean, moments.mean);
}

#[test]
fn the_production_tokenizer_has_the_official_size() {
    let golden = Golden::read("vae");
    let config = VaeConfig::kl16();
    let official = "/config/official_production_config";
    assert_eq!(config.ch_mult, golden.integers(&format!("{official}/ch_mult")));
    assert_eq!(golden.real(&format!("{official}/ch")) as i64, config.ch);
    let store = nn::VarStore::new(Device::Cpu);
    let _vae = AutoencoderKl::new(&store.root(), &config);
    assert_eq!(store.variables().values().map(Tensor::numel).sum::<usize>(), 66_456_019);
    assert_eq!(config.stride(), 16);
}

#[test]
fn a_saved_vae_loads_with_its_sizes_and_scale() {
    let case = case();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vae.safetensors");
    save_vae(&path, &case.store, &case.config, 0.5, &[("made_by", "a test".to_owned())]).expect("saved");
    let loaded = load_vae(&path, Device::Cpu).expect("loaded");
    assert_eq!((loaded.config, loaded.scale), (case.config, 0.5));
    let halved = |store: &nn::VarStore| -> BTreeMap<String, Tensor> {
        weights::named(store).into_iter().map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Half))).collect()
    };
    assert_eq!(shapes(&halved(&loaded.store)), case.golden.parameter_shapes());
    assert_eq!(halved(&loaded.store), halved(&case.store));
}

#[test]
fn weights_of_another_size_are_rejected_by_name() {
    let case = case();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vae.safetensors");
    let wider = VaeConfig { ch: case.config.ch * 2, ..case.config.clone() };
    save_vae(&path, &case.store, &wider, 0.5, &[]).expect("saved");
    let Err(error) = load_vae(&path, Device::Cpu) else { panic!("weights of the wrong shape were loaded") };
    assert!(matches!(error, WeightsError::Mismatch { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("vae.safetensors") && message.contains("wrong shape: decoder.conv_in.bias"), "{message}");
    assert!(!message.contains('\n'), "more than one line: {message}");
}
