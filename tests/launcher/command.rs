//! Tests of the launcher's command line, `--dry-run`, errors before a start, and the status page.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};

use arinar_tests::programs::program;
use arinar_tests::support::launcher::{LauncherOutput, Stage, signal, wait_until};
use rustix::process::Signal;

/// All metrics of the dashboards, with their labels.
const METRICS: [&str; 31] = [
    "arinar_step ",
    "arinar_total_steps ",
    "arinar_saved_step ",
    "arinar_train_loss ",
    "arinar_images_per_second ",
    "arinar_step_seconds ",
    "arinar_eta_seconds ",
    "arinar_store_reachable 1",
    "arinar_checkpoint_backlog_bytes 0",
    "arinar_attempt ",
    "arinar_restarts_total{reason=\"crash\"} ",
    "arinar_restarts_total{reason=\"hang\"} ",
    "arinar_restarts_total{reason=\"host_lost\"} ",
    "arinar_goodput_ratio ",
    "arinar_time_seconds{part=\"compute\"} ",
    "arinar_time_seconds{part=\"all_reduce\"} ",
    "arinar_time_seconds{part=\"data_wait\"} ",
    "arinar_time_seconds{part=\"checkpoint\"} ",
    "arinar_time_seconds{part=\"start_up\"} ",
    "arinar_time_seconds{part=\"lost_work\"} ",
    "arinar_time_seconds{part=\"down\"} ",
    "arinar_ranks ",
    "arinar_full_ranks ",
    "arinar_rank_step{rank=\"0\",host=\"stand-in\"} ",
    "arinar_rank_heartbeat_age_seconds{rank=\"0\",host=\"stand-in\"} ",
    "arinar_rank_resident_bytes{rank=\"0\",host=\"stand-in\"} ",
    "arinar_rank_busy_seconds_total{rank=\"0\",host=\"stand-in\"} ",
    "arinar_rank_step{rank=\"1\",host=\"stand-in\"} ",
    "# TYPE arinar_restarts counter",
    "# TYPE arinar_step gauge",
    "# TYPE arinar_time_seconds gauge",
];

/// Asserts the exit code and that the error is one line that contains `part`.
#[track_caller]
fn assert_one_line(output: LauncherOutput, code: i32, part: &str) {
    let output = output.exited_with(code);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    output.reports("arinar-launcher: ").reports(part);
}

#[test]
fn a_dry_run_prints_the_command_and_starts_nothing() {
    let stage = Stage::new("{}");
    let output = stage.run(&["--nproc", "2", "--set", "a=b c", "--dry-run", "--", "--import", "x"]).exited_with(0);
    let root = if rustix::process::geteuid().is_root() { "--allow-run-as-root " } else { "" };
    let expected = format!(
        "mpirun {root}-n 2 --host localhost:2 --map-by slot --bind-to none --tag-output -x ARINAR_LAUNCHER {} \
         --config {} --set 'a=b c' --import x\n",
        program("arinar-stand-in-trainer").display(),
        stage.path("config.json").display()
    );
    // With fewer cores than ranks, idle ranks yield.
    let shown = output.stdout.replace(" --mca mpi_yield_when_idle 1", "");
    assert!(shown.contains(&expected), "{shown}\n{expected}");
    assert!(shown.contains("#   rank 1: "), "{shown}");
    assert!(!stage.path("logs/ranks").exists());
    // The printed line is a valid shell command.
    let printed = output.stdout.replace("mpirun ", "printf '%s|' ");
    let words = Command::new("sh").arg("-c").arg(printed).output().unwrap().stdout;
    assert!(String::from_utf8(words).unwrap().contains("|--set|a=b c|--import|x|"));
}

#[test]
fn a_dry_run_with_hosts_names_them() {
    let stage = Stage::new("{}");
    let hosts = stage.path("hosts");
    std::fs::write(&hosts, "a slots=2 # first\nb slots=3\n").unwrap();
    let mut command = stage.command(&["--dry-run", "--hostfile"]);
    let output = LauncherOutput::of(command.arg(&hosts).env("AWS_REGION", "x")).exited_with(0);
    assert!(output.stdout.contains("-n 4 --host a:2,b:2 "), "{}", output.stdout);
    assert!(output.stdout.contains(" -x AWS_REGION "), "{}", output.stdout);
    assert!(output.stdout.contains("#   rank 3: b"), "{}", output.stdout);
}

