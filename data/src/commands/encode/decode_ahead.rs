//! Decoding of pictures ahead of the VAE.

use std::sync::mpsc::{SyncSender, sync_channel};

use image::RgbImage;

use crate::commands::dataset_writer::error::EncodeError;
use crate::pictures::decode::{DecodeError, load_picture};
use crate::pictures::image_source::ImageSource;

/// Number of batches to decode ahead.
const LOOK_AHEAD: usize = 2;

/// A picture of a batch: its index in the sorted list, and its pixels or the reason why it cannot be decoded.
pub(super) type Decoded = (u32, Result<RgbImage, DecodeError>);

/// Calls `consume` with the pictures `indices` in batches of `batch`, while `decoders` threads decode the next batches.
///
/// # Errors
/// Returns an error if a picture cannot be read, or the error of `consume`.
pub(super) fn for_each_batch(
    source: &ImageSource,
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

/// Sends batches until all have been sent, one cannot be read, or the receiver is dropped.
fn decode_all(
    source: &ImageSource,
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

fn decode_batch(
    source: &ImageSource,
    indices: &[u32],
    size: u32,
    decoders: usize,
) -> Result<Vec<Decoded>, EncodeError> {
    let decode = |&index: &u32| -> Result<Decoded, EncodeError> {
        let bytes = source.read(index as usize).map_err(EncodeError::Read)?;
        Ok((index, load_picture(&bytes, size)))
    };
    if decoders <= 1 {
        return indices.iter().map(decode).collect();
    }
    std::thread::scope(|scope| {
        let share = indices.len().div_ceil(decoders);
        let workers: Vec<_> = indices
            .chunks(share)
            .map(|indices| scope.spawn(move || indices.iter().map(decode).collect::<Result<Vec<_>, _>>()))
            .collect();
        let mut decoded = Vec::with_capacity(indices.len());
        for worker in workers {
            decoded.extend(worker.join().map_err(|_| EncodeError::DecoderPanic)??);
        }
        Ok(decoded)
    })
}
