//! The mask, which divides tokens into those the outer layer sees and those it predicts.
//!
//! Shapes: B samples, L tokens, M masked tokens.

use tch::{Kind, Tensor};

/// A mask, stored as two rectangular tables of token positions so that tokens are gathered by index and every tensor
/// has a fixed shape.
///
/// Self-attention does not depend on the order of its tokens, because each carries its position embedding. Within this
/// crate, tokens therefore stay in the order [kept, masked] and are never scattered back.
#[derive(Debug)]
pub struct Mask {
    kept: Tensor,
    masked: Tensor,
}

impl Mask {
    /// Creates a mask of the first `num_masked` tokens of each sample's order (official `random_masking`).
    ///
    /// # Shapes
    /// `orders` is [B, L] i64, each row a permutation.
    pub fn from_orders(orders: &Tensor, num_masked: i64) -> Self {
        let length = orders.size()[1];
        Self { kept: orders.narrow(1, num_masked, length - num_masked), masked: orders.narrow(1, 0, num_masked) }
    }

    /// Creates a mask from a table of zeros (kept) and ones (masked). Positions are in ascending order.
    ///
    /// # Shapes
    /// `mask` is [B, L] of any kind; every row must mask the same number of tokens.
    pub fn from_dense(mask: &Tensor) -> Self {
        let num_masked = (mask.sum(Kind::Int64).int64_value(&[])) / mask.size()[0];
        let masked_first = mask.to_kind(Kind::Int64).argsort_stable(true, 1, true);
        Self::from_orders(&masked_first, num_masked)
    }

    /// Returns the positions of kept tokens, which the encoder sees, [B, L-M] i64.
    pub fn kept(&self) -> &Tensor {
        &self.kept
    }

    /// Returns the positions of masked tokens, which are predicted, [B, M] i64.
    pub fn masked(&self) -> &Tensor {
        &self.masked
    }

    /// Returns all positions in the decoder's order: kept, then masked, [B, L] i64.
    pub fn order(&self) -> Tensor {
        Tensor::cat(&[&self.kept, &self.masked], 1)
    }

    /// Returns the number of masked tokens in each sample.
    pub fn num_masked(&self) -> i64 {
        self.masked.size()[1]
    }

    /// Returns the number of kept tokens in each sample.
    pub(crate) fn num_kept(&self) -> i64 {
        self.kept.size()[1]
    }
}

/// Gathers tokens by position.
///
/// # Shapes
/// `tokens` [B, L, D], `positions` [B, N] i64; returns [B, N, D].
pub fn gather(tokens: &Tensor, positions: &Tensor) -> Tensor {
    let width = tokens.size()[2];
    tokens.gather(1, &positions.unsqueeze(-1).expand([-1, -1, width], false), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tokens_of_each_order_are_masked() {
        let orders = Tensor::from_slice(&[2_i64, 0, 1, 3, 3, 1, 2, 0]).view([2, 4]);
        let mask = Mask::from_orders(&orders, 3);
        assert_eq!(mask.masked(), &Tensor::from_slice(&[2_i64, 0, 1, 3, 1, 2]).view([2, 3]));
        assert_eq!(mask.kept(), &Tensor::from_slice(&[3_i64, 0]).view([2, 1]));
        assert_eq!((mask.num_masked(), mask.num_kept()), (3, 1));
    }

    #[test]
    fn a_dense_mask_gives_ascending_positions() {
        let dense = Tensor::from_slice(&[0.0_f32, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).view([2, 4]);
        let mask = Mask::from_dense(&dense);
        assert_eq!(mask.masked(), &Tensor::from_slice(&[1_i64, 2, 0, 3]).view([2, 2]));
        assert_eq!(mask.kept(), &Tensor::from_slice(&[0_i64, 3, 1, 2]).view([2, 2]));
        assert_eq!(mask.order(), Tensor::from_slice(&[0_i64, 3, 1, 2, 1, 2, 0, 3]).view([2, 4]));
    }

    #[test]
    fn all_tokens_may_be_masked() {
        let mask = Mask::from_dense(&Tensor::ones([3, 5], (Kind::Float, tch::Device::Cpu)));
        assert_eq!((mask.num_masked(), mask.num_kept()), (5, 0));
    }

    #[test]
    fn gather_selects_rows() {
        let tokens = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)).view([2, 3, 2]);
        let picked = gather(&tokens, &Tensor::from_slice(&[2_i64, 0, 1, 1]).view([2, 2]));
        assert_eq!(picked, Tensor::from_slice(&[4_f32, 5., 0., 1., 8., 9., 8., 9.]).view([2, 2, 2]));
    }
}
