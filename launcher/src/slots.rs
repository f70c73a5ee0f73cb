//! Where ranks can compute on this machine: its GPUs, else its cores.

use std::{collections::BTreeSet, fmt};

use nvml_wrapper::Nvml;

/// What ranks can be given, one each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Names of GPUs, those alone that processes see.
    Gpus(Vec<String>),
    /// Physical cores: the lowest hardware thread of each.
    Cores(Vec<usize>),
}

impl Slots {
    /// Looks at this machine. NVIDIA's management library is loaded if it is there; where it is not, there is no GPU.
    pub fn find(cpu_alone: bool) -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let gpus = if cpu_alone { Vec::new() } else { visible_gpus(gpu_names(), visible.as_deref()) };
        if gpus.is_empty() { Self::Cores(physical_cores()) } else { Self::Gpus(gpus) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Gpus(gpus) => gpus.len(),
            Self::Cores(cores) => cores.len(),
        }
    }

    /// What rank `index` of `ranks` on this machine computes on. Which cores these are the trainer chooses: those beside
    /// the GPU, or whole NUMA nodes as far as they go.
    pub fn of_rank(&self, index: usize, ranks: usize) -> String {
        match self {
            Self::Gpus(gpus) => match gpus.get(index) {
                Some(name) => format!("GPU {index} ({name})"),
                None => "no GPU is left".to_owned(),
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

/// Those of all GPUs (UUID and name) that CUDA shows to processes: it reads its variable up to the first entry that
/// names none, and a MIG slice counts as a GPU.
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

/// Physical cores that this process may use, no more than its control group pays for.
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
    let paid = std::thread::available_parallelism().map_or(1, usize::from);
    cores.truncate(paid.max(1));
    cores
}

/// Reads `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?.min(1 << 16))
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_shows_what_its_variable_names() {
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
    fn this_machine_has_a_core() {
        assert!(Slots::find(true).count() >= 1);
        assert_eq!(cpu_list(" 0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(cpu_list("x"), [0; 0]);
    }

    #[test]
    fn ranks_share_cores_evenly() {
        let slots = Slots::Cores(vec![0, 2, 4, 6]);
        assert_eq!(slots.of_rank(1, 2), "share 2 of 2 of the 4 cores");
        assert!(slots.of_rank(0, 5).contains("shared"));
    }
}
