//! Helpers of the trainer's tests: a tiny dataset, a tiny model, and runs of the real trainer.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::mpi::mpirun;
use crate::programs::program;
use crate::reference::training::{Tensors, Trained};

use arinar_data::format::{ImageFacts, Manifest, ShardFacts, ShardWriter, VaeFacts, xxh3_hex};
use arinar_model::vae::VaeConfig;
use arinar_store::Store;
use tch::{Kind, Tensor};

/// Samples of the tiny dataset, in two shards.
pub const SAMPLES: u64 = 48;
const CHANNELS: usize = 4;
const GRID: usize = 4;

/// A temporary folder with a dataset, a configuration and a run.
pub struct Lab {
    pub folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        write_dataset(&lab.path("dataset"), None);
        std::fs::write(lab.path("tiny.yaml"), lab.config()).unwrap();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the tiny configuration, with absolute paths.
    pub fn config(&self) -> String {
        let path = |name| self.path(name).display().to_string();
        CONFIG.replace("DATA", &path("dataset")).replace("RUN", &path("run")).replace("LOGS", &path("logs"))
    }

    /// Trains with configuration overrides; 0 ranks means one process without mpirun.
    pub fn train(&self, ranks: usize, overrides: &[&str]) -> ProcessOutput {
        ProcessOutput::of(self.command(ranks, overrides).output().unwrap())
    }

    pub fn command(&self, ranks: usize, overrides: &[&str]) -> Command {
        let mut command = launch(ranks);
        command.arg(trainer()).arg("--config").arg(self.path("tiny.yaml"));
        for value in overrides {
            command.arg("--set").arg(value);
        }
        command
    }

    /// Returns the names of the run's committed checkpoints.
    pub fn checkpoints(&self, run: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(run)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("manifest.json").exists())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Returns shape and bytes of every tensor in all files of a checkpoint, by name.
    pub fn tensors(&self, checkpoint: &str) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
        let mut tensors = BTreeMap::new();
        for entry in std::fs::read_dir(self.path(checkpoint)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let Some((kind, _)) = name.split_once("-0") else { continue };
            let bytes = std::fs::read(&path).unwrap();
            for (tensor, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().iter() {
                let value = (view.shape().to_vec(), view.data().to_vec());
                assert!(tensors.insert(format!("{kind}/{tensor}"), value).is_none(), "duplicate tensor {tensor}");
            }
        }
        assert!(!tensors.is_empty(), "{checkpoint} contains no tensors");
        tensors
    }

    /// Returns the trained parameters, averages and moments in the run's checkpoint of a step.
    pub fn trained(&self, step: u64) -> Trained {
        let tensors = self.tensors(&format!("run/step-{step:08}"));
        let with_prefix = |prefix: &str| -> Tensors {
            let ours = tensors.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value)));
            ours.map(|(name, (shape, bytes))| (name, tensor(shape, bytes))).collect()
        };
        let [first_moment, second_moment] = ["optimizer/exp_avg.", "optimizer/exp_avg_sq."].map(with_prefix);
        // Leave out the tensors of the state dict that are not trained.
        let trained =
            |tensors: Tensors| tensors.into_iter().filter(|(name, _)| first_moment.contains_key(name)).collect();
        Trained {
            weights: trained(with_prefix("model/")),
            ema: trained(with_prefix("ema/")),
            first_moment,
            second_moment,
        }
    }

    /// Returns a curve of the run's event files as TensorBoard shows it: the value of each step.
    pub fn curve(&self, logs: &str, tag: &str) -> BTreeMap<u64, f32> {
        read_curve(&self.path(logs), tag)
    }
}

/// Creates a tensor from its shape and bytes.
pub fn tensor(shape: &[usize], bytes: &[u8]) -> Tensor {
    let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
    Tensor::from_data_size(bytes, &shape, Kind::Float)
}

/// Exit code and output of a process.
pub struct ProcessOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl ProcessOutput {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Returns the error message, which must be a single line.
    pub fn error(&self) -> &str {
        let lines: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("arinar-trainer: error:")).collect();
        assert_eq!(lines.len(), 1, "{}\n{}", self.stdout, self.stderr);
        lines[0]
    }
}

/// Returns the path of the trainer.
pub fn trainer() -> PathBuf {
    program("arinar-trainer")
}

/// Returns an `mpirun` command with `ranks` ranks, or `env` for 0 ranks.
pub fn launch(ranks: usize) -> Command {
    if ranks == 0 { Command::new("env") } else { mpirun(ranks) }
}

const CONFIG: &str = "seed: 5
run: {name: tiny, dir: RUN, log_dir: LOGS}
model:
  image_size: 16
  classes: 3
  vae: {stride: 4, channels: 4, scale: 0.5}
  outer: {kind: mar, width: 32, heads: 4, encoder_depth: 1, decoder_depth: 1, buffer_tokens: 4,
          mask_ratio_min: 0.7, dropout: 0.1, label_drop: 0.1}
  head: {kind: arinar, width: 32, depth: 1, heads: 2, gaussians: 2}
data: {url: DATA}
optim: {lr_per_256: 0.08, betas: [0.9, 0.95], weight_decay: 0.02, grad_clip: 3.0, ema: 0.9,
        schedule: constant, warmup_epochs: 0.5, epochs: 400}
