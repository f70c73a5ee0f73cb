//! The command line.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use arinar_protocol::exit_code;
use clap::{Parser, ValueEnum};

/// Starts a training job with mpirun, watches it, and restarts it until it is done.
///
/// One rank trains on each GPU, or on each core where there is no GPU. A job that crashes, hangs or loses a machine is
/// started again from its newest checkpoint, with growing pauses; three restarts in a row that gain no step end it.
/// Whatever happens to the launcher, none of its processes stays behind.
#[derive(Clone, Debug, Parser)]
#[command(name = "arinar-launcher", version, after_long_help = AFTER_HELP)]
pub struct Arguments {
    /// Configuration file, or the name of one in configs/
    #[arg(long)]
    pub config: String,
    /// Replaces a value of the configuration, e.g. --set optim.epochs=2; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Number of ranks. `auto` takes as many as there are GPUs (or cores, or slots in the host file), less those with
    /// which batch.global cannot be shared evenly
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub nproc: RankCount,
    /// Several machines: a file in Open MPI's form, one `name slots=N` a line, # for comments
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// Restarts in all, whatever they gain [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<u32>,
    /// Goes on with so few ranks when machines are lost; steps then take longer, and compute the same [default: all]
    #[arg(long, value_name = "N", requires = "hostfile")]
    pub min_ranks: Option<usize>,
    /// From the signal that ends the job to SIGKILL: the time there is for a checkpoint
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub grace: Duration,
    /// Serves /status (JSON) and /metrics (Prometheus) there; the address is 127.0.0.1 unless given
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub status_port: Option<StatusAddress>,
    /// The trainer [default: arinar-trainer beside the launcher, else on the PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub trainer: Option<PathBuf>,
    /// Open MPI's mpirun [default: on the PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub mpirun: Option<PathBuf>,
    /// One more argument for mpirun, e.g. --mpirun-arg=--mca --mpirun-arg=btl --mpirun-arg=self,tcp; may be repeated
    #[arg(long = "mpirun-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub mpirun_arguments: Vec<String>,
    /// Prints the mpirun command, its environment and who computes where; starts nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How lines are written: the launcher's own, and those of ranks
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// A step hangs when nothing has moved for so many times its usual length ...
    #[arg(long, value_name = "TIMES", default_value_t = 20.0, value_parser = factor)]
    pub hang_factor: f64,
    /// ... and for at least so long; while it waits for data, for half as long again as ARINAR_STORE_PATIENCE, too
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub hang_floor: Duration,
    /// Longest time without a move while ranks start, wait for a checkpoint, or finish; and for a lost host to come back
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = time)]
    pub start_up_limit: Duration,
    /// A rank that sends nothing for so long is stopped or cut off; one that hears nothing for so long ends itself
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = silence)]
    pub silence_limit: Duration,
    /// Given to the trainer as they are
    #[arg(last = true, value_name = "TRAINER ARGUMENTS")]
    pub trainer_arguments: Vec<String>,
}

const LONGEST_TIME: Duration = Duration::from_secs(366 * 24 * 3600);
const SHORTEST_SILENCE: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
Examples:
  arinar-launcher --config arinar_b.yaml
      all GPUs of this machine
  arinar-launcher --config demo.yaml --nproc 2 --status-port 9400
      two ranks; `curl 127.0.0.1:9400/status` says how they do
  arinar-launcher --config arinar_b.yaml --hostfile hosts --min-ranks 4
      several machines, reached by ssh (OMPI_MCA_plm_rsh_agent names another program); goes on with four ranks
  arinar-launcher --config arinar_b.yaml --dry-run
      what would be run, to read or to copy
  arinar-launcher --config arinar_b.yaml -- --check
      the ranks look at everything a run needs, and end; --plan says what it will take

Signals:
  SIGINT, SIGTERM and SIGUSR1 end the job with a checkpoint, within --grace. A second SIGINT ends it at once.

Files:
  <run.log_dir>/ranks/rank-N.log   all that rank N ever wrote, with a header for each start
  <run.log_dir>/ranks/mpirun.log   what mpirun itself wrote
  <run.log_dir>/ranks/launcher.log what the launcher wrote

Exit codes:
  0   the run is done
  75  ended by a signal: start it again to go on
  78  the command line, the configuration or the machine's set-up must be changed
  1   anything else: the last line says what";

/// `--nproc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankCount {
    /// As many as fit.
    Auto,
    /// So many.
    Exactly(usize),
}

impl FromStr for RankCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(count) if (1..=1 << 16).contains(&count) => Ok(Self::Exactly(count)),
            _ => Err("it is a number from 1 to 65536, or auto".to_owned()),
        }
    }
}

/// `--status-port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusAddress(pub SocketAddr);

impl FromStr for StatusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match (text.parse::<u16>(), text.parse()) {
            (Ok(port), _) => Ok(Self(SocketAddr::new(here, port))),
            (_, Ok(address)) => Ok(Self(address)),
            _ => Err("it is a port, or an IP address and a port, as in 0.0.0.0:9400".to_owned()),
        }
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    // What is added to it must not overflow.
    if time <= LONGEST_TIME { Ok(time) } else { Err("it is at most a year".to_owned()) }
}

fn silence(text: &str) -> Result<Duration, String> {
    // A few beats must fit.
    time(text).and_then(|time| if time >= SHORTEST_SILENCE { Ok(time) } else { Err("it is at least 1s".to_owned()) })
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("it is a number from 1 to 1000000".to_owned()),
    }
}

impl Arguments {
    /// Reads the command line. `Err` has the text to print and the exit code: that of help and version is 0.
    ///
    /// # Errors
    /// Help, the version, or in one line what is wrong.
    pub fn read(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, (String, u8)> {
        Self::try_parse_from(arguments).map_err(|error| {
            if !error.use_stderr() {
                return (error.render().ansi().to_string(), exit_code::DONE);
            }
            let text = error.render().to_string();
            let told: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
                .filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"))
                .collect();
            (format!("arinar-launcher: {} (--help explains)\n", told.join(" ")), exit_code::CONFIGURATION)
        })
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
    fn what_is_wrong_takes_one_line() {
        for line in [
            "",
            "--config",
            "--config x --nproc 0",
            "--config x --nproc many",
            "--config x --grace 5",
            "--config x --grace 18446744073709551615s",
            "--config x --silence-limit 100ms",
            "--config x --status-port localhost:9400",
            "--config x --hang-factor 0",
            "--config x --min-ranks 2",
            "--config x --nproc 2 --nprc 2",
            "--config x --log-format yaml",
        ] {
            let (told, code) = read(&format!("arinar-launcher {line}")).unwrap_err();
            assert_eq!((told.lines().count(), code), (1, 78), "{line}: {told}");
        }
        assert_eq!(read("arinar-launcher --help").unwrap_err().1, 0);
    }
}
