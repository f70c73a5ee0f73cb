//! What a test asks of the stand-in.
//!
//! - `ARINAR_STAND_IN_GPUS`: number of devices, 1 if unset; with 0 `cuInit` finds none.
//! - `ARINAR_STAND_IN_DELAY_MICROS`: how long each copy, fill and collective waits on its stream before it is done, so
//!   that forgotten waits show. The default stream is never delayed.
//! - `ARINAR_STAND_IN_FAULTS`: what fails, and when; see [`crate::nccl::faults`].
//! - `ARINAR_STAND_IN_FAULTS_ONCE`: an empty folder; each fault leaves a file there when it happens and never happens
//!   again, so that a restarted job gets past it.
//! - `ARINAR_STAND_IN_LOG`: a file to which every rank adds a line of JSON for each call; see
//!   [`crate::nccl::call_log`].

use std::{env, path::PathBuf, sync::OnceLock, time::Duration};

use crate::nccl::faults::Faults;

#[derive(Debug)]
pub struct Settings {
    pub gpus: usize,
    pub delay: Duration,
    pub faults: Result<Faults, String>,
    pub log: Option<PathBuf>,
}

/// The settings, read once.
pub fn settings() -> &'static Settings {
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
        eprintln!("GPU stand-in: {name}={text} is no number; it is ignored");
    }
    number
}
