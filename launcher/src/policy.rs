//! Whether a job that ended is started again, and when. Decided from how it ended, and from nothing else.

use std::time::Duration;

use arinar_protocol::exit_code;

use crate::exit::Stop;

/// Pause before the first restart.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// So many restarts in a row without a step gained end the run. The pause doubles with each.
const FRUITLESS: u32 = 3;

/// How one start of the job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; mpirun's is that of the first rank that failed.
    pub code: u8,
    /// Why, in one line.
    pub reason: String,
    /// The step it went on from.
    pub resumed: u64,
    /// The last step it trained.
    pub reached: u64,
    /// A signal to the launcher asked it to end.
    pub asked: bool,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The job is started again.
    Restart {
        /// After this pause.
        pause: Duration,
    },
    /// The run is done; exit code 0.
    Done,
    /// The launcher ends.
    Stop(Stop),
}

/// Remembers how earlier starts went.
#[derive(Clone, Debug)]
pub struct Policy {
    max_restarts: Option<u32>,
    restarts: u32,
    /// Restarts in a row that gained nothing.
    fruitless: u32,
    pause: Duration,
    highest: u64,
}

impl Policy {
    /// At the first start.
    pub fn new(max_restarts: Option<u32>) -> Self {
        Self { max_restarts, restarts: 0, fruitless: 0, pause: FIRST_PAUSE, highest: 0 }
    }

    /// Restarts decided so far.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Decides; `jitter` from 0 to 1 spreads the restarts of several runs that fell together.
    pub fn decide(&mut self, outcome: &Outcome, jitter: f64) -> Decision {
        let stop = |code, line: String| Decision::Stop(Stop { code, line });
        match outcome.code {
            exit_code::DONE => return Decision::Done,
            exit_code::PREEMPTED | exit_code::CONFIGURATION => return stop(outcome.code, outcome.reason.clone()),
            code if outcome.asked => return stop(code, outcome.reason.clone()),
            _ => {}
        }
        let gained = outcome.reached > self.highest.max(outcome.resumed);
        self.highest = self.highest.max(outcome.reached);
        if gained {
            (self.fruitless, self.pause) = (0, FIRST_PAUSE);
        } else if self.restarts > 0 {
            self.fruitless += 1;
        }
        if self.fruitless >= FRUITLESS {
            let line =
                format!("{FRUITLESS} restarts in a row have gained no step, so there are no more; the last reason: ");
            return stop(exit_code::FAILED, line + &outcome.reason);
        }
        if self.max_restarts.is_some_and(|most| self.restarts >= most) {
            let line = format!("--max-restarts {} is used up; the last reason: {}", self.restarts, outcome.reason);
            return stop(exit_code::FAILED, line);
        }
        self.restarts += 1;
        // From three quarters to five quarters.
        let pause = self.pause.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0));
        self.pause *= 2;
        Decision::Restart { pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(resumed: u64, reached: u64) -> Outcome {
        Outcome { code: 1, reason: "a rank died".to_owned(), resumed, reached, asked: false }
    }

    fn pause(decision: Decision) -> Option<f64> {
        match decision {
            Decision::Restart { pause } => Some(pause.as_secs_f64()),
            _ => None,
        }
    }

    #[test]
    fn some_ends_are_final() {
        let mut policy = Policy::new(None);
        assert_eq!(policy.decide(&Outcome { code: 0, ..crash(0, 9) }, 0.5), Decision::Done);
        for (code, asked) in [(75, false), (75, true), (78, false), (78, true), (1, true), (137, true)] {
            let decision = policy.decide(&Outcome { code, asked, ..crash(0, 9) }, 0.5);
            assert_eq!(decision, Decision::Stop(Stop { code, line: "a rank died".to_owned() }));
        }
        assert_eq!(policy.restarts(), 0);
    }

    #[test]
    fn three_restarts_that_gain_nothing_end_it() {
        let mut policy = Policy::new(None);
        let pauses: Vec<_> = (0..4).map(|_| pause(policy.decide(&crash(5, 5), 0.5))).collect();
        assert_eq!(pauses, [Some(1.0), Some(2.0), Some(4.0), None]);
        let Decision::Stop(stop) = policy.decide(&crash(5, 5), 0.5) else { panic!("it goes on") };
        assert!(stop.code == 1 && stop.line.contains("3 restarts"), "{stop}");
        assert!(stop.line.ends_with("a rank died"));
    }

    #[test]
    fn a_step_gained_forgives() {
        let mut policy = Policy::new(None);
        for round in 0..100 {
            for (reached, wanted) in [(10 * round + 10, 1.0), (10 * round + 3, 2.0), (10 * round + 10, 4.0)] {
                assert_eq!(pause(policy.decide(&crash(10 * round, reached), 0.5)), Some(wanted), "round {round}");
            }
        }
        assert_eq!(policy.restarts(), 300);
    }

    #[test]
    fn steps_that_the_run_had_before_are_not_gained() {
        let mut policy = Policy::new(None);
        // The first start dies before it knows where it goes on.
        assert_eq!(pause(policy.decide(&crash(0, 0), 0.5)), Some(1.0));
        let pauses: Vec<_> = (0..3).map(|_| pause(policy.decide(&crash(100, 100), 0.5))).collect();
        assert_eq!(pauses, [Some(2.0), Some(4.0), None]);
    }

    #[test]
    fn the_pause_has_a_spread() {
        let spread = [0.0, 1.0].map(|jitter| pause(Policy::new(None).decide(&crash(0, 0), jitter)));
        assert_eq!(spread, [Some(0.75), Some(1.25)]);
    }

    #[test]
    fn the_number_of_restarts_can_be_bounded() {
        let mut policy = Policy::new(Some(1));
        assert!(pause(policy.decide(&crash(0, 1), 0.5)).is_some());
        let Decision::Stop(stop) = policy.decide(&crash(1, 2), 0.5) else { panic!("it goes on") };
        assert!(stop.code == 1 && stop.line.contains("--max-restarts 1"), "{stop}");
        let mut none = Policy::new(Some(0));
        assert!(matches!(none.decide(&crash(0, 1), 0.5), Decision::Stop(_)));
    }
}
