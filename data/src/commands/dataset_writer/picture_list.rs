//! The list of input pictures.

use std::borrow::Cow;

use crate::reporter::Reporter;
use crate::sources::InputFiles;
use arinar_collective::WorkGroup;

/// All input pictures of a dataset, sorted by name.
pub(crate) trait PictureList {
    /// Number of pictures.
    fn len(&self) -> usize;
    /// Class names, sorted; a label is an index into them.
    fn classes(&self) -> &[String];
    /// Class of picture `index`.
    fn label(&self, index: usize) -> u32;
    /// Name of picture `index`.
    fn name(&self, index: usize) -> Cow<'_, str>;
}

impl PictureList for InputFiles {
    fn len(&self) -> usize {
        InputFiles::len(self)
    }

    fn classes(&self) -> &[String] {
        InputFiles::classes(self)
    }

    fn label(&self, index: usize) -> u32 {
        InputFiles::label(self, index)
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        InputFiles::name(self, index)
    }
}

/// Reports on rank 0 what was left out of the list.
pub(crate) fn report_notes(files: &InputFiles, ranks: &WorkGroup, reporter: &Reporter) {
    if ranks.rank() == 0 {
        files.notes().iter().for_each(|note| reporter.warn(note));
    }
}
