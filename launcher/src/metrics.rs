//! The metrics of the run.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::status::Status;

type Labels = Vec<(&'static str, String)>;
type FloatGauge = Gauge<f64, AtomicU64>;
type FloatCounter = Counter<f64, AtomicU64>;

/// Returns all metrics in the OpenMetrics text format. The registry adds `_total` to the names of counters.
pub(crate) fn metrics(status: &Status) -> String {
    let mut registry = Registry::with_prefix("arinar");
    add_gauges(&mut registry, status);
    add_families(&mut registry, status);
    add_ranks(&mut registry, status);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn add_gauges(registry: &mut Registry, status: &Status) {
    for (name, help, value) in [
        ("step", "Number of steps trained", status.step as f64),
        ("total_steps", "Number of steps of the whole run", status.total_steps as f64),
        ("saved_step", "Step of the newest checkpoint", status.saved_step as f64),
        ("train_loss", "Loss of the newest step", status.train_loss.unwrap_or(f64::NAN)),
        ("images_per_second", "Images per second over the most recent steps", status.images_per_second),
        ("step_seconds", "Mean wall-clock time of the most recent steps", status.step_seconds),
        ("eta_seconds", "Estimated time until the last step", status.eta_seconds),
        ("store_reachable", "1 while the remote store is reachable", f64::from(u8::from(status.store_reachable))),
        (
            "checkpoint_backlog_bytes",
            "Bytes of checkpoints that are not yet uploaded to the remote store",
            status.checkpoint_backlog_bytes as f64,
        ),
        ("attempt", "Number of this start of the job, from 1", f64::from(status.attempt)),
        ("goodput_ratio", "Share of the launcher's uptime in which ranks computed", status.goodput_ratio),
        ("ranks", "World size of this start", status.ranks as f64),
        ("full_ranks", "World size when all hosts are available", status.full_ranks as f64),
    ] {
        let gauge = FloatGauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

fn add_families(registry: &mut Registry, status: &Status) {
    let restarts = Family::<Labels, Counter>::default();
    for (reason, count) in &status.restarts {
        restarts.get_or_create(&vec![("reason", (*reason).to_owned())]).inc_by(*count);
    }
    registry.register("restarts", "Number of restarts by cause", restarts);
    // Not a counter, because lost work moves from one part to another.
    let time = Family::<Labels, FloatGauge>::default();
    for (part, seconds) in &status.time_seconds {
        time.get_or_create(&vec![("part", (*part).to_owned())]).set(*seconds);
    }
    registry.register("time_seconds", "Uptime of the launcher by part", time);
}

fn add_ranks(registry: &mut Registry, status: &Status) {
    let (steps, ages) = (Family::<Labels, FloatGauge>::default(), Family::<Labels, FloatGauge>::default());
    let (bytes, busy) = (Family::<Labels, FloatGauge>::default(), Family::<Labels, FloatCounter>::default());
    for rank in &status.per_rank {
        let labels = vec![("rank", rank.rank.to_string()), ("host", rank.host.clone())];
        steps.get_or_create(&labels).set(rank.step as f64);
        ages.get_or_create(&labels).set(rank.heartbeat_age_seconds);
        bytes.get_or_create(&labels).set(rank.resident_bytes as f64);
        busy.get_or_create(&labels).inc_by(rank.busy_seconds);
    }
    registry.register("rank_step", "Number of steps that the rank has trained", steps);
    registry.register("rank_heartbeat_age_seconds", "Time since the last heartbeat of the rank", ages);
    registry.register("rank_resident_bytes", "Resident memory of the rank", bytes);
    registry.register("rank_busy_seconds", "Time in which the rank computed or waited for data", busy);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use arinar_protocol::Beat;

    use super::*;
    use crate::{history::RunHistory, rank_message::RankMessage, ranks::Ranks};

    /// Returns the metrics after these heartbeats of rank 0.
    fn metrics_after(beats: &[Beat]) -> String {
        let (mut ranks, mut status) = (Ranks::new(2, Instant::now()), Status::default());
        for beat in beats {
            ranks.update(0, RankMessage::Beat(beat.clone()), Instant::now());
            RunHistory::new().update_status(&mut status, &ranks);
        }
        metrics(&status)
    }

    fn beat(step: u64, loss: Option<f64>, step_seconds: f64) -> Beat {
        Beat { step, total_steps: 9, loss, step_seconds, ..Beat::default() }
    }

    #[test]
    fn a_loss_that_is_not_finite_is_nan() {
        let good = beat(1, Some(2.5), 1.0);
        assert!(metrics_after(std::slice::from_ref(&good)).contains("arinar_train_loss 2.5\n"));
        assert!(metrics_after(&[good.clone(), beat(2, None, 1.0)]).contains("arinar_train_loss NaN\n"));
        // After a restart the old value is kept until the first step.
        assert!(metrics_after(&[good, beat(1, None, 0.0)]).contains("arinar_train_loss 2.5\n"));
    }

    #[test]
    fn an_unreachable_store_is_reported() {
        let text =
            metrics_after(&[Beat { store_unreachable: true, checkpoint_backlog_bytes: 7, ..beat(1, None, 1.0) }]);
        assert!(
            text.contains("arinar_store_reachable 0.0\n") && text.contains("arinar_checkpoint_backlog_bytes 7.0\n")
        );
        assert!(metrics_after(&[beat(1, None, 1.0)]).contains("arinar_store_reachable 1.0\n"));
    }
}
