//! The limits of the control group that this process runs in: in go the kernel's files, through a reader, out go a CPU
//! quota and a memory limit. Reads cgroup v1, v2 and the two side by side. It never writes, and a file that is missing or
//! unreadable means "no limit here".

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the control group allows; `None` means that nothing is limited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Limits)]
pub struct Limits {
    /// CPU time allowed per second of wall time, so 1.5 is one and a half cores.
    pub cpu_quota_cores: Option<f64>,
    /// Memory that the group may hold.
    pub memory_limit_bytes: Option<u64>,
    /// What is left of it: the limit less what the group holds, not counting what the kernel drops at once (inactive file
    /// cache). Where parents have limits too, the least that any of them leaves.
    pub memory_left_bytes: Option<u64>,
}

/// How the kernel's files are read: the content of the file at a path, or `None` when there is none.
pub type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// The limits of this process.
pub fn limits() -> Limits {
    limits_from(&|path| std::fs::read_to_string(path).ok())
}

/// The limits as the files that `read` returns tell them.
///
/// A limit of a parent group holds for its children, so every group from our own up to the mount point is asked and the
/// smallest value counts.
pub fn limits_from(read: Read<'_>) -> Limits {
    let (Some(groups), Some(mounts)) = (read(Path::new("/proc/self/cgroup")), read(Path::new("/proc/self/mountinfo")))
    else {
        return Limits::default();
    };
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let mut quotas = Vec::new();
    let mut memories = Vec::new();
    for group in groups.lines().filter_map(Group::parse) {
        let Some(mount) = mounts.iter().find(|mount| mount.serves(&group)) else { continue };
        for folder in mount.folders(&group.path) {
            if group.controllers.is_empty() {
                quotas.extend(read(&folder.join("cpu.max")).and_then(|text| v2_quota(&text)));
                memories.extend(memory_v2(read, &folder));
            }
            if group.controls("cpu") {
                let (quota, period) = (read(&folder.join("cpu.cfs_quota_us")), read(&folder.join("cpu.cfs_period_us")));
                quotas.extend(quota.zip(period).and_then(|(quota, period)| v1_quota(&quota, &period)));
            }
            if group.controls("memory") {
                memories.extend(memory_v1(read, &folder));
            }
        }
    }
    Limits {
        cpu_quota_cores: quotas.into_iter().reduce(f64::min),
        memory_limit_bytes: memories.iter().map(|&(limit, _)| limit).min(),
        memory_left_bytes: memories.iter().map(|&(limit, used)| limit.saturating_sub(used)).min(),
    }
}

/// `cpu.max` of cgroup v2: `"150000 100000"` is 1.5 cores, `"max 100000"` is no limit.
pub fn v2_quota(cpu_max: &str) -> Option<f64> {
    let mut words = cpu_max.split_whitespace();
    v1_quota(words.next()?, words.next()?)
}

/// Quota and period of cgroup v1 in microseconds; −1 (or v2's `max`) is no limit.
pub fn v1_quota(quota_us: &str, period_us: &str) -> Option<f64> {
    let quota: f64 = quota_us.trim().parse().ok()?;
    let period: f64 = period_us.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// A memory limit of either version; `max` of v2 and the huge default of v1 (2⁶³ less a page) are no limit.
pub fn memory_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes: &u64| bytes > 0 && bytes < 1 << 60)
}

fn memory_v2(read: Read<'_>, folder: &Path) -> Option<(u64, u64)> {
    let limit = memory_limit(&read(&folder.join("memory.max"))?)?;
    Some((limit, used(read, folder, "memory.current", "inactive_file")))
}

fn memory_v1(read: Read<'_>, folder: &Path) -> Option<(u64, u64)> {
    let limit = memory_limit(&read(&folder.join("memory.limit_in_bytes"))?)?;
    Some((limit, used(read, folder, "memory.usage_in_bytes", "total_inactive_file")))
}

/// What the group holds, less what the kernel drops at once when memory is asked for.
fn used(read: Read<'_>, folder: &Path, usage_file: &str, droppable: &str) -> u64 {
    let usage = read(&folder.join(usage_file)).and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let droppable = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == droppable)
        .and_then(|(_, bytes)| bytes.trim().parse().ok())
        .unwrap_or(0);
    usage.saturating_sub(droppable)
}

/// A line of `/proc/self/cgroup`: `4:memory:/docker/ab` (v1) or `0::/user.slice` (v2, without controllers).
struct Group {
    controllers: Vec<String>,
    path: PathBuf,
}

