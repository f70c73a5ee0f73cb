//! The command line of the launcher.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use arinar_place::{OptionError, local_path, of_option};
use arinar_protocol::exit_code;
use clap::{Parser, ValueEnum};

use crate::rank_count::RankCount;

/// Start a training job with mpirun, watch it, and restart it until it is done.
///
/// One rank runs on each GPU, or on each core if there is no GPU. A job that crashes, hangs or loses a host is restarted
/// from its newest checkpoint, with increasing backoff; three restarts in a row that gain no step end the run. However the
/// launcher ends, it leaves no process behind.
#[derive(Clone, Debug, Parser)]
#[command(name = "arinar-launcher", version, after_long_help = AFTER_HELP)]
pub struct Arguments {
    /// Train with this configuration: a file, or the name of one in configs/
    #[arg(long)]
    pub(crate) config: String,
    /// Override a value of the configuration, e.g. --set optim.epochs=2 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Start this many ranks; `auto` means one per GPU (or core, or slot of the host file), reduced until the number
    /// divides batch.global
    #[arg(long, value_name = "N|auto", default_value = "auto", allow_hyphen_values = true)]
    pub(crate) nproc: RankCount,
    /// Run on the hosts of this Open MPI host file, which has one `name slots=N` per line; mpirun parses it. A name without a
    /// number stands for one slot
    #[arg(long, value_name = "FILE")]
    pub(crate) hostfile: Option<PathBuf>,
    /// Give up after this many restarts, even if they gain steps [default: no limit]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_restarts: Option<u32>,
    /// Keep training with at least N ranks after losing hosts; steps take longer but compute the same results [default: all]
    #[arg(long, value_name = "N", requires = "hostfile", allow_hyphen_values = true)]
    pub(crate) min_ranks: Option<usize>,
    /// Allow this much time for a checkpoint, from the signal that ends the job to SIGKILL
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, allow_hyphen_values = true)]
    pub(crate) grace: Duration,
    /// Serve /status (JSON) and /metrics (Prometheus) on this port, and on 127.0.0.1 unless an address is given
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub(crate) status_port: Option<StatusAddress>,
    /// Run this trainer [default: arinar-trainer in the launcher's folder, or else on the PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) trainer: Option<PathBuf>,
    /// Run this mpirun, which must be Open MPI's [default: mpirun on the PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) mpirun: Option<PathBuf>,
    /// Pass one more argument to mpirun, e.g. --mpirun-arg=--mca --mpirun-arg=btl --mpirun-arg=self,tcp (may be repeated)
    #[arg(long = "mpirun-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) mpirun_arguments: Vec<String>,
    /// Print the mpirun command, its environment and the placement of ranks without starting anything
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write the output of the launcher and of the ranks in this format
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// Declare a hang when no rank has made progress for this multiple of the median step time
    #[arg(long, value_name = "TIMES", default_value_t = 20.0, value_parser = factor, allow_hyphen_values = true)]
    pub(crate) hang_factor: f64,
    /// Wait at least this long before declaring a hang, and at least 1.5 times ARINAR_STORE_PATIENCE while a rank waits for
    /// data
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, allow_hyphen_values = true)]
    pub(crate) hang_floor: Duration,
    /// Allow this long without progress while ranks start, wait for a checkpoint or finish, and for a lost host to come back
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = limit, allow_hyphen_values = true)]
    pub(crate) start_up_limit: Duration,
    /// Declare a hang when a rank sends no heartbeat for this long, and make a rank exit when the launcher sends none
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = limit, allow_hyphen_values = true)]
    pub(crate) silence_limit: Duration,
    /// Pass these arguments to the trainer unchanged
    #[arg(last = true, value_name = "TRAINER ARGUMENTS")]
    pub(crate) trainer_arguments: Vec<String>,
}

const LONGEST_TIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// Ranks start and send heartbeats within a limit of this length.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);
/// Units longer than weeks. `M` means months, although it is usually written for minutes.
const LONG_UNITS: [&str; 7] = ["M", "month", "months", "y", "yr", "year", "years"];

const AFTER_HELP: &str = "\
Examples:
  arinar-launcher --config arinar_b.yaml
      train on all GPUs of this host
  arinar-launcher --config demo.yaml --nproc 2 --status-port 9400
      train on two ranks; `curl 127.0.0.1:9400/status` shows their progress
  arinar-launcher --config arinar_b.yaml --hostfile hosts --min-ranks 4
      train on several hosts, reached over ssh or OMPI_MCA_plm_rsh_agent, and continue with at least four ranks
  arinar-launcher --config arinar_b.yaml --dry-run
      print the command that would be run
  arinar-launcher --config arinar_b.yaml -- --check
      check everything that a run needs, and exit (--plan estimates what the run will take)

Signals:
  SIGINT, SIGTERM and SIGUSR1 end the job with a checkpoint within --grace. A second SIGINT kills it immediately.

Files:
  <run.log_dir>/ranks/rank-N.log    output of rank N, with a header for each start
  <run.log_dir>/ranks/mpirun.log    output of mpirun itself
  <run.log_dir>/ranks/launcher.log  output of the launcher

Exit codes:
  0   the run is done
  75  a signal ended the run; start it again to resume
  78  the command line, the configuration or the setup of the machine must be changed
  1   any other error, which the last line describes";

/// Value of `--status-port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusAddress(pub(crate) SocketAddr);

