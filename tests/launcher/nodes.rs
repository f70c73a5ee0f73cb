//! A test with two hosts on one machine: two network namespaces with their own host names and addresses, connected only
//! by TCP, and two ranks of the real trainer on each. One host is disconnected during training.
//!
//! The test needs root to create the namespaces. They have unique names and are deleted when the test ends.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    process::{Child, Command},
    time::{Duration, Instant},
};

use arinar_tests::programs::program;
use arinar_tests::support::launcher::{is_alive, wait_at_most, wait_until};
use arinar_tests::support::trainer::ProcessOutput;
use arinar_tests::support::trial::{GONE, Jobs, Trial, started_by};

/// The value of `--silence-limit`.
const SILENCE: Duration = Duration::from_secs(6);
/// Maximum relative difference of the losses between world sizes in the first steps after the restart, as in
/// `tests/trainer/resume.rs`. It comes from rounding, which training magnifies.
const ROUNDING: f32 = 1e-5;
/// Steps in which rounding errors are not magnified yet.
const FIRST_STEPS: u64 = 10;

/// A host in a network namespace.
struct Node {
    namespace: String,
    name: &'static str,
    address: &'static str,
}

/// Two hosts connected by a pair of virtual Ethernet devices.
struct Network {
    near: Node,
    far: Node,
    /// Runs the commands that the near host sends to the far one.
    server: Option<Child>,
}

/// Name of the network device on each host.
const CABLE: &str = "cable";

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip of iproute2 (ops/bootstrap.sh --tests)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {}; this test needs root", arguments.join(" "), error.trim());
}

impl Node {
    fn new(name: &'static str, address: &'static str) -> Self {
        Self { namespace: format!("arinar-{}-{name}", std::process::id()), name, address }
    }

    fn connect(&self) {
        let inside = ["-n", &self.namespace];
        ip(&[&inside[..], &["address", "add", &format!("{}/30", self.address), "dev", CABLE]].concat());
        for device in ["lo", CABLE] {
            ip(&[&inside[..], &["link", "set", device, "up"]].concat());
        }
    }

    /// Returns a command that runs the given one on this host, in the same process.
    fn on(&self, command: &Command) -> Command {
        let mut starter = Command::new("ip");
        let rename = "hostname \"$1\" && shift && exec \"$@\"";
        starter.args(["netns", "exec", &self.namespace, "unshare", "--uts", "sh", "-c", rename, "sh", self.name]);
        started_by(starter, command)
    }

    /// Returns the processes on this host.
    fn processes(&self) -> Vec<u32> {
        let listed = Command::new("ip").args(["netns", "pids", &self.namespace]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap().lines().map(|pid| pid.trim().parse().unwrap()).collect()
    }

    /// Returns the number of processes of a program on this host.
    fn running(&self, program: &str) -> usize {
        let matches = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            is_alive(*pid) && program.starts_with(name.trim_end()) && !name.is_empty()
        };
        self.processes().iter().filter(|pid| matches(pid)).count()
    }
}

impl Network {
    fn new(trial: &Trial) -> Self {
        let mut network =
            Self { near: Node::new("node-a", "10.77.0.1"), far: Node::new("node-b", "10.77.0.2"), server: None };
        let (near, far) = (&network.near, &network.far);
        ip(&["netns", "add", &near.namespace]);
        ip(&["netns", "add", &far.namespace]);
        let cable = ["link", "add", CABLE, "netns", &near.namespace, "type", "veth"];
        ip(&[&cable[..], &["peer", "name", CABLE, "netns", &far.namespace]].concat());
        near.connect();
        far.connect();
        let mut serve = Command::new(program("arinar-stand-in-shell"));
        serve.args(["--serve", far.address]).env("TMPDIR", trial.lab.path("tmp"));
        let log = File::create(trial.lab.path("node-b.log")).unwrap();
        let mut server = far.on(&serve);
        server.stdout(log.try_clone().unwrap()).stderr(log);
        network.server = Some(server.spawn().unwrap());
        network
    }

