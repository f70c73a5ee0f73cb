//! The inner autoregressive layer: from a condition to the features of one token, one after the other.

mod arinar;
mod block;

pub use arinar::ArinarHead;
