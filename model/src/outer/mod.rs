//! The outer autoregressive layer: from the tokens known so far to a condition for each of the others.

mod block;
mod dropout;
mod mar;

pub use block::Block;
pub use mar::Mar;
