//! The host file, judged by Open MPI itself.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Stdio},
};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{addresses::is_local, host::Host};
use crate::{programs::Programs, stop::Stop};

/// Maximum number of slots of a host.
const MAX_SLOTS: usize = 1 << 16;

/// Reads a host file in Open MPI's format. mpirun parses it, so that every version accepts and refuses what it does when it is
/// started by hand.
///
/// # Errors
/// The file cannot be read, mpirun refuses it, or it has no slots.
pub(crate) fn read_hostfile(path: &Path, programs: &Programs) -> Result<Vec<Host>, Stop> {
    let fail = |what: &dyn std::fmt::Display| Stop::configuration(format!("--hostfile {}: {what}", path.display()));
    let text = std::fs::read(path).map_err(|error| fail(&error))?;
    let allocation = ask_mpirun(&text, path, programs).map_err(|error| fail(&error))?;
    let text = String::from_utf8_lossy(&text);
    let spelled = spelled_names(&text);
    let mut hosts = Vec::new();
    for (node, slots) in allocation {
        let slots = usize::try_from(slots).unwrap_or(0);
        if slots > MAX_SLOTS {
            return Err(fail(&format!("{node} has {slots} slots; the maximum is {MAX_SLOTS}")));
        }
        if slots > 0 {
            let name = spelled.iter().find(|name| is_node(name, &node)).unwrap_or(&node).clone();
            hosts.push(Host { name, slots });
        }
    }
    if hosts.is_empty() {
        return Err(fail(&"it names no host with slots; write `name slots=N` per line"));
    }
    Ok(hosts)
}

/// Returns the nodes and slots that mpirun reads from the text of a host file. Nothing is started on them.
fn ask_mpirun(text: &[u8], path: &Path, programs: &Programs) -> Result<Vec<(String, u64)>, String> {
    let failed = |error: io::Error| format!("{} cannot parse it: {error}", programs.mpirun.display());
    let file = InMemoryFile::create(text).map_err(failed)?;
    let mut command = Command::new(&programs.mpirun);
    if rustix::process::geteuid().is_root() {
        command.arg("--allow-run-as-root");
    }
    // One process per node, because mpirun shows only nodes that are used, and hosts may have no slots.
    command.args(["--hostfile", &file.path, "--map-by", "ppr:1:node:OVERSUBSCRIBE", "--do-not-launch"]);
    if programs.mpirun_version >= 5 {
        command.args(["--display", "map"]);
    } else {
        command.arg("--display-map");
    }
    let output = command.arg("true").stdin(Stdio::null()).output().map_err(failed)?;
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    let nodes: Vec<(String, u64)> = printed.lines().filter_map(parse_node).collect();
    // mpirun rejects names with other characters only when it starts its daemons.
    if nodes.is_empty() || printed.contains("illegal character") {
        return Err(refusal(&printed.replace(&file.path, &path.display().to_string()), text));
    }
    Ok(nodes)
}

/// Parses a line of the map, such as `Data for node: a`, a tab, and `Num slots: 2`.
fn parse_node(line: &str) -> Option<(String, u64)> {
    let (node, rest) = line.trim().strip_prefix("Data for node: ")?.split_once("Num slots: ")?;
    let slots: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((node.trim().to_owned(), slots.parse().ok()?))
}

/// Returns the reason for which mpirun refuses a host file, in one line: its first message, and the line of the file.
fn refusal(printed: &str, text: &[u8]) -> String {
    let is_rule = |line: &str| !line.is_empty() && line.chars().all(|letter| letter == '-');
    let lines = printed.lines().map(str::trim).skip_while(|line| !is_rule(line)).skip(1);
    let message: Vec<&str> = lines.take_while(|line| !is_rule(line)).filter(|line| !line.is_empty()).collect();
    let message = message.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let number = message.split_once("line number ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok());
    let text = String::from_utf8_lossy(text);
    let line = number.and_then(|number| text.split('\n').nth(number.checked_sub(1)?));
    let quoted = line.map(|line| format!(" ({line:?})")).unwrap_or_default();
    let message = if message.is_empty() { "no reason is given" } else { &message };
    format!("mpirun refuses it: {message}{quoted}; write `name slots=N` per line")
}

/// Returns the names of hosts as they are written in a host file, with their users.
fn spelled_names(text: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words =
            line.split(|letter: char| letter.is_whitespace() || letter == '=').filter(|word| !word.is_empty());
        let name = words.next()?;
        let user = words.skip_while(|word| *word != "username").nth(1).filter(|_| !name.contains('@'));
        Some(user.map_or_else(|| name.to_owned(), |user| format!("{user}@{name}")))
    };
    text.lines().filter_map(of_line).collect()
}

