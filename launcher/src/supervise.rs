//! The launcher from start to end: plan, start, watch, start again.

use std::{
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::Path,
    sync::PoisonError,
    time::{Duration, Instant},
};

use arinar_protocol::{Launcher, environment, exit_code};
use tokio::sync::mpsc;

use crate::{
    arguments::{Arguments, RankCount},
    command::{self, JobCommand},
    exit::Stop,
    hosts::{self, Host, Unreachable},
    interrupts::Interrupts,
    job::{self, Surroundings},
    lock::RunLock,
    output::{Level, Output, Rest},
    page::{self, Shared},
    plan::{self, Plan},
    policy::{Decision, Outcome, Policy},
    processes,
    programs::Programs,
    server::{Event, Server},
    session,
    slots::Slots,
    status::{Cause, Record, State},
};

/// Pause before hosts that are lost are asked again; it doubles, up to the longest.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(60);
/// What does not change from start to start.
struct Setting {
    arguments: Arguments,
    programs: Programs,
    plan: Plan,
    slots: Slots,
    /// All hosts of the host file; empty for this machine alone.
    hosts: Vec<Host>,
    /// Ranks when all of them are there.
    full_world: usize,
    trainer_arguments: Vec<String>,
}

/// Where a start of the job runs.
struct Placement {
    hosts: Vec<Host>,
    ranks: usize,
}

/// Runs the launcher; returns its exit code once all is said.
pub async fn supervise(arguments: Arguments) -> u8 {
    let (mut output, mut rest) = match Output::start(arguments.log_format) {
        Ok(started) => started,
        Err(error) => {
            // There is no thread to write it.
            let _ = writeln!(std::io::stderr(), "arinar-launcher: error: no thread can be started: {error}");
            return exit_code::FAILED;
        }
    };
    let ended = run(arguments, &mut output, &mut rest).await;
    output.status(String::new());
    let code = match ended {
        Ok(()) => exit_code::DONE,
        Err(stop) => {
            // The trainer's own line says whose it is.
            let line = stop.line.strip_prefix("arinar-trainer: error: ").unwrap_or(&stop.line).to_owned();
            output.say_at_last(if stop.code == exit_code::PREEMPTED { Level::Info } else { Level::Error }, line).await;
            // Any code of a rank but the known ones means the same.
            if matches!(stop.code, exit_code::PREEMPTED | exit_code::CONFIGURATION) { stop.code } else { exit_code::FAILED }
        }
    };
    drop(output);
    rest.wait();
    code
}

async fn run(arguments: Arguments, output: &mut Output, rest: &mut Rest) -> Result<(), Stop> {
    let failed = |what: &'static str| move |error: std::io::Error| Stop::failure(format!("{what}: {error}"));
    // First of all: a signal that comes this early ends the job once it has begun.
    let interrupts = Interrupts::watch().map_err(failed("signals cannot be watched"))?;
    let setting = Setting::find(arguments)?;
    if setting.arguments.dry_run {
        // Whoever reads it may have seen enough.
        let _ = std::io::stdout().write_all(setting.dry_run().as_bytes());
        return Ok(());
    }
    if setting.asks() {
        return Err(setting.become_mpirun());
    }
    let folder = setting.plan.log_dir.join("ranks");
    std::fs::create_dir_all(&folder)
        .map_err(|error| Stop::configuration(format!("run.log_dir: {}: {error}", folder.display())))?;
    let _lock = RunLock::take(&folder)?;
    output.keep_in(&folder, rest)?;
    let session = folder.join(session::RECORD);
    session::remove_leftovers(&session);
    processes::adopt_orphans().map_err(failed("orphans cannot be adopted"))?;
    let (server, events) =
        Server::start(setting.listening()).await.map_err(failed("no port is free for heartbeats"))?;
    let shared = Shared::default();
    if let Some(asked) = setting.arguments.status_port {
        let address = page::serve(asked.0, shared.clone()).await?;
        output.say(Level::Info, format!("status at http://{address}/status, metrics at http://{address}/metrics"));
    }
    output.say(Level::Info, setting.said());
    let policy = Policy::new(setting.arguments.max_restarts);
    let mut run = Run {
        setting,
        output: output.clone(),
        server,
        events,
        interrupts,
        shared,
        record: Record::new(),
        policy,
        attempt: 0,
        session,
    };
    let ended = run.go_on().await;
    run.tell_summary();
    ended
}

