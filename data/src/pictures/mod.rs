//! Pictures: listing, decoding and cropping them.

pub(crate) mod crop;
pub(crate) mod decode;
mod halve;
pub(crate) mod image_source;
mod jpeg;
mod size_limit;

pub use crop::CropError;
pub use decode::{DecodeError, load_picture};
pub use image_source::{ImageSource, SourceError};
pub use jpeg::JpegError;
pub use size_limit::TooLarge;
