//! From a command line to a finished run: everything that happens once.

use std::{path::Path, sync::Arc, time::Duration};

use arinar_model::{Precision, arinar::Arinar, weights};
use arinar_protocol::{Launcher, Seconds};
use tch::{Device, Tensor, nn};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    checkpoint::{self, DatasetFacts, FORMAT_VERSION, Found, Home, Place, RestoreInto, Retention, Role, Saver, State},
    config::{self, ConfigError, LogFormat, Resume, TrainConfig},
    ema::Ema,
    exit::{Preemption, Stop},
    import::{ImportInto, import},
    ledger::LedgerFile,
    log_copy::{COPY_EVERY, LogCopy},
    logs::Logs,
    optimizer::{AdamW, AdamWConfig},
    parameters::FlatParameters,
    progress::Progress,
    seeds,
    source::{BatchSource, Data, RankShare},
    step::Worker,
    train::{Plan, Training},
    vitals::Vitals,
};
use arinar_collective::{
    Collective, LaunchEnvironment, agree,
    cuda::{self, Gpu},
    machine::allocator,
    require_equal,
};

/// Names a file to which every rank appends "step sample epoch" of each sample it trains on; for
/// tests of the data order.
const SAMPLE_LOG: &str = "ARINAR_SAMPLE_LOG";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--config`.
    pub config: String,
    /// `--set`, in order.
    pub overrides: Vec<String>,
    /// `--log-format`, over the configuration's.
    pub log_format: Option<LogFormat>,
}

impl Options {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Anything wrong with it.
    pub fn load(&self) -> Result<TrainConfig, ConfigError> {
        let config = self.read()?;
        config.problems().into_iter().next().map_or(Ok(config), Err)
    }

    /// Reads the configuration; its values are not checked.
    ///
    /// # Errors
    /// What does not parse.
    pub fn read(&self) -> Result<TrainConfig, ConfigError> {
        let mut config = config::read(&self.config, &self.overrides)?;
        if let Some(format) = self.log_format {
            config.log.format = format;
        }
        Ok(config)
    }
}

/// The machine's side of a rank, and who watches it.
#[derive(Clone, Debug)]
pub struct Placement {
    /// What mpirun said; `None` without it.
    pub launch: Option<LaunchEnvironment>,
    /// What this rank computes on.
    pub device: Device,
    /// libtorch threads, unless configured.
    pub threads: usize,
    /// The launcher that started the job, if one did.
    pub launcher: Option<Launcher>,
    /// Signals from outside.
    pub preemption: Preemption,
    /// What the launcher is told.
    pub vitals: Arc<Vitals>,
}

impl Placement {
    pub(crate) fn role(&self, collective: &dyn Collective) -> Role {
        let (is_node_leader, local_world_size) =
            self.launch.as_ref().map_or((true, 1), |launch| (launch.local_rank == 0, launch.local_world_size));
        Role { rank: collective.rank(), world: collective.world_size(), is_node_leader, local_world_size }
    }

    /// Ranks of the job when all its machines are there.
    pub(crate) fn full_world(&self, world: usize) -> usize {
        self.launcher.as_ref().map_or(world, |launcher| launcher.full_world.max(world))
    }
}

/// Trains as configured. Every rank calls it with its own reading of the configuration.
///
/// `imported` names weights to begin a new run with. Where the run has a checkpoint to go on from, that is taken and
/// they are not read: a job that is started again with the same command line goes on.
///
/// # Errors
/// Why the run ends early; all ranks end together, one of them with the reason.
pub fn run(
    collective: &dyn Collective,
    placement: Placement,
    config: Result<TrainConfig, ConfigError>,
    imported: Option<&str>,
) -> Result<(), Stop> {
    let config = agree(collective, config.map_err(Stop::configuration).and_then(|config| one_start(config, imported)))?;
    require_equal(collective, &facts(&config)?)?;
    let full_world = placement.full_world(collective.world_size());
    let batch = config.share_batch(collective.world_size(), full_world).map_err(Stop::configuration);
    let batch = agree(collective, batch)?;
    let share = RankShare { rank: collective.rank(), world: collective.world_size(), batch };
    let data = agree(collective, Data::open(&config))?;
    require_equal(collective, &[("dataset", data.facts().id)])?;
    let threads = config.train.threads.unwrap_or(placement.threads);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
    let plan = Plan::new(&config, data.samples());
    let retention = Retention { keep_last: config.checkpoint.keep_last, keep_every_steps: plan.keep_every_steps };
    let mut home = Home::open(collective, &config, placement.role(collective), retention)?;
    let found = home.find()?;
    let mut model = Model::new(collective, &config, placement.device)?;
    let resumed = match &found {
        Some(found) => Some(home.restore(found, model.restore_into())?),
        None => None,
    };
    let weights = match imported {
        Some(url) if found.is_none() => Some(import(collective, url, &model.import_into())?),
        Some(url) => Some(format!("the run has begun already, so --import {url} is not read")),
        None => None,
    };
    let token = resumed.as_ref().map(|state| &state.token);
    let source = agree(collective, data.batches(&config, share, token))?;
    let sample_log = agree(collective, sample_log())?;
    let step = resumed.as_ref().map_or(0, |state| state.step);
    let run_is_local = home.store().is_local();
    let found = found.as_ref();
    let (device, collectives) = (placement.device, collective.describe());
    let intro =
        Intro { config: &config, data: &data, found, weights, plan, share, device, collectives, threads, run_is_local };
    let mut logs = agree(collective, start_logs(&intro, &model, step))?;
    if share.rank == 0 {
        let ledger = LedgerFile::new(Path::new(&config.run.log_dir), &config.run.dir);
        placement.vitals.ledger.carry_over(earlier(&ledger, &config, resumed.as_ref(), placement.launcher.as_ref()));
        logs.noted_by(ledger);
    }
    placement.vitals.plan(step, plan.total_steps, config.batch.global as u64);
    let beginning = Beginning { plan, share, source, sample_log, dataset: data.facts(), step };
    let mut training = assemble(collective, &config, placement, model, home.saver()?, logs, beginning);
    allocator::keep_freed_memory();
    let result = training.run();
    if let Err(stop @ Stop::Broken(_)) = &result {
        // The end in order waits for threads, and they for the network; peers within NCCL wait for the end.
        stop.end_at_once("arinar-trainer", share.rank);
    }
    if matches!(result, Ok(()) | Err(Stop::Preempted { .. })) {
        training.logs.summary(&training.vitals.ledger.read().run());
    }
    if result.is_ok() {
        training.logs.message(&format!("done: {} steps, checkpoints in {}", training.step, config.run.dir));
    }
    training.logs.finish();
    result
}

/// Where in its data and its plan a rank begins.
pub(crate) struct Beginning {
    pub plan: Plan,
    pub share: RankShare,
    pub source: Box<dyn BatchSource>,
    pub sample_log: Option<std::fs::File>,
    pub dataset: DatasetFacts,
    pub step: u64,
}

/// Everything that a rank trains with.
pub(crate) fn assemble<'a>(
    collective: &'a dyn Collective,
    config: &'a TrainConfig,
    placement: Placement,
    model: Model,
    saver: Saver,
    logs: Logs,
    beginning: Beginning,
) -> Training<'a> {
    let Beginning { plan, share, source, sample_log, dataset, step } = beginning;
    let state = new_state(config, dataset, share, source.as_ref());
    let worker = Worker {
        model: model.arinar,
        config: config.model.clone(),
        seed: config.seed,
        share,
        source,
        sample_log,
        vitals: Arc::clone(&placement.vitals),
    };
    Training {
        collective,
        config,
        parameters: model.parameters,
        optimizer: model.optimizer,
        ema: model.ema,
        worker,
        saver,
        logs,
        preemption: placement.preemption,
        grace: placement.launcher.map(|launcher| Duration::from_secs_f64(launcher.grace_secs)),
        worked: 0.0,
        vitals: placement.vitals,
        step,
        plan,
        state,
        buffers: model.buffers,
    }
}

/// Where the time of the run's earlier starts went.
fn earlier(ledger: &LedgerFile, config: &TrainConfig, resumed: Option<&State>, launcher: Option<&Launcher>) -> Seconds {
    match (resumed, &config.checkpoint.resume) {
        // Another run's time is not this one's.
        (_, Resume::From(_)) => Seconds::default(),
        (Some(state), _) => ledger.earlier(state.seconds),
        // Without a checkpoint only the launcher knows that there was an earlier start.
        (None, _) if launcher.is_some_and(|launcher| launcher.attempt > 1) => ledger.earlier(Seconds::default()),
        (None, _) => Seconds::default(),
    }
}

/// Weights come from one place.
fn one_start(config: TrainConfig, imported: Option<&str>) -> Result<TrainConfig, Stop> {
    match (&config.checkpoint.resume, imported) {
        (Resume::From(place), Some(url)) => Err(Stop::Configuration(format!(
            "--import {url} and checkpoint.resume {place} are two places to begin from; give one of them"
        ))),
        _ => Ok(config),
    }
}

/// What must be the same on every rank before anything starts.
pub(crate) fn facts(config: &TrainConfig) -> Result<[(&'static str, String); 2], Stop> {
    let text = serde_json::to_vec(config).map_err(Stop::failure)?;
    Ok([("program version", version()), ("configuration hash", format!("{:016x}", xxh3_64(&text)))])
}

pub(crate) fn version() -> String {
    format!("arinar-trainer {}", env!("CARGO_PKG_VERSION"))
}

/// Weights, gradients, moments and averages of a rank.
pub(crate) struct Model {
    arinar: Arinar,
    parameters: FlatParameters,
    optimizer: AdamW,
    ema: Ema,
    buffers: Vec<(String, Tensor)>,
    // Owns the variables; the model's handles and the flat views share them.
    _store: nn::VarStore,
}

impl Model {
    /// Initialised from the seed, on the CPU, so that every device begins with the same; then made equal on all ranks.
    pub(crate) fn new(collective: &dyn Collective, config: &TrainConfig, device: Device) -> Result<Self, Stop> {
        tch::manual_seed(seeds::initial_weights(config.seed));
        let mut store = nn::VarStore::new(Device::Cpu);
        let mut arinar = Arinar::new(&store.root(), &config.model);
        arinar.set_precision(config.precision);
        store.set_device(device);
        let (variables, buffers): (Vec<_>, Vec<_>) =
            weights::named(&store).into_iter().partition(|(_, tensor)| tensor.requires_grad());
        let parameters = FlatParameters::among(&variables, weights::decays, collective.world_size());
        let parameters = parameters.map_err(Stop::failure)?;
        let mut values = parameters.values().shallow_clone();
        collective.broadcast(&mut values, 0)?;
        let optim = &config.optim;
        let adamw = AdamWConfig { betas: optim.betas, eps: optim.eps, weight_decay: optim.weight_decay };
        // Each rank keeps the optimizer state and averages of its own part alone: at ARINAR-B's size
        // that is 2.5 GB less a rank.
        let part = parameters.parts(collective.world_size()).swap_remove(collective.rank());
        let ema = Ema::of_part(&parameters, &part, optim.ema);
        let optimizer = AdamW::of_part(&parameters, part, adamw);
        Ok(Self { arinar, parameters, optimizer, ema, buffers, _store: store })
    }

    fn restore_into(&mut self) -> RestoreInto<'_> {
        RestoreInto { parameters: &self.parameters, ema: &self.ema, optimizer: &mut self.optimizer }
    }

    fn import_into(&self) -> ImportInto<'_> {
        ImportInto { parameters: &self.parameters, ema: &self.ema, buffers: &self.buffers }
    }
}

fn sample_log() -> Result<Option<std::fs::File>, Stop> {
    let Some(path) = std::env::var_os(SAMPLE_LOG) else { return Ok(None) };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    file.map(Some).map_err(|error| Stop::Configuration(format!("{SAMPLE_LOG}={}: {error}", path.display())))
}

/// The state that checkpoints of this run start from.
fn new_state(config: &TrainConfig, dataset: DatasetFacts, share: RankShare, source: &dyn BatchSource) -> State {
    State {
        format_version: FORMAT_VERSION,
        program: version(),
        step: 0,
        optimizer_steps: 0,
        epoch: 0.0,
        token: source.position(),
        world: share.world,
        config: config.clone(),
        dataset,
        seconds: Seconds::default(),
    }
}

/// What there is to say before the first step.
struct Intro<'a> {
    config: &'a TrainConfig,
    data: &'a Data,
    found: Option<&'a Found>,
    weights: Option<String>,
    plan: Plan,
    share: RankShare,
    device: Device,
    /// The libraries of the collectives.
    collectives: String,
    threads: usize,
    run_is_local: bool,
}

fn start_logs(intro: &Intro<'_>, model: &Model, step: u64) -> Result<Logs, Stop> {
    if intro.share.rank != 0 {
        return Ok(Logs::silent());
    }
    let config = intro.config;
    let progress = Progress::start(&config.log, step, intro.plan.total_steps, config.batch.global as u64);
    for line in intro.lines(model.parameters.parameter_count(), step) {
        progress.message(&line);
    }
    let text = serde_saphyr::to_string(config).map_err(Stop::failure)?;
    let log_dir = Path::new(&config.run.log_dir);
    LedgerFile::check(log_dir).map_err(Stop::Configuration)?;
    let mut logs = Logs::start(progress, log_dir, step + 1, &text, config.batch.global).map_err(Stop::failure)?;
    if !intro.run_is_local {
        let copy = LogCopy::start(&config.run.dir, log_dir.to_path_buf(), COPY_EVERY);
        logs.copied_by(copy.map_err(Stop::failure)?);
    }
    Ok(logs)
}

impl Intro<'_> {
    fn lines(&self, parameters: usize, step: u64) -> Vec<String> {
        let config = self.config;
        let millions = parameters as f64 / 1e6;
        let (ranks, threads) = (self.share.world, self.threads);
        let mut lines = vec![format!(
            "{}: run {}, {millions:.1}M parameters, {ranks} rank(s) of {threads} thread(s)",
            version(),
            config.run.name
        )];
        lines.push(device_line(self.device, config.precision));
        lines.extend(slow_precision(self.device, config.precision));
        lines.push(format!("collectives: {}", self.collectives));
        lines.push(match self.data {
            Data::Encoded(dataset) => {
                format!("data: {} ({} samples)", dataset.store().url(), self.data.samples())
            }
            Data::Synthetic(samples) => {
                format!("data: synthetic noise, {samples} samples: nothing is learnt from it")
            }
        });
        let (micro, accumulation) = (self.share.batch.micro, self.share.batch.accumulation);
        lines.push(format!(
            "batch: {} = {ranks} rank(s) x {accumulation} micro-batch(es) of {micro}; {} steps in all",
            config.batch.global, self.plan.total_steps
        ));
        let warnings = self.found.map(|found| found.warnings.as_slice()).unwrap_or_default();
        lines.extend(warnings.iter().map(|warning| format!("warning: {warning}; an older one is used")));
        if let Some(found) = self.found {
            let spooled = if found.place == Place::Spool { " (its copy in the spool)" } else { "" };
            lines.push(format!("resuming from {}/{}{spooled}", found.run, checkpoint::folder(found.step)));
        }
        lines.extend(self.weights.clone());
        if step >= self.plan.total_steps {
            lines.push(format!("all {} steps are trained already", self.plan.total_steps));
        }
        lines
    }
}

fn device_line(device: Device, precision: Precision) -> String {
    let device = match device {
        Device::Cuda(ordinal) => {
            let (name, runtime, driver) = (gpu_name(ordinal), cuda::runtime_version(), cuda::driver_version());
            let version = |version: Option<String>| version.unwrap_or_else(|| "unknown".to_owned());
            format!("device: GPU {ordinal}{name}, CUDA {}, driver's {}", version(runtime), version(driver))
        }
        _ => "device: CPU".to_owned(),
    };
    format!("{device}, precision {}", precision.name())
}

fn slow_precision(device: Device, precision: Precision) -> Option<String> {
    (!precision.is_native(device)).then(|| {
        let name = precision.name();
        format!("warning: this processor has no instructions for {name}: --set precision=fp32 is faster on it")
    })
}

fn gpu_name(ordinal: usize) -> String {
    Gpu::open(ordinal).and_then(|gpu| gpu.name()).map_or_else(|_| String::new(), |name| format!(" ({name})"))
}
