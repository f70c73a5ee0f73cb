//! The description of the launcher that every rank receives.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::environment;

/// How a rank reaches its launcher, and the settings of the launcher that concern ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launcher {
    /// Addresses of the launcher, to be tried in order.
    pub addresses: Vec<SocketAddr>,
    /// Secret of the job. A rank sends it in its hello; connections without it are closed.
    pub token: String,
    /// Number of this start of the job, from 1.
    pub attempt: u32,
    /// World size when all hosts are available. Where fewer ranks run, a rank still passes no more samples through the
    /// model at once than it would in a job of this size.
    pub full_world: usize,
    /// A rank exits when it has received nothing from the launcher for this long.
    pub silence_secs: f64,
    /// Grace period in seconds: the time from the signal that ends a job to SIGKILL.
    pub grace_secs: f64,
}

impl Launcher {
    /// Reads [`environment::LAUNCHER`]. Returns `None` if no launcher started this process.
    ///
    /// # Errors
    /// The variable is malformed; the error is one line that names it.
    pub fn from_environment() -> Result<Option<Self>, String> {
        match std::env::var(environment::LAUNCHER) {
            Err(_) => Ok(None),
            Ok(text) => Self::parse(&text).map(Some),
        }
    }

    /// Parses the value of [`environment::LAUNCHER`].
    ///
    /// # Errors
    /// The text is not JSON of this type, or one of its times is negative, infinite or longer than 10⁹ s; the error is
    /// one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = environment::LAUNCHER;
        let launcher: Self = serde_json::from_str(text)
            .map_err(|error| format!("{name}={text:?} is not what arinar-launcher sets ({error}); unset it"))?;
        let times = [launcher.silence_secs, launcher.grace_secs];
        if times.iter().all(|secs| secs.is_finite() && (0.0..1e9).contains(secs)) {
            Ok(launcher)
        } else {
            Err(format!("{name}={text:?} contains an invalid time; unset it"))
        }
    }

    /// Returns the value to set [`environment::LAUNCHER`] to.
    pub fn text(&self) -> String {
        // Serializing strings and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_survives_the_environment() {
        let launcher = Launcher {
            addresses: vec!["127.0.0.1:4000".parse().unwrap(), "[::1]:4000".parse().unwrap()],
            token: "secret".into(),
            attempt: 3,
            full_world: 4,
            silence_secs: 20.0,
            grace_secs: 60.0,
        };
        assert_eq!(Launcher::parse(&launcher.text()), Ok(launcher));
        for damaged in ["", "{}", "127.0.0.1:4000"] {
            let error = Launcher::parse(damaged).unwrap_err();
            assert!(error.contains("ARINAR_LAUNCHER") && error.lines().count() == 1, "{error}");
        }
    }
}
