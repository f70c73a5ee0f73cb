//! The run that writes a dataset, on all ranks.

use super::agree::agree;
use super::encoder::RecordEncoder;
use super::error::EncodeError;
use super::job::Job;
use crate::progress::Progress;
use crate::reporter::Reporter;
use arinar_collective::WorkGroup;
use arinar_store::lease::Lease;

/// Writes a dataset. Returns a summary on rank 0, and an empty string on the other ranks.
///
/// # Errors
/// If any rank fails, every rank returns an error. The error of rank 0 describes all failures; that of the other ranks,
/// [`EncodeError::Ranks`], has an empty message.
pub(crate) fn write_dataset<E: RecordEncoder>(
    prepared: Result<Job<E>, EncodeError>,
    ranks: &WorkGroup,
    reporter: &Reporter,
) -> Result<String, EncodeError> {
    let identities: Vec<String> = agree(ranks, prepared.as_ref().map(|job| job.plan.encode_id.clone()), |_| ())?;
    if identities.iter().any(|identity| *identity != identities[0]) {
        return Err(EncodeError::Ranks {
            message: "the ranks see different pictures or VAE weights; give all machines the same files".to_owned(),
            configuration: true,
        });
    }
    let mut job = prepared?;
    let lease = if ranks.rank() == 0 { lease(&mut job, reporter).map(Some) } else { Ok(None) };
    agree(ranks, lease.as_ref().map(|_| ()), |_| ())?;
    let lease = lease?;
    if lease.is_some() {
        reporter.print(&format!("writing the dataset to {}", job.store.url()));
    }
    let mut progress = Progress::start(reporter, "pictures", job.encoder.pictures().len() as u64);
    let share = job.write_share(ranks, &mut progress);
    let shares = agree(ranks, share.as_ref(), |reported| progress.advance(reported))?;
    let finished = match &lease {
        Some(lease) => job.finish(shares, &progress, lease),
        None => Ok(String::new()),
    };
    agree(ranks, finished.as_ref().map(|_| ()), |_| ())?;
    finished
}

/// Acquires the lease on rank 0, and deletes the earlier dataset if it is to be overwritten.
fn lease<E: RecordEncoder>(job: &mut Job<E>, reporter: &Reporter) -> Result<Lease, EncodeError> {
    let lease = job.lease(reporter)?;
    if job.settings.overwrite {
        for url in job.remove_earlier()? {
            reporter.warn(&format!("{url} is not a shard of this program and was kept"));
        }
    }
    Ok(lease)
}
