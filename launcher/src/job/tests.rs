//! Tests of watching and ending a job, without processes.
#![allow(clippy::unwrap_used)]

use std::{
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use arinar_protocol::{Beat, Farewell, Hello, Phase, Seconds};
use tokio::sync::mpsc;

use super::{
    JobContext,
    outcome::ShutdownRequest,
    shutdown::{MPIRUN_GRACE, Shutdown},
    watch::Job,
};
use crate::{
    arguments::Arguments,
    history::RunHistory,
    output::Output,
    rank_message::{IncomingMessage, RankMessage},
    shutdown_signals::{ShutdownSignal, ShutdownSignals},
    status::SharedStatus,
};

/// Owner of everything that a job's context borrows.
struct Fixture {
    arguments: Arguments,
    output: Output,
    messages: mpsc::Receiver<IncomingMessage>,
    signals: ShutdownSignals,
    history: RunHistory,
    status: SharedStatus,
    session_record: PathBuf,
}

impl Fixture {
    fn new(flags: &str) -> Self {
        let line = format!("arinar-launcher --config a {flags}");
        Self {
            arguments: Arguments::read(line.split_whitespace().map(Into::into)).unwrap(),
            output: Output::discard().unwrap(),
            messages: mpsc::channel(1).1,
            signals: ShutdownSignals::none().unwrap(),
            history: RunHistory::new(),
            status: SharedStatus::default(),
            session_record: "/nowhere/session".into(),
        }
    }

    fn context(&mut self) -> JobContext<'_> {
        JobContext {
            arguments: &self.arguments,
            output: &self.output,
            messages: &mut self.messages,
            signals: &mut self.signals,
            history: &mut self.history,
            status: &self.status,
            store_patience: Duration::from_secs(8),
            session_record: &self.session_record,
        }
    }
}

/// Returns a job of two ranks, both of which have reported. It has no process, since 0 is not a process ID.
fn job<'a, 'b>(context: &'a mut JobContext<'b>) -> Job<'a, 'b> {
    let mut job = Job::new(context, 1, 0, 2);
    for rank in 0..2 {
        job.handle_message(from(rank, hello(rank)));
    }
    job
}

fn hello(rank: usize) -> RankMessage {
    RankMessage::Hello(Hello { token: String::new(), rank, world: 2, host: "node".to_owned(), pid: 7 })
}

fn from(rank: usize, message: RankMessage) -> IncomingMessage {
    IncomingMessage { attempt: 1, rank, message }
}

fn farewell(code: u8) -> RankMessage {
    RankMessage::Farewell(Farewell::new(code, Some("so it is".to_owned())))
}

/// Returns the heartbeat of a rank that resumed at `first_step` and has reached `step`.
fn trained(first_step: u64, step: u64) -> RankMessage {
    let seconds = Seconds { compute: 3.0, ..Seconds::default() };
    let (saved_step, total_steps) = (first_step, 90);
    RankMessage::Beat(Beat { first_step, total_steps, saved_step, step, seconds, ..Beat::default() })
}

/// Asserts that two ranks in this phase, with steps of this duration, hang after the limit and not before.
fn hangs_after(flags: &str, phase: Phase, step_seconds: f64, limit: Duration) {
    let mut fixture = Fixture::new(flags);
    let mut context = fixture.context();
    let mut job = job(&mut context);
    let before = Instant::now();
    for rank in 0..2 {
        let beat = Beat { step: 3, marks: 1, total_steps: 9, phase, step_seconds, ..Beat::default() };
        job.handle_message(from(rank, RankMessage::Beat(beat)));
    }
    let after = Instant::now();
    job.check_for_hang(before + limit);
    assert_eq!((&job.hang, job.shutdown), (&None, Shutdown::None), "{flags} {phase}");
    job.check_for_hang(after + limit + Duration::from_millis(1));
    assert!(job.hang.is_some() && matches!(job.shutdown, Shutdown::Terminating(_)), "{flags} {phase}");
}

