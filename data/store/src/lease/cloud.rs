//! Leases of stores in clouds: an object that its holder renews continually.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::LeaseError;
use super::holder::Holder;
use crate::error::StoreError;
use crate::store::Store;
use crate::version::Version;

const OBJECT_NAME: &str = "writer.json";
/// Timeout for releasing the lease, after which it is left to expire.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of renewals per time to live.
const RENEWALS: u32 = 3;
/// Number of times per time to live that a waiting process reads the object.
const POLLS: u32 = 30;
/// Maximum number of repeated reads if consecutive answers differ.
const MAX_REREADS: usize = 5;
/// Maximum number of attempts. The object may change while it is being acquired.
const MAX_ATTEMPTS: usize = 100;

#[derive(Debug)]
pub(super) struct CloudLease {
    store: Store,
    me: Holder,
    /// Dropped to stop the renewal thread.
    stop: Option<Sender<()>>,
    /// Disconnected when that thread has released the lease.
    ended: Receiver<()>,
}

impl CloudLease {
    pub(super) fn acquire(store: &Store, me: Holder, time_to_live: Duration) -> Result<Self, LeaseError> {
        let version = take(store, &me, time_to_live)?;
        let (stop, stopped) = channel();
        let (alive, ended) = channel();
        let renewal = Renewal { store: store.clone(), me: me.clone(), version };
        let thread = thread::Builder::new().name("lease".to_owned()).spawn(move || {
            renewal.run(&stopped, time_to_live / RENEWALS);
            drop(alive);
        });
        thread.map_err(StoreError::Runtime)?;
        Ok(Self { store: store.clone(), me, stop: Some(stop), ended })
    }

    pub(super) fn check(&self) -> Result<(), LeaseError> {
        let found = read(&self.store, |holder| holder.is_same(&self.me))?;
        let holder = found.as_ref().map(|(text, _)| Holder::parse(text));
        let taker = match holder {
            Some(Some(holder)) if holder.is_same(&self.me) => return Ok(()),
            Some(Some(holder)) => holder.to_string(),
            Some(None) => format!("an unknown process ({OBJECT_NAME} is unreadable)"),
            None => format!("an unknown process ({OBJECT_NAME} was removed)"),
        };
        Err(LeaseError::Lost { url: self.store.url().to_owned(), taker })
    }
}

impl Drop for CloudLease {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.ended.recv_timeout(RELEASE_TIMEOUT);
    }
}

/// Acquires the lease for `me`. Takes it over from a holder that is dead or has stopped renewing it.
fn take(store: &Store, me: &Holder, time_to_live: Duration) -> Result<Version, LeaseError> {
    let text = Bytes::from(me.text());
    let mut seen: Option<(Version, Instant)> = None;
    let mut attempts = 0;
    loop {
        let Some((found, version)) = read(store, |_| false)? else {
            if let Some(version) = store.create(OBJECT_NAME, text.clone())? {
                return Ok(version);
            }
            attempts = next_attempt(store, attempts)?;
            continue;
        };
        let Some(holder) = Holder::parse(&found) else { return Err(foreign(store)) };
        let held = |holder| LeaseError::Held { url: store.url().to_owned(), holder: Box::new(holder) };
        let dead = holder.is_dead_here();
        let expired = seen.as_ref().is_some_and(|(last, since)| *last == version && since.elapsed() >= time_to_live);
        if dead || expired {
            if let Some(version) = store.replace(OBJECT_NAME, text.clone(), &version)? {
                return Ok(version);
            }
            attempts = next_attempt(store, attempts)?;
            continue;
        }
        // In the second case, it was renewed in the meantime.
        if holder.is_here() || seen.as_ref().is_some_and(|(last, _)| *last != version) {
            return Err(held(holder));
        }
        if seen.as_ref().is_none_or(|(last, _)| *last != version) {
            seen = Some((version, Instant::now()));
        }
        thread::sleep(time_to_live / POLLS);
    }
}

/// Returns the holder of the lease, unless it is dead or has stopped renewing it.
pub(super) fn holder(store: &Store, time_to_live: Duration) -> Result<Option<Holder>, LeaseError> {
    let mut seen: Option<(Version, Instant)> = None;
    loop {
        let Some((found, version)) = read(store, |_| false)? else { return Ok(None) };
        let Some(holder) = Holder::parse(&found) else { return Err(foreign(store)) };
        if holder.is_here() {
            return Ok(Some(holder).filter(|holder| !holder.is_dead_here()));
        }
        match &seen {
            None => seen = Some((version, Instant::now())),
            // It was renewed in the meantime.
            Some((last, _)) if *last != version => return Ok(Some(holder)),
            Some((_, since)) if since.elapsed() >= time_to_live => return Ok(None),
            Some(_) => {}
        }
        thread::sleep(time_to_live / POLLS);
    }
}

/// Reads the object and its version. Contents other than an expected holder are accepted only if two consecutive
/// answers are equal, because a bit may have flipped in transit.
fn read(store: &Store, expected: impl Fn(&Holder) -> bool) -> Result<Option<(Bytes, Version)>, StoreError> {
    let mut found = store.get_versioned(OBJECT_NAME)?;
    for _ in 0..MAX_REREADS {
        let holder = found.as_ref().and_then(|(text, _)| Holder::parse(text));
        if holder.as_ref().is_some_and(&expected) {
            break;
        }
        let again = store.get_versioned(OBJECT_NAME)?;
        if again == found {
            break;
        }
        found = again;
    }
    Ok(found)
}

/// Error for an object that is not a lease. The object is preserved.
fn foreign(store: &Store) -> LeaseError {
    LeaseError::Foreign { url: store.url_of(OBJECT_NAME) }
}

fn next_attempt(store: &Store, attempts: usize) -> Result<usize, LeaseError> {
    if attempts < MAX_ATTEMPTS {
        return Ok(attempts + 1);
    }
    let url = store.url_of(OBJECT_NAME);
    Err(StoreError::Unavailable { url, reason: "many writers compete for it; try again".to_owned() }.into())
}

/// State of the renewal thread.
struct Renewal {
    store: Store,
    me: Holder,
    version: Version,
}

impl Renewal {
    /// Renews the lease until it is stopped, then releases it. Returns early if another process has taken over the
    /// lease. If the store is down, it continues, because the next attempt may succeed.
    fn run(mut self, stopped: &Receiver<()>, every: Duration) {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
            if self.renew() == Outcome::Lost {
                return;
            }
        }
        // No process takes over a lease that has just been renewed, so that the deleted object is this lease.
        if self.renew() == Outcome::Renewed {
            let _ = self.store.delete(OBJECT_NAME);
        }
    }

    fn renew(&mut self) -> Outcome {
        let next = self.me.renewed();
        match self.store.replace(OBJECT_NAME, next.text().into(), &self.version) {
            Ok(Some(version)) => {
                self.me = next;
                self.version = version;
                Outcome::Renewed
            }
            // The version also differs after a renewal whose answer was lost, so compare the holder.
            Ok(None) => match read(&self.store, |holder| holder.is_same(&self.me)) {
                Ok(Some((text, version))) => match Holder::parse(&text) {
                    Some(holder) if holder.is_same(&self.me) => {
                        self.me = holder;
                        self.version = version;
                        Outcome::Renewed
                    }
                    _ => Outcome::Lost,
                },
                Ok(None) => Outcome::Lost,
                Err(_) => Outcome::Unknown,
            },
            Err(_) => Outcome::Unknown,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Renewed,
    Lost,
    Unknown,
}
