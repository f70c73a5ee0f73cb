//! A rank's share of the work: every world-th shard.

use std::collections::BTreeMap;

use arinar_model::vae::Moments;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::existing::Existing;
use super::pictures::{Decoded, for_each_batch};
use super::plan::Plan;
use super::{EncodeError, Job};
use crate::manifest::ShardFacts;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::shard::{ShardWriter, xxh3_hex};

/// What a rank has done.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Share {
    /// Its shards, whole and stored.
    pub(super) shards: Vec<EncodedShard>,
    /// Pictures that do not decode, in shards that were therefore not made.
    pub(super) bad: Vec<BadPicture>,
    /// Pictures in shards that an earlier run had made.
    pub(super) kept: u64,
}

/// A shard in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EncodedShard {
    pub(super) shard: usize,
    pub(super) facts: ShardFacts,
    pub(super) class_counts: BTreeMap<u32, u64>,
    /// Pictures left out of it.
    pub(super) bad: Vec<BadPicture>,
}

/// A picture that does not decode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BadPicture {
    pub(super) source_id: u32,
    pub(super) name: String,
    pub(super) reason: String,
}

impl Job<'_> {
    /// Makes the shards of this rank that are not there yet.
    pub(super) fn encode_share(&self, ranks: &Ranks, progress: &mut Progress) -> Result<Share, EncodeError> {
        let mut share = Share::default();
        for shard in (ranks.rank()..self.plan.num_shards()).step_by(ranks.world()) {
            let made = match self.existing(shard)? {
                Existing::Whole(kept) => {
                    let pictures = self.plan.pictures(shard).len() as u64;
                    share.kept += pictures;
                    progress.keep(pictures);
                    ranks.report(pictures);
                    share.shards.push(kept);
                    continue;
                }
                Existing::Unusable(why) => {
                    progress.note(&format!("{}: {why}; making it again", self.store.url_of(&Plan::name(shard))));
                    self.encode_shard(shard, ranks, progress)?
                }
                Existing::None => self.encode_shard(shard, ranks, progress)?,
            };
            match made {
                Made::Stored(encoded) => share.shards.push(encoded),
                Made::Bad(bad) => share.bad.extend(bad),
            }
        }
        Ok(share)
    }

    fn encode_shard(&self, shard: usize, ranks: &Ranks, progress: &mut Progress) -> Result<Made, EncodeError> {
        let mut writer = ShardWriter::new(self.shape);
        let mut bad = Vec::new();
        let mut class_counts = BTreeMap::new();
        let mut count = 0;
        let size = self.args.image_size;
        for_each_batch(&self.source, self.plan.pictures(shard), size, self.args.batch, self.decoders, |batch| {
            let handled = batch.len() as u64;
            let good = self.sort_out(batch, &mut bad);
            // Without --skip-bad a shard with a bad picture is not stored: the rest of it is only looked at.
            if bad.is_empty() || self.args.skip_bad {
                self.encode_batch(&good, &mut writer)?;
                for (index, _) in &good {
                    *class_counts.entry(self.source.label(*index as usize)).or_default() += 1;
                }
                count += good.len() as u64;
            }
            progress.advance(handled);
            progress.advance(ranks.reported());
            ranks.report(handled);
            Ok(())
        })?;
        if !bad.is_empty() && !self.args.skip_bad {
            return Ok(Made::Bad(bad));
        }
        let name = Plan::name(shard);
        let file = writer.finish(&self.plan.encode_id)?;
        let facts = ShardFacts { name: name.clone(), bytes: file.len() as u64, count, xxh3_128: xxh3_hex(&file) };
        self.store.put(&name, file)?;
        Ok(Made::Stored(EncodedShard { shard, facts, class_counts, bad }))
    }

    /// Separates the pictures from those that do not decode.
    fn sort_out(&self, batch: Vec<Decoded>, bad: &mut Vec<BadPicture>) -> Vec<(u32, RgbImage)> {
        let mut good = Vec::with_capacity(batch.len());
        for (index, picture) in batch {
            match picture {
                Ok(picture) => good.push((index, picture)),
                Err(error) => bad.push(BadPicture {
                    source_id: index,
                    name: self.source.name(index as usize).to_owned(),
                    reason: error.to_string(),
                }),
            }
        }
        good
    }

    /// Encodes pictures and their mirror images and appends the records.
    fn encode_batch(&self, pictures: &[(u32, RgbImage)], writer: &mut ShardWriter) -> Result<(), EncodeError> {
        if pictures.is_empty() {
            return Ok(());
        }
        let images = self.to_tensor(pictures)?;
        let moments = |images: &Tensor| tch::no_grad(|| half_bytes(&self.vae.vae.encode(images)));
        let (original, mirrored) = (moments(&images)?, moments(&images.f_flip([3])?)?);
        let record_bytes = original.len() / pictures.len();
        let records = original.chunks_exact(record_bytes).zip(mirrored.chunks_exact(record_bytes));
        for ((index, _), (original, mirrored)) in pictures.iter().zip(records) {
            if !all_finite(original) || !all_finite(mirrored) {
                return Err(EncodeError::NotFinite { name: self.source.name(*index as usize).to_owned() });
            }
            writer.push(i64::from(self.source.label(*index as usize)), i64::from(*index), original, mirrored);
        }
        Ok(())
    }

    /// Pixels 0..255 to [-1, 1], [B, 3, H, W] on the VAE's device.
    fn to_tensor(&self, pictures: &[(u32, RgbImage)]) -> Result<Tensor, tch::TchError> {
        let pixels: Vec<u8> = pictures.iter().flat_map(|(_, picture)| picture.as_raw()).copied().collect();
        let size = i64::from(self.args.image_size);
        let images = Tensor::f_from_slice(&pixels)?.f_view([pictures.len() as i64, size, size, 3])?; // [B, H, W, 3]
        let images = images.f_to(self.vae.store.device())?.f_permute([0, 3, 1, 2])?.f_contiguous()?; // [B, 3, H, W]
        images.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)
    }
}

enum Made {
    Stored(EncodedShard),
    Bad(Vec<BadPicture>),
}

/// [B, 2C, h, w] f16 as bytes.
fn half_bytes(moments: &Moments) -> Result<Vec<u8>, tch::TchError> {
    let halves = moments.concatenated().f_to_kind(Kind::Half)?.f_to(tch::Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; 2 * halves.numel()];
    halves.f_copy_data_u8(&mut bytes, halves.numel())?;
    Ok(bytes)
}

fn all_finite(halves: &[u8]) -> bool {
    halves.chunks_exact(2).all(|two| half::f16::from_le_bytes([two[0], two[1]]).is_finite())
}
