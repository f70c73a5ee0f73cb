//! The sample log: a hidden option for tests of the data order.

use std::fs::{File, OpenOptions};

use crate::stop::Stop;

/// Environment variable with the path of a file to which every rank appends a line "step sample epoch" for each sample it
/// trains on.
const SAMPLE_LOG: &str = "ARINAR_SAMPLE_LOG";

/// Opens the sample log, if it is requested.
///
/// # Errors
/// Returns an error if the file cannot be opened.
pub(crate) fn open() -> Result<Option<File>, Stop> {
    let Some(path) = std::env::var_os(SAMPLE_LOG) else { return Ok(None) };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.map(Some).map_err(|error| Stop::configuration(format!("{SAMPLE_LOG}={}: {error}", path.display())))
}
