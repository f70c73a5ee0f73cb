//! Decoding of pictures ahead of the VAE.

use std::sync::mpsc::{SyncSender, sync_channel};

use image::RgbImage;

use crate::commands::dataset_writer::error::EncodeError;
use crate::format::hash::xxh3;
use crate::pictures::decode::load_picture;
use crate::sources::InputFiles;

/// Number of batches to decode ahead.
const LOOK_AHEAD: usize = 2;

/// A picture of a batch.
pub(super) struct Decoded {
    /// Index in the sorted list.
    pub(super) index: u32,
    /// Pixels and XXH3-128 of the file, or the reason why the picture cannot be used.
    pub(super) picture: Result<(RgbImage, u128), String>,
}

/// Calls `consume` with the pictures `indices` in batches of `batch`, while `decoders` threads decode the next batches.
///
/// # Errors
/// Returns an error if a decoder stops, or the error of `consume`.
pub(super) fn for_each_batch(
    source: &InputFiles,
    indices: &[u32],
    size: u32,
    batch: usize,
    decoders: usize,
    mut consume: impl FnMut(Vec<Decoded>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(LOOK_AHEAD);
        scope.spawn(move || decode_all(source, indices, size, batch, decoders, &sender));
        batches.iter().try_for_each(|decoded| consume(decoded?))
    })
}

/// Sends batches until all have been sent, a decoder stops, or the receiver is dropped.
fn decode_all(
    source: &InputFiles,
    indices: &[u32],
    size: u32,
    batch: usize,
    decoders: usize,
    sender: &SyncSender<Result<Vec<Decoded>, EncodeError>>,
) {
    for indices in indices.chunks(batch) {
        let decoded = decode_batch(source, indices, size, decoders);
        let failed = decoded.is_err();
        if sender.send(decoded).is_err() || failed {
            return;
        }
    }
}

fn decode_batch(source: &InputFiles, indices: &[u32], size: u32, decoders: usize) -> Result<Vec<Decoded>, EncodeError> {
    let decode = |&index: &u32| Decoded { index, picture: read_picture(source, index, size) };
    if decoders <= 1 {
        return Ok(indices.iter().map(decode).collect());
    }
    std::thread::scope(|scope| {
        let share = indices.len().div_ceil(decoders);
        let workers: Vec<_> = indices
            .chunks(share)
            .map(|indices| scope.spawn(move || indices.iter().map(decode).collect::<Vec<_>>()))
            .collect();
        let mut decoded = Vec::with_capacity(indices.len());
        for worker in workers {
            decoded.extend(worker.join().map_err(|_| EncodeError::DecoderPanic)?);
        }
        Ok(decoded)
    })
}

/// Reads and decodes a picture. Whatever is wrong with it concerns this picture alone.
pub(super) fn read_picture(source: &InputFiles, index: u32, size: u32) -> Result<(RgbImage, u128), String> {
    let bytes = source.read(index as usize).map_err(|error| error.to_string())?;
    let picture = load_picture(&bytes, size).map_err(|error| error.to_string())?;
    Ok((picture, xxh3(&bytes)))
}