impl Group {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some(Self { controllers, path: PathBuf::from(path) })
    }

    fn controls(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// A line of `/proc/self/mountinfo` that mounts control groups.
struct Mount {
    /// The group that is seen at the mount point.
    root: PathBuf,
    point: PathBuf,
    v2: bool,
    /// The controllers of a v1 mount.
    options: Vec<String>,
}

impl Mount {
    /// `35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory`
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let v2 = match after.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = after.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
        Some(Self { root: PathBuf::from(root), point: PathBuf::from(point), v2, options })
    }

    fn serves(&self, group: &Group) -> bool {
        if group.controllers.is_empty() {
            self.v2
        } else {
            !self.v2 && group.controllers.iter().all(|name| self.options.contains(name))
        }
    }

    /// The folders of a group and of its parents, as far up as they are mounted. A group outside of what is mounted (a
    /// container that sees the host's path) is looked for at the mount point, which is where a container finds its own.
    fn folders(&self, group: &Path) -> Vec<PathBuf> {
        let inside = group.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let inside = if inside.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { inside };
        inside.ancestors().map(|part| self.point.join(part)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn check(files: &[(&str, &str)], quota: Option<f64>, limit: Option<u64>, left: Option<u64>) {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, content)| (*content).to_owned())
        };
        let expected = Limits { cpu_quota_cores: quota, memory_limit_bytes: limit, memory_left_bytes: left };
        assert_eq!(limits_from(&read), expected);
    }

    #[test]
    fn a_container_on_v2_finds_its_limits_at_the_mount_point() {
        check(
            &[
                ("/proc/self/cgroup", "0::/\n"),
                ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"),
                ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
                ("/sys/fs/cgroup/memory.max", "4294967296\n"),
                ("/sys/fs/cgroup/memory.current", "3221225472\n"),
                ("/sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 1073741824\nactive_file 7\n"),
            ],
            Some(1.5),
            Some(4 * GIB),
            Some(2 * GIB),
        );
    }

    #[test]
    fn the_smallest_limit_of_all_parents_on_v2_counts() {
        check(
            &[
                ("/proc/self/cgroup", "0::/user.slice/app.scope\n"),
                ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000\n"),
                ("/sys/fs/cgroup/user.slice/app.scope/memory.max", "8589934592\n"),
                ("/sys/fs/cgroup/user.slice/cpu.max", "200000 100000\n"),
                ("/sys/fs/cgroup/user.slice/memory.max", "2147483648\n"),
                ("/sys/fs/cgroup/user.slice/memory.current", "1073741824\n"),
            ],
            Some(2.0),
            Some(2 * GIB),
            Some(GIB),
        );
    }

    #[test]
    fn a_container_on_v1_finds_its_limits_though_it_sees_the_path_of_the_host() {
        check(
            &[
                ("/proc/self/cgroup", "5:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"),
                (
                    "/proc/self/mountinfo",
                    "40 31 0:30 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                     41 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                ),
                ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
                ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
                ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "536870912\n"),
                ("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 536870912\n"),
            ],
            Some(0.5),
            Some(GIB),
            Some(GIB),
        );
    }

    #[test]
    fn v1_and_v2_side_by_side_are_both_asked() {
        check(
            &[
                ("/proc/self/cgroup", "4:memory:/api/x\n1:cpu:/\n0::/\n"),
                (
                    "/proc/self/mountinfo",
                    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
                ),
                ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ("/sys/fs/cgroup/unified/cpu.max", "300000 100000\n"),
                ("/sys/fs/cgroup/memory/api/x/memory.limit_in_bytes", "2147483648\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
            Some(3.0),
            Some(2 * GIB),
            Some(2 * GIB),
        );
    }

    #[test]
    fn a_path_above_the_namespace_is_taken_as_the_mount_point() {
        check(
            &[
                ("/proc/self/cgroup", "0::/../other\n"),
                ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("/sys/fs/cgroup/cpu.max", "400000 100000\n"),
            ],
            Some(4.0),
            None,
            None,
        );
    }

    #[test]
    fn without_files_and_with_damaged_files_nothing_is_limited() {
        check(&[], None, None, None);
        check(
            &[("/proc/self/cgroup", "not a group\n0::/\n"), ("/proc/self/mountinfo", "x - \n- -\n")],
            None,
            None,
            None,
        );
        check(
            &[
                ("/proc/self/cgroup", "0::/\n"),
                ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("/sys/fs/cgroup/cpu.max", "many 0\n"),
                ("/sys/fs/cgroup/memory.max", "-7\n"),
            ],
            None,
            None,
            None,
        );
    }
}
