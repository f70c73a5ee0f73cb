//! Environment variables with which a test configures the stand-in.
//!
//! - `ARINAR_STAND_IN_GPUS`: the number of devices, 1 if unset. With 0, `cuInit` finds no device.
//! - `ARINAR_STAND_IN_DELAY_MICROS`: the delay of each copy, fill and collective on its stream, which exposes missing
//!   waits. The default stream is never delayed.
//! - `ARINAR_STAND_IN_FAULTS`: the faults to inject; see [`crate::nccl::faults`].
//! - `ARINAR_STAND_IN_FAULTS_ONCE`: an empty folder, in which each fault creates a file when it occurs. It never occurs
//!   again, so a restarted job gets past it.
//! - `ARINAR_STAND_IN_LOG`: a file to which every rank appends a line of JSON for each call; see
//!   [`crate::nccl::call_log`].

use std::{env, path::PathBuf, sync::OnceLock, time::Duration};

use crate::nccl::faults::Faults;

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) gpus: usize,
    pub(crate) delay: Duration,
    pub(crate) faults: Result<Faults, String>,
    pub(crate) log: Option<PathBuf>,
}

/// Returns the settings, which are read once.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let once = env::var_os("ARINAR_STAND_IN_FAULTS_ONCE").map(PathBuf::from);
        Settings {
            gpus: number("ARINAR_STAND_IN_GPUS").unwrap_or(1) as usize,
            delay: Duration::from_micros(number("ARINAR_STAND_IN_DELAY_MICROS").unwrap_or(0)),
            faults: Faults::parse(&env::var("ARINAR_STAND_IN_FAULTS").unwrap_or_default(), once),
            log: env::var_os("ARINAR_STAND_IN_LOG").map(PathBuf::from),
        }
    })
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse().ok();
    if number.is_none() {
        eprintln!("GPU stand-in: {name}={text} is not a number and is ignored");
    }
    number
}
