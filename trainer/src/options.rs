//! The configuration on the command line.

use arinar_place::{expand, of_option};

use crate::config::{self, ConfigError, LogFormat, TrainConfig};

/// The options of a command line that determine the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Value of `--config`.
    pub config: String,
    /// Values of `--set`, in order.
    pub overrides: Vec<String>,
    /// Value of `--log-format`, which takes precedence over the configuration.
    pub log_format: Option<LogFormat>,
}

impl Options {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Returns the first problem of the configuration.
    pub fn load(&self) -> Result<TrainConfig, ConfigError> {
        let config = self.read()?;
        config.problems().into_iter().next().map_or(Ok(config), Err)
    }

    /// Reads the configuration without checking its values.
    ///
    /// # Errors
    /// Returns an error if the configuration cannot be parsed.
    pub fn read(&self) -> Result<TrainConfig, ConfigError> {
        let file = of_option("--config", expand(&self.config))?;
        let mut config = config::read(&file.to_string_lossy(), &self.overrides)?;
        config.resolve_places();
        if let Some(format) = self.log_format {
            config.log.format = format;
        }
        Ok(config)
    }
}
