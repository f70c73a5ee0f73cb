//! One start of the job: mpirun is started, watched and ended.

use std::{
    process::{ExitStatus, Stdio},
    sync::PoisonError,
    time::{Duration, Instant},
};

use arinar_protocol::{Launcher, environment, exit_code};
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
};

use crate::{
    arguments::Arguments,
    exit::Stop,
    hang::{self, Limits},
    interrupts::{Interrupt, Interrupts},
    output::{Level, Output, Stream},
    page::Shared,
    policy::Outcome,
    processes,
    ranks::{News, Ranks},
    reason::Traces,
    server::{Event, Word},
    session::Session,
    status::{Record, State},
    tags::Tags,
};

/// Time between two looks at the ranks.
const TICK: Duration = Duration::from_millis(250);
/// Had the launcher not looked for so long, it stood still itself.
const OVERSLEPT: Duration = Duration::from_secs(3);
/// mpirun kills its ranks, those on other machines too, a second after SIGTERM; then it is killed itself.
const MPIRUN_ENDS: Duration = Duration::from_secs(5);
/// After the end of mpirun its last words have so long to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Lines of mpirun that are remembered.
const REMEMBERED: usize = 64;

/// What a job needs of the launcher.
pub struct Surroundings<'a> {
    /// The command line.
    pub arguments: &'a Arguments,
    /// Where lines go.
    pub output: &'a Output,
    /// What ranks say.
    pub events: &'a mut mpsc::Receiver<Event>,
    /// Requests to end.
    pub interrupts: &'a mut Interrupts,
    /// What outlives the job.
    pub record: &'a mut Record,
    /// What the page shows.
    pub shared: &'a Shared,
    /// How long a rank asks a store that does not answer.
    pub store_patience: Duration,
    /// Where the launcher remembers which mpirun it runs.
    pub session: &'a std::path::Path,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// For the policy.
    pub outcome: Outcome,
    /// It was ended because nothing moved.
    pub hung: bool,
}

/// How far the end is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// Nobody thinks of it.
    No,
    /// Ranks end by themselves: asked to, or since one has ended. They are killed then.
    Until(Instant),
    /// mpirun kills them. It is killed itself then.
    Terminated(Instant),
    /// Everything has been killed.
    Killed,
}

/// A job that runs.
struct Job<'a, 'b> {
    around: &'a mut Surroundings<'b>,
    attempt: u32,
    pid: u32,
    session: Session,
    ranks: Ranks,
    ending: Ending,
    /// A SIGINT has come.
    interrupted: bool,
    asked: bool,
    /// It did not end in the time it had, or that time was cut short.
    overdue: bool,
    hang: Option<String>,
    lost: Option<usize>,
    looked: Instant,
}

/// Runs mpirun with these arguments until it ends; leaves no process behind.
///
/// # Errors
/// It cannot be started at all.
pub async fn run(
    around: &mut Surroundings<'_>,
    mpirun: &std::path::Path,
    arguments: &[String],
    launcher: &Launcher,
    world: usize,
) -> Result<Ended, Stop> {
    let mut child = spawn(mpirun, arguments, launcher)?;
    let output = around.output;
    let stdout = relay(child.stdout.take(), Stream::Stdout, output.clone());
    let stderr = relay(child.stderr.take(), Stream::Stderr, output.clone());
    let mut job = Job::new(around, launcher.attempt, child.id().unwrap_or_default(), world);
    let status = job.watch(&mut child).await;
    processes::sweep().await;
    job.session.remove();
    job.hear_the_rest().await;
    let mut said = Vec::new();
    for relay in [stdout, stderr] {
        said.extend(tokio::time::timeout(LAST_WORDS, relay).await.ok().and_then(Result::ok).unwrap_or_default());
    }
    Ok(job.ended(status, &said))
}

fn spawn(mpirun: &std::path::Path, arguments: &[String], launcher: &Launcher) -> Result<Child, Stop> {
    let mut command = Command::new(mpirun);
    command.args(arguments).env(environment::LAUNCHER, launcher.text());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C reaches the launcher alone, which passes it on in its own way.
    command.process_group(0);
    processes::tie_to_this_thread(command.as_std_mut());
    command.spawn().map_err(|error| Stop::failure(format!("{} cannot be started: {error}", mpirun.display())))
}

