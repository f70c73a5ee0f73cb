//! The holder of a lease: a process, which may have ended.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A process that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// Description of what it does.
    pub purpose: String,
    /// Start of the lease in seconds since 1970 by its own clock, for messages only.
    pub since: u64,
    /// Identifies one boot of one machine.
    boot_id: String,
    /// Namespace of the process id. Processes in the namespace of another container are not visible.
    pid_namespace: String,
    /// Start of the process in ticks since boot, which distinguishes processes with the same id.
    process_start: u64,
    /// Distinguishes this lease from all others.
    nonce: String,
    /// Number of renewals, which makes the contents of each one different.
    counter: u64,
}

impl Holder {
    pub(super) fn this_process(purpose: &str) -> Self {
        let pid = std::process::id();
        Self {
            host: line("/proc/sys/kernel/hostname"),
            pid,
            purpose: purpose.to_owned(),
            since: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            pid_namespace: pid_namespace(),
            process_start: process_start(pid).unwrap_or_default(),
            nonce: format!("{:032x}", rand::random::<u128>()),
            counter: 0,
        }
    }

    /// Returns the same lease with one more renewal.
    pub(super) fn renewed(&self) -> Self {
        Self { counter: self.counter + 1, ..self.clone() }
    }

    /// Whether both describe the same lease.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.nonce == other.nonce
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    pub(super) fn text(&self) -> Vec<u8> {
        // Serialization of strings and numbers cannot fail.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Whether the holder is or was a process that is visible from here.
    pub(super) fn is_here(&self) -> bool {
        !self.boot_id.is_empty()
            && self.boot_id == line("/proc/sys/kernel/random/boot_id")
            && !self.pid_namespace.is_empty()
            && self.pid_namespace == pid_namespace()
    }

    /// Whether the holder was a visible process and has ended. Returns false if this cannot be known.
    pub(super) fn is_dead_here(&self) -> bool {
        self.is_here() && process_start(self.pid) != Some(self.process_start)
    }

    /// Returns the command that ends the holder, for messages.
    pub(super) fn kill_hint(&self) -> String {
        if self.is_here() { format!(" (kill {})", self.pid) } else { String::new() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(self.since.min(1 << 35))).unwrap_or(UNIX_EPOCH);
        let since = humantime::format_rfc3339_seconds(since);
        write!(formatter, "`{}` on host {}, pid {}, since {since}", self.purpose, self.host, self.pid)
    }
}

fn line(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

fn pid_namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default()
}

/// Returns the start time of a process, or `None` if it does not exist or is a zombie.
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may contain anything. It is followed by the state and, 19 fields later, the start.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_ended_one_does_not() {
        let me = Holder::this_process("test");
        assert!(me.process_start > 0 && me.is_here() && !me.is_dead_here());
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let dead = Holder { pid: child.id(), ..me.clone() };
        child.wait().expect("wait");
        assert!(dead.is_dead_here());
        // The same number, but another process.
        assert!(Holder { process_start: me.process_start + 1, ..me.clone() }.is_dead_here());
        // The state of a process on another machine is unknown.
        assert!(!Holder { boot_id: "other".to_owned(), ..dead.clone() }.is_dead_here());
        assert!(!Holder { pid_namespace: "pid:[1]".to_owned(), ..dead }.is_dead_here());
    }

    #[test]
    fn a_holder_is_read_as_it_was_written() {
        let me = Holder::this_process("arinar-data encode");
        assert_eq!(Holder::parse(&me.text()), Some(me.clone()));
        assert!(me.is_same(&me.renewed()) && me.text() != me.renewed().text());
        assert!(me.to_string().contains("arinar-data encode") && me.to_string().contains(&me.pid.to_string()));
        assert_eq!(Holder::parse(b"{}"), None);
    }
}
