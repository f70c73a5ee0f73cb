//! The machines of a job: the host file, which of them answer, and under which addresses they reach the launcher.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use crate::{exit::Stop, processes};

/// A host that does not answer for so long is taken as lost.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// One machine and how many ranks it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, as the host file has it.
    pub name: String,
    /// Ranks that it takes.
    pub slots: usize,
}

/// Reads a host file in Open MPI's form: `name [slots=N] [...]` or `name:N`, # for comments. As for Open MPI, a name
/// that comes twice has the slots of both lines; a line without a number gives one slot.
///
/// # Errors
/// The file, the line, and what is wrong there.
pub fn read_hostfile(path: &Path) -> Result<Vec<Host>, Stop> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| Stop::configuration(format!("--hostfile {shown}: {error}")))?;
    let mut hosts: Vec<Host> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: String| Stop::configuration(format!("--hostfile {shown}, line {}: {what}", number + 1));
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let (name, after_colon) = match first.split_once(':') {
            Some((name, slots)) if !slots.contains(':') => (name, Some(slots)),
            _ => (first, None),
        };
        if name.is_empty() || name.starts_with('-') || name.contains(['=', ',', '@', '\'', '"', '$', '`', ';']) {
            return Err(wrong(format!("{first:?} is no host name; a line reads `name slots=N`")));
        }
        let slots = words.find_map(|word| word.strip_prefix("slots=")).or(after_colon).unwrap_or("1");
        let slots = match slots.parse() {
            Ok(slots) if (1..=1 << 16).contains(&slots) => slots,
            _ => return Err(wrong(format!("slots={slots} is no number of ranks; a line reads `name slots=N`"))),
        };
        match hosts.iter_mut().find(|host| host.name == name) {
            Some(host) => host.slots += slots,
            None => hosts.push(Host { name: name.to_owned(), slots }),
        }
    }
    if hosts.is_empty() {
        return Err(Stop::configuration(format!("--hostfile {shown} names no host; a line reads `name slots=N`")));
    }
    Ok(hosts)
}

/// Slots of all of them.
pub fn slots(hosts: &[Host]) -> usize {
    hosts.iter().map(|host| host.slots).sum()
}

/// The first hosts that hold so many ranks, with as many slots as they use.
pub fn fill(hosts: &[Host], mut ranks: usize) -> Vec<Host> {
    let mut used = Vec::new();
    for host in hosts {
        let slots = host.slots.min(ranks);
        if slots > 0 {
            used.push(Host { name: host.name.clone(), slots });
            ranks -= slots;
        }
    }
    used
}

/// True for a name of this machine.
pub fn is_local(name: &str) -> bool {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    // An address is cut at no dot.
    let is_address = name.parse::<IpAddr>().is_ok();
    if name == "localhost" || name == own || (!is_address && short(name) == short(&own)) {
        return true;
    }
    resolve(name).is_some_and(|address| UdpSocket::bind((address, 0)).is_ok())
}

/// The program by which mpirun starts its daemons on other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteShell(Vec<String>);

impl RemoteShell {
    /// As mpirun chooses: the first of OMPI_MCA_plm_rsh_agent, `ssh : rsh` by default, that is there.
    ///
    /// # Errors
    /// None is there.
    pub fn find() -> Result<Self, Stop> {
        let asked =
            ["OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"].iter().find_map(|name| std::env::var(name).ok());
        let asked = asked.unwrap_or_else(|| "ssh : rsh".to_owned());
        for agent in asked.split(':') {
            let mut words: Vec<String> = agent.split_whitespace().map(str::to_owned).collect();
            let Some(program) = words.first() else { continue };
            if crate::programs::on_path(program).is_some() {
                if program.rsplit('/').next() == Some("ssh") {
                    // Nobody is there to type a password.
                    let connect = format!("ConnectTimeout={}", PROBE_TIMEOUT.as_secs());
                    words.extend(["-o", "BatchMode=yes", "-o", &connect].map(str::to_owned));
                }
                return Ok(Self(words));
            }
        }
        Err(Stop::configuration(format!(
            "none of {asked:?} is there to reach other hosts; install ssh, or name a program in OMPI_MCA_plm_rsh_agent"
        )))
    }

