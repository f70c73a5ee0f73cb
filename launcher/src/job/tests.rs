//! Tests of judging and ending a job, without processes.
#![allow(clippy::unwrap_used)]

use std::{os::unix::process::ExitStatusExt, path::PathBuf};

use arinar_protocol::{Beat, Farewell, Hello, Phase, Seconds};

use super::*;

/// Owns everything that a job's surroundings borrow.
struct Stage {
    arguments: Arguments,
    output: Output,
    events: mpsc::Receiver<Event>,
    interrupts: Interrupts,
    record: Record,
    shared: Shared,
    session: PathBuf,
}

impl Stage {
    fn new(flags: &str) -> Self {
        let line = format!("arinar-launcher --config a {flags}");
        Self {
            arguments: Arguments::read(line.split_whitespace().map(Into::into)).unwrap(),
            output: Output::nowhere().unwrap(),
            events: mpsc::channel(1).1,
            interrupts: Interrupts::none().unwrap(),
            record: Record::new(),
            shared: Shared::default(),
            session: "/nowhere/session".into(),
        }
    }

    fn around(&mut self) -> Surroundings<'_> {
        Surroundings {
            arguments: &self.arguments,
            output: &self.output,
            events: &mut self.events,
            interrupts: &mut self.interrupts,
            record: &mut self.record,
            shared: &self.shared,
            store_patience: Duration::from_secs(8),
            session: &self.session,
        }
    }
}

/// A job of two ranks, both of which have reported. It has no process: 0 is no process ID.
fn job<'a, 'b>(around: &'a mut Surroundings<'b>) -> Job<'a, 'b> {
    let mut job = Job::new(around, 1, 0, 2);
    for rank in 0..2 {
        job.hear(said(rank, hello(rank)));
    }
    job
}

fn hello(rank: usize) -> Word {
    Word::Hello(Hello { token: String::new(), rank, world: 2, host: "node".to_owned(), pid: 7 })
}

fn said(rank: usize, word: Word) -> Event {
    Event { attempt: 1, rank, word }
}

fn farewell(code: u8) -> Word {
    Word::Farewell(Farewell { code, reason: Some("so it is".to_owned()) })
}

/// A rank has gone on from a checkpoint of this step, and has trained so many in all.
fn trained(first_step: u64, step: u64) -> Word {
    let seconds = Seconds { compute: 3.0, ..Seconds::default() };
    let (saved_step, total_steps) = (first_step, 90);
    Word::Beat(Beat { first_step, total_steps, saved_step, step, seconds, ..Beat::default() })
}

/// Asserts that ranks which both are in this phase, of steps that take so long, hang after this time and not before.
fn hangs_after(flags: &str, phase: Phase, step_seconds: f64, limit: Duration) {
    let mut stage = Stage::new(flags);
    let mut around = stage.around();
    let mut job = job(&mut around);
    let before = Instant::now();
    for rank in 0..2 {
        let beat = Beat { step: 3, marks: 1, total_steps: 9, phase, step_seconds, ..Beat::default() };
        job.hear(said(rank, Word::Beat(beat)));
    }
    let after = Instant::now();
    job.judge(before + limit);
    assert_eq!((&job.hang, job.ending), (&None, Ending::No), "{flags} {phase}");
    job.judge(after + limit + Duration::from_millis(1));
    assert!(job.hang.is_some() && matches!(job.ending, Ending::Terminated(_)), "{flags} {phase}");
}

