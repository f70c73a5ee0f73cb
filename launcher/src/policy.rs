//! The restart policy: decides from the outcomes of a job whether and when to restart it.

use std::time::Duration;

use arinar_protocol::exit_code;

use crate::stop::Stop;

/// Backoff before the first restart. It doubles with each restart that gains nothing.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// Number of restarts in a row without a step gained after which the launcher gives up.
const MAX_FRUITLESS: u32 = 3;

/// The outcome of one start of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Exit code of the job; see [`exit_code`].
    pub(crate) code: u8,
    /// The reason for the end, in one line.
    pub(crate) reason: String,
    /// Step at which training resumed.
    pub(crate) resumed: u64,
    /// Last step that was trained.
    pub(crate) reached: u64,
    /// True if a signal to the launcher requested the end.
    pub(crate) requested: bool,
    /// True if the reason is an error that occurs again if nothing is changed.
    pub(crate) deterministic: bool,
}

/// A decision about the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Restart the job.
    Restart {
        /// Time to wait first.
        backoff: Duration,
    },
    /// The run is done: exit with code 0.
    Done,
    /// Exit with an error.
    Stop(Stop),
}

/// The restart policy and the history that it depends on.
#[derive(Clone, Debug)]
pub(crate) struct RestartPolicy {
    max_restarts: Option<u32>,
    restarts: u32,
    /// Number of restarts in a row that gained no step.
    fruitless: u32,
    backoff: Duration,
    /// Highest step that any start reached.
    highest: u64,
    /// Step and reason of the last deterministic failure that no later start has got past.
    failure: Option<(u64, String)>,
}

impl RestartPolicy {
    /// Creates the policy of a new run.
    pub(crate) fn new(max_restarts: Option<u32>) -> Self {
        Self { max_restarts, restarts: 0, fruitless: 0, backoff: INITIAL_BACKOFF, highest: 0, failure: None }
    }

