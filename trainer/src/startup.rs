//! Start-up of a training run: everything that happens once before the first step.

use std::path::Path;

use arinar_checkpoint::{
    CheckpointManager, CheckpointOptions, CheckpointState, DatasetInfo, FORMAT_VERSION, FoundCheckpoint, ModelIdentity,
    Resume, Retention,
};
use arinar_collective::{agree, machine::allocator, require_equal};
use arinar_data::{DataError, Reporter, read::BatchSource};
use arinar_model::arinar::Arinar;
use arinar_place::{Place, of_option};
use arinar_protocol::Seconds;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    banner::Banner,
    batch_source::{Data, RankShare},
    config::{BatchShare, ConfigError, LeaseMode, TrainConfig},
    folders,
    import::{ImportInto, import},
    logs::{EventUpload, Logs, TrainingProgress, UPLOAD_INTERVAL, newest_event_file},
    model_state::ModelState,
    preemption::Preemption,
    rank_context::RankContext,
    run_length::RunLength,
    sample_log,
    step::Worker,
    stop::Stop,
    time_accounting::TimeFile,
    train::Training,
    version::version,
};

/// Keys of the model configuration that may change between the starts of a run, because they do not change the model.
const VARIABLE_MODEL_KEYS: &[&str] = &["model.outer.dropout", "model.outer.label_drop", "model.outer.mask_ratio_min"];

/// Returns the values that must be the same on all ranks.
pub(crate) fn shared_facts(config: &TrainConfig) -> Result<[(&'static str, String); 2], Stop> {
    let text = serde_json::to_vec(config).map_err(Stop::failure)?;
    Ok([("program version", version()), ("configuration hash", format!("{:016x}", xxh3_64(&text)))])
}

/// Returns the options of a run's checkpoints.
pub(crate) fn checkpoint_options(config: &TrainConfig, keep_every_steps: Option<u64>) -> CheckpointOptions {
    let checkpoint = &config.checkpoint;
    CheckpointOptions {
        run_url: config.run.dir.clone(),
        exclusive: config.run.lease == LeaseMode::Auto,
        run_name: config.run.name.clone(),
        resume: checkpoint.resume.clone(),
        retention: Retention { keep_last: checkpoint.keep_last, keep_every_steps },
        spool_dir: checkpoint.spool_dir.clone(),
        spool_limit: checkpoint.spool_limit.map(|limit| limit.0),
        upload_rate: checkpoint.upload_rate.map(|rate| rate.0),
        model: ModelIdentity {
            config: serde_json::to_value(&config.model).unwrap_or_default(),
            variable_keys: VARIABLE_MODEL_KEYS,
        },
    }
}

/// Lets all ranks agree on the configuration. `config` is the result of reading it on this rank.
///
/// # Errors
/// Returns an error on all ranks if the configuration is invalid on some rank or differs between ranks.
pub fn agree_on_config(
    context: &RankContext<'_>,
    config: Result<TrainConfig, ConfigError>,
) -> Result<TrainConfig, Stop> {
    let config = agree(context.collective, config.map_err(Stop::configuration))?;
    require_equal(context.collective, &shared_facts(&config)?)?;
    Ok(config)
}

/// The components of a [`Training`] that differ between a run and a rehearsal.
struct Components<'a> {
    model: Arinar,
    state: ModelState,
    source: Box<dyn BatchSource>,
    dataset: DatasetInfo,
    checkpoints: CheckpointManager<'a>,
    logs: Logs,
    length: RunLength,
    /// Steps trained.
    step: u64,
    /// Consecutive steps that were skipped up to it.
    skipped: u64,
}

/// Builds the training of one rank. All ranks make the same calls together.
pub struct Startup<'a> {
    context: RankContext<'a>,
    config: &'a TrainConfig,
    share: RankShare,
    threads: usize,
}

impl<'a> Startup<'a> {
    /// Starts building a training run with this configuration.
    ///
    /// # Errors
    /// Returns an error on all ranks if the ranks cannot share the global batch.
    pub fn new(context: RankContext<'a>, config: &'a TrainConfig) -> Result<Self, Stop> {
        let collective = context.collective;
        let batch = config.share_batch(collective.world_size(), context.full_world_size());
        let batch = agree(collective, batch.map_err(Stop::configuration))?;
        Ok(Self::with_batch(context, config, batch))
    }

