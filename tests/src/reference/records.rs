//! A dataset as it lies on the disk, and the order in which training sees its samples.

use std::path::Path;

use safetensors::SafeTensors;
use tch::{Kind, Tensor};

use super::random::{Draws, EPOCH_ORDER, FLIP, POSTERIOR_NOISE, SHARD_WINDOWS, WINDOW_ORDER};

/// One picture.
#[derive(Debug)]
pub struct Record {
    /// Mean and log-variance of the latents, [2C, H, W] float32, of the picture and of its mirror image.
    pub views: [Tensor; 2],
    /// Class.
    pub label: i64,
    /// Number of the picture among all that were encoded.
    pub source_id: i64,
}

/// All records, and how many of them each shard holds.
#[derive(Debug)]
pub struct Records {
    /// In the order of the shards.
    pub records: Vec<Record>,
    /// Records of each shard.
    pub shards: Vec<usize>,
}

impl Records {
    /// Reads every `shard-NNNNN.safetensors` of a local dataset.
    pub fn read(folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of the dataset").path()).collect();
        paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shard-")));
        paths.sort();
        let mut all = Self { records: Vec::new(), shards: Vec::new() };
        for path in paths {
            let records = read_shard(&std::fs::read(&path).expect("a shard"));
            all.shards.push(records.len());
            all.records.extend(records);
        }
        assert!(!all.records.is_empty(), "{} holds no record", folder.display());
        all
    }

    /// Epoch and sample at a place of the global sequence, in which the epochs follow each other without a gap. With a
    /// window, so many shards in a random order are shuffled together, otherwise all.
    pub fn at(&self, place: u64, seed: u64, window: usize) -> (u64, usize) {
        let samples = self.records.len() as u64;
        let epoch = place / samples;
        (epoch, self.order(epoch, seed, window)[(place % samples) as usize])
    }

    fn order(&self, epoch: u64, seed: u64, window: usize) -> Vec<usize> {
        if window == 0 {
            return Draws::new(seed, EPOCH_ORDER, epoch, 0).shuffled((0..self.records.len()).collect());
        }
        let shards = Draws::new(seed, SHARD_WINDOWS, epoch, 0).shuffled((0..self.shards.len()).collect());
        let samples_of = |shard: &usize| {
            let first: usize = self.shards[..*shard].iter().sum();
            first..first + self.shards[*shard]
        };
        let windows = shards.chunks(window).enumerate().flat_map(|(number, shards)| {
            let samples = shards.iter().flat_map(samples_of).collect();
            Draws::new(seed, WINDOW_ORDER, epoch, number as u64).shuffled(samples)
        });
        windows.collect()
    }

    /// The latent of a sample in an epoch: of one of both views, drawn from the posterior and scaled, [C, H, W].
    pub fn latent(&self, sample: usize, epoch: u64, seed: u64, scale: f64) -> Tensor {
        let stream = sample as u64;
        let mirrored = Draws::new(seed, FLIP, epoch, stream).uniform() < 0.5;
        let moments = self.records[sample].views[usize::from(mirrored)].chunk(2, 0);
        let mut draws = Draws::new(seed, POSTERIOR_NOISE, epoch, stream);
        let noise: Vec<f64> = (0..moments[0].numel()).map(|_| draws.normal()).collect();
        let noise = Tensor::from_slice(&noise).view_as(&moments[0]);
        let deviation = (moments[1].to_kind(Kind::Double).clamp(-30.0, 20.0) / 2.0).exp();
        ((&moments[0] + deviation * noise) * scale).to_kind(Kind::Float)
    }
}

fn read_shard(bytes: &[u8]) -> Vec<Record> {
    let shard = SafeTensors::deserialize(bytes).expect("a shard is a safetensors file");
    let tensor = |name: &str, kind: Kind| {
        let view = shard.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let shape: Vec<i64> = view.shape().iter().map(|&length| length as i64).collect();
        Tensor::from_data_size(view.data(), &shape, kind)
    };
    let views = ["moments", "moments_flipped"].map(|name| tensor(name, Kind::Half).to_kind(Kind::Float));
    let [labels, sources] = ["label", "source_id"].map(|name| tensor(name, Kind::Int64));
    let record = |index: i64| Record {
        views: views.each_ref().map(|view| view.get(index)),
        label: labels.int64_value(&[index]),
        source_id: sources.int64_value(&[index]),
    };
    (0..labels.size()[0]).map(record).collect()
}
