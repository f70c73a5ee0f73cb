//! Who a process is, so that another can see it die: its number, which the system gives again, and when it started.

use std::fs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// In clock ticks since the machine started.
    pub started: u64,
}

impl Process {
    pub fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: started(pid).unwrap_or_default() }
    }

    /// False once it is gone or a zombie, or its number belongs to another.
    pub fn lives(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a living process started.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state follows it, and the start is the 20th word from there.
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
    fn a_process_lives_until_it_ends() {
        let this = Process::this();
        assert!(this.started > 0 && this.lives());
        assert!(!Process { started: this.started + 1, ..this }.lives());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let other = Process { pid: child.id(), started: started(child.id()).unwrap() };
        assert!(other.lives());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!other.lives());
    }
}
