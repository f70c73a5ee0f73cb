//! Probes whether hosts are reachable.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use super::{addresses::is_local, host::Host};
use crate::{processes, programs, stop::Stop};

/// A host that does not answer within this time is considered lost.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// The program with which mpirun starts its daemons on other hosts, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RemoteShell(Vec<String>);

impl RemoteShell {
    /// Chooses the program as mpirun does: the first installed one of OMPI_MCA_plm_rsh_agent, which defaults to
    /// `ssh : rsh`.
    ///
    /// # Errors
    /// No such program is installed.
    fn find() -> Result<Self, Stop> {
        let agents =
            ["OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"].iter().find_map(|name| std::env::var(name).ok());
        let agents = agents.unwrap_or_else(|| "ssh : rsh".to_owned());
        for agent in agents.split(':') {
            let mut words: Vec<String> = agent.split_whitespace().map(str::to_owned).collect();
            let Some(program) = words.first() else { continue };
            if programs::on_path(program).is_some() {
                if program.rsplit('/').next() == Some("ssh") {
                    // BatchMode disables password prompts.
                    let connect = format!("ConnectTimeout={}", PROBE_TIMEOUT.as_secs());
                    words.extend(["-o", "BatchMode=yes", "-o", &connect].map(str::to_owned));
                }
                return Ok(Self(words));
            }
        }
        Err(Stop::configuration(format!(
            "none of {agents:?} is installed to reach other hosts; install ssh, or set OMPI_MCA_plm_rsh_agent"
        )))
    }

    /// Runs `true` on a host.
    ///
    /// # Errors
    /// The command fails or does not finish in time; the error is the last line that it printed.
    async fn probe(&self, host: &str) -> Result<(), String> {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]).args([host, "true"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        processes::tie_to_this_thread(command.as_std_mut());
        let output = match tokio::time::timeout(PROBE_TIMEOUT, command.output()).await {
            Err(_) => return Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
            Ok(Err(error)) => return Err(format!("{}: {error}", self.0[0])),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr.lines().rev().find(|line| !line.trim().is_empty()).map_or_else(
            || format!("`{} {host} true` failed with {}", self.0.join(" "), output.status),
            |line| line.trim().to_owned(),
        );
        Err(line)
    }
}

/// A host that cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreachable {
    /// Name of the host.
    pub(crate) name: String,
    /// Error of the remote shell.
    pub(crate) error: String,
}

/// Probes all hosts concurrently. Returns those that answer and those that do not, each in the order of the host file.
/// This host always counts as reachable.
///
/// # Errors
/// No remote shell is installed.
pub(crate) async fn probe(hosts: &[Host]) -> Result<(Vec<Host>, Vec<Unreachable>), Stop> {
    if hosts.iter().all(|host| is_local(&host.name)) {
        return Ok((hosts.to_vec(), Vec::new()));
    }
    let shell = RemoteShell::find()?;
    let mut probes = Vec::new();
    for host in hosts {
        let (shell, name) = (shell.clone(), host.name.clone());
        let probe = async move { if is_local(&name) { Ok(()) } else { shell.probe(&name).await } };
        probes.push(tokio::spawn(probe));
    }
    let (mut reachable, mut lost) = (Vec::new(), Vec::new());
    for (host, probe) in hosts.iter().zip(probes) {
        match probe.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => reachable.push(host.clone()),
            Err(error) => lost.push(Unreachable { name: host.name.clone(), error }),
        }
    }
    Ok((reachable, lost))
}
