//! The mpirun command of a job.

use arinar_protocol::environment;

use crate::{hosts::Host, programs::Programs};

/// Prefixes of the variables that ranks on other hosts need if they are set here: credentials and settings of stores, of
/// NCCL and its networks, proxies and certificates. The values travel in mpirun's own messages, not on a command line.
/// Variables that differ between hosts (CUDA_VISIBLE_DEVICES, PATH, HOME) are not forwarded.
const FORWARDED: [&str; 14] = [
    "ARINAR_",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "NCCL_",
    "UCX_",
    "FI_",
    "RUST_BACKTRACE",
    "SSL_CERT_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "OMP_",
    "LD_LIBRARY_PATH",
];

/// TCP keepalive of mpirun's connections between hosts: after 10 s of silence, three probes within 15 s. The default of
/// five minutes is too long, because the launcher has restarted the job by then.
const KEEP_ALIVE: [(&str, &str); 3] =
    [("oob_tcp_keepalive_time", "10"), ("oob_tcp_keepalive_intvl", "5"), ("oob_tcp_keepalive_probes", "3")];

/// The mpirun command of one start of a job.
#[derive(Clone, Debug)]
pub(crate) struct MpirunCommand<'a> {
    /// The programs.
    pub(crate) programs: &'a Programs,
    /// Hosts and the number of slots to use on each; empty if the job runs on this host alone.
    pub(crate) hosts: &'a [Host],
    /// Path of a host file with these hosts; `None` to name them on the command line, where mpirun accepts no users.
    pub(crate) hostfile: Option<&'a str>,
    /// World size.
    pub(crate) ranks: usize,
    /// Number of cores of this host. Ranks in excess of it must yield while they wait.
    pub(crate) cores: usize,
    /// True for the superuser, for whom mpirun refuses to run without a flag.
    pub(crate) root: bool,
    /// Further arguments of mpirun.
    pub(crate) mpirun_arguments: &'a [String],
    /// Arguments of the trainer.
    pub(crate) trainer_arguments: &'a [String],
    /// True if ranks report to the launcher and mpirun tags their output.
    pub(crate) watched: bool,
}