/// Returns true if mpirun calls the host with this name `node`: it omits user and domain, and knows all names of this host.
fn is_node(name: &str, node: &str) -> bool {
    let host = name.rsplit('@').next().unwrap_or(name);
    host == node || host.split('.').next() == Some(node) || (is_local(node) && is_local(host))
}

/// A file without a name that child processes can open.
pub(crate) struct InMemoryFile {
    _file: File,
    /// Its path in this process and in its children.
    pub(crate) path: String,
}

impl InMemoryFile {
    fn create(contents: &[u8]) -> io::Result<Self> {
        // Children inherit the file, because it is not closed on exec.
        let mut file = File::from(memfd_create("hosts", MemfdFlags::empty())?);
        file.write_all(contents)?;
        let path = format!("/dev/fd/{}", file.as_raw_fd());
        Ok(Self { _file: file, path })
    }
}

/// Returns true if the file names a user for some host. mpirun accepts users in host files only.
pub(crate) fn names_user(hosts: &[Host]) -> bool {
    hosts.iter().any(|host| host.name.contains('@'))
}

/// Returns the lines of a host file with these hosts.
pub(crate) fn lines(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|host| format!("{} slots={}", host.name, host.slots)).collect()
}

/// Creates a host file with these hosts for mpirun.
///
/// # Errors
/// The system cannot create the file.
pub(crate) fn write_hostfile(hosts: &[Host]) -> Result<InMemoryFile, Stop> {
    let text = lines(hosts).join("\n") + "\n";
    InMemoryFile::create(text.as_bytes())
        .map_err(|error| Stop::failure(format!("cannot create a host file for mpirun: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<Vec<Host>, Stop> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_hostfile(file.path(), &programs())
    }

    fn programs() -> Programs {
        Programs::find(Some(Path::new("/bin/true")), None).unwrap()
    }

    fn host(name: &str, slots: usize) -> Host {
        Host { name: name.to_owned(), slots }
    }

    #[test]
    fn host_files_are_read() {
        let text = "# two nodes\na slots=4 max-slots=8\n\n\tb.c slots = 2  # half\nd\ne count=3\nd\nf cpu=1\n\
                    me@g slots=2 max_slots=4\nh max_slots=3\n10.0.0.1 slots=1 // last\nnone slots=0";
        let wanted = [
            host("a", 4),
            host("b.c", 2),
            host("d", 2),
            host("e", 3),
            host("f", 1),
            host("me@g", 2),
            host("h", 3),
            host("10.0.0.1", 1),
        ];
        let hosts = read(text).unwrap();
        assert_eq!(hosts, wanted);
        assert_eq!(read("a username=me slots=2\n").unwrap(), [host("me@a", 2)]);
        // Open MPI reads only the first of several names in a line.
        assert_eq!(read("a b slots=2\n").unwrap(), [host("a", 2)]);
        // Open MPI reads all names of this host as one, first in the list.
        assert_eq!(read("a\nlocalhost\n127.0.0.1\n").unwrap(), [host("localhost", 2), host("a", 1)]);
    }

    #[test]
    fn what_mpirun_refuses_is_an_error_with_its_reason() {
        for (text, part) in [
            ("a\nb slotz=2\n", "parse error in the hostfile"),
            ("a\nb slotz=2\n", "(\"b slotz=2\")"),
            ("a slot=2", "line number 1"),
            ("a slots=2\r\n", "(\"a slots=2\\r\")"),
            ("a slots=x\n", "The slots parameter is less than 0"),
            ("a slots=-1\n", "The slots parameter is less than 0"),
            ("a slots=4 max_slots=2\n", "max_slots parameter is less than the slots parameter"),
            ("a slots=2\na slots=3\n", "multiple definitions"),
            ("node[1-3] slots=2\n", "parse error"),
            ("fe80::1 slots=2\n", "illegal character in the following node name: node: fe80::1"),
            ("node_b slots=2\n", "illegal character"),
            ("a:2\n", "illegal character"),
            ("+n0 slots=2\n", "relative host"),
            ("-oProxyCommand=x", "parse error"),
            ("# none\n", "No nodes are available"),
            ("", "No nodes are available"),
            ("a slots=0\n", "names no host with slots"),
            ("a slots=99999999999\n", "the maximum is 65536"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.code == 78 && error.line.contains(part), "{text:?}: {error}");
            assert_eq!(error.line.lines().count(), 1, "{error}");
        }
        assert!(read(b"a\xff slots=2\n").unwrap_err().line.contains("parse error"));
        assert_eq!(read(b"a slots=2 # caf\xe9\n").unwrap(), [host("a", 2)]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        for (path, part) in [("/nowhere/hosts", "No such file"), ("/tmp", "directory")] {
            let error = read_hostfile(Path::new(path), &programs()).unwrap_err();
            assert!(error.code == 78 && error.line.contains(path) && error.line.contains(part), "{error}");
        }
    }
}