#[tokio::test]
async fn every_limit_is_what_its_flag_says() {
    let seconds = Duration::from_secs_f64;
    // None of the others is reached.
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
        // Half as long again as the store is asked.
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
async fn a_launcher_that_stood_still_excuses_its_ranks() {
    for stood_still in [true, false] {
        let mut stage = Stage::new("--silence-limit 2s");
        let mut around = stage.around();
        let mut job = job(&mut around);
        let last = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        for rank in 0..2 {
            job.ranks.hear(rank, hello(rank), last);
        }
        job.looked = if stood_still { last } else { Instant::now() };
        job.look();
        assert_eq!(job.hang.is_none(), stood_still);
    }
}

/// The job ends, or is ended, after the grace period that begins between two moments.
fn ends_in_time(job: &Job, grace: u64, before: Instant) {
    let Ending::Until(then) = job.ending else { panic!("{:?}", job.ending) };
    let grace = Duration::from_secs(grace);
    assert!((before + grace..=Instant::now() + grace).contains(&then));
}

#[tokio::test]
async fn who_is_asked_to_end_has_the_grace_period_once() {
    let mut stage = Stage::new("--grace 9s");
    let mut around = stage.around();
    let mut job = job(&mut around);
    let before = Instant::now();
    job.interrupt(Interrupt::Term);
    ends_in_time(&job, 9, before);
    assert!(job.asked && !job.overdue);
    let first = job.ending;
    for again in [Interrupt::Term, Interrupt::Usr1, Interrupt::Int] {
        job.interrupt(again);
        assert_eq!(job.ending, first);
    }
    let before = Instant::now();
    job.interrupt(Interrupt::Int);
    assert!(job.overdue, "the second SIGINT ends it at once");
    let Ending::Terminated(then) = job.ending else { panic!("{:?}", job.ending) };
    assert!((before + MPIRUN_ENDS..=Instant::now() + MPIRUN_ENDS).contains(&then));
    job.interrupt(Interrupt::Int);
    assert_eq!(job.ending, Ending::Terminated(then));
}

#[tokio::test]
async fn who_fails_has_the_grace_period_too() {
    for (words, ends) in [
        (vec![Word::Closed], true),
        (vec![farewell(1)], true),
        (vec![farewell(75)], true),
        (vec![farewell(0)], false),
        (vec![farewell(0), Word::Closed], false),
    ] {
        let mut stage = Stage::new("--grace 9s");
        let mut around = stage.around();
        let mut job = job(&mut around);
        let before = Instant::now();
        // Of another start: nobody listens.
        job.hear(Event { attempt: 2, ..said(0, Word::Closed) });
        for word in &words {
            job.hear(said(1, word.clone()));
        }
        if ends {
            ends_in_time(&job, 9, before);
        } else {
            assert_eq!(job.ending, Ending::No, "{words:?}");
            job.hear(said(0, farewell(0)));
            ends_in_time(&job, 9, before);
        }
    }
}

#[tokio::test]
async fn what_does_not_end_is_killed_step_by_step() {
    let mut stage = Stage::new("");
    let mut around = stage.around();
    let mut job = job(&mut around);
    let later = Instant::now() + Duration::from_secs(3600);
    for waits in [Ending::No, Ending::Until(later), Ending::Terminated(later)] {
        job.ending = waits;
        assert!(!job.press_on().await && job.ending == waits && !job.overdue);
    }
    job.ending = Ending::Until(Instant::now());
    assert!(!job.press_on().await && job.overdue);
    assert!(matches!(job.ending, Ending::Terminated(_)), "{:?}", job.ending);
    job.ending = Ending::Terminated(Instant::now());
    assert!(job.press_on().await && job.ending == Ending::Killed);
}

/// The outcome of a job whose ranks sent these messages and whose mpirun exited with this code.
fn end(code: i32, words: &[Word], prepare: impl FnOnce(&mut Job)) -> (u8, String, bool) {
    let mut stage = Stage::new("");
    let mut around = stage.around();
    let mut job = job(&mut around);
    for word in words {
        job.hear(said(0, word.clone()));
    }
    prepare(&mut job);
    let ended = job.ended(Some(ExitStatus::from_raw(code << 8)), &[]);
    (ended.outcome.code, ended.outcome.reason, ended.hung)
}

#[tokio::test]
async fn a_job_that_hung_is_started_again_unless_it_was_to_end() {
    let hung = |asked| move |job: &mut Job| (job.hang, job.asked) = (Some("it hung".to_owned()), asked);
    // Its ranks may take leave in order while they are ended.
    for code in [1, 75, 143] {
        assert_eq!(end(code, &[trained(10, 12)], hung(false)), (1, "it hung".to_owned(), true), "{code}");
        assert_eq!(end(code, &[trained(10, 12)], hung(true)), (75, "it hung".to_owned(), true), "{code}");
    }
    assert_eq!(end(78, &[trained(10, 12)], hung(false)).0, 78);
}

#[tokio::test]
async fn a_job_that_was_asked_to_end_is_preempted_unless_it_failed() {
    let asked = |overdue| move |job: &mut Job| (job.asked, job.overdue) = (true, overdue);
    let killed =
        "the job was killed as asked, without a last checkpoint; start again to go on from the checkpoint of step 10";
    assert_eq!(end(143, &[trained(10, 12)], asked(true)), (75, killed.to_owned(), false));
    let early = "the job was ended before its first step; start again to go on from the checkpoint of step 10";
    assert_eq!(end(7, &[trained(10, 10), farewell(7)], asked(false)), (75, early.to_owned(), false));
    let failed = (7, "rank 0: so it is".to_owned(), false);
    assert_eq!(end(7, &[trained(10, 11), farewell(7)], asked(false)), failed);
    assert_eq!(end(7, &[trained(10, 10), farewell(7)], |_| ()), failed, "nobody asked");
    for code in [0, 75, 78] {
        assert_eq!(end(code, &[trained(10, 12)], asked(true)).0, code as u8);
    }
}

#[tokio::test]
async fn what_a_start_has_gained_outlives_it() {
    let mut stage = Stage::new("");
    // One that ends before its ranks know where they go on tells nothing.
    for (words, resumed, reached) in [(vec![], 0, 0), (vec![trained(10, 12)], 10, 12), (vec![trained(20, 40)], 20, 40)]
    {
        let mut around = stage.around();
        let mut job = job(&mut around);
        for word in words {
            job.hear(said(0, word));
        }
        let outcome = job.ended(None, &[]).outcome;
        assert_eq!((outcome.resumed, outcome.reached, outcome.asked), (resumed, reached, false));
    }
    assert_eq!(stage.record.first_step, Some(10));
    assert_eq!(stage.record.split.seconds().compute, 6.0, "both starts have trained");
}