impl Setting {
    fn find(arguments: Arguments) -> Result<Self, Stop> {
        let hosts = arguments.hostfile.as_deref().map(hosts::read_hostfile).transpose()?.unwrap_or_default();
        let programs = Programs::find(arguments.trainer.as_deref(), arguments.mpirun.as_deref())?;
        let plan = Plan::ask(&programs.trainer, &arguments)?;
        let slots = Slots::find(plan.cpu);
        let free = if hosts.is_empty() { slots.count() } else { hosts::slots(&hosts) };
        let full_world = plan::choose_ranks(arguments.nproc, free, plan.global_batch)?;
        if !hosts.is_empty() && full_world > free {
            return Err(Stop::configuration(format!(
                "--nproc {full_world} is more than the {free} slots of --hostfile; give its hosts more slots"
            )));
        }
        if arguments.min_ranks.is_some_and(|min| min > full_world || min == 0) {
            return Err(Stop::configuration(format!(
                "--min-ranks is a number from 1 to the {full_world} ranks of the job"
            )));
        }
        let trainer_arguments = plan::trainer_arguments(&arguments);
        Ok(Self { arguments, programs, plan, slots, hosts, full_world, trainer_arguments })
    }

    /// Loopback, unless ranks on other machines must reach it.
    fn listening(&self) -> SocketAddr {
        let addresses = hosts::own_addresses(&self.hosts, 0);
        if addresses.iter().all(|address| address.ip().is_loopback()) {
            return (Ipv4Addr::LOCALHOST, 0).into();
        }
        // The first takes both kinds of addresses.
        let any_v6 = addresses.iter().any(SocketAddr::is_ipv6);
        if any_v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() }
    }

    fn command<'a>(&'a self, placement: &'a Placement) -> JobCommand<'a> {
        JobCommand {
            programs: &self.programs,
            hosts: &placement.hosts,
            ranks: placement.ranks,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            root: rustix::process::geteuid().is_root(),
            mpirun_arguments: &self.arguments.mpirun_arguments,
            trainer_arguments: &self.trainer_arguments,
            watched: !self.asks(),
        }
    }

    /// Whether the trainer is to look at something and end.
    fn asks(&self) -> bool {
        self.trainer_arguments.iter().any(|word| plan::is_question(word))
    }

    fn all_ranks(&self) -> Placement {
        Placement { hosts: hosts::fill(&self.hosts, self.full_world), ranks: self.full_world }
    }

    /// Replaces this process by mpirun: what it prints, its exit code and the signals to it are nobody else's then.
    /// Returns why that did not work.
    fn become_mpirun(&self) -> Stop {
        let placement = self.all_ranks();
        let mpirun = &self.programs.mpirun;
        let error = std::process::Command::new(mpirun).args(self.command(&placement).arguments(variables())).exec();
        Stop::configuration(format!("{} cannot be run: {error}", mpirun.display()))
    }

    /// What was chosen, and from what.
    fn said(&self) -> String {
        let from = if self.hosts.is_empty() {
            self.slots.to_string()
        } else {
            format!("{} slots on {} hosts", hosts::slots(&self.hosts), self.hosts.len())
        };
        let why = match self.arguments.nproc {
            RankCount::Auto => format!(", the most that share batch.global {} evenly", self.plan.global_batch),
            RankCount::Exactly(_) => String::new(),
        };
        let ranks = if self.full_world == 1 { "1 rank".to_owned() } else { format!("{} ranks", self.full_world) };
        format!("{}: {ranks} on {from}{why}", self.plan.name)
    }

    fn dry_run(&self) -> String {
        let placement = self.all_ranks();
        let mut lines = vec![
            format!("# {}", self.said()),
            self.command(&placement).shown(variables()),
            "# Environment:".to_owned(),
            format!("#   {}: addresses and token of the launcher, new for each start", environment::LAUNCHER),
        ];
        if !self.hosts.is_empty() {
            let names = command::passed_on(variables());
            let names = if names.is_empty() { "none is set".to_owned() } else { names.join(" ") };
            lines.push(format!("#   passed on to other hosts: {names}"));
        }
        lines.push("# Ranks:".to_owned());
        if self.hosts.is_empty() {
            let place = |rank| format!("#   rank {rank}: {}", self.slots.of_rank(rank, self.full_world));
            lines.extend((0..self.full_world).map(place));
        }
        let mut rank = 0;
        for host in &placement.hosts {
            for slot in 0..host.slots {
                lines.push(format!("#   rank {rank}: {}, GPU or share of cores {slot} of {}", host.name, host.slots));
                rank += 1;
            }
        }
        lines.join("\n") + "\n"
    }

    /// Where to start with the hosts that answer; the error says what is missing.
    fn place(&self, alive: &[Host], lost: &[Unreachable]) -> Result<Placement, Stop> {
        if lost.is_empty() {
            return Ok(self.all_ranks());
        }
        let told: Vec<String> = lost.iter().map(|host| format!("{} ({})", host.name, host.why)).collect();
        let told = format!("cannot reach {}", told.join(", "));
        let free = hosts::slots(alive).min(self.full_world);
        let least = self.arguments.min_ranks.unwrap_or(self.full_world);
        let ranks = plan::choose_ranks(RankCount::Auto, free, self.plan.global_batch)?;
        if free == 0 || ranks < least {
            let cure = match self.arguments.min_ranks {
                None => "mend it, take it out of --hostfile, or allow fewer ranks with --min-ranks".to_owned(),
                Some(least) => format!("{ranks} ranks could start, fewer than --min-ranks {least}"),
            };
            return Err(Stop::failure(format!("{told}; {cure}")));
        }
        Ok(Placement { hosts: hosts::fill(alive, ranks), ranks })
    }
}