batch: {global: 8}
precision: fp32
checkpoint: {every: 30min, keep_last: 3, keep_every_epochs: null, resume: auto}
train: {max_steps: 20, threads: 1, device: cpu}
log: {every: 1 step, format: text}
";

/// Writes the tiny dataset. The latent of sample `poison` is infinite.
pub fn write_dataset(folder: &Path, poison: Option<u64>) {
    write_shards(folder, SAMPLES, 2, poison);
}

/// Writes a dataset of `samples` samples in shards of the same size. The latent of sample `poison` is infinite.
pub fn write_shards(folder: &Path, samples: u64, number_of_shards: u64, poison: Option<u64>) {
    let store = Store::open(folder.to_str().unwrap()).unwrap();
    let shape = [2 * CHANNELS, GRID, GRID];
    let mut shards = Vec::new();
    for shard in 0..number_of_shards {
        let mut writer = ShardWriter::new(shape);
        let count = samples / number_of_shards;
        for sample in shard * count..(shard + 1) * count {
            let moments = moments(sample, poison == Some(sample));
            writer.push((sample % 3) as i64, 100 + sample as i64, &moments, &mirrored(&moments));
        }
        let bytes = writer.finish("test").unwrap();
        let name = format!("shard-{shard:05}.safetensors");
        shards.push(ShardFacts { name: name.clone(), bytes: bytes.len() as u64, count, xxh3_128: xxh3_hex(&bytes) });
        store.put(&name, bytes).unwrap();
    }
    let manifest = Manifest {
        version: 1,
        dataset_id: format!("{:016x}", poison.map_or(0, |sample| sample + 1)),
        encode_id: "test".to_owned(),
        seed: 0,
        num_samples: samples,
        num_sources: samples,
        classes: ["one", "two", "three"].map(str::to_owned).to_vec(),
        class_counts: (0..3).map(|class| (samples + 2 - class) / 3).collect(),
        image: ImageFacts { size: 16 },
        vae: VaeFacts {
            config: VaeConfig::kl16(),
            xxh3_128: "0".repeat(32),
            scale: 0.5,
            channels: CHANNELS as i64,
            stride: 4,
        },
        skipped: Vec::new(),
        shards,
    };
    manifest.write(&store).unwrap();
}

/// Returns the moments of the mirror image: every row reversed.
fn mirrored(moments: &[u8]) -> Vec<u8> {
    moments.chunks_exact(2 * GRID).flat_map(|row| row.rchunks_exact(2).flatten().copied()).collect()
}

/// Returns moments in f16: pseudo-random means with magnitudes from 0.25 to 2, and log-variances of -4.
fn moments(sample: u64, infinite: bool) -> Vec<u8> {
    let values = CHANNELS * GRID * GRID;
    let mut state = sample + 1;
    let mut means: Vec<u16> = (0..values)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = (state >> 40) as u16;
            (bits & 0x83ff) | ((13 + (bits >> 10) % 3) << 10)
        })
        .collect();
    if infinite {
        means[0] = 0x7c00;
    }
    means.extend(std::iter::repeat_n(0xc400, values));
    means.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Reads event files as TensorBoard does: in the order of their names, where the start of a session discards earlier
/// values of its step and later steps.
pub fn read_curve(folder: &Path, tag: &str) -> BTreeMap<u64, f32> {
    let is_event_file = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains("tfevents");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(is_event_file).collect();
    files.sort();
    let mut curve = BTreeMap::new();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let mut rest = bytes.as_slice();
        while rest.len() >= 16 {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            // A killed run may leave a partial record.
            let Some(event) = rest.get(12..12 + length) else { break };
            rest = rest.get(16 + length..).unwrap_or_default();
            read_event(event, tag, &mut curve);
        }
    }
    curve
}

fn read_event(event: &[u8], tag: &str, curve: &mut BTreeMap<u64, f32>) {
    let fields = Field::all(event);
    let step = fields.iter().find(|field| field.number == 2).map_or(0, |field| field.varint);
    if fields.iter().any(|field| field.number == 7) {
        curve.retain(|&known, _| known < step);
    }
    for summary in fields.iter().filter(|field| field.number == 5) {
        for value in Field::all(summary.bytes).iter().filter(|field| field.number == 1) {
            let inside = Field::all(value.bytes);
            let name = inside.iter().find(|field| field.number == 1);
            let scalar = inside.iter().find(|field| field.number == 2);
            if let (Some(name), Some(scalar)) = (name, scalar)
                && name.bytes == tag.as_bytes()
            {
                curve.insert(step, f32::from_le_bytes(scalar.bytes.try_into().unwrap()));
            }
        }
    }
}

/// A field of a protocol buffer.
struct Field<'a> {
    number: u64,
    varint: u64,
    bytes: &'a [u8],
}

impl<'a> Field<'a> {
    fn all(mut message: &'a [u8]) -> Vec<Self> {
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = varint(&mut message);
            let (mut value, mut length) = (0, 0);
            match key & 7 {
                0 => value = varint(&mut message),
                1 => length = 8,
                2 => length = varint(&mut message) as usize,
                5 => length = 4,
                other => panic!("wire type {other}"),
            }
            let (bytes, rest) = message.split_at(length);
            message = rest;
            fields.push(Self { number: key >> 3, varint: value, bytes });
        }
        fields
    }
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().unwrap();
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}
