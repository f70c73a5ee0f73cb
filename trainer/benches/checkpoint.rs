//! Measures the cost of a checkpoint of ARINAR-B (213M parameters: weights, moving averages and two moments, 3.4 GB)
//! for training: stall, memory, and step time during the upload to an S3 server in another process. Compares the stall
//! with `torch.save` of the same tensors on the same disk.
//!
//! Environment variables, with their defaults: `PYTHON` (an interpreter with torch; none, without comparison), `FOLDER`
//! (a temporary folder; set it to measure another disk), `BATCH` (4), `PAIRS` (3) of steps with and without a
//! checkpoint, `DEPTH` of encoder and decoder (14; less only to try the benchmark itself), `THREADS` (all cores).

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use arinar_checkpoint::{
    CheckpointFlags, CheckpointManager, CheckpointOptions, CheckpointState, DatasetInfo, FORMAT_VERSION, ModelIdentity,
    Resume, Retention, TensorSet,
};
use arinar_collective::{
    LaunchEnvironment, Single,
    machine::{allocator, memory, priority},
};
use arinar_data::read::ResumeToken;
use arinar_model::{arinar::Arinar, config::ModelConfig, mask::Mask, weights};
use arinar_protocol::Seconds;
use arinar_tests::s3::S3Server;
use arinar_trainer::{
    clip,
    config::{self, TrainConfig},
    ema::Ema,
    optimizer::{AdamW, AdamWConfig, Update},
    parameters::FlatParameters,
};
use tch::{Device, Kind, Tensor, nn};

/// Number of masked tokens: the mean of the official distribution.
const MASKED: i64 = 222;
/// Environment variable of the process that trains.
const TRAINER: &str = "CHECKPOINT_BENCH_TRAINER";
/// Timeout of an upload on a slow machine.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    match std::env::var_os(TRAINER) {
        Some(folder) => train(Path::new(&folder)),
        None => compare(),
    }
}

/// Measures torch.save alone on the machine first, and then training, with this process as its store.
fn compare() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = std::env::var_os("FOLDER").map_or_else(|| temporary.path().to_path_buf(), PathBuf::from);
    let torch = torch_save(&folder)?;
    // The server runs at a low priority, so that its cost does not count as the cost of the upload. A separate thread
    // sets it, because the training process would inherit it from this one.
    // The server stores two checkpoints in memory, so that it does not use the disk that is measured.
    let memory = Path::new("/dev/shm");
    let objects = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let served = objects.path().to_path_buf();
    let server = std::thread::spawn(move || {
        priority::lower_thread_priority();
        S3Server::start(&served)
    });
    let server = server.join().map_err(|_| "the server has not started")?;
    server.create_bucket("runs");
    let mut trainer = Command::new(std::env::current_exe()?);
    trainer.env(TRAINER, &folder).envs(server.environment());
    if let Some(seconds) = torch {
        trainer.env("TORCH_SECONDS", seconds.to_string());
    }
    let status = trainer.status()?;
    if status.success() { Ok(()) } else { Err(format!("the training failed with {status}").into()) }
}

/// Returns how many seconds torch.save of the same tensors takes, or `None` without Python.
fn torch_save(folder: &Path) -> Result<Option<f64>> {
    let Some(python) = std::env::var_os("PYTHON") else { return Ok(None) };
    let store = nn::VarStore::new(Device::Cpu);
    let _model = Arinar::new(&store.root(), &model_config());
    let shapes: Vec<_> = weights::trainable(&store).into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
    drop(store);
    let list = folder.join("shapes.json");
    std::fs::write(&list, serde_json::to_vec(&shapes)?)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/bench/torch_save.py");
    let output = Command::new(python).arg(script).arg(&list).arg(folder.join("torch.pt")).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let printed = String::from_utf8(output.stdout)?;
    print!("{printed}");
    let seconds = printed.lines().find_map(|line| line.strip_prefix("torch.save: ")?.split(' ').next()?.parse().ok());
    Ok(Some(seconds.ok_or("torch_save.py has not printed a duration")?))
}

fn model_config() -> ModelConfig {
    let mut config = ModelConfig::arinar_b();
    config.outer.encoder_depth = setting("DEPTH", config.outer.encoder_depth);
    config.outer.decoder_depth = setting("DEPTH", config.outer.decoder_depth);
    config
}