fn variables() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

/// Ranks say what is wrong with the variable.
fn store_patience() -> Duration {
    let default = environment::DEFAULT_STORE_PATIENCE_SECS;
    let seconds = std::env::var(environment::STORE_PATIENCE).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs_f64(default))
}

/// A run under way.
struct Run {
    setting: Setting,
    output: Output,
    server: Server,
    events: mpsc::Receiver<Event>,
    interrupts: Interrupts,
    shared: Shared,
    record: Record,
    policy: Policy,
    attempt: u32,
    /// Where the mpirun that runs is remembered.
    session: std::path::PathBuf,
}

impl Run {
    async fn go_on(&mut self) -> Result<(), Stop> {
        let (mut cause, mut ranks) = (Cause::Crash, self.setting.full_world);
        loop {
            let placement = self.wait_for_hosts().await?;
            let fewer = placement.ranks < ranks;
            ranks = placement.ranks;
            self.count_restart(if fewer { Cause::HostLost } else { cause });
            let (outcome, hung) = match self.start(&placement).await {
                Ok(ended) => (ended.outcome, ended.hung),
                Err(stop) if self.attempt == 1 => return Err(stop),
                // It could be started once: what is short now, memory or processes, may be there again soon.
                Err(stop) => {
                    (Outcome { code: stop.code, reason: stop.line, resumed: 0, reached: 0, asked: false }, false)
                }
            };
            cause = if hung { Cause::Hang } else { Cause::Crash };
            match self.policy.decide(&outcome, rand::random()) {
                Decision::Done => return Ok(()),
                Decision::Stop(stop) => return Err(stop),
                Decision::Restart { pause } => self.pause(&outcome, pause).await?,
            }
        }
    }

    /// Where to start. A host that is lost in mid-run may come back: it is asked for as long as a start may take.
    async fn wait_for_hosts(&mut self) -> Result<Placement, Stop> {
        let limit = self.setting.arguments.start_up_limit;
        let (began, mut pause) = (Instant::now(), FIRST_LOOK);
        loop {
            let stop = match self.placement().await? {
                Ok(placement) => return Ok(placement),
                Err(stop) => stop,
            };
            // A wrong name is told at once.
            if self.attempt == 0 || began.elapsed() >= limit {
                return Err(stop);
            }
            if pause == FIRST_LOOK {
                let limit = humantime::format_duration(limit);
                self.output.say(Level::Warning, format!("{stop}; asking again for {limit} (--start-up-limit)"));
            }
            self.rest(pause).await?;
            pause = (2 * pause).min(LONGEST_LOOK);
        }
    }

