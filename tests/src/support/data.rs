//! Helpers of the data crate's tests: pictures, a tiny VAE, synthetic datasets, and runs of `arinar-data`.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::process::{Command, Output};

use arinar_data::format::{FORMAT_VERSION, ImageFacts, Manifest, ShardFacts, ShardWriter, VaeFacts, xxh3_hex};
use arinar_data::sources::InputFiles;
use arinar_model::vae::{AutoencoderKl, VaeConfig, save_vae};
use arinar_store::Store;
use half::f16;
use image::{Rgb, RgbImage};
use tch::{Device, nn};

use crate::programs::program;
use crate::reference::generator;

/// Id of the synthetic dataset.
pub const DATASET_ID: &str = "4a4d3ade00000000";
/// Scale of the synthetic dataset's latents.
pub const SCALE: f64 = 0.25;
/// Latent channels, height and width of the synthetic dataset.
pub const LATENT: [usize; 3] = [4, 2, 2];
/// Difference between the means of the mirrored and the original view in the synthetic dataset.
pub const MIRRORED: f32 = 1000.0;

/// Runs `arinar-data` until it exits.
pub fn arinar_data(arguments: &[&str]) -> Output {
    Command::new(program("arinar-data")).args(arguments).output().expect("run arinar-data")
}

/// Returns exit code, standard output and standard error.
pub fn exit_status(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Asserts success and returns standard output.
pub fn succeeded(output: &Output) -> String {
    let (code, stdout, stderr) = exit_status(output);
    assert_eq!(code, 0, "stdout: {stdout}\nstderr: {stderr}");
    stdout
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Writes `count` different 8x8 pictures to two class folders.
pub fn picture_tree(folder: &Path, count: usize) {
    for class in ["birds", "apes"] {
        std::fs::create_dir_all(folder.join(class)).expect("class folder");
    }
    for index in 0..count {
        let class = if index % 3 == 0 { "birds" } else { "apes" };
        let picture = RgbImage::from_fn(8, 8, |x, y| Rgb([(37 * index) as u8, (29 * x) as u8, (y * 31) as u8]));
        picture.save(folder.join(class).join(format!("{index:04}.png"))).expect("save picture");
    }
}

/// Packs `arguments`, relative to `folder`, into a tar file with GNU tar.
pub fn gnu_tar(tar: &Path, folder: &Path, arguments: &[&str]) {
    let output = Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(tar).args(arguments).output();
    let output = output.expect("run tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the name and the label of each file.
pub fn labelled_names(files: &InputFiles) -> Vec<(String, u32)> {
    (0..files.len()).map(|index| (files.name(index).into_owned(), files.label(index))).collect()
}

/// Writes a VAE with stride 2, 4 latent channels and fixed random weights.
pub fn tiny_vae(path: &Path) {
    let _generator = generator();
    tch::manual_seed(7);
    let config = VaeConfig { ch: 32, ch_mult: vec![1, 1], num_res_blocks: 1, embed_dim: 4 };
    let store = nn::VarStore::new(Device::Cpu);
    AutoencoderKl::new(&store.root(), &config);
    save_vae(path, &store, &config, 0.5, &[]).expect("save the VAE");
}

/// Returns the mean of the latents of a sample of the synthetic dataset.
pub fn mean_of(sample: usize) -> f32 {
    sample as f32
}

/// Returns the class of a sample of the synthetic dataset.
pub fn label_of(sample: usize) -> i64 {
    (sample % 3) as i64
}

/// Writes the synthetic dataset with shards of the given sizes. Sample i has mean i everywhere and source id 2 * i. All
/// log-variances are -30, so a latent is its mean times the scale, apart from noise of 3e-7.
pub fn write_synthetic_dataset(folder: &Path, shard_sizes: &[usize]) -> Manifest {
    let store = Store::open(text(folder)).expect("store");
    let length: usize = LATENT.iter().product();
    let mut shards = Vec::new();
    let mut sample = 0;
    for (shard, &size) in shard_sizes.iter().enumerate() {
        let mut writer = ShardWriter::new([2 * LATENT[0], LATENT[1], LATENT[2]]);
        for _ in 0..size {
            let moments = |mean: f32| -> Vec<u8> {
                let values = std::iter::repeat_n(mean, length).chain(std::iter::repeat_n(-30.0, length));
                values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()
            };
            let (original, mirrored) = (moments(mean_of(sample)), moments(mean_of(sample) + MIRRORED));
            writer.push(label_of(sample), 2 * sample as i64, &original, &mirrored);
            sample += 1;
        }
        let file = writer.finish("by hand").expect("shard");
        let name = format!("shard-{shard:05}.safetensors");
        let (bytes, xxh3_128) = (file.len() as u64, xxh3_hex(&file));
        store.put(&name, file).expect("put");
        shards.push(ShardFacts { name, bytes, count: size as u64, xxh3_128 });
    }
    let manifest = manifest(sample, shards);
    manifest.write(&store).expect("manifest");
    manifest
}

fn manifest(samples: usize, shards: Vec<ShardFacts>) -> Manifest {
    Manifest {
        version: FORMAT_VERSION,
        dataset_id: DATASET_ID.to_owned(),
        encode_id: "by hand".to_owned(),
        seed: 0,
        num_samples: samples as u64,
        num_sources: 2 * samples as u64,
        classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
        class_counts: vec![0; 3],
        image: ImageFacts { size: 4 },
        vae: VaeFacts {
            config: VaeConfig { ch: 32, ch_mult: vec![1, 1], num_res_blocks: 1, embed_dim: 4 },
            xxh3_128: String::new(),
            scale: SCALE,
            channels: 4,
            stride: 2,
        },
        skipped: Vec::new(),
        shards,
    }
}

/// Flips one bit of a file in place.
pub fn flip_bit(path: &Path, at: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).expect("read");
    byte[0] ^= 4;
    file.write_all_at(&byte, at as u64).expect("write");
}

/// Returns the names and contents of a dataset's files.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .map(|path| {
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("read"))
        })
        .collect();
    files.sort();
    files
}

/// Writes a dataset of `shards` shards with `records` records each. A record has two views of 32 KiB.
pub fn write_large_dataset(folder: &Path, shards: usize, records: usize) -> Manifest {
    let store = Store::open(text(folder)).expect("store");
    let moments = vec![0x2e; 32 << 10];
    let mut facts = Vec::new();
    for shard in 0..shards {
        let mut writer = ShardWriter::new([64, 16, 16]);
        for record in 0..records {
            writer.push(0, (shard * records + record) as i64, &moments, &moments);
        }
        let file = writer.finish("large").expect("shard");
        let name = format!("shard-{shard:05}.safetensors");
        let (bytes, xxh3_128) = (file.len() as u64, xxh3_hex(&file));
        store.put(&name, file).expect("put");
        facts.push(ShardFacts { name, bytes, count: records as u64, xxh3_128 });
    }
    let mut manifest = manifest(shards * records, facts);
    manifest.dataset_id = "1a46e00000000000".to_owned();
    manifest.image.size = 32;
    manifest.vae.channels = 32;
    manifest.write(&store).expect("manifest");
    manifest
}
