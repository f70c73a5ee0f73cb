//! Where the time of a run goes: every second of it is charged to exactly one phase.
//!
//! The training thread says what it does next ([`Ledger::enter`]); what went before is charged then. The thread that
//! tells the launcher reads along. Sums go on over restarts: a checkpoint carries those up to it, and a small file
//! beside the curves says how far the run had come when it broke off: what lies between the two is lost work.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arinar_protocol::{Phase, Seconds};
use arinar_store::plain_file::nofollow;
use serde::{Deserialize, Serialize};

/// Name of the file beside the curves.
const FILE: &str = "ledger.json";
/// Its name while it is written.
const FRESH: &str = "ledger.json.new";

/// Time between two writes of it.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// The clock of one rank.
#[derive(Debug)]
pub struct Ledger(Mutex<Clock>);

#[derive(Debug)]
struct Clock {
    phase: Phase,
    since: Instant,
    marks: u64,
    seconds: Seconds,
    earlier: Seconds,
}

/// What a ledger says at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// What the rank is doing.
    pub phase: Phase,
    /// How often it has begun to do something else.
    pub marks: u64,
    /// Where its time went since it started.
    pub seconds: Seconds,
    /// What earlier starts of the run had spent.
    pub earlier: Seconds,
}

impl Reading {
    /// Where the time of the whole run went.
    pub fn run(&self) -> Seconds {
        let mut sum = self.earlier;
        sum += self.seconds;
        sum
    }
}

impl Ledger {
    /// Starts the clock, in [`Phase::StartUp`].
    pub fn start() -> Self {
        let (seconds, earlier) = (Seconds::default(), Seconds::default());
        Self(Mutex::new(Clock { phase: Phase::StartUp, since: Instant::now(), marks: 0, seconds, earlier }))
    }

    // Nothing panics while it holds the lock; and if it did, the sums would be as good as before.
    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the rank is in `phase`.
    pub fn enter(&self, phase: Phase) {
        let mut clock = self.clock();
        clock.settle();
        clock.phase = phase;
        clock.marks += 1;
    }

    /// What it says now.
    pub fn read(&self) -> Reading {
        let mut clock = self.clock();
        clock.settle();
        Reading { phase: clock.phase, marks: clock.marks, seconds: clock.seconds, earlier: clock.earlier }
    }

    /// Learns what earlier starts of the run have spent.
    pub fn carry_over(&self, earlier: Seconds) {
        self.clock().earlier = earlier;
    }
}

impl Clock {
    fn settle(&mut self) {
        let now = Instant::now();
        self.seconds.charge(self.phase, (now - self.since).as_secs_f64());
        self.since = now;
    }
}

/// How far a run had come, in the file beside its curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Mark {
    /// `run.dir`.
    run: String,
    seconds: Seconds,
}

/// The file that outlives a run that breaks off.
#[derive(Debug)]
pub struct LedgerFile {
    path: PathBuf,
    run: String,
    written: Option<Instant>,
}

impl LedgerFile {
    /// In the folder of the curves of the run `run` (its `run.dir`).
    pub fn new(log_dir: &Path, run: &str) -> Self {
        Self { path: log_dir.join(FILE), run: run.to_owned(), written: None }
    }