#[tokio::test]
async fn every_limit_follows_its_option() {
    let seconds = Duration::from_secs_f64;
    // No other limit is reached.
    let long = "--silence-limit 1h --start-up-limit 2h --hang-floor 3h";
    hangs_after(long, Phase::Compute, 0.5, seconds(3600.0));
    hangs_after("--silence-limit 7s", Phase::StartUp, 0.0, seconds(7.0));
    let flags = "--silence-limit 1h --start-up-limit 11s --hang-floor 5s --hang-factor 30";
    for (phase, step_seconds, limit) in [
        (Phase::StartUp, 0.2, 11.0),
        (Phase::Checkpoint, 0.2, 11.0),
        (Phase::Finish, 0.2, 11.0),
        // The first step.
        (Phase::Compute, 0.0, 11.0),
        (Phase::Compute, 0.1, 5.0),
        (Phase::AllReduce, 0.2, 6.0),
        (Phase::Compute, 2.0, 60.0),
        // 1.5 times the patience of the store.
        (Phase::DataWait, 0.2, 12.0),
        (Phase::DataWait, 0.5, 15.0),
    ] {
        hangs_after(flags, phase, step_seconds, seconds(limit));
    }
    hangs_after("--silence-limit 1h --hang-floor 1s", Phase::Compute, 0.25, seconds(5.0));
    hangs_after("--silence-limit 1h", Phase::Compute, 0.25, seconds(60.0));
    hangs_after("", Phase::Compute, 0.25, seconds(30.0));
    hangs_after("--silence-limit 1h", Phase::StartUp, 0.0, seconds(1800.0));
}

#[tokio::test]
async fn a_pause_of_the_launcher_is_excluded() {
    for paused in [true, false] {
        let mut fixture = Fixture::new("--silence-limit 2s");
        let mut context = fixture.context();
        let mut job = job(&mut context);
        let last = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        for rank in 0..2 {
            job.ranks.update(rank, hello(rank), last);
        }
        job.last_check = if paused { last } else { Instant::now() };
        job.check();
        assert_eq!(job.hang.is_none(), paused);
    }
}

/// Asserts that the job is in its grace period, which began after `before`.
fn assert_in_grace(job: &Job, grace: u64, before: Instant) {
    let Shutdown::Grace(deadline) = job.shutdown else { panic!("{:?}", job.shutdown) };
    let grace = Duration::from_secs(grace);
    assert!((before + grace..=Instant::now() + grace).contains(&deadline));
}

#[tokio::test]
async fn repeated_signals_do_not_extend_the_grace_period() {
    let mut fixture = Fixture::new("--grace 9s");
    let mut context = fixture.context();
    let mut job = job(&mut context);
    let before = Instant::now();
    job.handle_signal(ShutdownSignal::Term);
    assert_in_grace(&job, 9, before);
    assert!(job.request.requested && !job.request.overdue);
    let first = job.shutdown;
    for again in [ShutdownSignal::Term, ShutdownSignal::Usr1, ShutdownSignal::Int] {
        job.handle_signal(again);
        assert_eq!(job.shutdown, first);
    }
    let before = Instant::now();
    job.handle_signal(ShutdownSignal::Int);
    assert!(job.request.overdue, "the second SIGINT kills the job");
    let Shutdown::Terminating(deadline) = job.shutdown else { panic!("{:?}", job.shutdown) };
    assert!((before + MPIRUN_GRACE..=Instant::now() + MPIRUN_GRACE).contains(&deadline));
    job.handle_signal(ShutdownSignal::Int);
    assert_eq!(job.shutdown, Shutdown::Terminating(deadline));
}

#[tokio::test]
async fn a_failure_of_a_rank_begins_the_grace_period() {
    for (messages, ends) in [
        (vec![RankMessage::Closed], true),
        (vec![farewell(1)], true),
        (vec![farewell(75)], true),
        (vec![farewell(0)], false),
        (vec![farewell(0), RankMessage::Closed], false),
    ] {
        let mut fixture = Fixture::new("--grace 9s");
        let mut context = fixture.context();
        let mut job = job(&mut context);
        let before = Instant::now();
        // A message of another start is ignored.
        job.handle_message(IncomingMessage { attempt: 2, ..from(0, RankMessage::Closed) });
        for message in &messages {
            job.handle_message(from(1, message.clone()));
        }
        if ends {
            assert_in_grace(&job, 9, before);
        } else {
            assert_eq!(job.shutdown, Shutdown::None, "{messages:?}");
            job.handle_message(from(0, farewell(0)));
            assert_in_grace(&job, 9, before);
        }
    }
}

