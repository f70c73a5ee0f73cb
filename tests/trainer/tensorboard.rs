//! Tests that the real TensorBoard, which `ops/bootstrap.sh --tests` installs, reads the event files.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use arinar_model::Precision;
use arinar_tests::python_server;
use arinar_tests::reference::records::Records;
use arinar_tests::reference::schedule::learning_rate;
use arinar_tests::reference::training::Run;
use arinar_tests::support::trainer::{Lab, SAMPLES};
use tch::Device;

const STEPS: u64 = 6;
const TIMEOUT: Duration = Duration::from_secs(90);

/// A running TensorBoard, which is killed on drop.
struct TensorBoard {
    process: Child,
    address: String,
}

impl TensorBoard {
    fn start(folder: &Path) -> Self {
        let arguments = ["--load_fast", "false", "--logdir", folder.to_str().unwrap()];
        let (process, address) = python_server::start("tensorboard", &arguments);
        Self { process, address }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
    }

    /// Waits until a curve has all steps and returns it as (step, value).
    fn curve(&self, tag: &str) -> Vec<(u64, f64)> {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < TIMEOUT {
            last = self.get(&format!("/data/plugin/scalars/scalars?run=.&tag={tag}"));
            let points: Vec<(f64, u64, f64)> =
                last.as_deref().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
            if points.len() as u64 >= STEPS {
                return points.into_iter().map(|(_, step, value)| (step, value)).collect();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("TensorBoard does not serve {tag}: {last:?}");
    }
}

impl Drop for TensorBoard {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the reference's curves of the lab's run on two ranks. Each step starts from the previous checkpoint.
fn reference(lab: &Lab) -> [(&'static str, Vec<f64>); 4] {
    let records = Records::read(&lab.path("dataset"));
    let state = std::fs::read(lab.path("run/step-00000001/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let run = Run {
        seed: 5,
        model: serde_json::from_value(state["config"]["model"].clone()).unwrap(),
        precision: Precision::Fp32,
        device: Device::Cpu,
        global_batch: 8,
        ranks: 2,
        accumulation: 1,
        window: 0,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.02,
        grad_clip: 3.0,
        ema: 0.9,
    };
    tch::set_num_threads(1);
    let epoch = |step: u64| (8 * step) as f64 / SAMPLES as f64;
    let mut curves = ["train_loss", "grad_norm", "lr", "epoch"].map(|tag| (tag, Vec::new()));
    for step in 1..=STEPS {
        let before = if step == 1 { run.begin() } else { lab.trained(step - 1) };
        let passes = run.passes(&records, &before.weights, step - 1);
        let rate = learning_rate(0.08 * 8.0 / 256.0, 0.5, false, 400.0, epoch(step - 1));
        let values = [passes.loss, run.grad_norm(&passes), rate, epoch(step)];
        curves.iter_mut().zip(values).for_each(|((_, curve), value)| curve.push(value));
    }
    curves
}

#[test]
fn tensorboard_serves_every_step_of_the_main_curves() {
    let lab = Lab::new();
    lab.train(2, &[&format!("train.max_steps={STEPS}"), "checkpoint.every=1 steps", "checkpoint.keep_last=100"])
        .succeeded();
    let board = TensorBoard::start(&lab.path("logs"));
    for (tag, expected) in reference(&lab) {
        let served = board.curve(tag);
        assert_eq!(served.iter().map(|point| point.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>(), "{tag}");
        for ((step, shown), value) in served.into_iter().zip(expected) {
            let limit = 1e-5 * if tag == "train_loss" { value.abs().max(1.0) } else { value.abs() };
            assert!((shown - value).abs() <= limit, "{tag} of step {step} is {shown} instead of {value}");
        }
    }
}

#[test]
fn tensorboard_serves_every_step_whatever_the_clock_says() {
    let lab = Lab::new();
    let train = |steps: u64| {
        lab.train(0, &[&format!("train.max_steps={steps}"), "checkpoint.keep_last=100"]).succeeded();
    };
    let files = || -> Vec<String> {
        let entries = std::fs::read_dir(lab.path("logs")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.contains("tfevents")).collect();
        names.sort();
        names
    };
    // The clock of the first start was decades ahead, and has been set back since.
    train(2);
    let ahead = "events.out.tfevents.3900000000.000000001.0.arinar";
    std::fs::rename(lab.path("logs").join(&files()[0]), lab.path("logs").join(ahead)).unwrap();
    train(4);
    // The third start was on a host whose clock was further ahead, with a program that names its files in another way.
    train(5);
    let newest = files().pop().unwrap();
    let other = "events.out.tfevents.9999999999.other-host.4711.0.v2";
    std::fs::rename(lab.path("logs").join(newest), lab.path("logs").join(other)).unwrap();
    train(STEPS);
    // The last start repeats steps whose checkpoints are lost. TensorBoard must discard the earlier values.
    for step in 5..=STEPS {
        std::fs::remove_dir_all(lab.path(&format!("run/step-{step:08}"))).unwrap();
    }
    train(STEPS);
    let names = files();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(names[0] == ahead && names[2] == other, "{names:?}");
    let board = TensorBoard::start(&lab.path("logs"));
    for tag in ["train_loss", "epoch"] {
        let served = board.curve(tag);
        assert_eq!(served.iter().map(|point| point.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>(), "{tag}");
    }
}
