//! Ending the process on a panic.

use std::sync::Arc;

use arinar_data::Reporter;
use arinar_model::text::one_line;
use arinar_protocol::{Beat, Farewell, exit_code};

use crate::{
    heartbeat,
    oom_guard::{expects_oom, is_out_of_memory},
    process_exit::exit_now,
    vitals::Vitals,
};

/// Makes a panic end the process at once with a message in one line, because a rank that unwinds would wait in MPI for the
/// other ranks, and they for it. Errors that libtorch can report only as a panic, above all exhausted memory, are reported
/// this way, too.
pub fn install(rank: usize, vitals: Arc<Vitals>) {
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        if expects_oom(message) {
            return;
        }
        let location = panic.location().map(ToString::to_string);
        let reason = reason(rank, &vitals.beat(), message, location.as_deref());
        Reporter::console().note(&format!("arinar-trainer: error: {reason}"));
        heartbeat::farewell(Farewell::new(exit_code::FAILED, Some(reason)));
        exit_now(exit_code::FAILED);
    }));
}

/// Describes a panic in one line. The first line of a message of libtorch is the error itself; most of the rest are
/// addresses.
fn reason(rank: usize, beat: &Beat, message: &str, location: Option<&str>) -> String {
    let (step, phase) = (beat.step + 1, beat.phase.name().replace('_', " "));
    let context = format!("rank {rank} in step {step} ({phase})");
    if is_out_of_memory(message) {
        let held = indicatif::DecimalBytes(beat.resident_bytes);
        return format!(
            "{context} is out of memory while it holds {held}; lower batch.micro (the global batch stays, micro-batches \
             are accumulated), or start fewer ranks on this machine"
        );
    }
    let message = one_line(message.lines().next().unwrap_or(message));
    let location = location.unwrap_or("?");
    format!("{context} ended unexpectedly at {location}: {message}; this is a bug: please report it")
}