impl FromStr for StatusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse::<u16>(), text.parse()) {
            (Ok(port), _) => Ok(Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))),
            (_, Ok(address)) => Ok(Self(address)),
            _ => Err("expected a port, or an IP address and a port such as 0.0.0.0:9400".to_owned()),
        }
    }
}

/// Value of `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Plain text for people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

fn time(text: &str) -> Result<Duration, String> {
    let expected = |problem: &str| format!("{problem}; expected a time with units such as 90s, 5m or 1h30m");
    let mut units = text.split(|letter: char| !letter.is_alphabetic());
    if let Some(unit) = units.find(|unit| LONG_UNITS.contains(unit)) {
        return Err(expected(&format!("the unit {unit:?} is too long (minutes are written m)")));
    }
    let time = humantime::parse_duration(text).map_err(|error| expected(&error.to_string()))?;
    // Sums with this time must not overflow.
    if time <= LONGEST_TIME { Ok(time) } else { Err("the time must not exceed a year".to_owned()) }
}

fn limit(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time >= SHORTEST_LIMIT { Ok(time) } else { Err("the time must be at least 1s".to_owned()) }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("expected a number from 1 to 1000000".to_owned()),
    }
}

impl Arguments {
    /// Parses the command line, of which the first word is the program's name. An error holds the text to print and the
    /// exit code.
    ///
    /// # Errors
    /// The command line asks for help or the version (exit code 0), or it is invalid (exit code 78, one line).
    pub fn read(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, (String, u8)> {
        Self::try_parse_from(arguments).map_err(|error| {
            if !error.use_stderr() {
                return (error.render().ansi().to_string(), exit_code::DONE);
            }
            let text = error.render().to_string();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
                .filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"))
                .collect();
            (format!("arinar-launcher: {} (see --help)\n", lines.join(" ")), exit_code::CONFIGURATION)
        })
    }

    /// Makes the paths of options absolute. A program without a slash is looked up on the PATH.
    ///
    /// # Errors
    /// Returns an error that names an option whose value is not a local path.
    pub(crate) fn resolve_places(&mut self) -> Result<(), OptionError> {
        let options =
            [("--hostfile", &mut self.hostfile), ("--trainer", &mut self.trainer), ("--mpirun", &mut self.mpirun)];
        for (option, value) in options {
            let Some(path) = value else { continue };
            let is_program = option != "--hostfile" && path.components().count() == 1 && !path.starts_with("~");
            let absolute = of_option(option, local_path(path))?;
            if !is_program {
                *path = absolute;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, (String, u8)> {
        Arguments::read(line.split(' ').map(Into::into))
    }

    #[test]
    fn a_whole_command_line_is_read() {
        let line = "arinar-launcher --config x.yaml --set a=1 --set b=2 --nproc 4 --grace 1m30s --status-port 9400 \
                    --mpirun-arg --mca -- --import file";
        let arguments = read(line).unwrap();
        assert_eq!(arguments.overrides, ["a=1", "b=2"]);
        assert_eq!(arguments.nproc, RankCount::Exactly(4));
        assert_eq!(arguments.grace, Duration::from_secs(90));
        assert_eq!(arguments.status_port.unwrap().0.to_string(), "127.0.0.1:9400");
        assert_eq!(arguments.mpirun_arguments, ["--mca"]);
        assert_eq!(arguments.trainer_arguments, ["--import", "file"]);
        assert_eq!(read("arinar-launcher --config x").unwrap().nproc, RankCount::Auto);
    }

    #[test]
    fn an_error_takes_one_line() {
        for line in [
            "",
            "--config",
            "--config x --nproc 0",
            "--config x --nproc many",
            "--config x --grace 5",
            "--config x --grace 18446744073709551615s",
            "--config x --grace 5M",
            "--config x --grace 1month",
            "--config x --grace 0.5y",
            "--config x --grace -5s",
            "--config x --grace inf",
            "--config x --grace NaN",
            "--config x --grace 1e3s",
            "--config x --grace s",
            "--config x --grace 5s5",
            "--config x --grace \u{665}s",
            "--config x --grace 400d",
            "--config x --hang-floor 5",
            "--config x --hang-floor -1m",
            "--config x --start-up-limit 0s",
            "--config x --start-up-limit 30M",
            "--config x --hang-factor inf",
            "--config x --hang-factor NaN",
            "--config x --hang-factor -1",
            "--config x --max-restarts -1",
            "--config x --max-restarts 99999999999",
            "--config x --nproc -1",
            "--config x --nproc 2.0",
            "--config x --nproc 65537",
            "--config x --nproc 99999999999999999999",
            "--config x --nproc ",
            "--config x --silence-limit 100ms",
            "--config x --status-port localhost:9400",
            "--config x --hang-factor 0",
            "--config x --min-ranks 2",
            "--config x --nproc 2 --nprc 2",
            "--config x --log-format yaml",
        ] {
            let (error, code) = read(&format!("arinar-launcher {line}")).unwrap_err();
            assert_eq!((error.lines().count(), code), (1, 78), "{line}: {error}");
        }
        for (flags, part) in
            [("--grace 5M", "minutes are written m"), ("--nproc -1", "expected a number from 1 to 65536")]
        {
            let (error, _) = read(&format!("arinar-launcher --config x {flags}")).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        for (text, seconds) in [("5m", 300), ("1h30m", 5400), ("2min 3sec", 123), ("0s", 0), ("3days", 259_200)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(read("arinar-launcher --help").unwrap_err().1, 0);
    }
}