/// Passes on what mpirun writes, line by line; gives mpirun's own words at the end.
fn relay(
    from: Option<impl AsyncRead + Unpin + Send + 'static>,
    stream: Stream,
    output: Output,
) -> JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let (mut tags, mut said) = (Tags::default(), Vec::new());
        let mut buffer = vec![0; 64 << 10];
        let Some(mut from) = from else { return said };
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let lines = if count == 0 { tags.finish() } else { tags.push(&buffer[..count]) };
            for line in lines {
                if line.rank.is_none() && said.len() < REMEMBERED {
                    said.push(line.text.clone());
                }
                output.line(line.rank, stream, line.text).await;
            }
            if count == 0 {
                return said;
            }
        }
    })
}

impl<'a, 'b> Job<'a, 'b> {
    /// Returns start number `attempt` of a job of `world` ranks under the mpirun with process ID `pid`.
    fn new(around: &'a mut Surroundings<'b>, attempt: u32, pid: u32, world: usize) -> Self {
        Self {
            attempt,
            pid,
            session: Session::new(pid, around.session.to_path_buf()),
            ranks: Ranks::new(world, Instant::now()),
            ending: Ending::No,
            interrupted: false,
            asked: false,
            overdue: false,
            hang: None,
            lost: None,
            looked: Instant::now(),
            around,
        }
    }
}

