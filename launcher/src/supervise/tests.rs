//! Tests of placing ranks on hosts.

use super::settings::Settings;
use crate::{
    arguments::Arguments,
    hosts::{self, Host, Unreachable},
    job_config::JobConfig,
    programs::Programs,
    slots::Slots,
    stop::Stop,
    trainer_arguments::trainer_arguments,
};

/// Returns the settings of a run with a global batch of 8 on these hosts.
fn settings(flags: &str, hosts: &[(&str, usize)]) -> Settings {
    let line = format!("arinar-launcher --config a --hostfile hosts {flags}");
    let arguments = Arguments::read(line.split_whitespace().map(Into::into)).unwrap();
    let hosts = named(hosts);
    let config = JobConfig { name: "a".to_owned(), log_dir: "logs".into(), global_batch: 8, cpu: true };
    let programs = Programs { trainer: "trainer".into(), mpirun: "mpirun".into(), mpirun_version: 4 };
    let full_world = arguments.nproc.choose(hosts::total_slots(&hosts), config.global_batch).unwrap();
    let trainer_arguments = trainer_arguments(&arguments);
    Settings { arguments, programs, config, slots: Slots::Cores(vec![0]), hosts, full_world, trainer_arguments }
}

fn named(hosts: &[(&str, usize)]) -> Vec<Host> {
    hosts.iter().map(|(name, slots)| Host { name: (*name).to_owned(), slots: *slots }).collect()
}

/// Places the job when these hosts are reachable and `b` is not.
fn placed(settings: &Settings, reachable: &[(&str, usize)]) -> Result<(Vec<Host>, usize), Stop> {
    let lost = [Unreachable { name: "b".to_owned(), error: "no route".to_owned() }];
    settings.place(&named(reachable), &lost).map(|placement| (placement.hosts, placement.ranks))
}

#[test]
fn a_job_has_all_its_ranks_while_all_hosts_are_reachable() {
    let settings = settings("", &[("a", 3), ("b", 3)]);
    let placement = settings.place(&settings.hosts, &[]).unwrap();
    // The largest number that divides the batch.
    assert_eq!((placement.hosts, placement.ranks), (named(&[("a", 3), ("b", 1)]), 4));
}

#[test]
fn a_lost_host_ends_the_run_unless_fewer_ranks_are_allowed() {
    let hosts = [("a", 3), ("b", 3)];
    let error = placed(&settings("", &hosts), &hosts[..1]).unwrap_err();
    assert!(error.code == 1 && error.line.starts_with("cannot reach b (no route); repair it, "), "{error}");
    assert_eq!(placed(&settings("--min-ranks 2", &hosts), &hosts[..1]), Ok((named(&[("a", 2)]), 2)));
    let error = placed(&settings("--min-ranks 3", &hosts), &hosts[..1]).unwrap_err();
    assert!(error.line.ends_with("; 2 ranks could start, fewer than --min-ranks 3"), "{error}");
    assert!(placed(&settings("--min-ranks 1", &hosts), &[]).is_err(), "no host is left");
    // The remaining hosts have more slots than the job has ranks.
    let fewer = settings("--nproc 2", &hosts);
    assert_eq!(placed(&fewer, &hosts[..1]), Ok((named(&[("a", 2)]), 2)));
}

#[test]
fn an_inspection_is_not_watched() {
    for (flags, inspects) in [("", false), ("-- --check", true), ("-- --import x", false)] {
        let settings = settings(flags, &[("a", 1)]);
        let placement = settings.full_placement();
        assert_eq!(
            (settings.is_inspection(), settings.command(&placement, None).watched),
            (inspects, !inspects),
            "{flags}"
        );
    }
}