    /// Makes sure that a run may keep its file in `log_dir`: there is none, or one of a run.
    ///
    /// # Errors
    /// A message that names the file of another program, with the fix.
    pub fn check(log_dir: &Path) -> Result<(), String> {
        // A crash may leave an empty one, a cut one, or zeros.
        let begins_as_one = |text: &[u8]| [b"{\"run\":".as_slice(), b"\0"].iter().any(|start| text.starts_with(start));
        for path in [FILE, FRESH].map(|name| log_dir.join(name)) {
            let text = std::fs::read(&path).unwrap_or_default();
            if !text.is_empty() && !begins_as_one(&text) {
                return Err(format!(
                    "{} exists and was not written by this program; move it away or set run.log_dir to another folder",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    /// What the run's earlier starts have spent, given what its checkpoint says: what came after that is lost.
    /// A file that is not there, not readable or of another run tells of no loss.
    pub fn earlier(&self, of_checkpoint: Seconds) -> Seconds {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let mark = serde_json::from_slice::<Mark>(&text).ok().filter(|mark| mark.run == self.run);
        let lost = mark.map_or(0.0, |mark| mark.seconds.total() - of_checkpoint.total());
        let lost = if lost.is_finite() { lost.max(0.0) } else { 0.0 };
        Seconds { lost_work: of_checkpoint.lost_work + lost, ..of_checkpoint }
    }

    /// Notes how far the run is, unless it did so a moment ago. That it cannot be written is not worth a word: the
    /// curves beside it will say so.
    pub fn note(&mut self, seconds: Seconds) {
        if self.written.is_some_and(|written| written.elapsed() < WRITE_EVERY) {
            return;
        }
        self.written = Some(Instant::now());
        let mark = Mark { run: self.run.clone(), seconds };
        let text = serde_json::to_vec(&mark).unwrap_or_default();
        let _ = replace(&self.path, &text);
    }
}

/// Replaces a file as a whole. The new one has a name of its own until it is written.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_file_name(FRESH);
    let mut options = File::options();
    nofollow(options.create(true).truncate(true).write(true)).open(&fresh)?.write_all(text)?;
    std::fs::rename(&fresh, path)
}

/// `93.1% compute, 4.0% all-reduce, ...` and what it all came to.
pub fn summary(seconds: &Seconds) -> String {
    let total = seconds.total().max(1e-9);
    let share = |(name, part): (&str, f64)| format!("{:.1}% {}", 100.0 * part / total, name.replace('_', " "));
    let shares: Vec<String> = seconds.parts().map(share).to_vec();
    let whole = humantime::format_duration(Duration::from_secs(total.min(1e12) as u64));
    format!("time: {whole}, of which {}", shares.join(", "))
}

/// Which rank the others wait for.
#[derive(Clone, Debug, Default)]
pub struct Stragglers {
    /// Seconds of work per step of each rank, averaged with more weight on the newest.
    busy: Vec<f64>,
}

/// The slowest rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slowest {
    /// Its rank.
    pub rank: usize,
    /// By which share of the mean it works longer than the mean.
    pub excess: f64,
}

impl Stragglers {
    /// Weight of the newest step.
    const NEWEST: f64 = 0.05;

    /// Hears how long each rank worked in a step.
    pub fn note(&mut self, busy: &[f32]) {
        self.busy.resize(busy.len(), 0.0);
        for (average, &seconds) in self.busy.iter_mut().zip(busy) {
            let seconds = f64::from(seconds);
            *average = if *average == 0.0 { seconds } else { *average + Self::NEWEST * (seconds - *average) };
        }
    }

    /// The slowest of several ranks.
    pub fn slowest(&self) -> Option<Slowest> {
        let mean = self.busy.iter().sum::<f64>() / self.busy.len() as f64;
        let (rank, most) = self.busy.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        (self.busy.len() > 1 && mean > 0.0).then(|| Slowest { rank, excess: most / mean - 1.0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_charged_once() {
        let before = Instant::now();
        let ledger = Ledger::start();
        let began = Instant::now();
        for (marks, phase) in Phase::ALL.into_iter().chain(Phase::ALL).enumerate() {
            std::thread::sleep(Duration::from_millis(2));
            ledger.enter(phase);
            assert_eq!((ledger.read().phase, ledger.read().marks), (phase, marks as u64 + 1));
        }
        let outside = began.elapsed().as_secs_f64();
        let seconds = ledger.read().seconds;
        assert!(seconds.total() >= 0.024 && seconds.total() >= outside, "{seconds:?} in {outside}");
        assert!(seconds.total() <= before.elapsed().as_secs_f64());
        assert!(seconds.compute >= 0.002 && seconds.checkpoint >= 0.004 && seconds.lost_work == 0.0);
    }

    #[test]
    fn what_came_after_the_checkpoint_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let saved = Seconds { compute: 10.0, lost_work: 1.0, ..Seconds::default() };
        let mut file = LedgerFile::new(folder.path(), "a");
        assert_eq!(file.earlier(saved), saved, "no file, no loss");
        file.note(Seconds { compute: 13.0, all_reduce: 0.5, lost_work: 1.0, ..Seconds::default() });
        assert_eq!(file.earlier(saved), Seconds { lost_work: 4.5, ..saved });
        assert_eq!(LedgerFile::new(folder.path(), "another").earlier(saved), saved);
        // Too soon to be written again; and a checkpoint newer than the note has lost nothing.
        file.note(Seconds { compute: 99.0, ..Seconds::default() });
        assert_eq!(file.earlier(Seconds { compute: 50.0, ..Seconds::default() }).lost_work, 0.0);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(file.earlier(saved), saved);
    }

    #[test]
    fn a_file_of_somebody_else_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        LedgerFile::check(folder.path()).unwrap();
        let mut file = LedgerFile::new(folder.path(), "a");
        file.note(Seconds { compute: 13.0, ..Seconds::default() });
        LedgerFile::check(folder.path()).unwrap();
        for (name, text) in [(FILE, r#"{"accounts": []}"#), (FRESH, "2026-11-26 * opening balances")] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let said = LedgerFile::check(folder.path()).unwrap_err();
            assert!(said.contains(name) && said.contains("run.log_dir"), "{said}");
            std::fs::remove_file(&path).unwrap();
        }
        // A link in the place of the new file is not followed.
        let other = folder.path().join("other");
        std::fs::write(&other, "of somebody").unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join(FRESH)).unwrap();
        LedgerFile::new(folder.path(), "a").note(Seconds::default());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "of somebody");
    }

    #[test]
    fn the_slowest_rank_is_named() {
        let mut stragglers = Stragglers::default();
        assert_eq!(stragglers.slowest(), None);
        stragglers.note(&[1.0]);
        assert_eq!(stragglers.slowest(), None, "alone nobody waits");
        let mut stragglers = Stragglers::default();
        for _ in 0..10 {
            stragglers.note(&[1.0, 1.0, 2.5, 1.5]);
        }
        let slowest = stragglers.slowest().unwrap();
        assert_eq!(slowest.rank, 2);
        assert!((slowest.excess - 2.0 / 3.0).abs() < 1e-6, "{slowest:?}");
    }

    #[test]
    fn the_summary_names_every_part() {
        let told = summary(&Seconds { compute: 75.0, all_reduce: 25.0, ..Seconds::default() });
        assert!(told.starts_with("time: 1m 40s, of which 75.0% compute, 25.0% all reduce, 0.0% data wait"), "{told}");
    }
}
