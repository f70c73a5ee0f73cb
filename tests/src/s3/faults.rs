//! Plans of faults, which determine which requests fail and how. The number of failures and the coverage of all kinds
//! depend only on the plan and the number of requests, not on chance.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::seq::{SliceRandom, index};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The response is 500 InternalError.
    InternalError,
    /// The response is 503 SlowDown.
    SlowDown,
    /// The connection breaks in the middle of the response body or, for a request with a body, in the middle of that;
    /// the request is then not executed.
    Reset,
    /// The request is executed, but the connection breaks before the response.
    LostAnswer,
    /// The server pauses for this time in the middle of the response body, or before a response without a body.
    Stall(Duration),
    /// The body of a GET or LIST is cut in half, and Content-Length with it. Content-Range is still correct.
    Truncate,
    /// One bit of the body of a GET is flipped.
    FlipBit,
    /// The response is 403 ExpiredToken, as for expired temporary credentials.
    ExpiredToken,
    /// The response is 403 AccessDenied or, for a request to delete several objects, an error for each of them.
    AccessDenied,
    /// A request to delete several objects has an error SlowDown for each of them. Other requests are not affected.
    SlowDeletion,
    /// The response is the refusal with this code; see `Fault::refusal`.
    Refusal(&'static str),
    /// The response is 403 SignatureDoesNotMatch. Its body repeats the client's token and this secret, inside and
    /// outside the message, and all request headers.
    Echo(&'static str),
}

impl Fault {
    /// Returns the name in [`super::Counters::faults`].
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
            Self::SlowDeletion => "SlowDeletion",
            Self::Refusal(code) => code,
            Self::Echo(_) => "Echo",
        }
    }

    /// Returns the status and the message with which S3 sends the code of a refusal.
    pub(super) fn refusal(code: &str) -> (u16, &'static str) {
        match code {
            "RequestTimeTooSkewed" => {
                (403, "The difference between the request time and the current time is too large.")
            }
            "InvalidAccessKeyId" => (403, "The AWS Access Key Id you provided does not exist in our records."),
            "SignatureDoesNotMatch" => {
                (403, "The request signature we calculated does not match the signature provided.")
            }
            "InvalidToken" => (400, "The provided token is malformed or otherwise invalid."),
            "AuthorizationHeaderMalformed" => (400, "The region 'eu-central-1' is wrong; expecting 'us-west-2'"),
            "PermanentRedirect" => (301, "The bucket must be addressed using the specified endpoint."),
            "NoSuchBucket" => (404, "The specified bucket does not exist"),
            _ => (403, "Access Denied."),
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

/// The methods that a plan distinguishes.
const METHODS: [&str; 6] = ["GET", "HEAD", "LIST", "PUT", "POST", "DELETE"];

/// Number of requests of one method in a block.
pub const BLOCK: u64 = 10;

/// How the server treats the conditions If-Match and If-None-Match of puts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    /// As S3 does.
    #[default]
    Honoured,
    /// The response is 501 NotImplemented.
    NotImplemented,
    /// The response is 400 InvalidRequest.
    Rejected,
    /// They are ignored.
    Ignored,
    /// Only If-Match is ignored.
    MatchIgnored,
    /// The response to If-Match is 501 NotImplemented.
    MatchNotImplemented,
}

impl Conditions {
    /// Returns the status and the code with which the server rejects a put, if it does.
    pub(super) fn rejection(self, has_match: bool) -> Option<(u16, &'static str)> {
        match self {
            Self::NotImplemented => Some((501, "NotImplemented")),
            Self::MatchNotImplemented if has_match => Some((501, "NotImplemented")),
            Self::Rejected => Some((400, "InvalidRequest")),
            _ => None,
        }
    }

    /// Whether the server ignores the condition of a put.
    pub(super) fn ignores(self, has_match: bool) -> bool {
        self == Self::Ignored || self == Self::MatchIgnored && has_match
    }
}

/// A fault plan.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Number of failures in each block of [`BLOCK`] consecutive matching requests of a method.
    pub of_ten: u64,
    /// Kinds of faults. Those applicable to a method take turns: none is repeated before each has occurred once.
    pub kinds: Vec<Fault>,
    /// Determines which requests of a block fail and in which order the kinds take turns.
    pub seed: u64,
    /// Methods that can fail (GET, HEAD, LIST, PUT, POST, DELETE); all if empty.
    pub methods: Vec<&'static str>,
    /// Prefix of `BUCKET/KEY` of the objects whose requests can fail.
    pub prefix: String,
    /// Maximum number of faults; 0 for no limit.
    pub limit: u64,
    /// Whether every connection is closed without a response, as if the server were down.
    pub down: bool,
    /// How conditions of puts are treated.
    pub conditions: Conditions,
    /// Bandwidth of all response bodies together in bytes per second; 0 for no limit. 1 Gbit/s is 125,000,000.
    pub bytes_per_second: u64,
}

