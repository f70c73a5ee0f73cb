//! The forecast for people.

use std::time::Duration;

use arinar_model::precision::Precision;
use indicatif::DecimalBytes;

use super::{EXACTNESS, Forecast, Here, ModelFigures, Processor, Rehearsal};

/// Width of the names at the left.
const NAME: usize = 22;

impl Forecast {
    /// Lines of names and what is known of them, under headings: all that needs no rehearsal.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("plan of run {}: {}", self.run, self.placed())];
        lines.extend(self.model.lines(self.length.global_batch));
        lines.extend(self.length_lines());
        lines.extend(self.memory_lines());
        lines.extend(self.store_lines());
        lines.extend(self.gpu_lines());
        lines.join("\n")
    }

    /// The rest.
    pub fn measured_text(&self) -> String {
        self.here_lines().join("\n")
    }

    fn placed(&self) -> String {
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
            row("samples", &format!("{} an epoch, {:.1} steps", grouped(length.samples), length.steps_per_epoch)),
            row("batch", &batch),
            row("steps", &format!("{} in all, {:.1} epochs", grouped(length.steps), length.epochs)),
        ]
    }

    fn memory_lines(&self) -> Vec<String> {
        let memory = &self.memory_per_rank;
        let exact = match self.processor {
            Processor::Cpu => format!("exact to about {:.0}%", 100.0 * EXACTNESS),
            Processor::Gpu => "no GPU has run this".to_owned(),
        };
        let mut lines = vec![heading(&format!("Memory of a rank (estimate, {exact})"))];
        let parts = memory.parts().into_iter().filter(|&(_, bytes)| bytes > 0);
        lines.extend(parts.map(|(name, bytes)| row(name, &size(bytes))));
        let all = self.ranks as u64 * memory.total();
        lines.push(row("together", &format!("{}; {} for all ranks", size(memory.total()), size(all))));
        if self.processor == Processor::Gpu {
            let (on_gpu, beside) = (size(memory.on_gpu()), size(memory.beside_gpu()));
            lines.push(row("of it", &format!("{on_gpu} on its GPU, {beside} of the machine's own memory")));
        }
        lines
    }

    fn store_lines(&self) -> Vec<String> {
        let mut lines = vec![heading("Stores"), row("a checkpoint", &size(self.checkpoint_bytes))];
        lines.push(match &self.egress {
            None => row("dataset", "synthetic, nothing is fetched"),
            Some(egress) if egress.total == 0 => {
                row("dataset", &format!("{}, read where it lies: nothing is fetched", size(egress.dataset_bytes)))
            }
            Some(egress) => {
                let (first, later, total) = (size(egress.first_epoch), size(egress.later_epochs), size(egress.total));
                let of = size(egress.dataset_bytes);
                row(
                    "fetched",
                    &format!("{first} in the first epoch, {later} in each other, {total} in all ({of} dataset)"),
                )
            }
        });
        lines
    }

    fn here_lines(&self) -> Vec<String> {
        let mut lines = vec![heading("On this machine (measured)")];
        let (Some(rehearsal), Some(here)) = (&self.rehearsal, &self.here) else {
            let why = self.not_rehearsed.as_deref().unwrap_or("not yet");
            lines.push(row("rehearsal", &format!("none: {why}")));
            return lines;
        };
        lines.extend(rehearsal.lines());
        let (pace, giga) = (here.images_per_second, here.flops_per_second / 1e9);
        lines.push(row("pace", &format!("{pace:.3} images/s on all ranks, {giga:.1} GFLOP/s")));
        lines.extend(here.lines());
        let left_out = self.eta_leaves_out.iter().enumerate();
        lines.extend(left_out.map(|(index, what)| row(if index == 0 { "not in it" } else { "" }, what)));
        lines
    }

    fn gpu_lines(&self) -> Vec<String> {
        let share = 100.0 * self.gpu_utilisation;
        let what = match self.precision {
            Precision::Bf16 => "dense bf16",
            Precision::Fp32 => "fp32",
        };
        let mut lines = vec![
            heading(&format!("On {} GPU(s): an estimate; no GPU has run this", self.ranks)),
            format!(
                "  {share:.0}% of the peak rate of {what} in the data sheets is assumed: what the paper's 8 days on 4 A100 come to"
            ),
            format!("  {:<NAME$}{:>12}{:>20}{:>16}  {}", "GPU", "images/s", "steps take", "checkpoints", "memory"),
        ];
        lines.extend(self.gpus.iter().map(|gpu| {
            let fits = if gpu.fits { "fits" } else { "too small; set batch.micro" };
            let (pace, time, written) = (gpu.images_per_second, duration(gpu.seconds), size(gpu.checkpoint_bytes));
            format!("  {:<NAME$}{pace:>12.0}{time:>20}{written:>16}  {fits}", gpu.gpu)
        }));
        lines
    }
}

impl Here {
    fn lines(&self) -> Vec<String> {
        let (checkpoints, eta) = (&self.checkpoints, &self.eta);
        let (saved, kept) = (grouped(checkpoints.saved), checkpoints.kept);
        let (most, written) = (size(checkpoints.most_bytes), size(checkpoints.written_bytes));
        let slow = duration(eta.checkpoints);
        vec![
            row("checkpoints", &format!("{saved} saved at this pace, {kept} kept; {most} at most there")),
            row("written by them", &format!("{written}; {slow} at most, if nothing goes on beside them")),
            row("all steps", &duration(eta.steps)),
            row("ETA", &format!("{} with all checkpoints", duration(eta.total()))),
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
                "FLOPs of an image",
                &format!(
                    "{} forward and backward: encoder {}, decoder {}, head {}",
                    giga(flops.total()),
                    giga(flops.encoder),
                    giga(flops.decoder),
                    giga(flops.head)
                ),
            ),
            row("FLOPs of a step", &format!("{} ({global_batch} images)", giga(self.step_flops))),
        ]
    }
}

impl Rehearsal {
    fn lines(&self) -> Vec<String> {
        let pace = &self.pace;
        let times =
            format!("{:.3} s a step ({:.3} to {:.3}) over {} steps", pace.median, pace.least, pace.most, self.steps);
        let whole = self.images_per_rank == self.images_per_rank_in_run;
        let mut lines = vec![row("rehearsal", &times)];
        if !whole {
            let (rehearsed, run, seconds) = (self.images_per_rank, self.images_per_rank_in_run, self.step_seconds);
            // From one picture alone the costs of a step count for each.
            let how = if rehearsed > 1 { "extrapolated" } else { "at most" };
            let extrapolated =
                format!("with {rehearsed} of {run} images a rank, to save time; a whole step: {seconds:.3} s, {how}");
            lines.push(row("", &extrapolated));
        }
        let (held, estimated) = (size(self.resident_bytes), size(self.estimated_bytes));
        if self.resident_bytes > 0 {
            lines.push(row("memory in it", &format!("{held} a rank at most; the estimate for it is {estimated}")));
        }
        lines
    }
}

fn heading(text: &str) -> String {
    format!("\n{text}")
}

fn row(name: &str, text: &str) -> String {
    format!("  {name:<NAME$}{text}")
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

/// "45s", "3h 12m", "8.1 days": months are of no use to whoever rents by the day.
fn duration(seconds: f64) -> String {
    let unit = match seconds {
        172_800.0.. => return format!("{:.1} days", seconds / 86_400.0),
        600.0.. => 60_u32,
        _ => 1,
    };
    let whole = (seconds.max(0.0) / f64::from(unit)).round() as u64 * u64::from(unit);
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_say_no_more_than_is_known() {
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
