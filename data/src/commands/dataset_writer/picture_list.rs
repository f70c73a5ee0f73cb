//! The list of input pictures.

use crate::pictures::image_source::ImageSource;

/// All input pictures of a dataset, sorted by name.
pub(crate) trait PictureList {
    /// Number of pictures.
    fn len(&self) -> usize;
    /// Class names, sorted; a label is an index into them.
    fn classes(&self) -> &[String];
    /// Class of picture `index`.
    fn label(&self, index: usize) -> u32;
    /// Name of picture `index`.
    fn name(&self, index: usize) -> &str;
}

impl PictureList for ImageSource {
    fn len(&self) -> usize {
        ImageSource::len(self)
    }

    fn classes(&self) -> &[String] {
        ImageSource::classes(self)
    }

    fn label(&self, index: usize) -> u32 {
        ImageSource::label(self, index)
    }

    fn name(&self, index: usize) -> &str {
        ImageSource::name(self, index)
    }
}
