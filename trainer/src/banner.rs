//! The lines that a run prints before its first step.

use arinar_checkpoint::{FoundCheckpoint, Location, step_folder_name};
use arinar_collective::cuda::{self, Gpu};
use arinar_model::Precision;
use tch::Device;

use crate::{
    batch_source::{Data, RankShare},
    config::{TrainConfig, places::absolute},
    run_length::RunLength,
    version::version,
};

/// The facts to print.
pub(crate) struct Banner<'a> {
    pub config: &'a TrainConfig,
    pub device: Device,
    /// Libraries of the collectives.
    pub collectives: String,
    pub data: &'a Data,
    pub share: RankShare,
    pub threads: usize,
    /// Number of trainable scalars.
    pub parameters: usize,
    pub length: RunLength,
    /// The step at which the run starts.
    pub step: u64,
    pub found: Option<&'a FoundCheckpoint>,
    /// A message about imported weights.
    pub imported: Option<&'a str>,
}

impl Banner<'_> {
    pub(crate) fn lines(&self) -> Vec<String> {
        let config = self.config;
        let mut lines = vec![self.run_line(), device_line(self.device, config.precision)];
        lines.extend(slow_precision_warning(self.device, config.precision));
        lines.push(format!("collectives: {}", self.collectives));
        lines.extend(config.run.lease_warning().map(|warning| format!("warning: {warning}")));
        lines.push(format!("run folder: {}", absolute(&config.run.dir)));
        lines.push(format!("log folder: {}", absolute(&config.run.log_dir)));
        lines.push(self.data_line());
        lines.push(self.batch_line());
        lines.extend(self.resume_lines());
        lines.extend(self.imported.map(str::to_owned));
        if self.step >= self.length.total_steps {
            lines.push(format!("all {} steps are trained already", self.length.total_steps));
        }
        lines
    }

    fn run_line(&self) -> String {
        let millions = self.parameters as f64 / 1e6;
        let (name, ranks, threads) = (&self.config.run.name, self.share.world, self.threads);
        format!("{}: run {name}, {millions:.1}M parameters, {ranks} rank(s) of {threads} thread(s)", version())
    }

    fn data_line(&self) -> String {
        let samples = self.data.samples();
        match self.data {
            Data::Encoded(dataset) => {
                let cache = dataset.cache_folder().map(|folder| format!(", cached in {}", folder.display()));
                format!("data: {} ({samples} samples{})", dataset.store().url(), cache.unwrap_or_default())
            }
            Data::Synthetic(_) => format!("data: synthetic noise, {samples} samples: the model learns nothing from it"),
        }
    }

    fn batch_line(&self) -> String {
        let (global, ranks, steps) = (self.config.batch.global, self.share.world, self.length.total_steps);
        let (micro, accumulation) = (self.share.batch.micro, self.share.batch.accumulation);
        format!("batch: {global} = {ranks} rank(s) x {accumulation} micro-batch(es) of {micro}; {steps} steps in all")
    }

    fn resume_lines(&self) -> Vec<String> {
        let Some(found) = self.found else { return Vec::new() };
        let warnings = found.warnings.iter();
        let mut lines: Vec<String> =
            warnings.map(|warning| format!("warning: {warning}; an older one is used")).collect();
        let spooled = if found.location == Location::Spool { " (its copy in the spool)" } else { "" };
        let unread = found.unread.iter();
        lines.extend(
            unread.map(|place| format!("the run has already started, so checkpoint.resume {place} is not read")),
        );
        lines.push(format!("resuming from {}/{}{spooled}", found.run, step_folder_name(found.step)));
        lines
    }
}

fn device_line(device: Device, precision: Precision) -> String {
    let device = match device {
        Device::Cuda(ordinal) => {
            let version = |version: Option<String>| version.unwrap_or_else(|| "unknown".to_owned());
            let (runtime, driver) = (version(cuda::runtime_version()), version(cuda::driver_version()));
            format!("device: GPU {ordinal}{}, CUDA {runtime}, driver's {driver}", gpu_name(ordinal))
        }
        _ => "device: CPU".to_owned(),
    };
    format!("{device}, precision {}", precision.name())
}

fn slow_precision_warning(device: Device, precision: Precision) -> Option<String> {
    (!precision.is_native(device)).then(|| {
        let name = precision.name();
        format!("warning: this processor has no instructions for {name}: --set precision=fp32 is faster on it")
    })
}

fn gpu_name(ordinal: usize) -> String {
    Gpu::open(ordinal).and_then(|gpu| gpu.name()).map_or_else(|_| String::new(), |name| format!(" ({name})"))
}
