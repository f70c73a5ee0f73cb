//! Why a job ended, in one line: put together from what ranks, mpirun and the kernel say.

use std::process::ExitStatus;

use arinar_protocol::exit_code;
use rustix::process::Signal;

use crate::ranks::Ranks;

/// All that is known of the end.
#[derive(Debug)]
pub struct Traces<'a> {
    /// What the watch found.
    pub hang: Option<&'a str>,
    /// The ranks.
    pub ranks: &'a Ranks,
    /// The first that died without a farewell.
    pub lost: Option<usize>,
    /// How mpirun ended.
    pub status: Option<ExitStatus>,
    /// What mpirun itself wrote.
    pub said: &'a [String],
}

impl Traces<'_> {
    /// The exit code: mpirun's, which is that of the first rank that failed. Where all ranks took leave, and mpirun had
    /// to end some that were too slow to leave, theirs.
    pub fn code(&self) -> u8 {
        let known = [exit_code::DONE, exit_code::PREEMPTED, exit_code::CONFIGURATION];
        let code = self.mpirun_code();
        if known.contains(&code) {
            return code;
        }
        if self.asked_too_early().is_some() {
            return exit_code::PREEMPTED;
        }
        let told: Vec<u8> = self.ranks.iter().filter_map(|rank| Some(rank.farewell.as_ref()?.code)).collect();
        let all = |wanted| told.len() == self.ranks.world() && told.iter().all(|&code| code == wanted);
        if told.contains(&exit_code::CONFIGURATION) {
            exit_code::CONFIGURATION
        } else if all(exit_code::PREEMPTED) {
            exit_code::PREEMPTED
        } else if all(exit_code::DONE) {
            exit_code::DONE
        } else {
            code
        }
    }

    /// Why.
    pub fn reason(&self) -> String {
        if let Some(hang) = self.hang {
            return hang.to_owned();
        }
        let farewells = self.ranks.iter().enumerate().filter_map(|(index, rank)| {
            let farewell = rank.farewell.as_ref().filter(|farewell| farewell.code != exit_code::DONE)?;
            Some(format!("rank {index}: {}", farewell.reason.as_ref()?))
        });
        if let Some(told) = farewells.into_iter().next() {
            return told;
        }
        if let Some((rank, signal)) = self.asked_too_early() {
            let signal = signal_in_words(signal);
            return format!("rank {rank} was asked to end by {signal} before it had begun; start again to go on");
        }
        if let Some((rank, signal)) = self.killed() {
            return format!("{} was killed by {}", self.ranks.describe(rank), signal_in_words(signal));
        }
        if let Some(signal) = self.mpirun_signal() {
            return format!("mpirun was killed by {}", signal_in_words(signal));
        }
        if let Some(lost) = self.lost {
            let signal = match self.code() {
                code if code > 128 => {
                    format!("; a rank was killed by {}", signal_in_words(i32::from(code) - 128))
                }
                _ => String::new(),
            };
            return format!("{} died without a word{signal}", self.ranks.describe(lost));
        }
        match (self.code(), self.first_paragraph()) {
            (code @ 129..=192, _) => format!("a rank was killed by {}", signal_in_words(i32::from(code) - 128)),
            (code, Some(told)) if self.ranks.iter().all(|rank| rank.hello.is_none()) => {
                format!("the job ended with exit code {code} before any rank reported; mpirun: {told}")
            }
            (code, _) => format!("the job ended with exit code {code}"),
        }
    }

    /// The first thing that mpirun said, in one line: it breaks its lines.
    fn first_paragraph(&self) -> Option<String> {
        let says = |line: &&String| line.chars().any(char::is_alphabetic);
        let lines = self.said.iter().skip_while(|line| !says(line)).take_while(says).map(|line| line.trim());
        Some(lines.collect::<Vec<_>>().join(" ")).filter(|told| !told.is_empty())
    }

    /// mpirun's own exit code, as a shell would give it.
    fn mpirun_code(&self) -> u8 {
        use std::os::unix::process::ExitStatusExt;
        self.status.map_or(exit_code::FAILED, |status| match (status.code(), status.signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(exit_code::FAILED),
            (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(exit_code::FAILED),
            (None, None) => exit_code::FAILED,
        })
    }

    /// The rank that one of the two signals which ask for a checkpoint has ended, since it came while the program was
    /// being loaded: nobody hears signals then, and nothing is lost. mpirun does not always name it.
    fn asked_too_early(&self) -> Option<(usize, i32)> {
        let signal = i32::from(self.mpirun_code()) - 128;
        let asks = [Signal::TERM, Signal::USR1].map(Signal::as_raw).contains(&signal);
        let unheard = |rank: &usize| self.ranks.get(*rank).is_some_and(|rank| rank.hello.is_none());
        let rank = match self.killed() {
            Some((rank, _)) => Some(rank).filter(unheard)?,
            None => (0..self.ranks.world()).find(unheard)?,
        };
        (asks && self.hang.is_none()).then_some((rank, signal))
    }

    fn mpirun_signal(&self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        self.status?.signal()
    }

    /// `mpirun noticed that process rank 1 with PID 0 on node a exited on signal 9 (Killed).`, on one line or several.
    fn killed(&self) -> Option<(usize, i32)> {
        let text = self.said.join(" ");
        let after =
            |key: &str| text.split_once(key)?.1.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok();
        Some((after("process rank ")?, i32::try_from(after("exited on signal ")?).ok()?))
    }
}