    /// Disconnects the far host.
    fn disconnect(&self) {
        ip(&["-n", &self.far.namespace, "link", "set", CABLE, "down"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in [&self.near, &self.far] {
            for pid in node.processes() {
                // The process may have exited already.
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
            let _ = Command::new("ip").args(["netns", "delete", &node.namespace]).output();
        }
        if let Some(server) = &mut self.server {
            let _ = server.wait();
        }
    }
}

#[test]
fn a_disconnected_host_is_named_and_the_others_continue() {
    let mut trial = Trial::tiny(&["model.outer.dropout=0", "train.max_steps=200", "checkpoint.every=10 steps"]);
    (trial.ranks, trial.silence) = (4, SILENCE);
    let network = Network::new(&trial);
    let hosts = trial.lab.path("hosts");
    std::fs::write(&hosts, format!("{} slots=2\n{} slots=2\n", network.near.address, network.far.address)).unwrap();
    let mut launcher = trial.command(&["--hostfile", hosts.to_str().unwrap(), "--min-ranks", "2"]);
    launcher.env("OMPI_MCA_plm_rsh_agent", program("arinar-stand-in-shell"));
    let running = trial.watch(network.near.on(&launcher));
    running.wait_for_log("all 4 ranks have reported");
    trial.next_checkpoint();
    assert_eq!((network.near.running("arinar-trainer"), network.far.running("arinar-trainer")), (2, 2));
    let mut jobs = Jobs::default();
    jobs.record(&running.descendants());
    network.disconnect();
    let disconnected = Instant::now();
    let line = running.wait_for_log("the job hangs: all ranks wait for ranks 2, 3, each of which is silent");
    assert!(disconnected.elapsed() < 10 * SILENCE, "{:?}", disconnected.elapsed());
    assert!(line.contains("its host is unreachable (node-b, pid "), "{line}");
    // The disconnected ranks receive nothing either and must exit by themselves, because the launcher cannot reach
    // them.
    wait_at_most(GONE, "the exit of the disconnected ranks", || {
        (network.far.running("arinar-trainer") == 0).then_some(())
    });
    wait_at_most(2 * GONE, "the exit of mpirun's daemon", || (network.far.running("orted") == 0).then_some(()));
    running.wait_for_log(&format!("lost {} (", network.far.address));
    running.wait_for_log("continuing with 2 of 4 ranks, each with more samples per step");
    wait_until("ranks of the second start", || (network.near.running("arinar-trainer") == 2).then_some(()));
    jobs.record(&running.descendants());
    let output = running.wait().exited_with(0);
    output.reports("restarts: 1 by host lost").reports("(to 200 of 200)");
    trial.assert_nothing_is_left(&jobs);
    let resumed = trial.resumed_from("attempt 2: ").strip_prefix("step-").unwrap().parse().unwrap();
    assert_like_undisturbed(&trial, resumed);
}

/// Compares with an undisturbed run on four ranks. Every step must have the same samples, so that the global batch is
/// kept. The losses must agree up to rounding, before the restart and in the first steps after it.
fn assert_like_undisturbed(trial: &Trial, resumed: u64) {
    ProcessOutput::of(trial.undisturbed().output().unwrap()).succeeded();
    assert_eq!(trial.samples("samples"), trial.samples("calm-samples"));
    trial.move_rank_logs();
    let (disturbed, undisturbed) = (trial.lab.curve("logs", "train_loss"), trial.lab.curve("calm-logs", "train_loss"));
    assert_eq!((disturbed.len(), undisturbed.len()), (200, 200));
    let difference = |steps: std::ops::RangeInclusive<u64>| {
        steps
            .map(|step| (disturbed[&step] - undisturbed[&step]).abs() / undisturbed[&step].abs().max(1.0))
            .fold(0.0, f32::max)
    };
    let (before, after) = (difference(1..=resumed), difference(resumed + 1..=resumed + FIRST_STEPS));
    println!(
        "losses differ by {before:e} before step {resumed}, {after:e} after it, {:e} at most until the end",
        difference(resumed + 1..=200)
    );
    assert!(before < ROUNDING && after < ROUNDING);
}
