//! The context of a rank: its peers, its place in the job, its device, and those who watch it.

use std::{sync::Arc, time::Duration};

use arinar_collective::{Collective, LaunchEnvironment};
use arinar_protocol::Launcher;
use tch::Device;

use crate::{preemption::Preemption, vitals::Vitals};

/// Everything about a rank that does not depend on the experiment.
#[derive(Clone)]
pub struct RankContext<'a> {
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// Rank and world size.
    pub launch: LaunchEnvironment,
    /// The device of this rank.
    pub device: Device,
    /// Number of libtorch threads, unless it is configured.
    pub threads: usize,
    /// The launcher that started the job, if any.
    pub launcher: Option<Launcher>,
    /// Requests to end.
    pub preemption: Preemption,
    /// Figures for the launcher.
    pub vitals: Arc<Vitals>,
}

impl RankContext<'_> {
    /// Returns the world size of the job when none of its hosts is missing.
    pub(crate) fn full_world_size(&self) -> usize {
        let world_size = self.collective.world_size();
        self.launcher.as_ref().map_or(world_size, |launcher| launcher.full_world.max(world_size))
    }

    /// Returns how long the process may live after a signal, if that is known.
    pub(crate) fn grace_period(&self) -> Option<Duration> {
        self.launcher.as_ref().map(|launcher| Duration::from_secs_f64(launcher.grace_secs))
    }
}