    /// Asks the hosts. The outer error ends the launcher.
    async fn placement(&mut self) -> Result<Result<Placement, Stop>, Stop> {
        let hosts = &self.setting.hosts;
        if hosts.is_empty() {
            return Ok(Ok(Placement { hosts: Vec::new(), ranks: self.setting.full_world }));
        }
        let (alive, lost) = tokio::select! {
            probed = hosts::probe(hosts) => probed?,
            interrupt = self.interrupts.next() => return Err(ended_while_waiting(&interrupt.to_string())),
        };
        let placement = self.setting.place(&alive, &lost);
        if let Ok(placement) = &placement
            && !lost.is_empty()
        {
            let names: Vec<&str> = lost.iter().map(|host| host.name.as_str()).collect();
            let (ranks, full) = (placement.ranks, self.setting.full_world);
            let why: Vec<&str> = lost.iter().map(|host| host.why.as_str()).collect();
            self.output.say(
                Level::Warning,
                format!(
                    "lost {} ({}): {ranks} of {full} ranks go on, each with more samples in turn",
                    names.join(", "),
                    why.join("; ")
                ),
            );
        }
        Ok(placement)
    }

    /// The first start is none.
    fn count_restart(&mut self, cause: Cause) {
        if self.attempt > 0 {
            *self.record.restarts.entry(cause).or_default() += 1;
        }
        self.attempt += 1;
    }

    async fn start(&mut self, placement: &Placement) -> Result<job::Ended, Stop> {
        let launcher = Launcher {
            addresses: hosts::own_addresses(&placement.hosts, self.server.port),
            token: format!("{:032x}", rand::random::<u128>()),
            attempt: self.attempt,
            full_world: self.setting.full_world,
            silence_secs: self.setting.arguments.silence_limit.as_secs_f64(),
            grace_secs: self.setting.arguments.grace.as_secs_f64(),
        };
        self.server.expect(&launcher.token, self.attempt, placement.ranks);
        {
            let mut status = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            status.run.clone_from(&self.setting.plan.name);
            (status.attempt, status.full_ranks) = (self.attempt, self.setting.full_world);
        }
        let command = self.setting.command(placement);
        let header = format!("attempt {}: {}", self.attempt, command.shown(variables()));
        self.output.header(placement.ranks, &header).await;
        let arguments = command.arguments(variables());
        let mut around = Surroundings {
            arguments: &self.setting.arguments,
            output: &self.output,
            events: &mut self.events,
            interrupts: &mut self.interrupts,
            record: &mut self.record,
            shared: &self.shared,
            store_patience: store_patience(),
            session: &self.session,
        };
        let mpirun: &Path = &self.setting.programs.mpirun;
        let ended = job::run(&mut around, mpirun, &arguments, &launcher, placement.ranks).await;
        self.server.dismiss();
        ended
    }

    async fn pause(&mut self, outcome: &Outcome, pause: Duration) -> Result<(), Stop> {
        self.output.say(
            Level::Warning,
            format!(
                "{}; restart {} from the newest checkpoint in {:.1} s (step {} was reached)",
                outcome.reason,
                self.policy.restarts(),
                pause.as_secs_f64(),
                outcome.reached
            ),
        );
        self.rest(pause).await
    }

    /// Waits without a job.
    async fn rest(&mut self, time: Duration) -> Result<(), Stop> {
        {
            let mut status = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            status.state = State::Waiting;
            self.record.fill_time(&mut status);
            self.output.status(status.line());
        }
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            interrupt = self.interrupts.next() => Err(ended_while_waiting(&interrupt.to_string())),
        }
    }

    fn tell_summary(&self) {
        let mut status = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.record.fill_time(&mut status);
        status.restarts = self.record.restarts.iter().map(|(cause, count)| (cause.name(), *count)).collect();
        if self.attempt > 0 {
            self.output.say(Level::Info, status.summary(self.record.first_step));
        }
    }
}

fn ended_while_waiting(signal: &str) -> Stop {
    Stop {
        code: exit_code::PREEMPTED,
        line: format!("{signal} while no job ran; start again to go on from the newest checkpoint"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
