//! Where the checkpoints of a run live, and what is found there when it starts.

use std::sync::{Arc, Mutex};

use arinar_store::{RateLimiter, Store, lease::Lease};

use super::{
    CheckpointError, State,
    find::{self, Found, Place, Search},
    manifest::{Manifest, folder},
    mirror::Mirror,
    publish::Publisher,
    restore::{self, RestoreInto},
    retention::Retention,
    save::{Role, Saver},
    spool::{Spool, Stock},
    step_folder,
};
use crate::{
    collective::{Collective, Reduction, agree},
    config::{Resume, TrainConfig},
    exit::Stop,
};

/// The place of a run's checkpoints, as one rank sees it. All ranks make the same calls together.
pub struct Home<'a> {
    collective: &'a dyn Collective,
    config: &'a TrainConfig,
    role: Role,
    retention: Retention,
    store: Arc<Store>,
    /// On rank 0, what keeps other runs away.
    lease: Option<Arc<Mutex<Lease>>>,
    /// Where remote checkpoints are downloaded to, and those of a remote run wait to be sent.
    spool: Option<Spool>,
    /// What store and spool hold, where the run's folder is in a remote store.
    stock: Option<Stock>,
}

impl<'a> Home<'a> {
    /// Opens the run's folder, of which no other run may make use from now on.
    ///
    /// # Errors
    /// A folder that cannot be used, or that another run uses.
    pub fn open(
        collective: &'a dyn Collective,
        config: &'a TrainConfig,
        role: Role,
        retention: Retention,
    ) -> Result<Self, Stop> {
        let store = Arc::new(agree(collective, Store::open(&config.run.dir).map_err(Stop::configuration))?);
        let lease = match role.rank {
            0 => Lease::acquire(&store, &format!("arinar-trainer run {}", config.run.name)).map(Some),
            _ => Ok(None),
        };
        let lease = lease.map_err(|error| Stop::from(CheckpointError::from(error)));
        let lease = agree(collective, lease)?.map(|lease| Arc::new(Mutex::new(lease)));
        let mut home = Self { collective, config, role, retention, store, lease, spool: None, stock: None };
        let from_afar = matches!(&config.checkpoint.resume, Resume::From(place) if !is_local(place));
        if from_afar || home.is_remote() {
            home.open_spool()?;
        }
        Ok(home)
    }

    fn is_remote(&self) -> bool {
        !self.store.is_local()
    }

    fn open_spool(&mut self) -> Result<(), Stop> {
        let checkpoint = &self.config.checkpoint;
        let limit = checkpoint.spool_limit.map(|limit| limit.0);
        let spool = Spool::open(checkpoint.spool_dir.as_deref(), limit, self.store.url());
        let spool = agree(self.collective, spool.map_err(Stop::from))?;
        if self.is_remote() {
            self.stock = Some(self.send_leftovers(&spool)?);
        }
        self.spool = Some(spool);
        Ok(())
    }

    /// Leftovers that lie on several machines can be gone on from only once they are in the store.
    fn send_leftovers(&self, spool: &Spool) -> Result<Stock, Stop> {
        let stock = self.take_stock(spool)?;
        if stock.leftovers.is_empty() || self.role.alone() {
            return Ok(stock);
        }
        let mut saver = self.saver_with(spool, &stock)?;
        let quiet = self.role.rank != 0;
        let tell = &mut |line: &str| {
            if !quiet {
                println!("{line}");
            }
        };
        match saver.finish(self.collective, self.config.checkpoint.upload_timeout.0, &|| false, tell)? {
            Some(missing) => agree(self.collective, Err(Stop::Failure(missing.what))),
            None => self.take_stock(spool),
        }
    }

    /// What store and spools hold, the same on all ranks; what is of no use is deleted from the spools.
    fn take_stock(&self, spool: &Spool) -> Result<Stock, Stop> {
        let stock = match self.role.rank {
            0 => spool.take_stock(&self.store).map_err(Stop::from),
            _ => Ok(Stock::default()),
        };
        let mut stock: Stock = self.tell_all(agree(self.collective, stock)?)?;
        // A leftover of which a machine has lost its share will never be whole.
        let count = |manifest| if self.role.leads { spool.count_files(manifest) as f64 } else { 0.0 };
        let mut here: Vec<f64> = stock.leftovers.iter().map(count).collect();
        self.collective.all_reduce_scalars(&mut here, Reduction::Sum)?;
        let mut counts = here.into_iter();
        // The state lies on every machine, so that there may be more files than the manifest names.
        stock.leftovers.retain(|manifest| counts.next().is_some_and(|count| count >= manifest.files.len() as f64));
        self.keep_only(spool, &stock)?;
        Ok(stock)
    }

