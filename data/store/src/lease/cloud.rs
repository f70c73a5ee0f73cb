//! The lease of a folder in a cloud: an object that its holder keeps changing.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Holder, LeaseError};
use crate::{Store, StoreError, Version};

const OBJECT_NAME: &str = "writer.json";
/// Giving the lease back may take so long; after that it is left to its time to live.
const FAREWELL: Duration = Duration::from_secs(5);
/// Renewals in a time to live.
const RENEWALS: u32 = 3;
/// Looks at the object in a time to live, for who waits.
const LOOKS: u32 = 30;
/// So often an answer that differs from the one before is asked for again.
const DOUBTS: usize = 5;
/// The object can change under whoever wants it; so often it begins anew.
const TRIES: usize = 100;

#[derive(Debug)]
pub(super) struct CloudLease {
    store: Store,
    me: Holder,
    /// Dropped to end the thread that renews.
    stop: Option<Sender<()>>,
    /// Disconnected when that thread has given the lease back.
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
        let found = look(&self.store, |holder| holder.is_same(&self.me))?;
        let holder = found.as_ref().map(|(text, _)| Holder::parse(text));
        let taker = match holder {
            Some(Some(holder)) if holder.is_same(&self.me) => return Ok(()),
            Some(Some(holder)) => holder.to_string(),
            Some(None) => format!("something that left no readable {OBJECT_NAME}"),
            None => format!("nobody: {OBJECT_NAME} was removed"),
        };
        Err(LeaseError::Lost { url: self.store.url().to_owned(), taker })
    }
}

impl Drop for CloudLease {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

/// Gets the lease for `me`, from a holder that is dead or silent if need be.
fn take(store: &Store, me: &Holder, time_to_live: Duration) -> Result<Version, LeaseError> {
    let text = Bytes::from(me.text());
    let mut seen: Option<(Version, Instant)> = None;
    let mut tries = 0;
    loop {
        let Some((found, version)) = look(store, |_| false)? else {
            if let Some(version) = store.create(OBJECT_NAME, text.clone())? {
                return Ok(version);
            }
            tries = next(store, tries)?;
            continue;
        };
        let Some(holder) = Holder::parse(&found) else { return Err(foreign(store)) };
        let held = |holder| LeaseError::Held { url: store.url().to_owned(), holder: Box::new(holder) };
        let dead = holder.is_dead_here();
        let silent = seen.as_ref().is_some_and(|(last, since)| *last == version && since.elapsed() >= time_to_live);
        if dead || silent {
            if let Some(version) = store.replace(OBJECT_NAME, text.clone(), &version)? {
                return Ok(version);
            }
            tries = next(store, tries)?;
            continue;
        }
        // In the second case it was renewed while we looked.
        if holder.is_here() || seen.as_ref().is_some_and(|(last, _)| *last != version) {
            return Err(held(holder));
        }
        if seen.as_ref().is_none_or(|(last, _)| *last != version) {
            seen = Some((version, Instant::now()));
        }
        thread::sleep(time_to_live / LOOKS);
    }
}

/// Who holds the lease and is not known to be dead or silent.
pub(super) fn holder(store: &Store, time_to_live: Duration) -> Result<Option<Holder>, LeaseError> {
    let mut seen: Option<(Version, Instant)> = None;
    loop {
        let Some((found, version)) = look(store, |_| false)? else { return Ok(None) };
        let Some(holder) = Holder::parse(&found) else { return Err(foreign(store)) };
        if holder.is_here() {
            return Ok(Some(holder).filter(|holder| !holder.is_dead_here()));
        }
        match &seen {
            None => seen = Some((version, Instant::now())),
            // It was renewed while we looked.
            Some((last, _)) if *last != version => return Ok(Some(holder)),
            Some((_, since)) if since.elapsed() >= time_to_live => return Ok(None),
            Some(_) => {}
        }
        thread::sleep(time_to_live / LOOKS);
    }
}

/// What the object says, and its version. Anything but the holder who is expected is believed when two answers in a row
/// are the same: a bit of one may have flipped on its way.
fn look(store: &Store, expected: impl Fn(&Holder) -> bool) -> Result<Option<(Bytes, Version)>, StoreError> {
    let mut found = store.get_versioned(OBJECT_NAME)?;
    for _ in 0..DOUBTS {
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

/// The object is no lease, and stays as it is.
fn foreign(store: &Store) -> LeaseError {
    LeaseError::Foreign { url: store.url_of(OBJECT_NAME) }
}

fn next(store: &Store, tries: usize) -> Result<usize, LeaseError> {
    if tries < TRIES {
        return Ok(tries + 1);
    }
    let url = store.url_of(OBJECT_NAME);
    Err(StoreError::Unavailable { url, reason: "many writers fight for it; try again".to_owned() }.into())
}

/// What the thread that renews knows.
struct Renewal {
    store: Store,
    me: Holder,
    version: Version,
}

impl Renewal {
    /// Renews until it is told to stop, then gives the lease back; ends early when somebody else has taken it. A store
    /// that is down ends nothing: the next attempt may succeed.
    fn run(mut self, stopped: &Receiver<()>, every: Duration) {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
            if self.renew() == Outcome::Lost {
                return;
            }
        }
        // Nobody takes over a lease that has just been renewed, so what is deleted is ours.
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
            // An earlier renewal whose answer got lost looks the same, so who is it?
            Ok(None) => match look(&self.store, |holder| holder.is_same(&self.me)) {
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
