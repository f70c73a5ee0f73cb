//! Which request fails, and how. How many fail, and that every kind of failure comes, follows from the plan and from the
//! number of requests, and is no matter of luck.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::seq::{SliceRandom, index};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 500 InternalError.
    InternalError,
    /// 503 SlowDown.
    SlowDown,
    /// The connection breaks in the middle of the body: of the answer, or of the request where that has one (which is
    /// then not carried out).
    Reset,
    /// The request is carried out, but the connection breaks before the answer.
    LostAnswer,
    /// Nothing comes for so long: from the middle of the answer's body, or before the answer where it has none.
    Stall(Duration),
    /// GET and LIST: half of the body, with a Content-Length that says so; Content-Range still tells the truth.
    Truncate,
    /// GET: one bit of the body is another.
    FlipBit,
    /// 403 ExpiredToken, as temporary credentials end.
    ExpiredToken,
    /// 403 AccessDenied; where several objects are to be deleted, a refusal for each.
    AccessDenied,
    /// 403 SignatureDoesNotMatch, whose body holds the token that the client sent and this secret, in its message and
    /// beside it, and beside it all headers, too.
    Echo(&'static str),
}

impl Fault {
    /// Name in [`super::Counters::faults`].
    pub fn name(self) -> &'static str {
        match self {
            Self::InternalError => "InternalError",
            Self::SlowDown => "SlowDown",
            Self::Reset => "Reset",
            Self::LostAnswer => "LostAnswer",
            Self::Stall(_) => "Stall",
            Self::Truncate => "Truncate",
            Self::FlipBit => "FlipBit",
            Self::ExpiredToken => "ExpiredToken",
            Self::AccessDenied => "AccessDenied",
            Self::Echo(_) => "Echo",
        }
    }

    fn applies_to(self, method: &str) -> bool {
        match self {
            Self::Truncate => matches!(method, "GET" | "LIST"),
            Self::FlipBit => method == "GET",
            _ => true,
        }
    }
}

/// The methods that a plan tells apart.
const METHODS: [&str; 6] = ["GET", "HEAD", "LIST", "PUT", "POST", "DELETE"];

/// Requests of one method fail by the block of so many.
pub const BLOCK: u64 = 10;

/// A plan of faults.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many of every [`BLOCK`] matching requests of a method fail, one after the other counted.
    pub of_ten: u64,
    /// How. Those that suit a method take turns, so that none comes twice before each has come once.
    pub kinds: Vec<Fault>,
    /// Says which requests of a block fail, and in which order the kinds take turns.
    pub seed: u64,
    /// Only these methods (GET, HEAD, LIST, PUT, POST, DELETE); empty: all.
    pub methods: Vec<&'static str>,
    /// Only objects whose `BUCKET/KEY` begins so.
    pub prefix: String,
    /// At most so many faults; 0: no limit.
    pub limit: u64,
    /// Every connection is closed without an answer, as if nobody listened.
    pub down: bool,
    /// Bytes per second over all GET bodies; 0: no limit. 1 Gbit/s is 125,000,000.
    pub bytes_per_second: u64,
}

