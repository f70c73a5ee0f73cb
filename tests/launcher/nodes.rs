//! Two machines on one: two network namespaces with names and addresses of their own, between which nothing passes but TCP,
//! and two ranks of the real trainer on each. One is cut off while they train.
//!
//! It needs root, to make the namespaces; what it makes has a name of its own and goes with the test.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    process::{Child, Command},
    time::{Duration, Instant},
};

use arinar_tests::support::launcher::{lives, program, until, within};
use arinar_tests::support::trainer::Ended;
use arinar_tests::support::trial::{GONE, Jobs, Trial, started_by};

/// As `--silence-limit`.
const SILENCE: Duration = Duration::from_secs(6);
/// Other numbers of ranks differ by rounding, which training magnifies: in the first steps after the restart it is this
/// share of the loss, as in `trainer_resume.rs`.
const ROUNDING: f32 = 1e-5;
/// Steps in which it is not magnified yet.
const FIRST_STEPS: u64 = 10;

/// A machine: a network namespace.
struct Node {
    namespace: String,
    name: &'static str,
    address: &'static str,
}

/// Two machines with a cable between them.
struct Network {
    near: Node,
    far: Node,
    /// Runs what the near machine sends to the far one.
    server: Option<Child>,
}

/// The name of the cable's end on each machine.
const CABLE: &str = "cable";

fn ip(arguments: &[&str]) {
    let ended = Command::new("ip").args(arguments).output().expect("ip of iproute2 (ops/bootstrap.sh --tests)");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "ip {}: {}; this test needs root", arguments.join(" "), told.trim());
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

    /// This command on this machine. It becomes the process that is started.
    fn on(&self, command: &Command) -> Command {
        let mut starter = Command::new("ip");
        let rename = "hostname \"$1\" && shift && exec \"$@\"";
        starter.args(["netns", "exec", &self.namespace, "unshare", "--uts", "sh", "-c", rename, "sh", self.name]);
        started_by(starter, command)
    }

    /// Processes on this machine.
    fn processes(&self) -> Vec<u32> {
        let listed = Command::new("ip").args(["netns", "pids", &self.namespace]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap().lines().map(|pid| pid.trim().parse().unwrap()).collect()
    }

    /// Processes of this program on this machine.
    fn running(&self, program: &str) -> usize {
        let is_it = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            lives(*pid) && program.starts_with(name.trim_end()) && !name.is_empty()
        };
        self.processes().iter().filter(|pid| is_it(pid)).count()
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
        let said = File::create(trial.lab.path("node-b.log")).unwrap();
        let mut server = far.on(&serve);
        server.stdout(said.try_clone().unwrap()).stderr(said);
        network.server = Some(server.spawn().unwrap());
        network
    }

    /// Pulls the cable.
    fn cut(&self) {
        ip(&["-n", &self.far.namespace, "link", "set", CABLE, "down"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in [&self.near, &self.far] {
            for pid in node.processes() {
                // It may have ended meanwhile.
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
fn a_machine_that_is_cut_off_is_named_and_the_others_go_on() {
    let mut trial = Trial::tiny(&["model.outer.dropout=0", "train.max_steps=200", "checkpoint.every=10 steps"]);
    (trial.ranks, trial.silence) = (4, SILENCE);
    let network = Network::new(&trial);
    let hosts = trial.lab.path("hosts");
    std::fs::write(&hosts, format!("{} slots=2\n{} slots=2\n", network.near.address, network.far.address)).unwrap();
    let mut launcher = trial.command(&["--hostfile", hosts.to_str().unwrap(), "--min-ranks", "2"]);
    launcher.env("OMPI_MCA_plm_rsh_agent", program("arinar-stand-in-shell"));
    let running = trial.watch(network.near.on(&launcher));
    running.says("all 4 ranks have reported");
    trial.next_checkpoint();
    assert_eq!((network.near.running("arinar-trainer"), network.far.running("arinar-trainer")), (2, 2));
    let mut jobs = Jobs::default();
    jobs.see(&running.below());
    network.cut();
    let cut = Instant::now();
    let told = running.says("the job hangs: all ranks wait for ranks 2, 3, each of which is silent");
    assert!(cut.elapsed() < 10 * SILENCE, "{:?}", cut.elapsed());
    assert!(told.contains("its host is unreachable (node-b, pid "), "{told}");
    // Those that are cut off hear nothing either, and end by themselves: nobody can end them.
    within(GONE, "the ranks that are cut off to end", || (network.far.running("arinar-trainer") == 0).then_some(()));
    within(2 * GONE, "mpirun's daemon to end", || (network.far.running("orted") == 0).then_some(()));
    running.says(&format!("lost {} (", network.far.address));
    running.says("continuing with 2 of 4 ranks, each with more samples per step");
    until("ranks of the second start", || (network.near.running("arinar-trainer") == 2).then_some(()));
    jobs.see(&running.below());
    let said = running.wait().ended(0);
    said.says("restarts: 1 by host lost").says("(to 200 of 200)");
    trial.assert_nothing_is_left(&jobs);
    let resumed = trial.goes_on_from("attempt 2: ").strip_prefix("step-").unwrap().parse().unwrap();
    assert_like_all_along(&trial, resumed);
}

/// The run of four ranks that nothing disturbs saw the same samples in each step, so that the global batch was kept; up to
/// the restart it had the same losses, and after it the same but for rounding.
fn assert_like_all_along(trial: &Trial, resumed: u64) {
    Ended::of(trial.undisturbed().output().unwrap()).succeeded();
    assert_eq!(trial.samples("samples"), trial.samples("calm-samples"));
    trial.put_ranks_aside();
    let (cut, calm) = (trial.lab.curve("logs", "train_loss"), trial.lab.curve("calm-logs", "train_loss"));
    assert_eq!((cut.len(), calm.len()), (200, 200));
    let apart = |steps: std::ops::RangeInclusive<u64>| {
        steps.map(|step| (cut[&step] - calm[&step]).abs() / calm[&step].abs().max(1.0)).fold(0.0, f32::max)
    };
    let (before, after) = (apart(1..=resumed), apart(resumed + 1..=resumed + FIRST_STEPS));
    println!(
        "losses differ by {before:e} before step {resumed}, {after:e} after it, {:e} at last",
        apart(resumed + 1..=200)
    );
    assert!(before < ROUNDING && after < ROUNDING);
}