    /// Runs `true` on a host.
    async fn reaches(&self, host: &str) -> Result<(), String> {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]).args([host, "true"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        processes::tie_to_this_thread(command.as_std_mut());
        let output = match tokio::time::timeout(PROBE_TIMEOUT, command.output()).await {
            Err(_) => return Err(format!("no answer in {} s", PROBE_TIMEOUT.as_secs())),
            Ok(Err(error)) => return Err(format!("{}: {error}", self.0[0])),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        let line = told.lines().rev().find(|line| !line.trim().is_empty()).map_or_else(
            || format!("`{} {host} true` ends with {}", self.0.join(" "), output.status),
            |line| line.trim().to_owned(),
        );
        Err(line)
    }
}

/// A host that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Its name.
    pub name: String,
    /// What was said.
    pub why: String,
}

/// Asks all other machines at once whether they answer; in the order of the host file.
///
/// # Errors
/// There is no way to ask.
pub async fn probe(hosts: &[Host]) -> Result<(Vec<Host>, Vec<Unreachable>), Stop> {
    if hosts.iter().all(|host| is_local(&host.name)) {
        return Ok((hosts.to_vec(), Vec::new()));
    }
    let shell = RemoteShell::find()?;
    let mut asked = Vec::new();
    for host in hosts {
        let (shell, name) = (shell.clone(), host.name.clone());
        let ask = async move { if is_local(&name) { Ok(()) } else { shell.reaches(&name).await } };
        asked.push(tokio::spawn(ask));
    }
    let (mut alive, mut lost) = (Vec::new(), Vec::new());
    for (host, answer) in hosts.iter().zip(asked) {
        match answer.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => alive.push(host.clone()),
            Err(why) => lost.push(Unreachable { name: host.name.clone(), why }),
        }
    }
    Ok((alive, lost))
}

/// The launcher's addresses, as its ranks see them: loopback for those on this machine, and for others what the
/// system would send from.
pub fn own_addresses(hosts: &[Host], port: u16) -> Vec<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for host in hosts.iter().filter(|host| !is_local(&host.name)) {
        // A name that ssh alone knows: whoever is reached through the default route.
        let there = resolve(&host.name).unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        addresses.extend(sent_from(there));
    }
    let mut all: Vec<SocketAddr> = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    if all.is_empty() || hosts.iter().any(|host| is_local(&host.name)) {
        // The rest is tried in turn, and this one fails at once elsewhere: last.
        all.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    all
}

fn sent_from(there: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = if there.is_ipv4() { "0.0.0.0:0".parse().ok()? } else { "[::]:0".parse().ok()? };
    let socket = UdpSocket::bind(any).ok()?;
    // Nothing is sent: the system only chooses a route.
    socket.connect((there, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

fn resolve(name: &str) -> Option<IpAddr> {
    (name, 0).to_socket_addrs().ok()?.map(|address| address.ip()).next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Host>, Stop> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_hostfile(file.path())
    }

    fn host(name: &str, slots: usize) -> Host {
        Host { name: name.to_owned(), slots }
    }

    #[test]
    fn host_files_are_read() {
        let text = "# two nodes\na slots=4 max-slots=8\n\nb.c:2  # half\nd\na\n10.0.0.1 slots=1\n";
        let wanted = [host("a", 5), host("b.c", 2), host("d", 1), host("10.0.0.1", 1)];
        let hosts = read(text).unwrap();
        assert_eq!(hosts, wanted);
        assert_eq!(slots(&hosts), 9);
        assert_eq!(fill(&hosts, 6), [host("a", 5), host("b.c", 1)]);
        assert_eq!(fill(&hosts, 99), hosts);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, part) in [
            ("a\nb slots=x\n", "line 2"),
            ("a slots=0", "slots=0"),
            ("-oProxyCommand=x", "no host name"),
            ("# none\n", "names no host"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.code == 78 && told.line.contains(part), "{told}");
        }
        assert!(read_hostfile(Path::new("/nowhere/hosts")).unwrap_err().line.contains("/nowhere/hosts"));
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(is_local("localhost") && is_local("127.0.0.1") && is_local(&own));
        assert!(!is_local("192.0.2.7"));
        assert_eq!(own_addresses(&[], 4), ["127.0.0.1:4".parse().unwrap()]);
    }
}
