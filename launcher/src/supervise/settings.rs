//! The settings of a run.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::placement::{Placement, RankLimits};
use crate::{
    arguments::Arguments,
    hosts::{self, Host, InMemoryFile, Unreachable},
    job_config::JobConfig,
    mpirun_command::MpirunCommand,
    programs::Programs,
    slots::Slots,
    stop::Stop,
    trainer_arguments::{is_inspection, trainer_arguments},
};

/// Everything that stays the same over all starts of the job.
pub(super) struct Settings {
    pub(super) arguments: Arguments,
    pub(super) programs: Programs,
    pub(super) config: JobConfig,
    /// Devices of this host.
    pub(super) slots: Slots,
    /// All hosts of the host file; empty for this host alone.
    pub(super) hosts: Vec<Host>,
    /// World size when all hosts are available.
    pub(super) full_world: usize,
    pub(super) trainer_arguments: Vec<String>,
}

impl Settings {
    /// Locates the programs, reads the host file, queries the configuration and chooses the number of ranks.
    ///
    /// # Errors
    /// One of these fails, or options contradict the number of slots or ranks.
    pub(super) fn resolve(mut arguments: Arguments) -> Result<Self, Stop> {
        arguments.resolve_places().map_err(|error| Stop::configuration(error.to_string()))?;
        let programs = Programs::find(arguments.trainer.as_deref(), arguments.mpirun.as_deref())?;
        let hosts = arguments.hostfile.as_deref().map(|path| hosts::read_hostfile(path, &programs));
        let hosts = hosts.transpose()?.unwrap_or_default();
        let config = JobConfig::query(&programs.trainer, &arguments)?;
        let slots = Slots::detect(config.cpu);
        let free = if hosts.is_empty() { slots.count() } else { hosts::total_slots(&hosts) };
        let full_world = arguments.nproc.choose(free, config.global_batch)?;
        if !hosts.is_empty() && full_world > free {
            return Err(Stop::configuration(format!(
                "--nproc {full_world} exceeds the {free} slots of --hostfile; add hosts or slots"
            )));
        }
        if arguments.min_ranks.is_some_and(|min| min > full_world || min == 0) {
            return Err(Stop::configuration(format!(
                "--min-ranks must be a number from 1 to {full_world}, the number of ranks of the job"
            )));
        }
        let trainer_arguments = trainer_arguments(&arguments);
        Ok(Self { arguments, programs, config, slots, hosts, full_world, trainer_arguments })
    }

    /// Returns the address to listen on for heartbeats: loopback, unless ranks run on other hosts.
    pub(super) fn listen_address(&self) -> SocketAddr {
        let addresses = hosts::own_addresses(&self.hosts, 0);
        if addresses.iter().all(|address| address.ip().is_loopback()) {
            return (Ipv4Addr::LOCALHOST, 0).into();
        }
        // The unspecified IPv6 address accepts IPv4 connections, too.
        let any_v6 = addresses.iter().any(SocketAddr::is_ipv6);
        if any_v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() }
    }

    /// Returns the host file for the mpirun command of a placement, if it needs one.
    ///
    /// # Errors
    /// The system cannot create it.
    pub(super) fn hostfile(&self, placement: &Placement) -> Result<Option<InMemoryFile>, Stop> {
        hosts::names_user(&placement.hosts).then(|| hosts::write_hostfile(&placement.hosts)).transpose()
    }

    /// Returns the mpirun command for a placement. `hostfile` is the path of its host file, if it needs one.
    pub(super) fn command<'a>(&'a self, placement: &'a Placement, hostfile: Option<&'a str>) -> MpirunCommand<'a> {
        MpirunCommand {
            programs: &self.programs,
            hosts: &placement.hosts,
            hostfile,
            ranks: placement.ranks,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            root: rustix::process::geteuid().is_root(),
            mpirun_arguments: &self.arguments.mpirun_arguments,
            trainer_arguments: &self.trainer_arguments,
            watched: !self.is_inspection(),
        }
    }

    /// Returns true if the trainer only inspects something and exits.
    pub(super) fn is_inspection(&self) -> bool {
        self.trainer_arguments.iter().any(|word| is_inspection(word))
    }

    /// Returns the placement when all hosts are available.
    pub(super) fn full_placement(&self) -> Placement {
        Placement::full(&self.hosts, self.full_world)
    }

    /// Places the job on the reachable hosts.
    ///
    /// # Errors
    /// Too many hosts are lost.
    pub(super) fn place(&self, reachable: &[Host], lost: &[Unreachable]) -> Result<Placement, Stop> {
        if lost.is_empty() {
            return Ok(self.full_placement());
        }
        let limits = RankLimits {
            full_world: self.full_world,
            min_ranks: self.arguments.min_ranks,
            global_batch: self.config.global_batch,
        };
        Placement::reduced(reachable, lost, limits)
    }
}

/// Returns the names of all environment variables that are valid UTF-8.
pub(super) fn variable_names() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}
