//! The inner autoregressive layer, which generates the features of a token one at a time from its condition vector.

mod arinar;
mod block;

pub use arinar::ArinarHead;
