//! Determines why a job ended, from the messages of its ranks, the output of mpirun, and exit statuses.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use arinar_protocol::{Farewell, exit_code};
use rustix::process::Signal;

use crate::ranks::Ranks;

/// Everything that is known about the end of a job.
#[derive(Debug)]
pub(crate) struct ExitEvidence<'a> {
    /// The reason of the hang that ended the job, if it hung.
    pub(crate) hang: Option<&'a str>,
    /// The state of the ranks.
    pub(crate) ranks: &'a Ranks,
    /// The first rank that died without a farewell.
    pub(crate) lost: Option<usize>,
    /// Exit status of mpirun, if it is known.
    pub(crate) status: Option<ExitStatus>,
    /// Lines that mpirun itself printed.
    pub(crate) mpirun_lines: &'a [String],
}

impl ExitEvidence<'_> {
    /// Returns the exit code of the job. It is mpirun's, which is that of the first rank that failed. If all ranks sent a
    /// farewell and mpirun killed some that were slow to exit, it is the code in their farewells.
    pub(crate) fn code(&self) -> u8 {
        let known = [exit_code::DONE, exit_code::PREEMPTED, exit_code::CONFIGURATION];
        let code = self.mpirun_code();
        if known.contains(&code) {
            return code;
        }
        if self.signalled_too_early().is_some() {
            return exit_code::PREEMPTED;
        }
        let codes: Vec<u8> = self.ranks.iter().filter_map(|rank| Some(rank.farewell.as_ref()?.code)).collect();
        let all = |wanted| codes.len() == self.ranks.world() && codes.iter().all(|&code| code == wanted);
        if codes.contains(&exit_code::CONFIGURATION) {
            exit_code::CONFIGURATION
        } else if all(exit_code::PREEMPTED) {
            exit_code::PREEMPTED
        } else if all(exit_code::DONE) {
            exit_code::DONE
        } else {
            code
        }
    }

    /// Returns the reason in one line, from the most specific evidence.
    pub(crate) fn reason(&self) -> String {
        if let Some(hang) = self.hang {
            return hang.to_owned();
        }
        if let Some(reason) = self.reported_reason() {
            return reason;
        }
        if let Some((rank, signal)) = self.signalled_too_early() {
            let signal = describe_signal(signal);
            return format!("rank {rank} received {signal} before it had started; start again to resume");
        }
        if let Some((rank, signal)) = self.killed() {
            return format!("{} was killed by {}", self.ranks.describe(rank), describe_signal(signal));
        }
        if let Some(signal) = self.mpirun_signal() {
            return format!("mpirun was killed by {}", describe_signal(signal));
        }
        if let Some(lost) = self.lost {
            let signal = match self.code() {
                code if code > 128 => {
                    format!("; a rank was killed by {}", describe_signal(i32::from(code) - 128))
                }
                _ => String::new(),
            };
            return format!("{} died without an error message{signal}", self.ranks.describe(lost));
        }
        match (self.code(), self.first_paragraph()) {
            (code @ 129..=192, _) => format!("a rank was killed by {}", describe_signal(i32::from(code) - 128)),
            (code, Some(message)) if self.ranks.iter().all(|rank| rank.hello.is_none()) => {
                format!("the job ended with exit code {code} before any rank reported; mpirun: {message}")
            }
            (code, _) => format!("the job ended with exit code {code}"),
        }
    }

    /// Returns true if the reason is an error that a rank reported and that occurs again if nothing is changed, unlike the death
    /// of a rank, a hang, or an outage.
    pub(crate) fn is_deterministic(&self) -> bool {
        self.hang.is_none() && self.reported().is_some_and(|(_, farewell, _)| !farewell.transient)
    }

    fn reported_reason(&self) -> Option<String> {
        self.reported().map(|(rank, _, reason)| format!("rank {rank}: {reason}"))
    }

    /// Returns the farewell of the lowest rank that failed and reported a reason, and the reason.
    fn reported(&self) -> Option<(usize, &Farewell, &str)> {
        self.ranks.iter().enumerate().find_map(|(index, rank)| {
            let farewell = rank.farewell.as_ref().filter(|farewell| farewell.code != exit_code::DONE)?;
            Some((index, farewell, farewell.reason.as_deref()?))
        })
    }

    /// Returns the first paragraph that mpirun printed, joined into one line.
    fn first_paragraph(&self) -> Option<String> {
        let has_text = |line: &&String| line.chars().any(char::is_alphabetic);
        let lines =
            self.mpirun_lines.iter().skip_while(|line| !has_text(line)).take_while(has_text).map(|line| line.trim());
        Some(lines.collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
    }

    /// Returns the exit code of mpirun as a shell reports it: 128 + n for signal n.
    fn mpirun_code(&self) -> u8 {
        self.status.map_or(exit_code::FAILED, |status| match (status.code(), status.signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(exit_code::FAILED),
            (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(exit_code::FAILED),
            (None, None) => exit_code::FAILED,
        })
    }

    /// Returns the rank that died of one of the two signals that request a checkpoint, because the signal arrived while the
    /// program was being loaded and had no handler yet. Nothing is lost in this case. Since mpirun does not always name the
    /// rank, assumes the first one that has not reported.
    fn signalled_too_early(&self) -> Option<(usize, i32)> {
        let signal = i32::from(self.mpirun_code()) - 128;
        let requests_end = [Signal::TERM, Signal::USR1].map(Signal::as_raw).contains(&signal);
        let unreported = |rank: &usize| self.ranks.get(*rank).is_some_and(|rank| rank.hello.is_none());
        let rank = match self.killed() {
            Some((rank, _)) => Some(rank).filter(unreported)?,
            None => (0..self.ranks.world()).find(unreported)?,
        };
        (requests_end && self.hang.is_none()).then_some((rank, signal))
    }

    fn mpirun_signal(&self) -> Option<i32> {
        self.status?.signal()
    }

    /// Returns the rank and the signal that mpirun reports, possibly broken into several lines, as
    /// `mpirun noticed that process rank 1 with PID 0 on node a exited on signal 9 (Killed).`
    fn killed(&self) -> Option<(usize, i32)> {
        let text = self.mpirun_lines.join(" ");
        let after =
            |key: &str| text.split_once(key)?.1.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok();
        Some((after("process rank ")?, i32::try_from(after("exited on signal ")?).ok()?))
    }
}

fn describe_signal(signal: i32) -> String {
    let (name, hint) = match signal {
        4 => ("SIGILL", ": the program was built for another kind of processor"),
        6 => ("SIGABRT", ""),
        7 => ("SIGBUS", ": shared memory (/dev/shm) may be full"),
        9 => ("SIGKILL", ", probably sent by the kernel because memory ran out (see dmesg)"),
        10 => ("SIGUSR1", ""),
        11 => ("SIGSEGV", ""),
        15 => ("SIGTERM", ""),
        _ => return format!("signal {signal}"),
    };
    format!("{name}{hint}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use arinar_protocol::Hello;

    use super::*;
    use crate::rank_message::RankMessage;

    fn ranks(farewells: &[(u8, Option<&str>)]) -> Ranks {
        let now = Instant::now();
        let mut ranks = Ranks::new(2, now);
        for rank in 0..2 {
            let hello = Hello { token: String::new(), rank, world: 2, host: "node".to_owned(), pid: 7 };
            ranks.update(rank, RankMessage::Hello(hello), now);
        }
        for (rank, (code, reason)) in farewells.iter().enumerate() {
            let farewell = Farewell::new(*code, reason.map(str::to_owned));
            ranks.update(rank, RankMessage::Farewell(farewell), now);
        }
        ranks
    }

    fn evidence<'a>(ranks: &'a Ranks, status: i32, mpirun_lines: &'a [String]) -> ExitEvidence<'a> {
        ExitEvidence { hang: None, ranks, lost: None, status: Some(ExitStatus::from_raw(status)), mpirun_lines }
    }

    #[test]
    fn the_most_specific_reason_is_reported() {
        let running = ranks(&[]);
        let lines = [
            "mpirun noticed that process rank 1 with PID 0 on".to_owned(),
            "node a exited on signal 9 (Killed).".to_owned(),
        ];
        let killed = ExitEvidence { lost: Some(1), ..evidence(&running, 137 << 8, &lines) };
        assert!(killed.reason().starts_with("rank 1 (node, pid 7;"), "{}", killed.reason());
        assert!(
            killed.reason().contains("SIGKILL, probably sent by the kernel because memory ran out"),
            "{}",
            killed.reason()
        );
        assert_eq!(ExitEvidence { hang: Some("h"), ..killed }.reason(), "h");
        let lost = ExitEvidence { lost: Some(0), ..evidence(&running, 1 << 8, &[]) };
        assert!(lost.reason().ends_with("died without an error message"), "{}", lost.reason());
        let failed = ranks(&[(1, None), (1, Some("disk full"))]);
        assert_eq!(evidence(&failed, 1 << 8, &[]).reason(), "rank 1: disk full");
        assert!(evidence(&running, 9, &[]).reason().starts_with("mpirun was killed by SIGKILL"));
        assert_eq!(evidence(&running, 3 << 8, &[]).reason(), "the job ended with exit code 3");
        let absent = Ranks::new(2, Instant::now());
        let lines = ["-----", "mpirun was unable to launch x as it could not", "  access it:", "", "Node: a"];
        let lines = lines.map(str::to_owned);
        let reason = evidence(&absent, 1 << 8, &lines).reason();
        assert!(reason.ends_with("mpirun: mpirun was unable to launch x as it could not access it:"), "{reason}");
    }

    #[test]
    fn a_signal_before_the_start_of_a_rank_is_a_preemption() {
        let lines =
            ["mpirun noticed that process rank 1 with PID 7 on node a exited on signal 15 (Terminated).".to_owned()];
        let absent = Ranks::new(2, Instant::now());
        let early = evidence(&absent, 143 << 8, &lines);
        assert_eq!(early.code(), 75);
        assert_eq!(early.reason(), "rank 1 received SIGTERM before it had started; start again to resume");
        assert_eq!(ExitEvidence { hang: Some("h"), ..evidence(&absent, 143 << 8, &lines) }.code(), 143);
        assert_eq!(evidence(&ranks(&[]), 143 << 8, &lines).code(), 143);
        let unnamed = evidence(&absent, 138 << 8, &[]);
        assert_eq!(unnamed.code(), 75);
        assert_eq!(unnamed.reason(), "rank 0 received SIGUSR1 before it had started; start again to resume");
    }

    #[test]
    fn only_a_reported_error_is_deterministic() {
        let failed = ranks(&[(1, Some("the disk is full"))]);
        assert!(evidence(&failed, 1 << 8, &[]).is_deterministic());
        let hung = ExitEvidence { hang: Some("it hung"), ..evidence(&failed, 9, &[]) };
        assert!(!hung.is_deterministic());
        let killed = ranks(&[]);
        assert!(!ExitEvidence { lost: Some(1), ..evidence(&killed, 137 << 8, &[]) }.is_deterministic());
        let mut outage = ranks(&[]);
        let farewell = Farewell { transient: true, ..Farewell::new(1, Some("the store is down".to_owned())) };
        outage.update(0, RankMessage::Farewell(farewell), Instant::now());
        assert!(!evidence(&outage, 1 << 8, &[]).is_deterministic());
    }

    #[test]
    fn the_exit_code_is_that_of_the_ranks() {
        let running = ranks(&[]);
        for code in [0, 1, 75, 78] {
            assert_eq!(evidence(&running, code << 8, &[]).code(), code as u8);
        }
        assert_eq!(evidence(&running, 9, &[]).code(), 137);
        assert_eq!(evidence(&ranks(&[(75, None), (75, None)]), 143 << 8, &[]).code(), 75);
        assert_eq!(evidence(&ranks(&[(75, None)]), 143 << 8, &[]).code(), 143);
        assert_eq!(evidence(&ranks(&[(78, None)]), 143 << 8, &[]).code(), 78);
        assert_eq!(evidence(&ranks(&[(0, None), (0, None)]), 143 << 8, &[]).code(), 0);
        assert_eq!(ExitEvidence { status: None, ..evidence(&running, 0, &[]) }.code(), 1);
    }
}
