//! `arinar-data bench`: measures how fast shards are opened and records are read in random order.

use std::time::{Duration, Instant};

use crate::error::DataError;
use crate::format::shard::View;
use crate::progress::Progress;
use crate::random::{Purpose, global_order};
use crate::read::dataset::Dataset;
use crate::reporter::Reporter;

/// Number of records copied to one buffer, like the batch of a loader.
const BATCH: usize = 256;

/// Amount of data read, and the time it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    /// Number of shards or records.
    pub count: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Duration.
    pub time: Duration,
}

impl Measure {
    /// Shards or records per second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Opens the shards in random order, each for the first time in this process: downloads them to the cache if the
/// dataset has one, maps them, and verifies their XXH3. Stops after `limit`. Returns the shards that were opened.
///
/// # Errors
/// Returns an error for the first shard that is damaged or cannot be downloaded.
pub fn open_shards(
    dataset: &Dataset,
    limit: Duration,
    reporter: &Reporter,
) -> Result<(Vec<usize>, Measure), DataError> {
    let shards = &dataset.manifest.shards;
    let mut progress = Progress::start(reporter, "shards", shards.len() as u64);
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

/// Reads records of the shards `opened` in random order for about `limit` on one thread: verifies the CRC32C of each
/// record and copies it to the buffer of a batch.
///
/// # Errors
/// Returns an error for the first damaged record.
pub fn read_records(
    dataset: &Dataset,
    opened: &[usize],
    limit: Duration,
    reporter: &Reporter,
) -> Result<Measure, DataError> {
    let samples = samples_of(dataset, opened);
    let record_bytes = 2 * dataset.manifest.moments_shape().iter().product::<usize>();
    let mut batch = vec![0; BATCH * record_bytes];
    let mut measure = Measure::default();
    let mut progress = Progress::start(reporter, "ms", limit.as_millis() as u64);
    let (started, mut shown) = (Instant::now(), Duration::ZERO);
    for epoch in 0.. {
        let order = global_order(1, epoch, Purpose::EpochOrder, samples.len());
        for indices in order.chunks(BATCH) {
            for (&index, record) in indices.iter().zip(batch.chunks_exact_mut(record_bytes)) {
                let (sample, view) = (samples[index as usize], view_of(index, epoch));
                dataset.with_record(sample, view, |found| record.copy_from_slice(found.moments))?;
            }
            measure.count += indices.len() as u64;
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

/// Alternates between the two views of a picture.
fn view_of(index: u32, epoch: u64) -> View {
    if (u64::from(index) + epoch).is_multiple_of(2) { View::Original } else { View::Mirrored }
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
