//! Pictures: listing, decoding and cropping them.

pub(crate) mod crop;
pub(crate) mod decode;
pub(crate) mod image_source;

pub use crop::CropError;
pub use decode::{DecodeError, load_picture};
pub use image_source::{ImageSource, SourceError};
