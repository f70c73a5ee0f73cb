//! Hosts and their slots.

/// A host and its number of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Name of the host as it is written in the host file, with `user@` if the file names a user.
    pub(crate) name: String,
    /// Number of ranks to run on it.
    pub(crate) slots: usize,
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
mod tests {
    use super::*;

    fn host(name: &str, slots: usize) -> Host {
        Host { name: name.to_owned(), slots }
    }

    #[test]
    fn ranks_fill_hosts_in_order() {
        let hosts = [host("a", 5), host("b.c", 2), host("d", 1)];
        assert_eq!(total_slots(&hosts), 8);
        assert_eq!(allocate(&hosts, 6), [host("a", 5), host("b.c", 1)]);
        assert_eq!(allocate(&hosts, 99), hosts);
    }
}
