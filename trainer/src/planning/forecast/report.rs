//! The text output of `--plan`.

use std::time::Duration;

use arinar_model::precision::Precision;
use indicatif::DecimalBytes;

use super::{
    figures::{Forecast, MeasuredFigures, ModelFigures},
    memory::MEMORY_TOLERANCE,
    processor::Processor,
    rehearsal::Rehearsal,
};

/// Width of the column with the names.
const NAME_WIDTH: usize = 22;

impl Forecast {
    /// Returns the text of all figures that need no rehearsal.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!("plan of run {}: {}", self.run, self.layout())];
        lines.extend(self.model.lines(self.length.global_batch));
        lines.extend(self.length_lines());
        lines.extend(self.memory_lines());
        lines.extend(self.store_lines());
        lines.extend(self.gpu_lines());
        lines.join("\n")
    }

    /// Returns the text of the figures that follow from the rehearsal.
    pub(crate) fn rehearsal_text(&self) -> String {
        self.measured_lines().join("\n")
    }

    fn layout(&self) -> String {
        let (ranks, machines, threads) = (self.ranks, self.machines, self.threads);
        format!("{ranks} rank(s) of {threads} thread(s) on {machines} machine(s), {}", precision(self.precision))
    }

    fn length_lines(&self) -> Vec<String> {
        let length = &self.length;
        let batch = format!(
            "{} = {} rank(s) x {} micro-batch(es) of {}",
            length.global_batch, self.ranks, length.accumulation, length.micro_batch
        );
        vec![
            heading("Run"),
            row("samples", &format!("{} per epoch, {:.1} steps", grouped(length.samples), length.steps_per_epoch)),
            row("batch", &batch),
            row("steps", &format!("{} in total, {:.1} epochs", grouped(length.steps), length.epochs)),
        ]
    }

    fn memory_lines(&self) -> Vec<String> {
        let memory = &self.memory_per_rank;
        let accuracy = match self.processor {
            Processor::Cpu => format!("accurate to about {:.0}%", 100.0 * MEMORY_TOLERANCE),
            Processor::Gpu => "not calibrated on GPUs".to_owned(),
        };
        let mut lines = vec![heading(&format!("Memory per rank (estimate, {accuracy})"))];
        let parts = memory.parts().into_iter().filter(|&(_, bytes)| bytes > 0);
        lines.extend(parts.map(|(name, bytes)| row(name, &size(bytes))));
        let all = self.ranks as u64 * memory.total();
        lines.push(row("total", &format!("{}; {} for all ranks", size(memory.total()), size(all))));
        if self.processor == Processor::Gpu {
            let (on_gpu, on_host) = (size(memory.on_gpu()), size(memory.on_host()));
            lines.push(row("of which", &format!("{on_gpu} of GPU memory, {on_host} of host memory")));
        }
        lines
    }

    fn store_lines(&self) -> Vec<String> {
        let mut lines = vec![heading("Stores"), row("one checkpoint", &size(self.checkpoint_bytes))];
        lines.push(match &self.egress {
            None => row("dataset", "synthetic: nothing is downloaded"),
            Some(egress) if egress.total == 0 => {
                row("dataset", &format!("{}, read in place: nothing is downloaded", size(egress.dataset_bytes)))
            }
            Some(egress) => {
                let (first, later, total) = (size(egress.first_epoch), size(egress.later_epochs), size(egress.total));
                let dataset = size(egress.dataset_bytes);
                let downloads = format!(
                    "{first} in the first epoch, {later} in each later one, {total} in total ({dataset} dataset)"
                );
                row("downloads", &downloads)
            }
        });
        lines
    }

    fn measured_lines(&self) -> Vec<String> {
        let mut lines = vec![heading("On this machine (measured)")];
        let (Some(rehearsal), Some(measured)) = (&self.rehearsal, &self.measured) else {
            let reason = self.not_rehearsed.as_deref().unwrap_or("not run yet");
            lines.push(row("rehearsal", &format!("none: {reason}")));
            return lines;
        };
        lines.extend(rehearsal.lines());
        lines.extend(measured.lines());
        let left_out = self.eta_leaves_out.iter().enumerate();
        lines.extend(left_out.map(|(index, what)| row(if index == 0 { "not included" } else { "" }, what)));
        lines
    }

    fn gpu_lines(&self) -> Vec<String> {
        let share = 100.0 * self.gpu_utilisation;
        let precision = match self.precision {
            Precision::Bf16 => "dense bf16",
            Precision::Fp32 => "fp32",
        };
        let mut lines = vec![
            heading(&format!("On {} GPU(s) (estimates from data sheets; docs/gpu.md has measurements)", self.ranks)),
            format!("  at {share:.0}% of the peak rate of {precision}, as in the paper's 8 days on 4 A100"),
            format!("  {:<NAME_WIDTH$}{:>12}{:>20}{:>16}  {}", "GPU", "images/s", "all steps", "checkpoints", "memory"),
        ];
        lines.extend(self.gpus.iter().map(|gpu| {
            let fits = if gpu.fits { "fits" } else { "too small; lower batch.micro" };
            let (pace, time, written) = (gpu.images_per_second, duration(gpu.seconds), size(gpu.checkpoint_bytes));
            format!("  {:<NAME_WIDTH$}{pace:>12.0}{time:>20}{written:>16}  {fits}", gpu.gpu)
        }));
        lines
    }
}

