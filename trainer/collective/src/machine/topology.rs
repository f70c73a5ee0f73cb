//! Topology of the machine: the cores of each NUMA node and the cores local to a GPU, as described by the kernel.

use std::path::Path;

/// Folders in which Linux describes NUMA nodes and PCI devices.
const NODES: &str = "/sys/devices/system/node";
const BUS: &str = "/sys/bus/pci/devices";

/// Returns the cores of each NUMA node, in the order of the nodes; empty if unknown.
pub(super) fn numa_nodes() -> Vec<Vec<usize>> {
    let folder = Path::new(NODES);
    let online = std::fs::read_to_string(folder.join("online")).unwrap_or_default();
    let cores = |node| std::fs::read_to_string(folder.join(format!("node{node}/cpulist"))).map(|text| parse(&text));
    parse(&online).into_iter().filter_map(|node| cores(node).ok()).collect()
}

/// Returns the cores local to the device at a PCI address such as "0000:3b:00.0"; empty if unknown.
pub(super) fn cores_near(bus_address: &str) -> Vec<usize> {
    let path = Path::new(BUS).join(bus_address).join("local_cpulist");
    std::fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default()
}

/// Parses a list in the kernel's format, for example "0-3,8".
fn parse(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_parsed() {
        assert_eq!(parse("0-2,8\n"), [0, 1, 2, 8]);
        assert!(parse("\n").is_empty());
        assert!(cores_near("no such device").is_empty());
    }
}
