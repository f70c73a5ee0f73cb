//! GET /status (JSON) and GET /metrics (Prometheus text).

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use axum::{Json, Router, extract, http::header, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::net::TcpListener;

use crate::{exit::Stop, status::Status};

/// The status that the page shows; the launcher replaces it.
pub type Shared = Arc<Mutex<Status>>;

type Labels = Vec<(&'static str, String)>;
type Number = Gauge<f64, AtomicU64>;
type Sum = Counter<f64, AtomicU64>;

/// Serves until the process ends.
///
/// # Errors
/// The address cannot be used.
pub async fn serve(address: SocketAddr, shared: Shared) -> Result<SocketAddr, Stop> {
    let unusable = |error| Stop::configuration(format!("--status-port {address}: {error}; choose another"));
    let listener = TcpListener::bind(address).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let pages = Router::new()
        .route("/status", get(|extract::State(shared): extract::State<Shared>| async move { Json(read(&shared)) }))
        .route(
            "/metrics",
            get(|extract::State(shared): extract::State<Shared>| async move { metrics_page(&read(&shared)) }),
        )
        .with_state(shared);
    tokio::spawn(async move { axum::serve(listener, pages).await });
    Ok(address)
}

// Nothing panics while it holds the lock.
fn read(shared: &Shared) -> Status {
    shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn metrics_page(status: &Status) -> impl IntoResponse + use<> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics(status))
}

/// All metrics. The registry adds `_total` to the names of counters.
pub fn metrics(status: &Status) -> String {
    let mut registry = Registry::with_prefix("arinar");
    for (name, help, value) in [
        ("step", "Steps trained", status.step as f64),
        ("total_steps", "Steps to train", status.total_steps as f64),
        ("saved_step", "Step of the newest checkpoint", status.saved_step as f64),
        ("train_loss", "Loss of the newest step", status.train_loss.unwrap_or(f64::NAN)),
        ("images_per_second", "Images trained per second of late", status.images_per_second),
        ("step_seconds", "Wall time of a step of late", status.step_seconds),
        ("eta_seconds", "Time until the last step", status.eta_seconds),
        (
            "store_reachable",
            "1 while the run's remote store can be reached",
            f64::from(u8::from(status.store_reachable)),
        ),
        (
            "checkpoint_backlog_bytes",
            "Bytes of checkpoints that still lack in the run's remote store",
            status.checkpoint_backlog_bytes as f64,
        ),
        ("attempt", "Which start of the job this is", f64::from(status.attempt)),
        ("goodput_ratio", "Share of the launcher's life in which ranks computed", status.goodput_ratio),
        ("ranks", "Ranks of this start", status.ranks as f64),
        ("full_ranks", "Ranks when all machines are there", status.full_ranks as f64),
    ] {
        let gauge = Number::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let restarts = Family::<Labels, Counter>::default();
    for (reason, count) in &status.restarts {
        restarts.get_or_create(&vec![("reason", (*reason).to_owned())]).inc_by(*count);
    }
    registry.register("restarts", "Restarts of the job", restarts);
    // No counter: work that is lost moves from one part to another.
    let time = Family::<Labels, Number>::default();
    for (part, seconds) in &status.time_seconds {
        time.get_or_create(&vec![("part", (*part).to_owned())]).set(*seconds);
    }
    registry.register("time_seconds", "Where the launcher's life went", time);
    add_ranks(&mut registry, status);
    let mut text = String::new();
    // A string takes all that is written to it.
    let _ = encode(&mut text, &registry);
    text
}

fn add_ranks(registry: &mut Registry, status: &Status) {
    let (steps, ages) = (Family::<Labels, Number>::default(), Family::<Labels, Number>::default());
    let (bytes, busy) = (Family::<Labels, Number>::default(), Family::<Labels, Sum>::default());
    for rank in &status.per_rank {
        let labels = vec![("rank", rank.rank.to_string()), ("host", rank.host.clone())];
        steps.get_or_create(&labels).set(rank.step as f64);
        ages.get_or_create(&labels).set(rank.heartbeat_age_seconds);
        bytes.get_or_create(&labels).set(rank.resident_bytes as f64);
        busy.get_or_create(&labels).inc_by(rank.busy_seconds);
    }
    registry.register("rank_step", "Steps that the rank trained", steps);
    registry.register("rank_heartbeat_age_seconds", "Time since the rank reported", ages);
    registry.register("rank_resident_bytes", "Physical memory that the rank holds", bytes);
    registry.register("rank_busy_seconds", "Time that the rank computed or waited for data", busy);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use arinar_protocol::Beat;

    use super::*;
    use crate::{ranks::Ranks, server::Word, status::Record};

    /// The page after these words of rank 0.
    fn page(beats: &[Beat]) -> String {
        let (mut ranks, mut status) = (Ranks::new(2, Instant::now()), Status::default());
        for beat in beats {
            ranks.hear(0, Word::Beat(beat.clone()), Instant::now());
            Record::new().fill(&mut status, &ranks);
        }
        metrics(&status)
    }

    fn beat(step: u64, loss: Option<f64>, step_seconds: f64) -> Beat {
        Beat { step, total_steps: 9, loss, step_seconds, ..Beat::default() }
    }

    #[test]
    fn a_loss_that_is_not_finite_is_seen() {
        let good = beat(1, Some(2.5), 1.0);
        assert!(page(std::slice::from_ref(&good)).contains("arinar_train_loss 2.5\n"));
        assert!(page(&[good.clone(), beat(2, None, 1.0)]).contains("arinar_train_loss NaN\n"));
        // After a restart it stays what it was until there is a step.
        assert!(page(&[good, beat(1, None, 0.0)]).contains("arinar_train_loss 2.5\n"));
    }

    #[test]
    fn a_store_out_of_reach_is_seen() {
        let told = page(&[Beat { store_unreachable: true, checkpoint_backlog_bytes: 7, ..beat(1, None, 1.0) }]);
        assert!(
            told.contains("arinar_store_reachable 0.0\n") && told.contains("arinar_checkpoint_backlog_bytes 7.0\n")
        );
        assert!(page(&[beat(1, None, 1.0)]).contains("arinar_store_reachable 1.0\n"));
    }
}
