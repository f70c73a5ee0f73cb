//! Golden data: results of the official PyTorch code, in pairs of a `.json` manifest and a `.safetensors` file.
//!
//! Everything here panics with a message on bad data, since it is only used in tests, and a missing golden file must
//! fail its test rather than skip it. `ARINAR_GOLDEN_DIR` selects another folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arinar_model::config::{HeadConfig, HeadKind, LatentConfig, ModelConfig, OuterConfig, OuterKind};
use serde_json::Value;
use tch::{Kind, Tensor, nn};

/// Ratio of the allowed error to that of the official code in float32 (the manifests recommend 5 to 20).
const TOLERANCE_FACTOR: f64 = 20.0;

/// The golden data of one module.
pub struct Golden {
    manifest: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    /// Reads `<name>.json` and `<name>.safetensors`, and sets libtorch to one thread, because golden models are too
    /// small to benefit from more.
    pub fn read(name: &str) -> Self {
        tch::set_num_threads(1);
        let folder = folder();
        let path = folder.join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("golden {}: {error}", path.display()));
        let manifest = serde_json::from_str(&text).unwrap_or_else(|error| panic!("golden {}: {error}", path.display()));
        let path = folder.join(format!("{name}.safetensors"));
        let tensors =
            Tensor::read_safetensors(&path).unwrap_or_else(|error| panic!("golden {}: {error}", path.display()));
        Self { manifest, tensors: tensors.into_iter().collect() }
    }

    /// Returns the manifest's value at a JSON pointer, such as `/values/nll_fp64`.
    pub fn value(&self, pointer: &str) -> &Value {
        self.manifest.pointer(pointer).unwrap_or_else(|| panic!("golden manifest has no {pointer}"))
    }

    /// Returns an integer of the manifest's configuration.
    pub fn size(&self, key: &str) -> i64 {
        let value = self.value(&format!("/config/{key}"));
        value.as_i64().unwrap_or_else(|| panic!("golden config {key} is {value}, not an integer"))
    }

    /// Returns the real number at a JSON pointer.
    pub fn real(&self, pointer: &str) -> f64 {
        real(self.value(pointer))
    }

    /// Returns the list of real numbers at a JSON pointer.
    pub fn reals(&self, pointer: &str) -> Vec<f64> {
        list(self.value(pointer)).iter().map(real).collect()
    }

    /// Returns the list of integers at a JSON pointer.
    pub fn integers(&self, pointer: &str) -> Vec<i64> {
        let integer = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("{pointer}: {value}"));
        list(self.value(pointer)).iter().map(integer).collect()
    }

    /// Returns the list of names at a JSON pointer.
    pub fn names(&self, pointer: &str) -> Vec<String> {
        let name = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{pointer}: {value}")).to_owned();
        list(self.value(pointer)).iter().map(name).collect()
    }

    /// Returns a stored tensor.
    pub fn tensor(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("golden file has no tensor {name}")).shallow_clone()
    }

    /// Returns the names of all stored tensors that start with `prefix`.
    pub fn tensor_names(&self, prefix: &str) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).filter(|name| name.starts_with(prefix)).collect()
    }

    /// Returns the official names and shapes of all parameters and buffers.
    pub fn parameter_shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let params = self.value("/params").as_object().expect("golden params is an object");
        let shape = |value: &Value| list(value).iter().map(|length| real(length) as i64).collect();
        params.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
    }

    /// Fills a store with the golden parameters; its names and shapes must be exactly the golden ones.
    pub fn fill(&self, store: &nn::VarStore) {
        let variables = arinar_model::weights::named(store);
        assert_eq!(shapes(&variables), self.parameter_shapes());
        tch::no_grad(|| {
            for (name, variable) in &variables {
                variable.shallow_clone().copy_(&self.tensor(name));
            }
        });
    }

    /// Returns the configuration of a whole model.
    pub fn model_config(&self) -> ModelConfig {
        let preset = ModelConfig::arinar_b();
        ModelConfig {
            image_size: self.size("img_size"),
            classes: self.size("class_num"),
            vae: LatentConfig {
                stride: self.size("vae_stride"),
                channels: self.size("token_embed_dim"),
                scale: preset.vae.scale,
            },
            outer: OuterConfig {
                kind: OuterKind::Mar,
                width: self.size("embed_dim"),
                heads: self.size("num_heads"),
                encoder_depth: self.size("encoder_depth"),
                decoder_depth: self.size("decoder_depth"),
                buffer_tokens: self.size("buffer_size"),
                dropout: 0.0,
                ..preset.outer
            },
            // Manifests of whole models state only in words that the head has four attention heads.
            head: HeadConfig {
                kind: HeadKind::Arinar,
                width: self.size("inner_width"),
                depth: self.size("inner_depth"),
                heads: preset.head.heads,
                gaussians: self.size("num_gaussians"),
            },
        }
    }

    /// Starts a comparison with the manifest's tolerances.
    pub fn comparison(&self) -> Comparison<'_> {
        Comparison { golden: self, worst: (0.0, "no error".to_owned()), failures: Vec::new(), compared: 0 }
    }
}

/// Compares tensors, records the worst and reports all failures at once.
pub struct Comparison<'a> {
    golden: &'a Golden,
    worst: (f64, String),
    failures: Vec<String>,
    compared: usize,
}

impl Comparison<'_> {
    /// Compares with the golden tensor `name`. No element's error may exceed a multiple of the official code's error in
    /// float32. Elements whose gradient is only rounding noise (the key bias of an attention layer) have a separate
    /// tolerance in the manifest.
    pub fn check(&mut self, name: &str, actual: &Tensor) {
        let expected = self.golden.tensor(name);
        let tolerance = self.golden.value("/tolerances").get(name).cloned();
        let tolerance = tolerance.unwrap_or_else(|| panic!("golden manifest has no tolerance for {name}"));
        let limit = TOLERANCE_FACTOR * real(&tolerance["max_abs_err_fp32_vs_fp64"]);
        self.check_within(name, actual, &expected, limit);
    }

    /// Compares with any tensor within an absolute limit.
    pub fn check_within(&mut self, name: &str, actual: &Tensor, expected: &Tensor, limit: f64) {
        assert_eq!(actual.size(), expected.size(), "shape of {name}");
        let error = max_error(actual, expected);
        let share = if error == 0.0 { 0.0 } else { error / limit };
        let line = format!("{name}: max error {error:.3e}, limit {limit:.3e}");
        if share.is_nan() || share > 1.0 {
            self.failures.push(line.clone());
        }
        if share > self.worst.0 {
            self.worst = (share, line);
        }
        self.compared += 1;
    }

    /// Prints the worst tensor and panics if any exceeded its limit.
    pub fn finish(self) {
        println!("{} tensors compared; worst: {}", self.compared, self.worst.1);
        assert!(self.compared > 0, "nothing was compared");
        assert!(self.failures.is_empty(), "over the limit:\n{}", self.failures.join("\n"));
    }
}

/// Returns the largest absolute difference, computed in float64; NaN if any element is NaN.
pub fn max_error(actual: &Tensor, expected: &Tensor) -> f64 {
    if actual.numel() == 0 {
        return 0.0;
    }
    (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// Returns the names and shapes of tensors.
pub fn shapes(variables: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<i64>> {
    variables.iter().map(|(name, variable)| (name.clone(), variable.size())).collect()
}

fn folder() -> PathBuf {
    match std::env::var_os("ARINAR_GOLDEN_DIR") {
        Some(folder) => folder.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden"),
    }
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("golden manifest: {value} is not a list"))
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("golden manifest: {value} is not a number"))
}
