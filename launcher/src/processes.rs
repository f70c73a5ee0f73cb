//! Ensures that no process outlives the launcher.
//!
//! Ranks leave mpirun's process group, so a signal to that group does not reach them. While the launcher runs, the kernel
//! makes it the parent of every orphan among its descendants, so that all of them can be found below it in /proc. If the
//! launcher itself is killed, the kernel signals mpirun, which ends its ranks, and ranks exit when their launcher is gone.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{self, Pid, Signal, WaitOptions};

/// Maximum time to wait for killed processes. A process that is blocked in the kernel, say by a dead network file system,
/// cannot be removed.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// Makes this process the parent of its descendants that become orphans.
///
/// # Errors
/// The system call fails.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(process::set_child_subreaper(Some(process::getpid()))?)
}

/// Makes the kernel send SIGTERM to the process that `command` starts when the starting thread ends. On SIGTERM, unlike
/// SIGKILL, mpirun kills its ranks, including those on other hosts, and removes its files.
pub(crate) fn tie_to_this_thread(command: &mut Command) {
    let launcher = process::getpid();
    let tie = move || {
        process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // If the launcher died before the call, the signal would never be sent.
        if process::getppid() == Some(launcher) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: `tie` runs in the child between fork and exec. It makes two system calls, takes no lock and does not
    // allocate: the conversion of an error number to an io::Error needs no allocation.
    unsafe { command.pre_exec(tie) };
}

/// A process as listed in /proc.
#[derive(Clone, Copy, Debug)]
struct Entry {
    pid: Pid,
    parent: i32,
    zombie: bool,
}

/// Kills all descendants of this process and waits until they are gone. Returns how many were alive.
pub(crate) async fn sweep() -> usize {
    let began = Instant::now();
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let found = descendants(process::getpid(), &all());
        if found.is_empty() || began.elapsed() > SWEEP_LIMIT {
            return killed.len();
        }
        for entry in found {
            if entry.zombie {
                if entry.parent == process::getpid().as_raw_nonzero().get() {
                    let _ = process::waitpid(Some(entry.pid), WaitOptions::NOHANG);
                }
            } else {
                // The process may have ended since it was listed.
                let _ = process::kill_process(entry.pid, Signal::KILL);
                killed.insert(entry.pid.as_raw_nonzero());
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns true if a process with this ID exists and is not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    entry(pid).is_some_and(|entry| !entry.zombie)
}

/// Sends a signal to a process. Does nothing if the process has ended.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = process::kill_process(pid, signal);
    }
}

fn all() -> Vec<Entry> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(entry).collect()
}

fn entry(pid: i32) -> Option<Entry> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program name in parentheses may contain any character.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = matches!(words.next()?, "Z" | "X");
    Some(Entry { pid: Pid::from_raw(pid)?, parent: words.next()?.parse().ok()?, zombie })
}

/// Returns the children of `root`, their children, and so on.
fn descendants(root: Pid, all: &[Entry]) -> Vec<Entry> {
    let mut children: BTreeMap<i32, Vec<Entry>> = BTreeMap::new();
    for entry in all {
        children.entry(entry.parent).or_default().push(*entry);
    }
    let mut found: Vec<Entry> = children.remove(&root.as_raw_nonzero().get()).unwrap_or_default();
    let mut next = 0;
    while next < found.len() {
        found.extend(children.remove(&found[next].pid.as_raw_nonzero().get()).unwrap_or_default());
        next += 1;
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_tree_is_found() {
        let entry = |pid, parent| Entry { pid: Pid::from_raw(pid).unwrap(), parent, zombie: false };
        let all = [entry(1, 0), entry(5, 1), entry(9, 7), entry(6, 5), entry(7, 5), entry(8, 2)];
        let found: Vec<i32> =
            descendants(Pid::from_raw(5).unwrap(), &all).iter().map(|entry| entry.pid.as_raw_nonzero().get()).collect();
        assert_eq!(found, [6, 7, 9]);
    }

    #[test]
    fn this_process_is_listed() {
        let own = super::entry(process::getpid().as_raw_nonzero().get()).unwrap();
        assert_eq!(Some(own.parent), process::getppid().map(|pid| pid.as_raw_nonzero().get()));
        assert!(!own.zombie);
    }
}
