//! The event files are read by the real TensorBoard, which `ops/bootstrap.sh --tests` installs.
#![allow(clippy::unwrap_used)]

mod trainer_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arinar_tests::test_program;
use trainer_support::Lab;

const STEPS: u64 = 6;
const PATIENCE: Duration = Duration::from_secs(90);

/// A running TensorBoard; ended when dropped.
struct TensorBoard {
    process: Child,
    address: String,
}

impl TensorBoard {
    fn start(folder: &Path) -> Self {
        let program = test_program("tensorboard");
        assert!(program.exists(), "no {}; run ops/bootstrap.sh --tests", program.display());
        let mut process = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", "0", "--load_fast", "false", "--logdir"])
            .arg(folder)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "TensorBoard ended without saying its address");
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(['/', ' ']).next().unwrap().to_owned();
            }
        };
        // It must not block on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
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

    /// A curve as (step, value), once it has as many points as expected.
    fn curve(&self, tag: &str) -> Vec<(u64, f64)> {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < PATIENCE {
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

#[test]
fn tensorboard_serves_every_step_of_the_main_curves() {
    let lab = Lab::new();
    lab.train(2, &[&format!("train.max_steps={STEPS}")]).succeeded();
    let board = TensorBoard::start(&lab.path("logs"));
    for tag in ["train_loss", "lr", "grad_norm"] {
        let served = board.curve(tag);
        let written: Vec<(u64, f64)> =
            lab.curve("logs", tag).into_iter().map(|(step, value)| (step, f64::from(value))).collect();
        assert_eq!(served.iter().map(|point| point.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>(), "{tag}");
        for ((_, shown), (_, value)) in served.iter().zip(&written) {
            assert!((shown - value).abs() <= 1e-6 * value.abs(), "{tag}: {shown} and {value}");
        }
    }
}