impl MeasuredFigures {
    fn lines(&self) -> Vec<String> {
        let (checkpoints, eta) = (&self.checkpoints, &self.eta);
        let (pace, giga) = (self.images_per_second, self.flops_per_second / 1e9);
        let (saved, kept) = (grouped(checkpoints.saved), checkpoints.kept);
        let (peak, written) = (size(checkpoints.peak_bytes), size(checkpoints.written_bytes));
        let copying = duration(eta.checkpoints);
        vec![
            row("pace", &format!("{pace:.3} images/s on all ranks, {giga:.1} GFLOP/s")),
            row("checkpoints", &format!("{saved} saved at this pace, {kept} kept; at most {peak} at once")),
            row("checkpoint writes", &format!("{written} in total; {copying} if none of it overlaps with training")),
            row("all steps", &duration(eta.steps)),
            row("ETA", &format!("{} including checkpoints", duration(eta.total()))),
        ]
    }
}

impl ModelFigures {
    fn lines(&self, global_batch: usize) -> Vec<String> {
        let (outer, head) = (self.outer_parameters as u64, self.head_parameters as u64);
        let flops = &self.training_flops;
        let giga = |count: f64| format!("{:.3} G", count / 1e9);
        vec![
            heading("Model"),
            row("parameters", &format!("{}: outer {}, head {}", grouped(outer + head), grouped(outer), grouped(head))),
            row("masked tokens", &format!("{:.1} of {} on average", self.masked_tokens, self.tokens)),
            row(
                "FLOPs per image",
                &format!(
                    "{} forward and backward: encoder {}, decoder {}, head {}",
                    giga(flops.total()),
                    giga(flops.encoder),
                    giga(flops.decoder),
                    giga(flops.head)
                ),
            ),
            row("FLOPs per step", &format!("{} ({global_batch} images)", giga(self.step_flops))),
        ]
    }
}

impl Rehearsal {
    fn lines(&self) -> Vec<String> {
        let times = &self.step_times;
        let (median, min, max) = (times.median, times.min, times.max);
        let mut lines =
            vec![row("rehearsal", &format!("{median:.3} s per step ({min:.3} to {max:.3}) over {} steps", self.steps))];
        if self.images_per_rank != self.images_per_rank_in_run {
            let (rehearsed, run, seconds) = (self.images_per_rank, self.images_per_rank_in_run, self.step_seconds);
            // From a single image, the fixed costs of a step are counted once per image.
            let bound = if rehearsed > 1 { "extrapolated" } else { "at most" };
            let text =
                format!("with {rehearsed} of {run} images per rank to save time; a full step: {seconds:.3} s, {bound}");
            lines.push(row("", &text));
        }
        let (used, estimated) = (size(self.resident_bytes), size(self.estimated_bytes));
        if self.resident_bytes > 0 {
            lines.push(row("memory used", &format!("at most {used} per rank (estimated: {estimated})")));
        }
        lines
    }
}

fn heading(text: &str) -> String {
    format!("\n{text}")
}

fn row(name: &str, text: &str) -> String {
    format!("  {name:<NAME_WIDTH$}{text}")
}

fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Bf16 => "bf16",
    }
}

fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// Formats a duration, for example "45s", "3h 12m" or "8.1 days". Days are the largest unit.
fn duration(seconds: f64) -> String {
    let unit = match seconds {
        172_800.0.. => return format!("{:.1} days", seconds / 86_400.0),
        600.0.. => 60_u32,
        _ => 1,
    };
    let whole = (seconds.max(0.0) / f64::from(unit)).round() as u64 * u64::from(unit);
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// Formats a number with commas between thousands.
fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_precision_that_fits_their_length() {
        assert_eq!(duration(42.4), "42s");
        assert_eq!(duration(4000.0), "1h 7m");
        assert_eq!(duration(8.0 * 86_400.0 + 100.0), "8.0 days");
        assert_eq!(duration(1e12), "11574074.1 days");
        assert_eq!(duration(-1.0), "0s");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(212_949_516), "212,949,516");
    }
}