#[tokio::test]
async fn a_job_that_does_not_end_is_killed_in_stages() {
    let mut fixture = Fixture::new("");
    let mut context = fixture.context();
    let mut job = job(&mut context);
    let later = Instant::now() + Duration::from_secs(3600);
    for stage in [Shutdown::None, Shutdown::Grace(later), Shutdown::Terminating(later)] {
        job.shutdown = stage;
        assert!(!job.escalate() && job.shutdown == stage && !job.request.overdue);
    }
    job.shutdown = Shutdown::Grace(Instant::now());
    assert!(!job.escalate() && job.request.overdue);
    assert!(matches!(job.shutdown, Shutdown::Terminating(_)), "{:?}", job.shutdown);
    job.shutdown = Shutdown::Terminating(Instant::now());
    assert!(job.escalate() && job.shutdown == Shutdown::Killed);
}

/// Returns the outcome of a job whose rank 0 sent these messages and whose mpirun exited with this code.
fn end(code: i32, messages: &[RankMessage], prepare: impl FnOnce(&mut Job)) -> (u8, String, bool) {
    let mut fixture = Fixture::new("");
    let mut context = fixture.context();
    let mut job = job(&mut context);
    for message in messages {
        job.handle_message(from(0, message.clone()));
    }
    prepare(&mut job);
    let (outcome, hung) = job.finish(Some(ExitStatus::from_raw(code << 8)), &[]);
    (outcome.code, outcome.reason, hung)
}

#[tokio::test]
async fn a_job_that_hung_is_restarted_unless_its_end_was_requested() {
    let hung =
        |requested| move |job: &mut Job| (job.hang, job.request.requested) = (Some("it hung".to_owned()), requested);
    // Its ranks may exit normally while they are killed.
    for code in [1, 75, 143] {
        assert_eq!(end(code, &[trained(10, 12)], hung(false)), (1, "it hung".to_owned(), true), "{code}");
        assert_eq!(end(code, &[trained(10, 12)], hung(true)), (75, "it hung".to_owned(), true), "{code}");
    }
    assert_eq!(end(78, &[trained(10, 12)], hung(false)).0, 78);
}

#[tokio::test]
async fn a_job_whose_end_was_requested_is_preempted_unless_it_failed() {
    let requested = |overdue| move |job: &mut Job| job.request = ShutdownRequest { requested: true, overdue };
    let killed = "the job was killed as requested, without a last checkpoint; start again to resume from the checkpoint of step 10";
    assert_eq!(end(143, &[trained(10, 12)], requested(true)), (75, killed.to_owned(), false));
    let early = "the job ended before its first step; start again to resume from the checkpoint of step 10";
    assert_eq!(end(7, &[trained(10, 10), farewell(7)], requested(false)), (75, early.to_owned(), false));
    let failed = (7, "rank 0: so it is".to_owned(), false);
    assert_eq!(end(7, &[trained(10, 11), farewell(7)], requested(false)), failed);
    assert_eq!(end(7, &[trained(10, 10), farewell(7)], |_| ()), failed, "nothing was requested");
    for code in [0, 75, 78] {
        assert_eq!(end(code, &[trained(10, 12)], requested(true)).0, code as u8);
    }
}

#[tokio::test]
async fn the_history_outlives_a_start() {
    let mut fixture = Fixture::new("");
    // A start that ends before its ranks know where they resume adds nothing.
    for (messages, resumed, reached) in
        [(vec![], 0, 0), (vec![trained(10, 12)], 10, 12), (vec![trained(20, 40)], 20, 40)]
    {
        let mut context = fixture.context();
        let mut job = job(&mut context);
        for message in messages {
            job.handle_message(from(0, message));
        }
        let (outcome, _) = job.finish(None, &[]);
        assert_eq!((outcome.resumed, outcome.reached, outcome.requested), (resumed, reached, false));
    }
    assert_eq!(fixture.history.first_step, Some(10));
    assert_eq!(fixture.history.time.seconds().compute, 6.0, "both starts have trained");
}