    fn keep_only(&self, spool: &Spool, stock: &Stock) -> Result<(), Stop> {
        let kept = if self.role.leads { spool.keep_only(stock) } else { Ok(()) };
        agree(self.collective, kept.map_err(Stop::from))
    }

    fn tell_all<T: serde::Serialize + serde::de::DeserializeOwned>(&self, of_rank_0: T) -> Result<T, Stop> {
        let told = serde_json::to_vec(&of_rank_0).map_err(Stop::failure)?;
        let told = self.collective.broadcast_bytes(told, 0)?;
        serde_json::from_slice(&told).map_err(Stop::failure)
    }

    /// The checkpoint that `checkpoint.resume` asks for, ready to be restored on every machine.
    ///
    /// # Errors
    /// None that is whole where there should be one, a run that must not be overwritten, or a store failure.
    pub fn find(&mut self) -> Result<Option<Found>, Stop> {
        let search = Search { run: &self.config.run.dir, spool: self.spool.as_ref(), stock: self.stock.as_ref() };
        let found = match self.role.rank {
            0 => search.find(&self.config.checkpoint.resume).map_err(Stop::from),
            _ => Ok(None),
        };
        let mut found: Option<Found> = self.tell_all(agree(self.collective, found)?)?;
        self.check_later_steps(found.as_ref())?;
        self.fetch(found.as_ref())?;
        if let Some(stock) = &mut self.stock {
            let dropped = forget_newer(stock, found.as_ref(), &self.config.run.dir);
            if let Some(found) = &mut found {
                found.warnings.extend(dropped);
            }
            self.delete_others()?;
        }
        Ok(found)
    }

    /// Checks that no files of another program are where the run will save its checkpoints.
    fn check_later_steps(&self, found: Option<&Found>) -> Result<(), Stop> {
        let step = found.map_or(0, |found| found.step);
        let checked = match self.role.rank {
            0 => step_folder::check_later_steps(&self.store, step),
            _ => Ok(()),
        };
        agree(self.collective, checked.map_err(Stop::from))
    }

    /// Rank 0 has downloaded and verified it already, for its own machine.
    fn fetch(&self, found: Option<&Found>) -> Result<(), Stop> {
        let fetch = |found: &Found, spool| find::fetch(&Store::open(&found.run)?, found.step, spool);
        let mine = self.role.leads && self.role.rank != 0;
        let fetched = match (found.filter(|found| found.place == Place::Fetched && mine), &self.spool) {
            (Some(found), Some(spool)) => fetch(found, spool),
            _ => Ok(()),
        };
        agree(self.collective, fetched.map_err(Stop::from))
    }

    /// Deletes checkpoints that are not in stock from the spool; a downloaded one stays.
    fn delete_others(&self) -> Result<(), Stop> {
        let deleted = match (&self.spool, &self.stock) {
            (Some(spool), Some(stock)) if self.role.leads => spool.delete_others(stock),
            _ => Ok(()),
        };
        agree(self.collective, deleted.map_err(Stop::from))
    }

    /// Reads a found checkpoint into this rank's tensors.
    ///
    /// # Errors
    /// A checkpoint of another model, or a damaged one.
    pub fn restore(&self, found: &Found, into: RestoreInto<'_>) -> Result<State, Stop> {
        let restored = self.place(found).and_then(|store| restore::restore(&store, found.step, self.config, into));
        let restored = agree(self.collective, restored.map_err(Stop::from))?;
        let forgotten = match &self.spool {
            Some(spool) if self.role.leads => spool.forget_fetched(),
            _ => Ok(()),
        };
        agree(self.collective, forgotten.map_err(Stop::from))?;
        Ok(restored)
    }