impl Faults {
    /// Returns a plan in which every request of these methods (all if empty) fails with `fault`.
    pub fn always(fault: Fault, methods: &[&'static str]) -> Self {
        Self { of_ten: BLOCK, kinds: vec![fault], methods: methods.to_vec(), ..Self::default() }
    }

    /// Returns a plan in which the first `limit` requests of these methods (all if empty) fail with `fault`.
    pub fn first(limit: u64, fault: Fault, methods: &[&'static str]) -> Self {
        Self { limit, ..Self::always(fault, methods) }
    }
}

/// The current plan and the requests made under it.
#[derive(Debug, Default)]
pub(super) struct Plan(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    /// Number of matching requests by method.
    requests: BTreeMap<String, u64>,
    /// Number of faults of each kind, in the order of the plan's kinds.
    injected: Vec<u64>,
}

impl Plan {
    pub(super) fn set(&self, faults: Faults) {
        let injected = vec![0; faults.kinds.len()];
        *self.lock() = State { faults, injected, ..State::default() };
    }

    pub(super) fn is_down(&self) -> bool {
        self.lock().faults.down
    }

    pub(super) fn conditions(&self) -> Conditions {
        self.lock().faults.conditions
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.lock().faults.bytes_per_second
    }

    /// Returns the fault for this request, if any, with a random number for choices such as the bit to flip.
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
            && (faults.limit == 0 || self.injected.iter().sum::<u64>() < faults.limit);
        if !matches {
            return None;
        }
        let requests = self.requests.entry(method.to_owned()).or_default();
        let (block, index_in_block) = (*requests / BLOCK, *requests % BLOCK);
        *requests += 1;
        let method_number = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len());
        let mut random = ChaCha8Rng::seed_from_u64(faults.seed);
        random.set_stream(block * (METHODS.len() as u64 + 1) + method_number as u64);
        let failing = index::sample(&mut random, BLOCK as usize, faults.of_ten.min(BLOCK) as usize);
        let mut failing = failing.into_iter().map(|failing| (failing as u64, random.random()));
        let (_, number) = failing.find(|(failing, _)| *failing == index_in_block)?;
        let kind = self.next_kind(method)?;
        self.injected[kind] += 1;
        Some((self.faults.kinds[kind], number))
    }

    /// Returns the least frequent of the kinds applicable to the method. Ties go to the kind applicable to the fewest
    /// methods, since the others can occur elsewhere.
    fn next_kind(&self, method: &str) -> Option<usize> {
        let kinds = &self.faults.kinds;
        let mut order: Vec<usize> = (0..kinds.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(self.faults.seed));
        let applicable_methods = |kind: &usize| METHODS.iter().filter(|method| kinds[*kind].applies_to(method)).count();
        order
            .into_iter()
            .filter(|&kind| kinds[kind].applies_to(method))
            .min_by_key(|kind| (self.injected[*kind], applicable_methods(kind)))
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
    fn every_block_has_the_planned_failures_at_positions_from_the_seed() {
        for (seed, of_ten) in [(1, 0), (2, 1), (3, 4), (4, BLOCK)] {
            let plan = plan(of_ten, seed);
            for method in ["GET", "PUT"] {
                for _ in 0..20 {
                    let failed = (0..BLOCK).filter(|_| plan.draw(method, "bucket/key").is_some()).count();
                    assert_eq!(failed as u64, of_ten);
                }
            }
        }
        let failures = |seed| {
            let plan = plan(1, seed);
            (0..200).map(|_| plan.draw("GET", "bucket/key").is_some()).collect::<Vec<_>>()
        };
        assert_eq!(failures(5), failures(5));
        assert_ne!(failures(5), failures(6));
    }

    #[test]
    fn every_kind_takes_its_turn() {
        for seed in 0..50 {
            let plan = plan(BLOCK, seed);
            // Two kinds apply only to a GET; the other two apply to a PUT, too.
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
    fn requests_outside_the_plan_do_not_fail() {
        let plan = Plan::default();
        plan.set(Faults { prefix: "bucket/a".to_owned(), ..Faults::first(2, Fault::SlowDown, &["PUT"]) });
        assert!(plan.draw("GET", "bucket/a").is_none() && plan.draw("PUT", "bucket/b").is_none());
        let drawn = (0..5).filter(|_| plan.draw("PUT", "bucket/a1").is_some()).count();
        assert_eq!(drawn, 2);
    }
}