#[test]
fn errors_are_reported_in_one_line() {
    let stage = Stage::new("{}");
    assert_one_line(stage.run(&["--nproc", "3"]), 78, "batch.global 8 is not divisible by --nproc 3; use 2 or 4");
    assert_one_line(stage.run(&["--nproc", "x"]), 78, "--nproc");
    assert_one_line(stage.run(&["--mpirun", "/nowhere/mpirun"]), 78, "/nowhere/mpirun");
    assert_one_line(stage.run(&["--mpirun", "true"]), 78, "is not Open MPI's mpirun");
    assert_one_line(stage.run(&["--trainer", "/nowhere/trainer"]), 78, "--trainer");
    let without = LauncherOutput::of(stage.command(&[]).env("PATH", "/nowhere"));
    assert_one_line(without, 78, "mpirun is not on the PATH; install Open MPI");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    assert_one_line(stage.run(&["--nproc", "2", "--status-port", &port]), 78, "--status-port 127.0.0.1:");
    std::fs::write(stage.path("hosts"), "a slots=x\n").unwrap();
    let hosts = stage.path("hosts").display().to_string();
    assert_one_line(stage.run(&["--hostfile", &hosts]), 78, "mpirun refuses it: Open RTE detected a bad parameter");
    assert_one_line(stage.run(&["--hostfile", "/tmp"]), 78, "--hostfile /tmp: Is a directory");
    assert_one_line(stage.run(&["--hostfile", "/nowhere"]), 78, "--hostfile /nowhere: No such file");
    std::fs::write(stage.path("config.json"), "no JSON").unwrap();
    let output = stage.run(&[]);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
}

#[test]
fn an_unreachable_host_is_named() {
    let stage = Stage::new("{}");
    let hosts = stage.path("hosts").display().to_string();
    std::fs::write(&hosts, "localhost slots=2\nnode-b slots=2\n").unwrap();
    // A stand-in for ssh that reaches no host.
    let agent = stage.path("agent");
    std::fs::write(&agent, "#!/bin/sh\necho \"$1: no route\" >&2\nexit 255\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&agent, mode).unwrap();
    let run = |more: &[&str]| {
        let mut command = stage.command(&["--hostfile", &hosts]);
        LauncherOutput::of(command.args(more).env("OMPI_MCA_plm_rsh_agent", &agent))
    };
    run(&[]).exited_with(1).reports("cannot reach node-b (node-b: no route)").reports("--min-ranks");
    // With two ranks, the run continues on the remaining host.
    run(&["--min-ranks", "2"])
        .exited_with(0)
        .reports("lost node-b")
        .reports("continuing with 2 of 4 ranks")
        .reports("20 steps");
}

#[test]
fn the_status_page_and_metrics_are_complete() {
    let stage = Stage::new(r#"{"steps": 100000}"#);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = stage.start(&["--nproc", "2", "--status-port", &free.to_string()]);
    running.wait_for_log("all 2 ranks have reported");
    let status = wait_until("steps in /status", || {
        let status: serde_json::Value = serde_json::from_str(&get(free, "/status")).unwrap();
        (status["step"].as_u64() > Some(0) && status["per_rank"][1]["step"].as_u64() > Some(0)).then_some(status)
    });
    assert_eq!((&status["run"], &status["ranks"], &status["attempt"]), (&"staged".into(), &2.into(), &1.into()));
    let parts: f64 = status["time_seconds"].as_object().unwrap().values().filter_map(|part| part.as_f64()).sum();
    assert!((parts - status["wall_seconds"].as_f64().unwrap()).abs() < 1e-6, "{status}");
    let metrics = get(free, "/metrics");
    for metric in METRICS {
        assert!(metrics.lines().any(|line| line.starts_with(metric)), "{metric} is missing:\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
    signal(running.pid(), Signal::TERM);
    running.wait().exited_with(75);
}

fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}
