//! Descriptions of the job that is about to start.

use arinar_protocol::environment;

use super::settings::{Settings, variable_names};
use crate::{hosts, mpirun_command::forwarded_variables, rank_count::RankCount};

/// Returns a line with the number of ranks and the devices or hosts from which it was chosen.
pub(super) fn summary(settings: &Settings) -> String {
    let from = if settings.hosts.is_empty() {
        settings.slots.to_string()
    } else {
        format!("{} slots on {} hosts", hosts::total_slots(&settings.hosts), settings.hosts.len())
    };
    let reason = match settings.arguments.nproc {
        RankCount::Auto => format!(", the most that divide batch.global {} evenly", settings.config.global_batch),
        RankCount::Exactly(_) => String::new(),
    };
    let ranks = if settings.full_world == 1 { "1 rank".to_owned() } else { format!("{} ranks", settings.full_world) };
    format!("{}: {ranks} on {from}{reason}", settings.config.name)
}

/// Path of the host file in the output of `--dry-run`.
const HOST_FILE: &str = "arinar-hosts";

fn quoted(lines: &[String]) -> String {
    lines.iter().map(|line| format!("'{line}'")).collect::<Vec<_>>().join(" ")
}

/// Returns the output of `--dry-run`. It is valid as a shell script.
pub(super) fn dry_run(settings: &Settings) -> String {
    let placement = settings.full_placement();
    // The launcher itself passes a file without a name.
    let hostfile = hosts::names_user(&placement.hosts).then_some(HOST_FILE);
    let mut lines = vec![format!("# {}", summary(settings))];
    if hostfile.is_some() {
        lines.push(format!("printf '%s\\n' {} > {HOST_FILE}", quoted(&hosts::lines(&placement.hosts))));
    }
    lines.extend([
        settings.command(&placement, hostfile).shell_line(variable_names()),
        "# Environment:".to_owned(),
        format!("#   {}: addresses and token of the launcher, new for each start", environment::LAUNCHER),
    ]);
    if !settings.hosts.is_empty() {
        let names = forwarded_variables(variable_names());
        let names = if names.is_empty() { "none is set".to_owned() } else { names.join(" ") };
        lines.push(format!("#   forwarded to other hosts: {names}"));
    }
    lines.push("# Ranks:".to_owned());
    if settings.hosts.is_empty() {
        let device = |rank| format!("#   rank {rank}: {}", settings.slots.of_rank(rank, settings.full_world));
        lines.extend((0..settings.full_world).map(device));
    }
    let slots = placement.hosts.iter().flat_map(|host| (0..host.slots).map(move |slot| (host, slot)));
    for (rank, (host, slot)) in slots.enumerate() {
        lines.push(format!("#   rank {rank}: {}, GPU or share of cores {slot} of {}", host.name, host.slots));
    }
    lines.join("\n") + "\n"
}