/// A model that is trained.
struct Bench {
    model: Arinar,
    config: ModelConfig,
    parameters: FlatParameters,
    ema: Ema,
    optimizer: AdamW,
    batch: i64,
    _store: nn::VarStore,
}

impl Bench {
    fn new() -> Result<Self> {
        let config = model_config();
        tch::manual_seed(1);
        let store = nn::VarStore::new(Device::Cpu);
        let model = Arinar::new(&store.root(), &config);
        let parameters = FlatParameters::new(&weights::trainable(&store), weights::decays)?;
        let adamw = AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.02 };
        let (optimizer, ema) = (AdamW::new(&parameters, adamw), Ema::new(&parameters, 0.9999));
        let batch = setting("BATCH", 4);
        Ok(Self { model, config, parameters, ema, optimizer, batch, _store: store })
    }

    /// Makes a step. Returns its duration, and how much of it was spent waiting for the copy of a checkpoint.
    fn step(&mut self, manager: &mut CheckpointManager<'_>) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        let float = (Kind::Float, Device::Cpu);
        let (grid, batch) = (self.config.grid(), self.batch);
        let latents = Tensor::randn([batch, self.config.vae.channels, grid, grid], float);
        let labels = Tensor::randint(self.config.classes, [batch], (Kind::Int64, Device::Cpu));
        let drop_label = Tensor::rand([batch], float).lt(self.config.outer.label_drop);
        let orders = Tensor::rand([batch, self.config.sequence_length()], float).argsort(1, false);
        let loss = self.model.loss(&latents, &labels, &drop_label, &Mask::from_orders(&orders, MASKED), true);
        loss.f_backward()?;
        let norm = clip::grad_norm(&self.parameters.gradients());
        let update = Update { learning_rate: 1e-4, gradient_scale: clip::clip_coefficient(norm, 3.0) };
        let wait_start = Instant::now();
        manager.wait_until_copied();
        let waited = wait_start.elapsed();
        self.optimizer.step(&mut self.parameters, &mut self.ema, update);
        Ok((start.elapsed(), waited))
    }

    /// Hands over a checkpoint. Returns how long that takes.
    fn save(&self, manager: &mut CheckpointManager<'_>, state: &CheckpointState<TrainConfig>) -> Result<Duration> {
        let start = Instant::now();
        let tensors = TensorSet {
            slots: self.parameters.slots(),
            part: self.optimizer.part(),
            parameters: self.parameters.values(),
            ema: self.ema.values(),
            moments: [self.optimizer.first_moment(), self.optimizer.second_moment()],
            buffers: &[],
        };
        manager.save(state, &tensors, &|| false)?;
        Ok(start.elapsed())
    }
}

fn train(folder: &Path) -> Result<()> {
    allocator::release_freed_memory();
    tch::set_num_threads(setting("THREADS", i64::from(tch::get_num_threads())) as i32);
    let overrides = [
        "run.dir=s3://runs/bench".to_owned(),
        format!("checkpoint.spool_dir={}", folder.join("spool").display()),
        "checkpoint.keep_last=1".to_owned(),
    ];
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/arinar_b.yaml");
    let config = config::load(&configuration.display().to_string(), &overrides)?;
    let mut manager = open(&config)?;
    let mut bench = Bench::new()?;
    allocator::keep_freed_memory();
    bench.step(&mut manager)?;
    let bytes = 16 * bench.parameters.len() as u64;
    let extra = extra_memory(&bench, &mut manager, &config)?;
    println!("memory: {:.2} copies of the state ({:.2} GB)", extra as f64 / bytes as f64, bytes as f64 / 1e9);
    let (mut alone, mut saving, mut stalls) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..setting("PAIRS", 3) {
        alone.push(bench.step(&mut manager)?.0.as_secs_f64());
        let start = Instant::now();
        // The upload rate is limited again.
        manager.start_writer()?;
        let submitted = bench.save(&mut manager, &state(&config, 10 + pair as u64))?;
        let (step, waited) = bench.step(&mut manager)?;
        settle(&mut manager)?;
        println!(
            "checkpoint: stall {:.3} s ({:.3} submitting, {:.3} waiting), in the store after {:.1} s; step time \
             {:.2} s without and {:.2} s with it",
            (submitted + waited).as_secs_f64(),
            submitted.as_secs_f64(),
            waited.as_secs_f64(),
            start.elapsed().as_secs_f64(),
            alone[alone.len() - 1],
            step.as_secs_f64()
        );
        saving.push(step.as_secs_f64());
        stalls.push((submitted + waited).as_secs_f64());
    }
    let uploading = while_uploading(&mut bench, &mut manager, &config)?;
    let (alone, saving, stall) = (median(alone), median(saving), median(stalls));
    println!("step time: {:+.1}% while a checkpoint is copied, written and uploaded", 100.0 * (saving / alone - 1.0));
    println!("step time: {:+.1}% while one is uploaded", 100.0 * (uploading / alone - 1.0));
    match std::env::var("TORCH_SECONDS").ok().and_then(|text| text.parse::<f64>().ok()) {
        Some(torch) => println!("stall: {stall:.3} s, 1/{:.0} of torch.save ({torch:.2} s)", torch / stall),
        None => println!("stall: {stall:.3} s; set PYTHON to compare with torch.save"),
    }
    Ok(())
}

