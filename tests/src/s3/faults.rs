//! Which request fails, and how: a pure function of the plan's seed and of what is asked.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// A plan of faults.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Chance that a matching request fails, 0 to 1.
    pub rate: f64,
    /// How: drawn evenly among those that suit the request's method.
    pub kinds: Vec<Fault>,
    /// The same seed fails the same requests: the draw depends on the seed, on method, object, range and part number,
    /// and on how often the same was asked before, not on the order in which requests come.
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
        Self { rate: 1.0, kinds: vec![fault], methods: methods.to_vec(), ..Self::default() }
    }

    /// So many requests of these methods (empty: all) fail this way, then no more.
    pub fn first(limit: u64, fault: Fault, methods: &[&'static str]) -> Self {
        Self { limit, ..Self::always(fault, methods) }
    }
}

/// The plan in force, and how often each thing was asked under it.
#[derive(Debug, Default)]
pub(super) struct Plan(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    asked: HashMap<u64, u64>,
    done: u64,
}

impl Plan {
    pub(super) fn set(&self, faults: Faults) {
        *self.lock() = State { faults, ..State::default() };
    }

    pub(super) fn is_down(&self) -> bool {
        self.lock().faults.down
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.lock().faults.bytes_per_second
    }

    /// The fault for this request, if it is to fail; `what` is all that tells it from others but its order. The number
    /// goes with the fault, for choices such as which bit.
    pub(super) fn draw(&self, method: &str, key: &str, what: impl Hash) -> Option<(Fault, u64)> {
        let mut state = self.lock();
        let faults = &state.faults;
        let matches = (faults.methods.is_empty() || faults.methods.contains(&method))
            && key.starts_with(&faults.prefix)
            && (faults.limit == 0 || state.done < faults.limit);
        let kinds: Vec<Fault> = faults.kinds.iter().copied().filter(|kind| kind.applies_to(method)).collect();
        if !matches || kinds.is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (method, key, what).hash(&mut hasher);
        let request = hasher.finish();
        let (seed, rate) = (faults.seed, faults.rate);
        let times = state.asked.entry(request).or_default();
        *times += 1;
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ request);
        random.set_stream(*times);
        if !random.random_bool(rate.clamp(0.0, 1.0)) {
            return None;
        }
        state.done += 1;
        Some((kinds[random.random_range(0..kinds.len())], random.random()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
