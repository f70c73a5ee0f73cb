//! Who holds a lease, and whether that process lives.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A process that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of the machine.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// What it does, in the words of its program.
    pub purpose: String,
    /// Seconds since 1970 by its clock; to be shown, never compared.
    pub since: u64,
    /// Which running of which kernel it belongs to.
    boot_id: String,
    /// What its process id is counted in: a container has its own, and what lives in it cannot be seen from others.
    pid_namespace: String,
    /// When the process started, in ticks since the kernel did: a process id comes back, with another time.
    process_start: u64,
    /// Tells this lease from all others.
    nonce: String,
    /// Grows with every renewal, so that each has another content.
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

    /// The same lease, one renewal later.
    pub(super) fn renewed(&self) -> Self {
        Self { counter: self.counter + 1, ..self.clone() }
    }

    /// Whether both are one lease.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.nonce == other.nonce
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    pub(super) fn text(&self) -> Vec<u8> {
        // Strings and numbers cannot fail to be written.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Whether it is, or was, among the processes that this one can see.
    pub(super) fn is_here(&self) -> bool {
        !self.boot_id.is_empty()
            && self.boot_id == line("/proc/sys/kernel/random/boot_id")
            && !self.pid_namespace.is_empty()
            && self.pid_namespace == pid_namespace()
    }

    /// Whether it was a process of this machine and has ended; false when nobody here can know.
    pub(super) fn is_dead_here(&self) -> bool {
        self.is_here() && process_start(self.pid) != Some(self.process_start)
    }

    /// For a message: how a person ends it.
    pub(super) fn how_to_end(&self) -> String {
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

/// When a process started; None if there is none, or only what a parent has not yet buried.
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; the state comes behind it, and 19 fields further the start.
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
        // Elsewhere nobody knows.
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