impl Job<'_, '_> {
    /// Until mpirun has ended.
    async fn watch(&mut self, child: &mut Child) -> Option<ExitStatus> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = child.wait() => return status.ok(),
                Some(event) = self.around.events.recv() => self.hear(event),
                interrupt = self.around.interrupts.next() => self.interrupt(interrupt),
                _ = tick.tick() => {
                    self.look();
                    if self.press_on().await {
                        return child.wait().await.ok();
                    }
                }
            }
        }
    }

    /// What ranks said before they ended may still be on its way.
    async fn hear_the_rest(&mut self) {
        // One that goes on talking is on another machine, and will be hung up on.
        let until = tokio::time::Instant::now() + LAST_WORDS;
        while self.ranks.iter().any(|rank| rank.hello.is_some() && !rank.has_ended()) {
            match tokio::time::timeout_at(until, self.around.events.recv()).await {
                Ok(Some(event)) => self.hear(event),
                _ => break,
            }
        }
    }

    fn say(&self, level: Level, text: impl Into<String>) {
        self.around.output.say(level, text);
    }

    fn hear(&mut self, event: Event) {
        if event.attempt != self.attempt {
            return;
        }
        if let Word::Hello(hello) = &event.word {
            let here = *hello.host == *rustix::system::uname().nodename().to_string_lossy();
            if here {
                self.session.note(hello.pid);
            }
        }
        if let Word::Beat(beat) = &event.word
            && event.rank == 0
        {
            self.around.record.split.note(beat);
            self.around.record.steps.note(beat);
        }
        match self.ranks.hear(event.rank, event.word, Instant::now()) {
            Some(News::Complete) => {
                let count = self.ranks.world();
                self.say(Level::Info, format!("all {count} ranks have reported"));
                if self.asked {
                    // The request may have come before there was a rank to pass it on to.
                    processes::signal(self.pid, Signal::USR1);
                }
            }
            Some(News::Lost(rank)) => {
                self.lost = Some(rank);
                if self.ending == Ending::No {
                    let who = self.ranks.describe(rank);
                    self.say(Level::Warning, format!("{who} is gone: its connection ended without a farewell"));
                }
                self.end_by(self.around.arguments.grace);
            }
            // Why, is said at the end: mpirun ends the other ranks now.
            Some(News::Farewell(code)) if code != exit_code::DONE => {
                self.end_by(self.around.arguments.grace);
            }
            _ => {}
        }
        if self.ranks.all_ended() {
            // What is left is mpirun's farewell, which may hang as well.
            self.end_by(self.around.arguments.grace);
        }
    }

    /// The job should end by itself within this time; it is ended then.
    fn end_by(&mut self, time: Duration) {
        if self.ending == Ending::No {
            self.ending = Ending::Until(Instant::now() + time);
        }
    }

    fn interrupt(&mut self, interrupt: Interrupt) {
        let grace = self.around.arguments.grace;
        let impatient = interrupt == Interrupt::Int && self.interrupted;
        self.interrupted |= interrupt == Interrupt::Int;
        if matches!(self.ending, Ending::Terminated(_) | Ending::Killed) {
            // The job is being killed already. That it is not started again is all there is to do.
        } else if impatient {
            self.say(Level::Warning, "a second SIGINT: the job is ended at once");
            self.overdue = true;
            self.terminate();
        } else {
            // mpirun passes it on to all ranks, on all machines; of SIGTERM it would make SIGKILL. To those that know it
            // already it is nothing new.
            processes::signal(self.pid, Signal::USR1);
            if !self.asked {
                let time = humantime::format_duration(grace);
                self.say(Level::Info, format!("{interrupt}: the job saves a checkpoint and ends, within {time}"));
                self.ending = Ending::Until(Instant::now() + grace);
            }
        }
        self.asked = true;
    }

    /// Has mpirun kill all ranks.
    fn terminate(&mut self) {
        if !matches!(self.ending, Ending::Terminated(_) | Ending::Killed) {
            processes::signal(self.pid, Signal::TERM);
            self.ending = Ending::Terminated(Instant::now() + MPIRUN_ENDS);
        }
    }

    /// Takes the next step of the end when its time has come; true once everything is killed.
    async fn press_on(&mut self) -> bool {
        match self.ending {
            Ending::Until(then) if Instant::now() >= then => {
                self.overdue = true;
                let time = humantime::format_duration(self.around.arguments.grace);
                self.say(Level::Warning, format!("the job has not ended within {time}: it is killed"));
                self.terminate();
            }
            Ending::Terminated(then) if Instant::now() >= then => {
                processes::signal(self.pid, Signal::KILL);
                self.ending = Ending::Killed;
            }
            _ => {}
        }
        self.ending == Ending::Killed
    }

    /// Looks at all ranks.
    fn look(&mut self) {
        let now = Instant::now();
        let pause = now - self.looked;
        if pause > OVERSLEPT {
            self.ranks.excuse(pause, now);
        }
        self.looked = now;
        if self.ending == Ending::No {
            self.judge(now);
        }
        self.publish();
    }

    fn judge(&mut self, now: Instant) {
        let arguments = self.around.arguments;
        // The first step of a start waits for shards that may have to be fetched.
        let usual = self.around.record.steps.usual().filter(|_| self.ranks.have_stepped());
        let usual = usual.and_then(|secs| Duration::try_from_secs_f64(secs).ok());
        let slow = arguments.start_up_limit;
        let limits = Limits {
            step: Limits::of_step(usual, arguments.hang_factor, arguments.hang_floor, slow),
            data: self.around.store_patience.mul_f64(Limits::STORE_MARGIN),
            slow,
            silence: arguments.silence_limit,
        };
        let views = self.ranks.views(now);
        if let Some(hang) = hang::judge(&views, &limits) {
            self.say(Level::Warning, hang::report(&hang, &views));
            self.hang = Some(hang::reason(&hang, &views));
            self.terminate();
        }
    }

    fn publish(&self) {
        let mut status = self.around.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let training = self.ranks.iter().any(|rank| rank.beat.step_seconds > 0.0);
        status.state = match self.ending {
            Ending::No if training => State::Running,
            Ending::No => State::Starting,
            _ => State::Ending,
        };
        self.around.record.fill(&mut status, &self.ranks);
        self.around.output.status(status.line());
    }

    fn ended(self, status: Option<ExitStatus>, said: &[String]) -> Ended {
        self.publish();
        let traces = Traces { hang: self.hang.as_deref(), ranks: &self.ranks, lost: self.lost, status, said };
        let hung = self.hang.is_some();
        let (mut code, mut reason) = (traces.code(), traces.reason());
        if hung && code != exit_code::CONFIGURATION {
            // Whatever its ranks said while they were ended: it is started again, unless it was to end.
            code = if self.asked { exit_code::PREEMPTED } else { exit_code::FAILED };
        }
        if self.asked && !matches!(code, exit_code::DONE | exit_code::PREEMPTED | exit_code::CONFIGURATION) {
            let saved = self.ranks.iter().map(|rank| rank.beat.saved_step).max().unwrap_or(0);
            let goes_on = format!("start again to go on from the checkpoint of step {saved}");
            if self.overdue {
                (code, reason) =
                    (exit_code::PREEMPTED, format!("the job was killed as asked, without a last checkpoint; {goes_on}"));
            } else if self.ranks.reached() == self.ranks.resumed() {
                (code, reason) = (exit_code::PREEMPTED, format!("the job was ended before its first step; {goes_on}"));
            }
        }
        let (resumed, reached) = (self.ranks.resumed(), self.ranks.reached());
        let record = &mut *self.around.record;
        record.split.next_start();
        if reached > 0 {
            record.first_step.get_or_insert(resumed);
        }
        Ended { outcome: Outcome { code, reason, resumed, reached, asked: self.asked }, hung }
    }
}

#[cfg(test)]
mod tests;
