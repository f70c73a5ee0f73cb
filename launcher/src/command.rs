//! The mpirun command of a job.

use crate::{hosts::Host, programs::Programs};
use arinar_protocol::environment;

/// Variables that ranks on other machines need, where they are set here: credentials and settings of the stores, of
/// NCCL and its networks, proxies and certificates. Values travel with mpirun's own messages, not on a command line.
/// What tells one machine from another (CUDA_VISIBLE_DEVICES, PATH, HOME) is not among them.
const PASSED_ON: [&str; 14] = [
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

/// With several machines: after so many seconds without a sign of life of a machine, mpirun asks it three times in
/// 15 s, and then takes it as lost. Its own value of five minutes is no use to a job that is restarted by then.
const KEEP_ALIVE: [(&str, &str); 3] =
    [("oob_tcp_keepalive_time", "10"), ("oob_tcp_keepalive_intvl", "5"), ("oob_tcp_keepalive_probes", "3")];

/// What one start of a job runs.
#[derive(Clone, Debug)]
pub struct JobCommand<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// Hosts with the slots to use, empty for this machine alone.
    pub hosts: &'a [Host],
    /// Number of ranks.
    pub ranks: usize,
    /// Cores of this machine: ranks that outnumber them must give way while they wait.
    pub cores: usize,
    /// mpirun refuses root unless it is told not to.
    pub root: bool,
    /// Further arguments of mpirun.
    pub mpirun_arguments: &'a [String],
    /// Arguments of the trainer.
    pub trainer_arguments: &'a [String],
    /// Ranks report to the launcher, and their lines are tagged for it.
    pub watched: bool,
}

impl JobCommand<'_> {
    /// The arguments of mpirun; `environment` has the names of this process's variables.
    pub fn arguments(&self, environment: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut told: Vec<String> = Vec::new();
        let mut tell = |words: &[&str]| told.extend(words.iter().map(|&word| word.to_owned()));
        if self.root {
            tell(&["--allow-run-as-root"]);
        }
        let hosts = match self.hosts {
            [] => format!("localhost:{}", self.ranks),
            hosts => hosts.iter().map(|host| format!("{}:{}", host.name, host.slots)).collect::<Vec<_>>().join(","),
        };
        tell(&["-n", &self.ranks.to_string(), "--host", &hosts, "--map-by", "slot"]);
        // Trainers share a machine's cores among themselves.
        tell(&["--bind-to", "none"]);
        if self.watched {
            // mpirun 5 has --tag-output too, under another name.
            tell(if self.programs.mpirun_version >= 5 { &["--output", "tag"] } else { &["--tag-output"] });
        }
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        if self.hosts.is_empty() && self.ranks > self.cores {
            // Slots are given, so mpirun would not see that cores are short, and ranks would wait without giving way.
            parameters.push(("mpi_yield_when_idle", "1"));
        }
        if !self.hosts.is_empty() && self.programs.mpirun_version < 5 {
            parameters.extend(KEEP_ALIVE);
        }
        // mpirun refuses a parameter that it is given twice.
        for (name, value) in parameters.into_iter().filter(|(name, _)| !self.is_given(name)) {
            tell(&["--mca", name, value]);
        }
        if self.watched {
            tell(&["-x", environment::LAUNCHER]);
        }
        if !self.hosts.is_empty() {
            for name in passed_on(environment) {
                tell(&["-x", &name]);
            }
        }
        told.extend(self.mpirun_arguments.iter().cloned());
        told.push(self.programs.trainer.to_string_lossy().into_owned());
        told.extend(self.trainer_arguments.iter().cloned());
        told
    }

    /// True if `--mpirun-arg` sets this parameter of Open MPI's.
    fn is_given(&self, name: &str) -> bool {
        let mut pairs = self.mpirun_arguments.windows(2);
        pairs.any(|pair| pair[0].trim_start_matches('-') == "mca" && pair[1] == name)
    }

    /// The command as one would type it.
    pub fn shown(&self, environment: impl IntoIterator<Item = String>) -> String {
        let program = self.programs.mpirun.to_string_lossy().into_owned();
        let words = std::iter::once(program).chain(self.arguments(environment));
        words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
    }
}

/// Names of the variables to pass on, sorted.
pub fn passed_on(environment: impl IntoIterator<Item = String>) -> Vec<String> {
    let wanted = |name: &String| {
        let upper = name.to_uppercase();
        name != environment::LAUNCHER && PASSED_ON.iter().any(|start| upper.starts_with(start))
    };
    let mut names: Vec<String> = environment.into_iter().filter(wanted).collect();
    names.sort();
    names
}

/// A word in a shell's quotes, if it needs some.
pub fn quoted(word: &str) -> String {
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

    fn job<'a>(programs: &'a Programs, hosts: &'a [Host], arguments: &'a [String]) -> JobCommand<'a> {
        JobCommand {
            programs,
            hosts,
            ranks: 4,
            cores: 4,
            root: false,
            mpirun_arguments: &[],
            trainer_arguments: arguments,
            watched: true,
        }
    }

    #[test]
    fn one_machine() {
        let told = ["--config".to_owned(), "it's.yaml".to_owned()];
        assert_eq!(
            job(&programs(), &[], &told).shown(["AWS_REGION".to_owned()]),
            "/usr/bin/mpirun -n 4 --host localhost:4 --map-by slot --bind-to none --tag-output -x ARINAR_LAUNCHER \
             /opt/arinar-trainer --config 'it'\\''s.yaml'"
        );
        let programs = programs();
        let crowded = JobCommand { cores: 2, root: true, ..job(&programs, &[], &[]) };
        let shown = crowded.shown([]);
        assert!(shown.contains("mpirun --allow-run-as-root -n 4"), "{shown}");
        assert!(shown.contains("--mca mpi_yield_when_idle 1"), "{shown}");
        let plain = JobCommand { watched: false, ..job(&programs, &[], &[]) }.shown([]);
        assert!(plain.ends_with("--bind-to none /opt/arinar-trainer"), "{plain}");
    }

    #[test]
    fn several_machines_get_the_environment() {
        let hosts = [Host { name: "a".to_owned(), slots: 2 }, Host { name: "b".to_owned(), slots: 2 }];
        let names = ["NCCL_DEBUG", "HOME", "https_proxy", "AWS_REGION", "CUDA_VISIBLE_DEVICES", "ARINAR_LAUNCHER"];
        let shown = job(&programs(), &hosts, &[]).shown(names.map(str::to_owned));
        assert!(shown.contains("--host a:2,b:2 "), "{shown}");
        assert!(shown.contains("-x ARINAR_LAUNCHER -x AWS_REGION -x NCCL_DEBUG -x https_proxy /opt"), "{shown}");
        assert!(shown.contains("--mca oob_tcp_keepalive_time 10 "), "{shown}");
        let given = ["--mca", "oob_tcp_keepalive_time", "3"].map(str::to_owned);
        let shown = JobCommand { mpirun_arguments: &given, ..job(&programs(), &hosts, &[]) }.shown([]);
        assert!(shown.contains(" --mca oob_tcp_keepalive_time 3 ") && !shown.contains("_time 10"), "{shown}");
    }

    #[test]
    fn words_survive_the_shell() {
        for word in ["", "a b", "it's", "$HOME", "a\nb", "plain=1"] {
            let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output();
            assert_eq!(output.map(|output| output.stdout).ok(), Some(word.as_bytes().to_vec()));
        }
    }
}
