//! What the launcher knows of its ranks.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use arinar_protocol::{Beat, Farewell, Hello, exit_code};

use crate::{hang::RankView, server::Word};

/// One rank.
#[derive(Clone, Debug)]
pub struct Rank {
    /// Who it is, once it has said so.
    pub hello: Option<Hello>,
    /// The newest of what it told.
    pub beat: Beat,
    /// Its last word, if it had one.
    pub farewell: Option<Farewell>,
    /// Its connection ended without a last word.
    pub lost: bool,
    heard: Instant,
    moved: Instant,
}

impl Rank {
    /// In order or not.
    pub fn has_ended(&self) -> bool {
        self.lost || self.farewell.is_some()
    }
}

/// All ranks of one start of the job.
#[derive(Clone, Debug)]
pub struct Ranks {
    ranks: Vec<Rank>,
    /// The step that training goes on from.
    resumed: u64,
}

/// What a word changed that is worth telling.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The last rank has come.
    Complete,
    /// The first rank has died.
    Lost(usize),
    /// A rank ends in order, with this exit code.
    Farewell(u8),
}

impl Ranks {
    /// None has come yet.
    pub fn new(world: usize, now: Instant) -> Self {
        let rank = Rank { hello: None, beat: Beat::default(), farewell: None, lost: false, heard: now, moved: now };
        Self { ranks: vec![rank; world], resumed: 0 }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Rank> {
        self.ranks.iter()
    }

    /// One of them.
    pub fn get(&self, rank: usize) -> Option<&Rank> {
        self.ranks.get(rank)
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.ranks.len()
    }

    /// Takes in what a rank said.
    pub fn hear(&mut self, rank: usize, word: Word, now: Instant) -> Option<News> {
        let nobody_lost = !self.ranks.iter().any(|rank| rank.lost);
        let speaker = self.ranks.get_mut(rank)?;
        match word {
            Word::Hello(hello) => {
                speaker.hello = Some(hello);
                (speaker.heard, speaker.moved) = (now, now);
                return self.ranks.iter().all(|rank| rank.hello.is_some()).then_some(News::Complete);
            }
            Word::Beat(beat) => {
                speaker.heard = now;
                if beat.marks != speaker.beat.marks || beat.step != speaker.beat.step {
                    speaker.moved = now;
                }
                if beat.total_steps > 0 {
                    self.resumed = self.resumed.max(beat.first_step);
                }
                speaker.beat = beat;
            }
            Word::Farewell(farewell) => {
                if farewell.code == exit_code::DONE {
                    // The last steps may have been too fast for a beat.
                    speaker.beat.step = speaker.beat.step.max(speaker.beat.total_steps);
                }
                let code = farewell.code;
                speaker.farewell = Some(farewell);
                return Some(News::Farewell(code));
            }
            Word::Closed => {
                speaker.lost = speaker.farewell.is_none();
                return (speaker.lost && nobody_lost).then_some(News::Lost(rank));
            }
        }
        None
    }

    /// The launcher itself stood still for so long (it was stopped, or its machine slept): no rank is to blame for it.
    pub fn excuse(&mut self, pause: Duration, now: Instant) {
        for rank in &mut self.ranks {
            rank.heard = now.min(rank.heard + pause);
            rank.moved = now.min(rank.moved + pause);
        }
    }

    /// Every rank has ended, in order or not.
    pub fn all_ended(&self) -> bool {
        self.ranks.iter().all(Rank::has_ended)
    }

    /// Some rank has trained a step of this start.
    pub fn have_stepped(&self) -> bool {
        self.ranks.iter().any(|rank| rank.beat.step_seconds > 0.0)
    }

    /// What the watch judges.
    pub fn views(&self, now: Instant) -> Vec<RankView> {
        let view = |(index, rank): (usize, &Rank)| RankView {
            rank: index,
            place: rank.hello.as_ref().map(|hello| (hello.host.clone(), hello.pid)),
            step: rank.beat.step,
            phase: rank.beat.phase,
            silent: now.saturating_duration_since(rank.heard),
            still: now.saturating_duration_since(rank.moved),
            ended: rank.has_ended(),
            resident_bytes: rank.beat.resident_bytes,
        };
        self.ranks.iter().enumerate().map(view).collect()
    }

    /// The step that training went on from.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// The last step that was trained.
    pub fn reached(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.beat.step).max().unwrap_or(0)
    }