    /// Starts building a rehearsal: a training on synthetic data that is neither logged nor saved.
    pub(crate) fn rehearsal(context: RankContext<'a>, config: &'a TrainConfig, batch: BatchShare) -> Self {
        let context = RankContext { preemption: Preemption::default(), ..context };
        Self::with_batch(context, config, batch)
    }

    fn with_batch(context: RankContext<'a>, config: &'a TrainConfig, batch: BatchShare) -> Self {
        let share = RankShare { rank: context.collective.rank(), world: context.collective.world_size(), batch };
        let threads = config.train.threads.unwrap_or(context.threads);
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        Self { context, config, share, threads }
    }

    /// Opens the dataset and the folder of the run, creates the model, and restores the checkpoint to resume from.
    ///
    /// `imported` is the URL of weights to start a new run with. If the run has a checkpoint to resume from, they are not
    /// read, so that a job that is started again with the same command line resumes.
    ///
    /// # Errors
    /// Returns an error on all ranks if any of this fails.
    pub fn training(self, imported: Option<&str>) -> Result<Training<'a>, Stop> {
        let (collective, config) = (self.context.collective, self.config);
        agree(collective, check_single_origin(config, imported))?;
        agree(collective, folders::check_all(config, self.context.launch))?;
        let data = agree(collective, Data::open(config))?;
        require_equal(collective, &[("dataset", data.info().id)])?;
        let length = RunLength::new(config, data.samples());
        let mut checkpoints = self.open_checkpoints(&length)?;
        let found = checkpoints.find()?;
        let (model, mut state) = ModelState::new(collective, config, self.context.device)?;
        let resumed = self.restore(&checkpoints, found.as_ref(), &mut state)?;
        let imported = self.import(imported, found.is_some(), &state)?;
        let token = resumed.as_ref().map(|state| &state.token);
        let source = agree(collective, data.batches(config, self.share, token))?;
        let (step, skipped) = resumed.as_ref().map_or((0, 0), |state| (state.step, state.skipped_steps));
        let banner = Banner {
            config,
            device: self.context.device,
            collectives: collective.describe(),
            data: &data,
            share: self.share,
            threads: self.threads,
            parameters: state.parameters.parameter_count(),
            length,
            step,
            found: found.as_ref(),
            imported: imported.as_deref(),
        };
        let logs = agree(collective, self.start_logs(&banner, checkpoints.is_remote()))?;
        // The time of another run, which this one begins from, is not counted.
        let own = resumed.as_ref().filter(|_| found.as_ref().is_some_and(|found| found.is_own));
        let logs = self.resume_time_accounting(logs, own);
        self.context.vitals.set_run(step, length.total_steps, config.batch.global as u64);
        checkpoints.start_writer()?;
        allocator::keep_freed_memory();
        let dataset = data.info();
        self.assemble(Components { model, state, source, dataset, checkpoints, logs, length, step, skipped })
    }

    /// Builds a rehearsal on `data`, which must be synthetic.
    ///
    /// # Errors
    /// Returns an error if memory is exhausted or a collective operation fails.
    pub(crate) fn rehearsal_training(self, data: &Data) -> Result<Training<'a>, Stop> {
        let (collective, config) = (self.context.collective, self.config);
        let length = RunLength::new(config, data.samples());
        let source = data.batches(config, self.share, None)?;
        let (model, state) = ModelState::new(collective, config, self.context.device)?;
        let checkpoints = CheckpointManager::disabled(collective);
        let (dataset, logs) = (data.info(), Logs::silent());
        self.assemble(Components { model, state, source, dataset, checkpoints, logs, length, step: 0, skipped: 0 })
    }

    fn open_checkpoints(&self, length: &RunLength) -> Result<CheckpointManager<'a>, Stop> {
        let reporter = match self.share.rank {
            0 => self.config.log.format.reporter(),
            _ => Reporter::silent(),
        };
        let options = checkpoint_options(self.config, length.keep_every_steps);
        let timeout = self.config.checkpoint.upload_timeout.0;
        let on_message = &mut |message: &str| reporter.print(message);
        let (collective, launch) = (self.context.collective, self.context.launch);
        Ok(CheckpointManager::open(collective, options, launch, timeout, on_message)?)
    }

    fn restore(
        &self,
        checkpoints: &CheckpointManager<'_>,
        found: Option<&FoundCheckpoint>,
        state: &mut ModelState,
    ) -> Result<Option<CheckpointState<TrainConfig>>, Stop> {
        let Some(found) = found else { return Ok(None) };
        let restored: CheckpointState<TrainConfig> = checkpoints.restore(found, state.tensors())?;
        state.optimizer.set_steps(restored.optimizer_steps);
        Ok(Some(restored))
    }

    /// Imports weights into a new run. Returns a message for the user.
    fn import(&self, url: Option<&str>, is_resumed: bool, state: &ModelState) -> Result<Option<String>, Stop> {
        let Some(url) = url else { return Ok(None) };
        if is_resumed {
            return Ok(Some(format!("the run has already started, so --import {url} is not read")));
        }
        let into = ImportInto { parameters: &state.parameters, ema: &state.ema, buffers: &state.buffers };
        import(self.context.collective, url, &into).map(Some)
    }

    /// Starts the logs of rank 0; those of other ranks are silent.
    fn start_logs(&self, banner: &Banner<'_>, is_remote: bool) -> Result<Logs, Stop> {
        if self.share.rank != 0 {
            return Ok(Logs::silent());
        }
        let config = self.config;
        let (total, global_batch) = (banner.length.total_steps, config.batch.global);
        let reporter = config.log.format.reporter();
        let progress = TrainingProgress::start(reporter, config.log.every, banner.step, total, global_batch as u64);
        for line in banner.lines() {
            progress.message(&line);
        }
        let text = serde_saphyr::to_string(config).map_err(Stop::failure)?;
        let log_dir = Path::new(&config.run.log_dir);
        TimeFile::check(log_dir).map_err(Stop::configuration)?;
        let newest = if is_remote { newest_event_file(&config.run.dir).map_err(DataError::from)? } else { None };
        let logs = Logs::start(progress, log_dir, banner.step + 1, &text, global_batch, newest.as_deref());
        let mut logs = logs.map_err(Stop::failure)?;
        if is_remote {
            let upload = EventUpload::start(&config.run.dir, log_dir.to_path_buf(), UPLOAD_INTERVAL);
            logs.set_upload(upload.map_err(Stop::failure)?);
        }
        Ok(logs)
    }

    /// Continues the time accounting of earlier starts of the run on rank 0.
    fn resume_time_accounting(&self, mut logs: Logs, own: Option<&CheckpointState<TrainConfig>>) -> Logs {
        if self.share.rank == 0 {
            let file = TimeFile::new(Path::new(&self.config.run.log_dir), &self.config.run.dir);
            self.context.vitals.time.carry_over(self.earlier_seconds(&file, own));
            logs.set_time_file(file);
        }
        logs
    }

    fn earlier_seconds(&self, file: &TimeFile, own: Option<&CheckpointState<TrainConfig>>) -> Seconds {
        match own {
            Some(state) => file.earlier(state.seconds),
            // Without a checkpoint of its own, only the launcher knows that there was an earlier start.
            None if self.context.launcher.as_ref().is_some_and(|launcher| launcher.attempt > 1) => {
                file.earlier(Seconds::default())
            }
            None => Seconds::default(),
        }
    }

    fn assemble(self, components: Components<'a>) -> Result<Training<'a>, Stop> {
        let Components { model, state, source, dataset, checkpoints, logs, length, step, skipped } = components;
        let config = self.config;
        let checkpoint_template = CheckpointState {
            format_version: FORMAT_VERSION,
            program: version(),
            step: 0,
            optimizer_steps: 0,
            epoch: 0.0,
            token: source.position(),
            skipped_steps: 0,
            world: self.share.world,
            config: config.clone(),
            dataset,
            seconds: Seconds::default(),
        };
        let worker = Worker {
            model,
            config: config.model.clone(),
            seed: config.seed,
            share: self.share,
            source,
            sample_log: agree(self.context.collective, sample_log::open())?,
            vitals: std::sync::Arc::clone(&self.context.vitals),
        };
        Ok(Training {
            config,
            context: self.context,
            state,
            worker,
            checkpoints,
            logs,
            length,
            step,
            checkpoint_template,
            skipped,
            worked: 0.0,
        })
    }
}

/// Checks that the weights of a new run come from one place, which can be used.
pub(crate) fn check_single_origin(config: &TrainConfig, imported: Option<&str>) -> Result<(), Stop> {
    if let Some(url) = imported {
        of_option("--import", Place::parse(url)).map_err(Stop::configuration)?;
    }
    match (&config.checkpoint.resume, imported) {
        (Resume::From(place), Some(url)) => Err(Stop::configuration(format!(
            "--import {url} and checkpoint.resume {place} are two sources of initial weights; give one of them"
        ))),
        _ => Ok(()),
    }
}
