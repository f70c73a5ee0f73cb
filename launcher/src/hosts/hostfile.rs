//! The host file.

use std::path::Path;

use crate::stop::Stop;

/// A host and its number of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Name of the host as it is written in the host file.
    pub(crate) name: String,
    /// Number of ranks to run on it.
    pub(crate) slots: usize,
}

/// Reads a host file in Open MPI's format: `name [slots=N] [...]` or `name:N` per line, with # for comments. As in Open
/// MPI, slots of repeated names add up, and a line without a number stands for one slot.
///
/// # Errors
/// The file cannot be read, names no host, or has an invalid line.
pub(crate) fn read_hostfile(path: &Path) -> Result<Vec<Host>, Stop> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| Stop::configuration(format!("--hostfile {shown}: {error}")))?;
    let mut hosts: Vec<Host> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let parsed = parse_line(line)
            .map_err(|error| Stop::configuration(format!("--hostfile {shown}, line {}: {error}", number + 1)))?;
        let Some(Host { name, slots }) = parsed else { continue };
        match hosts.iter_mut().find(|host| host.name == name) {
            Some(host) => host.slots += slots,
            None => hosts.push(Host { name, slots }),
        }
    }
    if hosts.is_empty() {
        return Err(Stop::configuration(format!("--hostfile {shown} names no host; write `name slots=N` per line")));
    }
    Ok(hosts)
}

/// Parses a line. Returns `None` if it is blank.
fn parse_line(line: &str) -> Result<Option<Host>, String> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.split_whitespace();
    let Some(first) = words.next() else { return Ok(None) };
    let (name, after_colon) = match first.split_once(':') {
        Some((name, slots)) if !slots.contains(':') => (name, Some(slots)),
        _ => (first, None),
    };
    if name.is_empty() || name.starts_with('-') || name.contains(['=', ',', '@', '\'', '"', '$', '`', ';']) {
        return Err(format!("{first:?} is not a host name; write `name slots=N`"));
    }
    let slots = words.find_map(|word| word.strip_prefix("slots=")).or(after_colon).unwrap_or("1");
    match slots.parse() {
        Ok(slots) if (1..=1 << 16).contains(&slots) => Ok(Some(Host { name: name.to_owned(), slots })),
        _ => Err(format!("slots={slots} is not a number from 1 to 65536; write `name slots=N`")),
    }
}

/// Returns the sum of the slots of all hosts.
pub(crate) fn total_slots(hosts: &[Host]) -> usize {
    hosts.iter().map(|host| host.slots).sum()
}

/// Assigns ranks to hosts in order. Returns the hosts that are used, with the number of slots used on each.
pub(crate) fn allocate(hosts: &[Host], mut ranks: usize) -> Vec<Host> {
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
        assert_eq!(total_slots(&hosts), 9);
        assert_eq!(allocate(&hosts, 6), [host("a", 5), host("b.c", 1)]);
        assert_eq!(allocate(&hosts, 99), hosts);
    }

    #[test]
    fn an_error_names_the_line() {
        for (text, part) in [
            ("a\nb slots=x\n", "line 2"),
            ("a slots=0", "slots=0"),
            ("-oProxyCommand=x", "not a host name"),
            ("# none\n", "names no host"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.code == 78 && error.line.contains(part), "{error}");
        }
        assert!(read_hostfile(Path::new("/nowhere/hosts")).unwrap_err().line.contains("/nowhere/hosts"));
    }
}
