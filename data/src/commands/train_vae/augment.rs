//! Random augmentation of the training pictures, because a few thousand pictures are few for an autoencoder.

use tch::{Device, Kind, Tensor};

/// Maximum shift in pixels in each direction.
const MAX_SHIFT: i64 = 3;

/// Mirrors half of the pictures, permutes the colour channels of half, and shifts half by up to [`MAX_SHIFT`] pixels
/// with the border repeated. Uses libtorch's generator.
///
/// # Shapes
/// `images` [B, 3, H, W] -> [B, 3, H, W]
pub(super) fn augment(images: &Tensor) -> Tensor {
    let size = images.size();
    let (batch, height, width) = (size[0], size[2], size[3]);
    let mirrored = choose(&images.flip([3]), images);
    let permuted = mirrored.gather(1, &channel_orders(batch).expand([batch, 3, height, width], false), false);
    let colored = choose(&permuted, &mirrored);
    choose(&shift(&colored, batch, height, width), &colored)
}

/// Selects `one` or `other` for each picture with equal probability.
fn choose(one: &Tensor, other: &Tensor) -> Tensor {
    let coin = Tensor::rand([one.size()[0], 1, 1, 1], (Kind::Float, Device::Cpu)).lt(0.5);
    one.where_self(&coin, other)
}

/// Returns a random permutation of the three channels for each picture, [B, 3, 1, 1].
fn channel_orders(batch: i64) -> Tensor {
    Tensor::rand([batch, 3], (Kind::Float, Device::Cpu)).argsort(1, false).view([batch, 3, 1, 1])
}

fn shift(images: &Tensor, batch: i64, height: i64, width: i64) -> Tensor {
    let rows = shifted_positions(batch, height).view([batch, 1, height, 1]).expand([batch, 3, height, width], false);
    let columns = shifted_positions(batch, width).view([batch, 1, 1, width]).expand([batch, 3, height, width], false);
    images.gather(2, &rows, false).gather(3, &columns, false)
}

/// Returns the source position of every target position along one side for each picture, [B, length].
fn shifted_positions(batch: i64, length: i64) -> Tensor {
    let offsets = Tensor::randint_low(-MAX_SHIFT, MAX_SHIFT + 1, [batch, 1], (Kind::Int64, Device::Cpu));
    (Tensor::arange(length, (Kind::Int64, Device::Cpu)).unsqueeze(0) + offsets).clamp(0, length - 1)
}
