//! The identity of a process, with which others detect its death: its pid, which can be reused, and its start time.

use std::fs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot.
    pub(crate) start_time: u64,
}

impl Process {
    pub(crate) fn this() -> Self {
        let pid = std::process::id();
        Self { pid, start_time: start_time(pid).unwrap_or_default() }
    }

    /// Returns false once the process is gone or a zombie, or its pid belongs to another process.
    pub(crate) fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// Returns the start time of a living process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything. The state follows it; the start time is the 20th word from there.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(words.next()?, "Z" | "X") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends() {
        let this = Process::this();
        assert!(this.start_time > 0 && this.is_alive());
        assert!(!Process { start_time: this.start_time + 1, ..this }.is_alive());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let other = Process { pid: child.id(), start_time: start_time(child.id()).unwrap() };
        assert!(other.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!other.is_alive());
    }
}
