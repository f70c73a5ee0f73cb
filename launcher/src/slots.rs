//! The devices of this host that ranks run on: its GPUs, or else its cores.

use std::{collections::BTreeSet, fmt};

use nvml_wrapper::Nvml;

/// The devices of this host, one per rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slots {
    /// Names of the GPUs that are visible to processes.
    Gpus(Vec<String>),
    /// Physical cores, each represented by its lowest hardware thread.
    Cores(Vec<usize>),
}

impl Slots {
    /// Detects the devices of this host. GPUs are found through NVIDIA's management library; without it there are none.
    pub(crate) fn detect(cpu_only: bool) -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let gpus = if cpu_only { Vec::new() } else { visible_gpus(gpu_names(), visible.as_deref()) };
        if gpus.is_empty() { Self::Cores(physical_cores()) } else { Self::Gpus(gpus) }
    }

    /// Returns the number of devices.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Gpus(gpus) => gpus.len(),
            Self::Cores(cores) => cores.len(),
        }
    }

    /// Describes the device of rank `index` out of `ranks` on this host. The trainer chooses the cores: those close to the
    /// GPU, or whole NUMA nodes as far as possible.
    pub(crate) fn of_rank(&self, index: usize, ranks: usize) -> String {
        match self {
            Self::Gpus(gpus) => match gpus.get(index) {
                Some(name) => format!("GPU {index} ({name})"),
                None => "no GPU left".to_owned(),
            },
            Self::Cores(cores) if cores.len() >= ranks => {
                format!("share {} of {ranks} of the {} cores", index + 1, cores.len())
            }
            Self::Cores(cores) => format!("any of {} cores, shared with other ranks", cores.len()),
        }
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, what) = match self {
            Self::Gpus(gpus) => (gpus.len(), "GPU"),
            Self::Cores(cores) => (cores.len(), "core"),
        };
        write!(formatter, "{count} {what}{}", if count == 1 { "" } else { "s" })
    }
}

fn gpu_names() -> Vec<(String, String)> {
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    let device = |index| {
        let device = nvml.device_by_index(index).ok()?;
        Some((device.uuid().unwrap_or_default(), device.name().unwrap_or_else(|_| "unnamed".to_owned())))
    };
    (0..count).filter_map(device).collect()
}

/// Returns the names of the GPUs that CUDA_VISIBLE_DEVICES selects out of `all` (UUIDs and names). Like CUDA, reads the
/// variable up to the first entry that matches no GPU, and counts a MIG slice as a GPU.
fn visible_gpus(all: Vec<(String, String)>, visible: Option<&str>) -> Vec<String> {
    let Some(visible) = visible else { return all.into_iter().map(|(_, name)| name).collect() };
    if all.is_empty() {
        return Vec::new();
    }
    let named = |entry: &str| {
        if let Ok(index) = entry.parse::<usize>() {
            return all.get(index).map(|(_, name)| name.clone());
        }
        if entry.starts_with("MIG-") {
            return Some(entry.to_owned());
        }
        all.iter().find(|(uuid, _)| !entry.is_empty() && uuid.starts_with(entry)).map(|(_, name)| name.clone())
    };
    visible.split(',').map(str::trim).map_while(named).collect()
}

/// Returns the physical cores that this process may use, limited to the CPU quota of its control group.
fn physical_cores() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    let siblings = |thread: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list");
        std::fs::read_to_string(path).map_or_else(|_| vec![thread], |list| cpu_list(&list))
    };
    let mut taken = BTreeSet::new();
    let mut cores = Vec::new();
    for thread in cpu_list(allowed) {
        if !taken.contains(&thread) {
            cores.push(thread);
            taken.extend(siblings(thread));
        }
    }
    let quota = std::thread::available_parallelism().map_or(1, usize::from);
    cores.truncate(quota.max(1));
    cores
}

/// Parses a list such as `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?.min(1 << 16))
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cuda_visible_devices_selects_gpus() {
        let all = || vec![("GPU-aa".to_owned(), "A".to_owned()), ("GPU-bb".to_owned(), "B".to_owned())];
        for (visible, seen) in [
            (None, vec!["A", "B"]),
            (Some(""), vec![]),
            (Some("-1"), vec![]),
            (Some("1"), vec!["B"]),
            (Some("1, 0"), vec!["B", "A"]),
            (Some("0,-1,1"), vec!["A"]),
            (Some("GPU-b"), vec!["B"]),
            (Some("MIG-1/2"), vec!["MIG-1/2"]),
            (Some("7"), vec![]),
        ] {
            assert_eq!(visible_gpus(all(), visible), seen, "{visible:?}");
        }
        assert!(visible_gpus(Vec::new(), Some("MIG-1")).is_empty());
    }

    #[test]
    fn all_gpus_of_this_host_are_found() {
        let known = Nvml::init().map_or(0, |nvml| {
            (0..nvml.device_count().unwrap_or(0)).filter(|&index| nvml.device_by_index(index).is_ok()).count()
        });
        assert_eq!(gpu_names().len(), known);
    }

    #[test]
    fn hardware_threads_of_a_core_are_one_slot() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        let siblings = |thread: &usize| {
            let path = format!("/sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list");
            std::fs::read_to_string(path).unwrap_or_else(|_| thread.to_string())
        };
        let different = cpu_list(allowed).iter().map(siblings).collect::<BTreeSet<String>>().len();
        let cores = physical_cores();
        // The quota of a control group may be lower.
        assert_eq!(cores.len(), different.min(std::thread::available_parallelism().unwrap().get()));
        assert_eq!(cores.iter().map(siblings).collect::<BTreeSet<String>>().len(), cores.len());
        assert!(cores.iter().all(|core| cpu_list(allowed).contains(core)));
    }

    #[test]
    fn this_host_has_a_core() {
        assert!(Slots::detect(true).count() >= 1);
        assert_eq!(cpu_list(" 0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(cpu_list("x"), [0; 0]);
    }

    #[test]
    fn ranks_share_cores_evenly() {
        let slots = Slots::Cores(vec![0, 2, 4, 6]);
        assert_eq!(slots.of_rank(1, 2), "share 2 of 2 of the 4 cores");
        assert_eq!(slots.of_rank(3, 4), "share 4 of 4 of the 4 cores");
        assert_eq!(slots.of_rank(0, 5), "any of 4 cores, shared with other ranks");
    }

    #[test]
    fn each_rank_has_a_gpu_of_its_own() {
        let slots = Slots::Gpus(vec!["A".to_owned(), "B".to_owned()]);
        assert_eq!([0, 1, 2].map(|index| slots.of_rank(index, 3)), ["GPU 0 (A)", "GPU 1 (B)", "no GPU left"]);
    }

    #[test]
    fn slots_are_counted() {
        let cores = |count| Slots::Cores((0..count).collect());
        let gpus = |count| Slots::Gpus(vec!["A".to_owned(); count]);
        let shown = [cores(1), cores(2), gpus(1), gpus(3)].map(|slots| (slots.count(), slots.to_string()));
        let wanted = [(1, "1 core"), (2, "2 cores"), (1, "1 GPU"), (3, "3 GPUs")];
        assert_eq!(shown, wanted.map(|(count, text)| (count, text.to_owned())));
    }
}