    /// Returns the number of restarts so far.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Decides what to do after a start has ended. `jitter`, from 0 to 1, spreads the restarts of runs that failed at the
    /// same time.
    pub(crate) fn decide(&mut self, outcome: &Outcome, jitter: f64) -> Decision {
        let stop = |code, line: String| Decision::Stop(Stop { code, line });
        match outcome.code {
            exit_code::DONE => return Decision::Done,
            exit_code::PREEMPTED | exit_code::CONFIGURATION => return stop(outcome.code, outcome.reason.clone()),
            code if outcome.requested => return stop(code, outcome.reason.clone()),
            _ => {}
        }
        let gained = outcome.reached > self.highest.max(outcome.resumed);
        self.highest = self.highest.max(outcome.reached);
        if gained {
            (self.fruitless, self.backoff) = (0, INITIAL_BACKOFF);
        } else if self.restarts > 0 {
            self.fruitless += 1;
        }
        if self.fruitless >= MAX_FRUITLESS {
            let line = format!(
                "{MAX_FRUITLESS} restarts in a row have gained no step, giving up; the last reason: {}",
                outcome.reason
            );
            return stop(exit_code::FAILED, line);
        }
        if self.has_failed_before(outcome) {
            let Outcome { reached, reason, .. } = outcome;
            let line = format!("the job ended twice at step {reached} with the same error, giving up; {reason}");
            return stop(exit_code::FAILED, line);
        }
        if self.max_restarts.is_some_and(|most| self.restarts >= most) {
            let line = format!("--max-restarts {} is used up; the last reason: {}", self.restarts, outcome.reason);
            return stop(exit_code::FAILED, line);
        }
        self.restarts += 1;
        // Between 0.75 and 1.25 times the backoff.
        let backoff = self.backoff.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0));
        self.backoff *= 2;
        Decision::Restart { backoff }
    }

    /// Returns true if the job has failed at the same step with the same deterministic error before. A restart computes the same
    /// numbers from the same checkpoint, so that it would end there again.
    fn has_failed_before(&mut self, outcome: &Outcome) -> bool {
        self.failure = self.failure.take().filter(|(step, _)| outcome.reached <= *step);
        if !outcome.deterministic {
            return false;
        }
        let failure = Some((outcome.reached, outcome.reason.clone()));
        std::mem::replace(&mut self.failure, failure.clone()) == failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(resumed: u64, reached: u64) -> Outcome {
        let reason = "a rank died".to_owned();
        Outcome { code: 1, reason, resumed, reached, requested: false, deterministic: false }
    }

    fn failure(resumed: u64, reached: u64, reason: &str) -> Outcome {
        Outcome { reason: reason.to_owned(), deterministic: true, ..crash(resumed, reached) }
    }

    fn backoff(decision: Decision) -> Option<f64> {
        match decision {
            Decision::Restart { backoff } => Some(backoff.as_secs_f64()),
            _ => None,
        }
    }

    #[test]
    fn some_outcomes_are_final() {
        let mut policy = RestartPolicy::new(None);
        assert_eq!(policy.decide(&Outcome { code: 0, ..crash(0, 9) }, 0.5), Decision::Done);
        for (code, requested) in [(75, false), (75, true), (78, false), (78, true), (1, true), (137, true)] {
            let decision = policy.decide(&Outcome { code, requested, ..crash(0, 9) }, 0.5);
            assert_eq!(decision, Decision::Stop(Stop { code, line: "a rank died".to_owned() }));
        }
        assert_eq!(policy.restarts(), 0);
    }

    #[test]
    fn three_fruitless_restarts_end_the_run() {
        let mut policy = RestartPolicy::new(None);
        let backoffs: Vec<_> = (0..4).map(|_| backoff(policy.decide(&crash(5, 5), 0.5))).collect();
        assert_eq!(backoffs, [Some(1.0), Some(2.0), Some(4.0), None]);
        let Decision::Stop(stop) = policy.decide(&crash(5, 5), 0.5) else { panic!("it restarts") };
        assert!(stop.code == 1 && stop.line.contains("3 restarts"), "{stop}");
        assert!(stop.line.ends_with("a rank died"));
    }

    #[test]
    fn the_same_failure_twice_at_one_step_ends_the_run() {
        let is_final = |outcomes: &[Outcome]| {
            let mut policy = RestartPolicy::new(None);
            outcomes.iter().map(|outcome| backoff(policy.decide(outcome, 0.5)).is_none()).collect::<Vec<_>>()
        };
        let nan = || failure(4, 5, "the loss is NaN");
        assert_eq!(is_final(&[nan(), nan()]), [false, true]);
        assert_eq!(is_final(&[nan(), crash(4, 4), nan()]), [false, false, true], "a killed rank in between");
        assert_eq!(is_final(&[nan(), failure(4, 5, "the disk is full")]), [false, false]);
        assert_eq!(is_final(&[nan(), failure(4, 6, "the loss is NaN")]), [false, false]);
        // The step was passed, so that the error was not deterministic after all.
        assert_eq!(is_final(&[nan(), crash(4, 9), nan()]), [false, false, false]);
        let mut policy = RestartPolicy::new(None);
        policy.decide(&nan(), 0.5);
        let Decision::Stop(stop) = policy.decide(&nan(), 0.5) else { panic!("it restarts") };
        let line = "the job ended twice at step 5 with the same error, giving up; the loss is NaN";
        assert_eq!(stop, Stop::failure(line));
    }

    #[test]
    fn a_step_gained_resets_the_backoff() {
        let mut policy = RestartPolicy::new(None);
        for round in 0..100 {
            for (reached, wanted) in [(10 * round + 10, 1.0), (10 * round + 3, 2.0), (10 * round + 10, 4.0)] {
                assert_eq!(backoff(policy.decide(&crash(10 * round, reached), 0.5)), Some(wanted), "round {round}");
            }
        }
        assert_eq!(policy.restarts(), 300);
    }

    #[test]
    fn steps_of_earlier_launchers_are_not_gains() {
        let mut policy = RestartPolicy::new(None);
        // The first start dies before it knows where it resumes.
        assert_eq!(backoff(policy.decide(&crash(0, 0), 0.5)), Some(1.0));
        let backoffs: Vec<_> = (0..3).map(|_| backoff(policy.decide(&crash(100, 100), 0.5))).collect();
        assert_eq!(backoffs, [Some(2.0), Some(4.0), None]);
    }

    #[test]
    fn the_backoff_has_jitter() {
        let spread = [0.0, 1.0].map(|jitter| backoff(RestartPolicy::new(None).decide(&crash(0, 0), jitter)));
        assert_eq!(spread, [Some(0.75), Some(1.25)]);
    }

    #[test]
    fn the_number_of_restarts_can_be_limited() {
        let mut policy = RestartPolicy::new(Some(1));
        assert!(backoff(policy.decide(&crash(0, 1), 0.5)).is_some());
        let Decision::Stop(stop) = policy.decide(&crash(1, 2), 0.5) else { panic!("it restarts") };
        assert!(stop.code == 1 && stop.line.contains("--max-restarts 1"), "{stop}");
        let mut none = RestartPolicy::new(Some(0));
        assert!(matches!(none.decide(&crash(0, 1), 0.5), Decision::Stop(_)));
    }
}
