//! Encoding of decoded pictures as records, in batches.

use arinar_model::vae::{LoadedVae, Moments, vae_safetensors};
use image::RgbImage;
use tch::{Kind, Tensor};

use super::args::EncodeArgs;
use super::decode_ahead::{Decoded, for_each_batch, read_picture};
use crate::commands::dataset_writer::encoder::RecordEncoder;
use crate::commands::dataset_writer::error::EncodeError;
use crate::commands::dataset_writer::open_shard::OpenShard;
use crate::commands::dataset_writer::picture_list::PictureList;
use crate::format::hash::xxh3;
use crate::sources::InputFiles;

/// A [`RecordEncoder`] that encodes pictures with a VAE.
pub(super) struct Encoder<'a> {
    pub(super) args: &'a EncodeArgs,
    pub(super) source: InputFiles,
    pub(super) vae: LoadedVae,
    pub(super) decoders: usize,
}

impl RecordEncoder for Encoder<'_> {
    fn pictures(&self) -> &dyn PictureList {
        &self.source
    }

    fn tokenizer(&self) -> Result<Option<Vec<u8>>, EncodeError> {
        Ok(Some(vae_safetensors(&self.args.vae)?))
    }

    fn content_hash(&self, picture: u32) -> Result<u128, String> {
        self.source.read(picture as usize).map(|bytes| xxh3(&bytes)).map_err(|error| error.to_string())
    }

    fn check(&self, picture: u32) -> Result<(), String> {
        read_picture(&self.source, picture, self.args.image_size).map(|_| ())
    }

    fn fill(
        &self,
        pictures: &[u32],
        shard: &mut OpenShard<'_>,
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<(), EncodeError> {
        let (size, batch) = (self.args.image_size, self.args.batch);
        for_each_batch(&self.source, pictures, size, batch, self.decoders, |batch| {
            let count = batch.len() as u64;
            let mut good = Vec::with_capacity(batch.len());
            for Decoded { index, picture } in batch {
                match picture {
                    Ok((picture, content)) => good.push((index, content, picture)),
                    Err(reason) => shard.skip(index, reason),
                }
            }
            if shard.is_wanted() {
                self.encode_batch(&good, shard)?;
            }
            on_progress(count);
            Ok(())
        })
    }
}

impl Encoder<'_> {
    /// Encodes pictures and their mirror images, and appends the records.
    fn encode_batch(&self, pictures: &[(u32, u128, RgbImage)], shard: &mut OpenShard<'_>) -> Result<(), EncodeError> {
        if pictures.is_empty() {
            return Ok(());
        }
        let images = self.to_tensor(pictures)?;
        let moments = |images: &Tensor| tch::no_grad(|| half_bytes(&self.vae.vae.encode(images)));
        let (original, mirrored) = (moments(&images)?, moments(&images.f_flip([3])?)?);
        let record_bytes = original.len() / pictures.len();
        let records = original.chunks_exact(record_bytes).zip(mirrored.chunks_exact(record_bytes));
        for ((index, content, _), (original, mirrored)) in pictures.iter().zip(records) {
            if !all_finite(original) || !all_finite(mirrored) {
                return Err(EncodeError::NotFinite { name: self.source.name(*index as usize).into_owned() });
            }
            shard.push(*index, *content, original, mirrored);
        }
        Ok(())
    }

    /// Converts pixels from 0..255 to [-1, 1], [B, 3, H, W] on the VAE's device.
    fn to_tensor(&self, pictures: &[(u32, u128, RgbImage)]) -> Result<Tensor, tch::TchError> {
        let pixels: Vec<u8> = pictures.iter().flat_map(|(_, _, picture)| picture.as_raw()).copied().collect();
        let size = i64::from(self.args.image_size);
        let images = Tensor::f_from_slice(&pixels)?.f_view([pictures.len() as i64, size, size, 3])?; // [B, H, W, 3]
        let images = images.f_to(self.vae.store.device())?.f_permute([0, 3, 1, 2])?.f_contiguous()?; // [B, 3, H, W]
        images.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)
    }
}

/// Converts moments to [B, 2C, h, w] f16 as bytes.
fn half_bytes(moments: &Moments) -> Result<Vec<u8>, tch::TchError> {
    let halves = moments.concatenated().f_to_kind(Kind::Half)?.f_to(tch::Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; 2 * halves.numel()];
    halves.f_copy_data_u8(&mut bytes, halves.numel())?;
    Ok(bytes)
}

fn all_finite(halves: &[u8]) -> bool {
    halves.chunks_exact(2).all(|two| half::f16::from_le_bytes([two[0], two[1]]).is_finite())
}
