//! Which cores lie beside which memory and which GPU, as the kernel describes the machine.

use std::path::Path;

/// Where Linux describes NUMA nodes and the devices on the bus.
const NODES: &str = "/sys/devices/system/node";
const BUS: &str = "/sys/bus/pci/devices";

/// Cores of each NUMA node, in the nodes' order; empty where the system does not say.
pub fn numa_nodes() -> Vec<Vec<usize>> {
    let folder = Path::new(NODES);
    let online = std::fs::read_to_string(folder.join("online")).unwrap_or_default();
    let cores = |node| std::fs::read_to_string(folder.join(format!("node{node}/cpulist"))).map(|text| parse(&text));
    parse(&online).into_iter().filter_map(|node| cores(node).ok()).collect()
}

/// Cores beside the device at a bus address as "0000:3b:00.0"; empty where the system does not say.
pub fn cores_near(bus_address: &str) -> Vec<usize> {
    let path = Path::new(BUS).join(bus_address).join("local_cpulist");
    std::fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default()
}

/// Reads the kernel's lists: "0-3,8".
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
    fn lists_of_cores_are_read() {
        assert_eq!(parse("0-2,8\n"), [0, 1, 2, 8]);
        assert!(parse("\n").is_empty());
        assert!(cores_near("no such device").is_empty());
    }
}
