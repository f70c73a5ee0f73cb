//! `arinar-data bench`: how fast records are read in random order, cold and warm told apart.

use std::time::{Duration, Instant};

use crate::error::DataError;
use crate::format::shard::View;
use crate::progress::Progress;
use crate::random::{Purpose, global_order};
use crate::read::dataset::Dataset;

/// Records gathered into one buffer, as a loader gathers a batch.
const BATCH: usize = 256;

/// What was read in what time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    /// Shards opened, or records read.
    pub count: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Time it took.
    pub time: Duration,
}

impl Measure {
    /// Shards or records a second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Opens the shards in a random order, each for the first time in this process: fetched where the dataset is cached and
/// they are not there yet, mapped, and compared with the manifest's XXH3. Ends after `limit` with those opened so far.
///
/// # Errors
/// The first shard that is damaged or cannot be fetched.
pub fn open_shards(dataset: &Dataset, limit: Duration, silent: bool) -> Result<(Vec<usize>, Measure), DataError> {
    let shards = &dataset.manifest.shards;
    let mut progress = Progress::new("shards", shards.len() as u64, silent);
    let mut measure = Measure::default();
    let mut opened = Vec::new();
    let started = Instant::now();
    for shard in global_order(1, 0, Purpose::ShardOrder, shards.len()) {
        let shard = shard as usize;
        dataset.shard(shard)?;
        opened.push(shard);
        measure.count += 1;
        measure.bytes += shards[shard].bytes;
        progress.advance(1);
        if started.elapsed() >= limit {
            break;
        }
    }
    measure.time = started.elapsed();
    Ok((opened, measure))
}

/// Reads records of the shards `opened` in random order for about `limit`: each is checked against its CRC32C and copied
/// into the buffer of a batch, on one thread.
///
/// # Errors
/// The first record that is damaged.
pub fn read_records(dataset: &Dataset, opened: &[usize], limit: Duration, silent: bool) -> Result<Measure, DataError> {
    let samples = samples_of(dataset, opened);
    let record_bytes = 2 * dataset.manifest.moments_shape().iter().product::<usize>();
    let mut batch = vec![0; BATCH * record_bytes];
    let mut measure = Measure::default();
    let mut progress = Progress::new("ms", limit.as_millis() as u64, silent);
    let (started, mut shown) = (Instant::now(), Duration::ZERO);
    for epoch in 0.. {
        let order = global_order(1, epoch, Purpose::EpochOrder, samples.len());
        for places in order.chunks(BATCH) {
            for (&place, record) in places.iter().zip(batch.chunks_exact_mut(record_bytes)) {
                let (sample, view) = (samples[place as usize], view_of(place, epoch));
                dataset.with_record(sample, view, |found| record.copy_from_slice(found.moments))?;
            }
            measure.count += places.len() as u64;
            if started.elapsed() >= limit {
                measure.bytes = measure.count * record_bytes as u64;
                measure.time = started.elapsed();
                return Ok(measure);
            }
        }
        let now = started.elapsed();
        progress.advance((now - shown).as_millis() as u64);
        shown = now;
    }
    Ok(measure)
}

/// Each picture in one of its views by turns.
fn view_of(place: u32, epoch: u64) -> View {
    if (u64::from(place) + epoch).is_multiple_of(2) { View::Original } else { View::Mirrored }
}

fn samples_of(dataset: &Dataset, shards: &[usize]) -> Vec<u64> {
    let ends: Vec<u64> = dataset
        .manifest
        .shards
        .iter()
        .scan(0, |end, shard| {
            *end += shard.count;
            Some(*end)
        })
        .collect();
    shards.iter().flat_map(|&shard| ends[shard] - dataset.manifest.shards[shard].count..ends[shard]).collect()
}
