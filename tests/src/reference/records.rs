//! The records of a dataset on disk, and the order in which training reads them.

use std::path::Path;

use safetensors::SafeTensors;
use tch::{Kind, Tensor};

use super::random::{Draws, EPOCH_ORDER, FLIP, POSTERIOR_NOISE, SHARD_WINDOWS, WINDOW_ORDER};

/// One picture.
#[derive(Debug)]
pub struct Record {
    /// Mean and log-variance of the latents of the picture and of its mirror image, [2C, H, W] in float32.
    pub views: [Tensor; 2],
    /// Index of the class.
    pub label: i64,
    /// Index of the picture among all encoded pictures.
    pub source_id: i64,
}

/// All records of a dataset and the sizes of its shards.
#[derive(Debug)]
pub struct Records {
    /// The records in the order of the shards.
    pub records: Vec<Record>,
    /// Number of records in each shard.
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

    /// Returns epoch and sample at a position of the global sequence, in which epochs follow each other without a gap.
    /// With a `window`, that number of randomly chosen shards is shuffled together, otherwise all shards.
    pub fn at(&self, position: u64, seed: u64, window: usize) -> (u64, usize) {
        let samples = self.records.len() as u64;
        let epoch = position / samples;
        (epoch, self.order(epoch, seed, window)[(position % samples) as usize])
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

    /// Returns the latent of a sample in an epoch, [C, H, W], drawn from the posterior of one of its views and scaled.
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
