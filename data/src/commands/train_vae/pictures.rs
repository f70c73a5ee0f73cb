//! The pictures in memory, divided into training and held-out pictures.

use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

use super::error::TrainVaeError;
use crate::pictures::decode::load_picture;
use crate::reporter::Reporter;
use crate::sources::{FileKind, InputFiles};

/// Training and held-out pictures as u8 tensors [N, 3, S, S].
pub(super) struct PictureSplit {
    pub(super) training: Tensor,
    pub(super) held_out: Tensor,
}

impl PictureSplit {
    /// Reads and crops all pictures. The choice of held-out pictures depends on `seed` alone.
    pub(super) fn read(
        paths: &[PathBuf],
        size: u32,
        held_out: usize,
        seed: u64,
        reporter: &Reporter,
    ) -> Result<Self, TrainVaeError> {
        let source = InputFiles::open(paths, FileKind::PICTURES)?;
        source.notes().iter().for_each(|note| reporter.warn(note));
        if held_out == 0 || source.len() < held_out.saturating_mul(2) {
            return Err(TrainVaeError::Option(format!(
                "{} pictures are too few to hold out {held_out}; give more pictures or a smaller --held-out of at least 1",
                source.len()
            )));
        }
        let mut bytes = Vec::with_capacity(source.len() * 3 * (size * size) as usize);
        for index in 0..source.len() {
            let name = || source.name(index).into_owned();
            let file = source.read(index).map_err(|source| TrainVaeError::Read { name: name(), source })?;
            let picture =
                load_picture(&file, size).map_err(|source| TrainVaeError::Picture { name: name(), source })?;
            bytes.extend_from_slice(picture.as_raw());
        }
        let side = i64::from(size);
        let all = Tensor::from_slice(&bytes).view([-1, side, side, 3]).permute([0, 3, 1, 2]).contiguous(); // [N, 3, S, S]
        let order = split_order(source.len(), seed);
        let held_out = held_out as i64;
        Ok(Self {
            held_out: all.index_select(0, &order.narrow(0, 0, held_out)),
            training: all.index_select(0, &order.narrow(0, held_out, source.len() as i64 - held_out)),
        })
    }

    /// Returns a random batch with values in [-1, 1], [B, 3, S, S].
    pub(super) fn draw(&self, batch: i64) -> Tensor {
        let chosen = Tensor::randint(self.training.size()[0], [batch], (Kind::Int64, Device::Cpu));
        to_unit(&self.training.index_select(0, &chosen))
    }
}

/// Converts u8 levels to [-1, 1].
pub(super) fn to_unit(levels: &Tensor) -> Tensor {
    levels.to_kind(Kind::Float) / 127.5 - 1.0
}

fn split_order(count: usize, seed: u64) -> Tensor {
    use rand::SeedableRng;
    use rand::seq::SliceRandom;
    let mut order: Vec<i64> = (0..count as i64).collect();
    order.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed));
    Tensor::from_slice(&order)
}