    fn place(&self, found: &Found) -> Result<Arc<Store>, CheckpointError> {
        match (found.place, &self.spool) {
            (Place::Spool, Some(spool)) => Ok(Arc::clone(spool.store())),
            (Place::Fetched, Some(spool)) => Ok(Arc::new(spool.fetched()?)),
            _ => Ok(Arc::new(Store::open(&found.run)?)),
        }
    }

    /// What saves this run's checkpoints from now on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn saver(&self) -> Result<Saver, Stop> {
        match (&self.spool, &self.stock) {
            (Some(spool), Some(stock)) => self.saver_with(spool, stock),
            _ => {
                let publisher = match self.role.rank {
                    0 => Publisher::start(Arc::clone(&self.store), Some(self.retention)).map(Some),
                    _ => Ok(None),
                };
                let publisher = agree(self.collective, publisher.map_err(Stop::failure))?;
                Ok(Saver::new(self.role, Arc::clone(&self.store), publisher, None))
            }
        }
    }

    fn saver_with(&self, spool: &Spool, stock: &Stock) -> Result<Saver, Stop> {
        let publishes = self.role.leads || self.role.rank == 0;
        let publisher = publishes.then(|| Publisher::start(Arc::clone(spool.store()), None)).transpose();
        let publisher = agree(self.collective, publisher.map_err(Stop::failure))?;
        let (url, lease) = (&self.config.run.dir, self.lease.clone());
        let pace = Arc::new(RateLimiter::new(self.config.checkpoint.upload_rate.map(|rate| rate.0)));
        let mirror = Mirror::new(self.role, url, spool.clone(), stock, self.retention, lease, pace);
        let mirror = agree(self.collective, mirror.map_err(Stop::failure))?;
        Ok(Saver::new(self.role, Arc::clone(spool.store()), publisher, Some(mirror)))
    }

    /// The run's folder, for what else is kept there.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// Takes leftovers of a past that the run does not go on from out of the stock, and a copy of what was found damaged.
/// Returns what to tell.
fn forget_newer(stock: &mut Stock, found: Option<&Found>, run: &str) -> Vec<String> {
    let ours = found.filter(|found| found.run.trim_end_matches('/') == run.trim_end_matches('/'));
    let step = ours.map_or(0, |found| found.step);
    if found.is_some_and(|found| found.place == Place::Fetched) {
        stock.newest = stock.newest.take().filter(|newest| newest.step != step);
    }
    let (kept, newer): (Vec<_>, Vec<_>) =
        std::mem::take(&mut stock.leftovers).into_iter().partition(|m| m.step <= step);
    stock.leftovers = kept;
    let tell =
        |left: &Manifest| format!("{}, which the last run could not send to {run}, is dropped", folder(left.step));
    newer.iter().map(tell).collect()
}

fn is_local(url: &str) -> bool {
    Store::open(url).is_ok_and(|store| store.is_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(step: u64) -> Manifest {
        Manifest { format_version: 1, step, files: Vec::new() }
    }

    fn found(step: u64, place: Place) -> Found {
        Found { run: "s3://bucket/run/".to_owned(), step, place, warnings: Vec::new() }
    }

    #[test]
    fn only_the_past_that_goes_on_is_kept() {
        let stock =
            Stock { stored: vec![10, 20], leftovers: vec![manifest(30), manifest(40)], newest: Some(manifest(20)) };
        let steps = |stock: &Stock| stock.leftovers.iter().map(|left| left.step).collect::<Vec<_>>();
        let mut ours = stock.clone();
        assert!(forget_newer(&mut ours, Some(&found(40, Place::Spool)), "s3://bucket/run").is_empty());
        assert_eq!(steps(&ours), [30, 40]);
        let mut damaged = stock.clone();
        let told = forget_newer(&mut damaged, Some(&found(30, Place::Spool)), "s3://bucket/run");
        assert!(told.len() == 1 && told[0].starts_with("step-00000040,"), "{told:?}");
        assert_eq!(steps(&damaged), [30]);
        let mut fetched = stock.clone();
        forget_newer(&mut fetched, Some(&found(20, Place::Fetched)), "s3://bucket/run");
        assert!(fetched.leftovers.is_empty() && fetched.newest.is_none());
        let mut other = stock;
        forget_newer(&mut other, Some(&found(99, Place::Fetched)), "s3://bucket/another");
        assert!(other.leftovers.is_empty() && other.newest.is_some());
    }
}
