//! Pictures: decoding and cropping them.

pub(crate) mod crop;
pub(crate) mod decode;

pub use crop::CropError;
pub use decode::{DecodeError, load_picture};
