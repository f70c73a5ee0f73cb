//! The folder or store that the images are written to.

use std::collections::BTreeSet;

use arinar_store::{Store, local_folder::check_writable};
use image::RgbImage;

use super::{
    classes::Class,
    grid::{GridRow, draw_grid},
    png,
};
use crate::stop::Stop;

/// Name of the file with one row of images per class.
const GRID: &str = "grid.png";
/// Number of bytes at the start of a file that are more than enough for [`png::is_ours`].
const HEADER_BYTES: u64 = 4096;

/// The output of `arinar-sample`: a file per image, and the grid.
pub(crate) struct Output<'a> {
    store: Store,
    classes: &'a [Class],
    per_class: usize,
}

impl<'a> Output<'a> {
    /// Opens the output for `per_class` images of each class. Fails before anything is sampled if the store cannot be read or
    /// if a file of another program would be replaced.
    ///
    /// # Errors
    /// Returns [`Stop::Configuration`] for an invalid URL or a file of another program, and otherwise the error of the store.
    pub(crate) fn open(url: &str, classes: &'a [Class], per_class: usize) -> Result<Self, Stop> {
        let store = Store::open(url).map_err(Stop::configuration)?;
        if let Some(path) = store.local_path("") {
            check_writable(&path)
                .map_err(|problem| Stop::configuration(format!("--out {url}: {problem}; choose another --out")))?;
        }
        let output = Self { store, classes, per_class };
        output.check_existing_files()?;
        Ok(output)
    }

    fn check_existing_files(&self) -> Result<(), Stop> {
        let mut names = BTreeSet::from([GRID.to_owned()]);
        for class in self.classes {
            names.extend((0..self.per_class).map(|number| file_name(class, number)));
        }
        for object in self.store.list("")? {
            if !names.contains(&object.name) {
                continue;
            }
            let bytes = object.bytes.min(HEADER_BYTES);
            let start = self.store.get_range(&object.name, 0, bytes)?;
            if !png::is_ours(&start) {
                return Err(Stop::configuration(format!(
                    "{} exists and was not written by this program; move it away or choose another --out",
                    self.store.url_of(&object.name)
                )));
            }
        }
        Ok(())
    }

    /// URL of the output.
    pub(crate) fn url(&self) -> &str {
        self.store.url()
    }

    /// Writes the images, which are ordered by class, and then the grid. Returns the URL of the grid.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub(crate) fn write(&self, images: &[RgbImage]) -> Result<String, Stop> {
        let mut rows = Vec::with_capacity(self.classes.len());
        for (class, images) in self.classes.iter().zip(images.chunks(self.per_class)) {
            for (number, image) in images.iter().enumerate() {
                self.write_image(image, &file_name(class, number))?;
            }
            rows.push(GridRow { label: class.name.clone(), images: images.to_vec() });
        }
        self.write_image(&draw_grid(&rows), GRID)?;
        Ok(self.store.url_of(GRID))
    }

    fn write_image(&self, image: &RgbImage, name: &str) -> Result<(), Stop> {
        let url = self.store.url_of(name);
        let bytes = png::encode(image).map_err(|error| Stop::failure(format!("cannot write {url}: {error}")))?;
        Ok(self.store.put(name, bytes)?)
    }
}

/// Returns the name of the file of an image. Characters of the class name that a file name may not have are replaced.
fn file_name(class: &Class, number: usize) -> String {
    let name: String = class.name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("{:04}-{name}-{number:03}.png", class.label)
}