fn signal_in_words(signal: i32) -> String {
    let (name, hint) = match signal {
        4 => ("SIGILL", ": it was built for another kind of processor"),
        6 => ("SIGABRT", ""),
        7 => ("SIGBUS", ": shared memory (/dev/shm) may be full"),
        9 => ("SIGKILL", ", as the kernel does when memory runs out (see dmesg)"),
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
    use std::{os::unix::process::ExitStatusExt, time::Instant};

    use arinar_protocol::{Farewell, Hello};

    use super::*;
    use crate::server::Word;

    fn ranks(farewells: &[(u8, Option<&str>)]) -> Ranks {
        let now = Instant::now();
        let mut ranks = Ranks::new(2, now);
        for rank in 0..2 {
            let hello = Hello { token: String::new(), rank, world: 2, host: "node".to_owned(), pid: 7 };
            ranks.hear(rank, Word::Hello(hello), now);
        }
        for (rank, (code, reason)) in farewells.iter().enumerate() {
            let farewell = Farewell { code: *code, reason: reason.map(str::to_owned) };
            ranks.hear(rank, Word::Farewell(farewell), now);
        }
        ranks
    }

    fn traces<'a>(ranks: &'a Ranks, status: i32, said: &'a [String]) -> Traces<'a> {
        Traces { hang: None, ranks, lost: None, status: Some(ExitStatus::from_raw(status)), said }
    }

    #[test]
    fn the_best_witness_is_heard() {
        let calm = ranks(&[]);
        let said = [
            "mpirun noticed that process rank 1 with PID 0 on".to_owned(),
            "node a exited on signal 9 (Killed).".to_owned(),
        ];
        let killed = Traces { lost: Some(1), ..traces(&calm, 137 << 8, &said) };
        assert!(killed.reason().starts_with("rank 1 (node, pid 7;"), "{}", killed.reason());
        assert!(killed.reason().contains("SIGKILL, as the kernel does when memory runs out"), "{}", killed.reason());
        assert_eq!(Traces { hang: Some("h"), ..killed }.reason(), "h");
        let lost = Traces { lost: Some(0), ..traces(&calm, 1 << 8, &[]) };
        assert!(lost.reason().ends_with("died without a word"), "{}", lost.reason());
        let told = ranks(&[(1, None), (1, Some("disk full"))]);
        assert_eq!(traces(&told, 1 << 8, &[]).reason(), "rank 1: disk full");
        assert!(traces(&calm, 9, &[]).reason().starts_with("mpirun was killed by SIGKILL"));
        assert_eq!(traces(&calm, 3 << 8, &[]).reason(), "the job ended with exit code 3");
        let nobody = Ranks::new(2, Instant::now());
        let said = ["-----", "mpirun was unable to launch x as it could not", "  access it:", "", "Node: a"];
        let said = said.map(str::to_owned);
        let told = traces(&nobody, 1 << 8, &said).reason();
        assert!(told.ends_with("mpirun: mpirun was unable to launch x as it could not access it:"), "{told}");
    }

    #[test]
    fn a_rank_may_be_asked_to_end_before_it_listens() {
        let said =
            ["mpirun noticed that process rank 1 with PID 7 on node a exited on signal 15 (Terminated).".to_owned()];
        let nobody = Ranks::new(2, Instant::now());
        let early = traces(&nobody, 143 << 8, &said);
        assert_eq!(early.code(), 75);
        assert_eq!(early.reason(), "rank 1 was asked to end by SIGTERM before it had begun; start again to go on");
        assert_eq!(Traces { hang: Some("h"), ..traces(&nobody, 143 << 8, &said) }.code(), 143);
        assert_eq!(traces(&ranks(&[]), 143 << 8, &said).code(), 143);
        let unnamed = traces(&nobody, 138 << 8, &[]);
        assert_eq!(unnamed.code(), 75);
        assert_eq!(unnamed.reason(), "rank 0 was asked to end by SIGUSR1 before it had begun; start again to go on");
    }

    #[test]
    fn codes_are_those_of_ranks() {
        let calm = ranks(&[]);
        for code in [0, 1, 75, 78] {
            assert_eq!(traces(&calm, code << 8, &[]).code(), code as u8);
        }
        assert_eq!(traces(&calm, 9, &[]).code(), 137);
        assert_eq!(traces(&ranks(&[(75, None), (75, None)]), 143 << 8, &[]).code(), 75);
        assert_eq!(traces(&ranks(&[(75, None)]), 143 << 8, &[]).code(), 143);
        assert_eq!(traces(&ranks(&[(78, None)]), 143 << 8, &[]).code(), 78);
        assert_eq!(traces(&ranks(&[(0, None), (0, None)]), 143 << 8, &[]).code(), 0);
        assert_eq!(Traces { status: None, ..traces(&calm, 0, &[]) }.code(), 1);
    }
}