impl Faults {
    /// Every request of these methods (empty: all) fails this way.
    pub fn always(fault: Fault, methods: &[&'static str]) -> Self {
        Self { of_ten: BLOCK, kinds: vec![fault], methods: methods.to_vec(), ..Self::default() }
    }

    /// So many requests of these methods (empty: all) fail this way, then no more.
    pub fn first(limit: u64, fault: Fault, methods: &[&'static str]) -> Self {
        Self { limit, ..Self::always(fault, methods) }
    }
}

/// The plan in force, and what was asked under it.
#[derive(Debug, Default)]
pub(super) struct Plan(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    /// Matching requests, by method.
    asked: BTreeMap<String, u64>,
    /// Faults of each kind, in the order of the plan's kinds.
    done: Vec<u64>,
}

impl Plan {
    pub(super) fn set(&self, faults: Faults) {
        let done = vec![0; faults.kinds.len()];
        *self.lock() = State { faults, done, ..State::default() };
    }

    pub(super) fn is_down(&self) -> bool {
        self.lock().faults.down
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.lock().faults.bytes_per_second
    }

    /// The fault for this request, if it is to fail. The number goes with the fault, for choices such as which bit.
    pub(super) fn draw(&self, method: &str, key: &str) -> Option<(Fault, u64)> {
        self.lock().draw(method, key)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn draw(&mut self, method: &str, key: &str) -> Option<(Fault, u64)> {
        let faults = &self.faults;
        let matches = (faults.methods.is_empty() || faults.methods.contains(&method))
            && key.starts_with(&faults.prefix)
            && (faults.limit == 0 || self.done.iter().sum::<u64>() < faults.limit);
        if !matches {
            return None;
        }
        let asked = self.asked.entry(method.to_owned()).or_default();
        let (block, place) = (*asked / BLOCK, *asked % BLOCK);
        *asked += 1;
        let method_number = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len());
        let mut random = ChaCha8Rng::seed_from_u64(faults.seed);
        random.set_stream(block * (METHODS.len() as u64 + 1) + method_number as u64);
        let failing = index::sample(&mut random, BLOCK as usize, faults.of_ten.min(BLOCK) as usize);
        let mut failing = failing.into_iter().map(|failing| (failing as u64, random.random()));
        let (_, number) = failing.find(|(failing, _)| *failing == place)?;
        let kind = self.next_kind(method)?;
        self.done[kind] += 1;
        Some((self.faults.kinds[kind], number))
    }

    /// Of the kinds that suit the method, the one that came least often; of several such, one that suits few methods,
    /// since others will have their turn elsewhere.
    fn next_kind(&self, method: &str) -> Option<usize> {
        let kinds = &self.faults.kinds;
        let mut order: Vec<usize> = (0..kinds.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(self.faults.seed));
        let suits = |kind: &usize| METHODS.iter().filter(|method| kinds[*kind].applies_to(method)).count();
        order
            .into_iter()
            .filter(|&kind| kinds[kind].applies_to(method))
            .min_by_key(|kind| (self.done[*kind], suits(kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Fault; 4] = [Fault::InternalError, Fault::Truncate, Fault::Reset, Fault::FlipBit];

    fn plan(of_ten: u64, seed: u64) -> Plan {
        let plan = Plan::default();
        plan.set(Faults { of_ten, kinds: KINDS.to_vec(), seed, ..Faults::default() });
        plan
    }

    #[test]
    fn so_many_of_every_ten_fail_wherever_the_seed_says() {
        for (seed, of_ten) in [(1, 0), (2, 1), (3, 4), (4, BLOCK)] {
            let plan = plan(of_ten, seed);
            for method in ["GET", "PUT"] {
                for _ in 0..20 {
                    let failed = (0..BLOCK).filter(|_| plan.draw(method, "bucket/key").is_some()).count();
                    assert_eq!(failed as u64, of_ten);
                }
            }
        }
        let places = |seed| {
            let plan = plan(1, seed);
            (0..200).map(|_| plan.draw("GET", "bucket/key").is_some()).collect::<Vec<_>>()
        };
        assert_eq!(places(5), places(5));
        assert_ne!(places(5), places(6));
    }

    #[test]
    fn every_kind_has_its_turn() {
        for seed in 0..50 {
            let plan = plan(BLOCK, seed);
            // Two that only a GET can meet, then two that a PUT meets as well.
            let mut drawn: Vec<&str> = ["GET", "GET", "PUT", "PUT"]
                .iter()
                .filter_map(|method| plan.draw(method, "bucket/key"))
                .map(|(fault, _)| fault.name())
                .collect();
            drawn.sort_unstable();
            assert_eq!(drawn, ["FlipBit", "InternalError", "Reset", "Truncate"], "seed {seed}");
        }
    }

    #[test]
    fn what_the_plan_is_not_about_is_left_alone() {
        let plan = Plan::default();
        plan.set(Faults { prefix: "bucket/a".to_owned(), ..Faults::first(2, Fault::SlowDown, &["PUT"]) });
        assert!(plan.draw("GET", "bucket/a").is_none() && plan.draw("PUT", "bucket/b").is_none());
        let drawn = (0..5).filter(|_| plan.draw("PUT", "bucket/a1").is_some()).count();
        assert_eq!(drawn, 2);
    }
}