impl MpirunCommand<'_> {
    /// Returns the arguments of mpirun. `variables` are the names of all variables of this process.
    pub(crate) fn arguments(&self, variables: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut push = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
        if self.root {
            push(&["--allow-run-as-root"]);
        }
        push(&["-n", &self.ranks.to_string()]);
        match self.hostfile {
            Some(path) => push(&["--hostfile", path]),
            None => push(&["--host", &self.host_list()]),
        }
        push(&["--map-by", "slot"]);
        // Trainers divide the cores of a host among themselves.
        push(&["--bind-to", "none"]);
        if self.watched {
            // mpirun 5 spells --tag-output differently.
            push(if self.programs.mpirun_version >= 5 { &["--output", "tag"] } else { &["--tag-output"] });
        }
        for (name, value) in self.mca_parameters() {
            push(&["--mca", name, value]);
        }
        if self.watched {
            push(&["-x", environment::LAUNCHER]);
        }
        if !self.hosts.is_empty() {
            for name in forwarded_variables(variables) {
                push(&["-x", &name]);
            }
        }
        words.extend(self.mpirun_arguments.iter().cloned());
        words.push(self.programs.trainer.to_string_lossy().into_owned());
        words.extend(self.trainer_arguments.iter().cloned());
        words
    }

    fn host_list(&self) -> String {
        match self.hosts {
            [] => format!("localhost:{}", self.ranks),
            hosts => hosts.iter().map(|host| format!("{}:{}", host.name, host.slots)).collect::<Vec<_>>().join(","),
        }
    }

    /// Returns Open MPI's parameters and their values, without those that `--mpirun-arg` sets: mpirun rejects a parameter
    /// that is given twice.
    fn mca_parameters(&self) -> Vec<(&'static str, &'static str)> {
        let mut parameters = Vec::new();
        if self.hosts.is_empty() && self.ranks > self.cores {
            // Because slots are given explicitly, mpirun does not detect that the cores are oversubscribed.
            parameters.push(("mpi_yield_when_idle", "1"));
        }
        if !self.hosts.is_empty() && self.programs.mpirun_version < 5 {
            parameters.extend(KEEP_ALIVE);
        }
        parameters.retain(|(name, _)| !self.is_given(name));
        parameters
    }

    /// Returns true if `--mpirun-arg` sets this parameter of Open MPI.
    fn is_given(&self, name: &str) -> bool {
        let mut pairs = self.mpirun_arguments.windows(2);
        pairs.any(|pair| pair[0].trim_start_matches('-') == "mca" && pair[1] == name)
    }

    /// Returns the command as a line for a shell.
    pub(crate) fn shell_line(&self, variables: impl IntoIterator<Item = String>) -> String {
        let program = self.programs.mpirun.to_string_lossy().into_owned();
        let words = std::iter::once(program).chain(self.arguments(variables));
        words.map(|word| quote(&word)).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the names of the variables to forward to other hosts, sorted.
pub(crate) fn forwarded_variables(variables: impl IntoIterator<Item = String>) -> Vec<String> {
    let forwarded = |name: &String| {
        let upper = name.to_uppercase();
        name != environment::LAUNCHER && FORWARDED.iter().any(|prefix| upper.starts_with(prefix))
    };
    let mut names: Vec<String> = variables.into_iter().filter(forwarded).collect();
    names.sort();
    names
}

/// Quotes a word for a shell if necessary.
fn quote(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,@+%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        Programs { trainer: "/opt/arinar-trainer".into(), mpirun: "/usr/bin/mpirun".into(), mpirun_version: 4 }
    }

    fn job<'a>(programs: &'a Programs, hosts: &'a [Host], arguments: &'a [String]) -> MpirunCommand<'a> {
        MpirunCommand {
            programs,
            hosts,
            hostfile: None,
            ranks: 4,
            cores: 4,
            root: false,
            mpirun_arguments: &[],
            trainer_arguments: arguments,
            watched: true,
        }
    }

    #[test]
    fn a_job_on_this_host() {
        let arguments = ["--config".to_owned(), "it's.yaml".to_owned()];
        assert_eq!(
            job(&programs(), &[], &arguments).shell_line(["AWS_REGION".to_owned()]),
            "/usr/bin/mpirun -n 4 --host localhost:4 --map-by slot --bind-to none --tag-output -x ARINAR_LAUNCHER \
             /opt/arinar-trainer --config 'it'\\''s.yaml'"
        );
        let programs = programs();
        let crowded = MpirunCommand { cores: 2, root: true, ..job(&programs, &[], &[]) };
        let shown = crowded.shell_line([]);
        assert!(shown.contains("mpirun --allow-run-as-root -n 4"), "{shown}");
        assert!(shown.contains("--mca mpi_yield_when_idle 1"), "{shown}");
        let plain = MpirunCommand { watched: false, ..job(&programs, &[], &[]) }.shell_line([]);
        assert!(plain.ends_with("--bind-to none /opt/arinar-trainer"), "{plain}");
    }

    #[test]
    fn other_hosts_get_the_environment() {
        let hosts = [Host { name: "a".to_owned(), slots: 2 }, Host { name: "b".to_owned(), slots: 2 }];
        let names = ["NCCL_DEBUG", "HOME", "https_proxy", "AWS_REGION", "CUDA_VISIBLE_DEVICES", "ARINAR_LAUNCHER"];
        let shown = job(&programs(), &hosts, &[]).shell_line(names.map(str::to_owned));
        assert!(shown.contains("--host a:2,b:2 "), "{shown}");
        assert!(shown.contains("-x ARINAR_LAUNCHER -x AWS_REGION -x NCCL_DEBUG -x https_proxy /opt"), "{shown}");
        assert!(shown.contains("--mca oob_tcp_keepalive_time 10 "), "{shown}");
        let from_file = MpirunCommand { hostfile: Some("/dev/fd/5"), ..job(&programs(), &hosts, &[]) }.shell_line([]);
        assert!(from_file.contains("-n 4 --hostfile /dev/fd/5 --map-by slot"), "{from_file}");
        let given = ["--mca", "oob_tcp_keepalive_time", "3"].map(str::to_owned);
        let shown = MpirunCommand { mpirun_arguments: &given, ..job(&programs(), &hosts, &[]) }.shell_line([]);
        assert!(shown.contains(" --mca oob_tcp_keepalive_time 3 ") && !shown.contains("_time 10"), "{shown}");
    }

    #[test]
    fn words_survive_the_shell() {
        for word in ["", "a b", "it's", "$HOME", "a\nb", "plain=1"] {
            let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output();
            assert_eq!(output.map(|output| output.stdout).ok(), Some(word.as_bytes().to_vec()));
        }
    }
}
