//! Tests of placing ranks on hosts.

use super::*;

/// The setting of a run with a global batch of 8 on these hosts.
fn setting(flags: &str, hosts: &[(&str, usize)]) -> Setting {
    let line = format!("arinar-launcher --config a --hostfile hosts {flags}");
    let arguments = Arguments::read(line.split_whitespace().map(Into::into)).unwrap();
    let hosts = named(hosts);
    let plan = Plan { name: "a".to_owned(), log_dir: "logs".into(), global_batch: 8, cpu: true };
    let programs = Programs { trainer: "trainer".into(), mpirun: "mpirun".into(), mpirun_version: 4 };
    let full_world = plan::choose_ranks(arguments.nproc, hosts::slots(&hosts), plan.global_batch).unwrap();
    let trainer_arguments = plan::trainer_arguments(&arguments);
    Setting { arguments, programs, plan, slots: Slots::Cores(vec![0]), hosts, full_world, trainer_arguments }
}

fn named(hosts: &[(&str, usize)]) -> Vec<Host> {
    hosts.iter().map(|(name, slots)| Host { name: (*name).to_owned(), slots: *slots }).collect()
}

/// Hosts and ranks of a start where these hosts answer, and `b` does not.
fn placed(setting: &Setting, alive: &[(&str, usize)]) -> Result<(Vec<Host>, usize), Stop> {
    let lost = [Unreachable { name: "b".to_owned(), why: "no route".to_owned() }];
    setting.place(&named(alive), &lost).map(|placement| (placement.hosts, placement.ranks))
}

#[test]
fn a_job_has_all_its_ranks_while_all_hosts_answer() {
    let setting = setting("", &[("a", 3), ("b", 3)]);
    let placement = setting.place(&setting.hosts, &[]).unwrap();
    // As many as share the batch.
    assert_eq!((placement.hosts, placement.ranks), (named(&[("a", 3), ("b", 1)]), 4));
}

#[test]
fn a_lost_host_ends_the_run_unless_fewer_ranks_may_go_on() {
    let hosts = [("a", 3), ("b", 3)];
    let told = placed(&setting("", &hosts), &hosts[..1]).unwrap_err();
    assert!(told.code == 1 && told.line.starts_with("cannot reach b (no route); mend it, "), "{told}");
    assert_eq!(placed(&setting("--min-ranks 2", &hosts), &hosts[..1]), Ok((named(&[("a", 2)]), 2)));
    let told = placed(&setting("--min-ranks 3", &hosts), &hosts[..1]).unwrap_err();
    assert!(told.line.ends_with("; 2 ranks could start, fewer than --min-ranks 3"), "{told}");
    assert!(placed(&setting("--min-ranks 1", &hosts), &[]).is_err(), "no host is left");
    // The remaining hosts have room for more ranks than the job has.
    let fewer = setting("--nproc 2", &hosts);
    assert_eq!(placed(&fewer, &hosts[..1]), Ok((named(&[("a", 2)]), 2)));
}

#[test]
fn a_question_to_the_trainer_is_not_watched() {
    for (flags, asks) in [("", false), ("-- --check", true), ("-- --import x", false)] {
        let setting = setting(flags, &[("a", 1)]);
        let placement = setting.all_ranks();
        assert_eq!((setting.asks(), setting.command(&placement).watched), (asks, !asks), "{flags}");
    }
}
