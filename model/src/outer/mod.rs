//! The outer autoregressive layer, which predicts a condition vector for each unknown token from the known ones.

mod block;
mod dropout;
mod mar;

pub use block::Block;
pub use mar::Mar;
