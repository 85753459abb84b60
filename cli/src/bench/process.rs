//! CPU time and memory of a process and its children, as Linux tells them. Changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Linux counts CPU time in hundredths of a second for programs, whatever the kernel's own clock.
const TICKS_PER_SECOND: u64 = 100;

/// What a process and all its descendants have used since they started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// CPU time, of children that have ended too.
    pub(crate) cpu: Duration,
    /// The most memory that each has had at one time, added up: no less than they had together.
    pub(crate) rss_peak_bytes: u64,
}

/// Asks the system. `None` when there is no such process, or the system is not Linux.
pub(crate) fn used(pid: u32) -> Option<Used> {
    let stats: BTreeMap<u32, Stat> = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let (mut ticks, mut rss_peak_bytes) = (0, 0);
    for pid in tree(pid, &stats)? {
        ticks += stats[&pid].ticks;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        rss_peak_bytes += peak(&status).unwrap_or(0);
    }
    Some(Used { cpu: Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND), rss_peak_bytes })
}

/// What a line of `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    ticks: u64,
}

/// Reads `/proc/PID/stat`: the parent is the second field behind the name, which is in brackets and may hold anything; the
/// process's ticks, and those of children that have ended, are the 12th to 15th.
fn stat(line: &str) -> Option<Stat> {
    let (_, behind) = line.rsplit_once(')')?;
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

/// The process and its descendants. `None` when it is not there.
fn tree(root: u32, stats: &BTreeMap<u32, Stat>) -> Option<Vec<u32>> {
    let mut found = vec![*stats.get_key_value(&root)?.0];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(stats.iter().filter(|(pid, stat)| stat.parent == parent && **pid != parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Some(found)
}

/// `VmHWM` of `/proc/PID/status`, in bytes.
fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_writes_is_read() {
        let line = "42 (a) b) S 7 42 42 0 -1 4194560 100 0 0 0 30 12 3 4 20 0 8 0 5000 1000 10";
        assert_eq!(stat(line), Some(Stat { parent: 7, ticks: 49 }));
        assert_eq!(stat("42 (short) S 7"), None);
        assert_eq!(peak("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(peak("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_comes_with_its_descendants() {
        let stat = |parent| Stat { parent, ticks: 0 };
        let stats = [(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1)), (5, stat(3))].into();
        assert_eq!(tree(2, &stats), Some(vec![2, 3, 5]));
        assert_eq!(tree(9, &stats), None);
    }

    #[test]
    fn this_process_has_used_memory() {
        match used(std::process::id()) {
            Some(used) => assert!(used.rss_peak_bytes > 1 << 20, "{used:?}"),
            None if cfg!(target_os = "linux") => panic!("this process is running"),
            None => eprintln!("skipped: only Linux tells"),
        }
        assert_eq!(used(u32::MAX), None);
    }
}