    /// A rank in words: `rank 1 (node, pid 7; compute of step 12, 512 MiB)`.
    pub fn describe(&self, index: usize) -> String {
        let Some(rank) = self.ranks.get(index) else { return format!("rank {index}") };
        let Some(hello) = &rank.hello else { return format!("rank {index} (not heard of)") };
        let beat = &rank.beat;
        format!(
            "rank {index} ({}, pid {}; {} of step {}, {} MiB)",
            hello.host,
            hello.pid,
            beat.phase,
            beat.step,
            beat.resident_bytes >> 20
        )
    }
}

/// How long steps took of late.
#[derive(Clone, Debug, Default)]
pub struct StepTimes {
    newest: VecDeque<f64>,
    last_step: u64,
}

impl StepTimes {
    /// So many steps are remembered.
    const KEPT: usize = 64;

    /// Hears of a rank's newest step.
    pub fn note(&mut self, beat: &Beat) {
        let told = beat.step_seconds > 0.0 && beat.step_seconds.is_finite();
        if told && beat.step != self.last_step {
            self.last_step = beat.step;
            self.newest.push_back(beat.step_seconds);
            if self.newest.len() > Self::KEPT {
                self.newest.pop_front();
            }
        }
    }

    /// The median.
    pub fn usual(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.newest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// The mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.newest.is_empty()).then(|| self.newest.iter().sum::<f64>() / self.newest.len() as f64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arinar_protocol::Phase;

    use super::*;

    fn hello(rank: usize) -> Word {
        Word::Hello(Hello { token: String::new(), rank, world: 2, host: "node".to_owned(), pid: 7 })
    }

    #[test]
    fn a_rank_lives_moves_and_dies() {
        let start = Instant::now();
        let later = |secs| start + Duration::from_secs(secs);
        let mut ranks = Ranks::new(2, start);
        assert_eq!(ranks.hear(1, hello(1), later(1)), None);
        assert_eq!(ranks.hear(0, hello(0), later(1)), Some(News::Complete));
        let beat = |step, marks, phase| {
            Word::Beat(Beat { step, first_step: 10, total_steps: 90, marks, phase, ..Beat::default() })
        };
        ranks.hear(1, beat(10, 1, Phase::StartUp), later(2));
        ranks.hear(1, beat(10, 2, Phase::Compute), later(3));
        ranks.hear(1, beat(10, 2, Phase::Compute), later(5));
        let view = ranks.views(later(6)).remove(1);
        assert_eq!((view.silent.as_secs(), view.still.as_secs(), view.ended), (1, 3, false));
        assert_eq!((ranks.resumed(), ranks.reached()), (10, 10));
        assert!(!ranks.all_ended() && !ranks.have_stepped());
        ranks.excuse(Duration::from_secs(1), later(6));
        assert_eq!(ranks.views(later(6))[1].still.as_secs(), 2);
        assert_eq!(ranks.hear(1, Word::Closed, later(6)), Some(News::Lost(1)));
        assert_eq!(ranks.describe(1), "rank 1 (node, pid 7; compute of step 10, 0 MiB)");
        // That the others follow is no news, nor is the end after a farewell.
        assert_eq!(ranks.hear(0, Word::Closed, later(6)), None);
        let mut ranks = Ranks::new(1, start);
        let farewell = Farewell { code: 0, reason: None };
        assert_eq!(ranks.hear(0, Word::Farewell(farewell), later(1)), Some(News::Farewell(0)));
        assert_eq!(ranks.hear(0, Word::Closed, later(1)), None);
        assert!(ranks.views(later(1))[0].ended && ranks.all_ended());
        assert_eq!(ranks.hear(9, Word::Closed, later(1)), None);
    }

    #[test]
    fn steps_are_counted_once() {
        let mut times = StepTimes::default();
        assert_eq!(times.usual(), None);
        for (step, step_seconds) in [(1, 1.0), (1, 1.0), (2, 2.0), (3, 9.0), (4, f64::NAN), (5, 0.0)] {
            times.note(&Beat { step, step_seconds, ..Beat::default() });
        }
        assert_eq!((times.usual(), times.mean()), (Some(2.0), Some(4.0)));
    }
}