/// Returns the peak of the additional memory that a checkpoint needs, in bytes.
fn extra_memory(bench: &Bench, manager: &mut CheckpointManager<'_>, config: &TrainConfig) -> Result<u64> {
    // Resets the peak that the kernel records.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = memory::resident();
    bench.save(manager, &state(config, 1))?;
    settle(manager)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<u64>().ok());
    Ok((peak.ok_or("the kernel does not report the peak")? * 1024).saturating_sub(before))
}

/// Returns the median duration in seconds of a step during an upload, without other background work.
fn while_uploading(bench: &mut Bench, manager: &mut CheckpointManager<'_>, config: &TrainConfig) -> Result<f64> {
    let mut steps = Vec::new();
    for number in 0..setting("PAIRS", 3) {
        // The upload rate is limited again.
        manager.start_writer()?;
        bench.save(manager, &state(config, 100 + number as u64))?;
        manager.wait_until_copied();
        // The upload starts when the files are written and synced.
        manager.advance(CheckpointFlags { written: true, uploaded: false })?;
        while !manager.poll().messages.iter().any(|message| message.starts_with("saved ")) {
            std::thread::sleep(Duration::from_millis(1));
        }
        steps.push(bench.step(manager)?.0.as_secs_f64());
        settle(manager)?;
    }
    Ok(median(steps))
}

/// Opens the run in the bucket for saving.
fn open(config: &TrainConfig) -> Result<CheckpointManager<'static>> {
    let options = CheckpointOptions {
        run_url: config.run.dir.clone(),
        exclusive: true,
        run_name: config.run.name.clone(),
        resume: Resume::Auto,
        retention: Retention { keep_last: 1, keep_every_steps: None },
        spool_dir: config.checkpoint.spool_dir.clone(),
        spool_limit: None,
        upload_rate: config.checkpoint.upload_rate.map(|rate| rate.0),
        model: ModelIdentity::default(),
    };
    let mut manager =
        CheckpointManager::open(&Single, options, LaunchEnvironment::single(), UPLOAD_TIMEOUT, &mut |_| {})?;
    manager.start_writer()?;
    Ok(manager)
}

fn settle(manager: &mut CheckpointManager<'_>) -> Result<()> {
    match manager.finish(UPLOAD_TIMEOUT, &|| false, &mut |_| {})? {
        None => Ok(()),
        Some(missing) => Err(missing.what.into()),
    }
}

fn state(config: &TrainConfig, step: u64) -> CheckpointState<TrainConfig> {
    CheckpointState {
        format_version: FORMAT_VERSION,
        program: "bench".to_owned(),
        step,
        optimizer_steps: step as i64,
        epoch: 0.0,
        token: ResumeToken {
            version: 1,
            dataset_id: String::new(),
            seed: 1,
            epoch: 0,
            position: 0,
            window: 0,
            global_batch: 1,
        },
        world: 1,
        config: config.clone(),
        dataset: DatasetInfo { id: String::new(), samples: 1, class_names: Vec::new(), vae: serde_json::Value::Null },
        skipped_steps: 0,
        seconds: Seconds::default(),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn setting(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|&value| value > 0).unwrap_or(default)
}
