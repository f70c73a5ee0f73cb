//! Available and resident memory.

use std::path::{Path, PathBuf};

/// Returns the bytes that can be allocated without swapping, as estimated by the kernel, or what the container's limit
/// leaves if that is less. Returns `None` if unknown.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = control_groups(Path::new("/sys/fs/cgroup"), &groups);
    Some(left.iter().filter_map(|group| left_in(group)).fold(kilobytes * 1024, u64::min))
}

/// Returns the folders of this process's control group and of its ancestors (cgroup version 2).
fn control_groups(root: &Path, groups: &str) -> Vec<PathBuf> {
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let own = root.join(path);
    own.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_path_buf).collect()
}

/// Returns the bytes that a control group may still allocate. Inactive file pages count as available.
fn left_in(group: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // The text is "max" if there is no limit.
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
}

/// Returns the resident memory of this process in bytes; 0 if unknown.
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * page_size()
}

fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_have_less_than_its_machine() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/one");
        std::fs::create_dir_all(&pod).unwrap();
        for (name, text) in
            [("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 1\ninactive_file 300\n")]
        {
            std::fs::write(pod.join(name), text).unwrap();
        }
        std::fs::write(root.path().join("pods/memory.max"), "max\n").unwrap();
        let groups = control_groups(root.path(), "0::/pods/one\n");
        assert_eq!(groups.len(), 3);
        assert_eq!(groups.iter().filter_map(|group| left_in(group)).collect::<Vec<_>>(), [600]);
        assert!(control_groups(root.path(), "4:memory:/x\n").is_empty());
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(resident() > 1 << 20);
        assert!(available().is_some_and(|free| free > 1 << 20));
    }
}
