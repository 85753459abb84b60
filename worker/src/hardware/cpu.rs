//! The processor: out go its name, cores, instruction sets and caches, and the one number of threads that sizes every pool.
//! It never changes affinity or priority.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, System};
use utoipa::ToSchema;

use super::cgroup;

/// The processor of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Cpu)]
pub struct Cpu {
    /// As the processor names itself.
    pub model: String,
    /// As the processor names its maker, such as `AuthenticAMD`.
    pub vendor: String,
    /// `x86_64`, `aarch64`, …
    pub architecture: String,
    /// Cores, where the system tells them apart from threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_cores: Option<usize>,
    /// Hardware threads.
    pub logical_cores: usize,
    /// Clock at the moment of asking, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_hertz: Option<u64>,
    /// Instruction sets that matter to arithmetic, of those that the processor and the system offer.
    pub instruction_sets: Vec<String>,
    /// The ops that models run on, by the instruction set that each of them uses in this process.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ops: BTreeMap<String, Vec<String>>,
    /// Data caches, the smallest level first.
    pub caches: Vec<Cache>,
}

/// One cache level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Cache)]
pub struct Cache {
    /// 1 is the closest to the core.
    pub level: u8,
    /// Size of one such cache.
    pub size_bytes: u64,
    /// How many hardware threads share one, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_by: Option<usize>,
}

/// How many threads may run, and which limit said so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Threads)]
pub struct Threads {
    /// The number that sizes every pool.
    pub count: usize,
    /// The limit that decided.
    pub limited_by: Limit,
    /// Quota of the control group, in cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_cores: Option<f64>,
    /// CPUs that this process may be scheduled on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_cores: Option<usize>,
}

/// What decided how many threads may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = hardware::Limit)]
pub enum Limit {
    /// The machine has no more.
    Machine,
    /// The affinity mask or cpuset of this process.
    Affinity,
    /// The CPU quota of the control group.
    Quota,
}

impl Cpu {
    /// All caches of the last level together; 0 where they are not known.
    pub fn last_level_cache_bytes(&self) -> u64 {
        let last = self.caches.iter().max_by_key(|cache| cache.level);
        last.map_or(0, |cache| {
            let count = self.logical_cores.div_ceil(cache.shared_by.unwrap_or(self.logical_cores).max(1));
            cache.size_bytes.saturating_mul(count as u64)
        })
    }
}

impl Default for Threads {
    /// One thread, which every machine has.
    fn default() -> Self {
        Self { count: 1, limited_by: Limit::Machine, quota_cores: None, affinity_cores: None }
    }
}

impl Threads {
    /// The smallest of all limits, and one at least. A quota is rounded down: a thread more than the quota makes every
    /// thread stand still together at the end of each period.
    pub fn of(logical: usize, affinity: Option<usize>, quota: Option<f64>, parallelism: Option<usize>) -> Self {
        let machine = (logical.max(1), Limit::Machine);
        let scheduled = [affinity, parallelism].into_iter().flatten().map(|count| (count.max(1), Limit::Affinity));
        // A float to integer cast saturates, so a huge quota is simply no limit.
        let quota_whole = quota.filter(|cores| cores.is_finite()).map(|cores| ((cores as usize).max(1), Limit::Quota));
        // Of equal limits the first counts: a quota of all cores limits nothing. The standard library's own figure knows
        // of quotas too, so the quota is asked before it.
        let (count, limited_by) = std::iter::once(machine)
            .chain(quota_whole)
            .chain(scheduled)
            .min_by_key(|&(count, _)| count)
            .expect("the machine's own limit is in the list");
        Self { count, limited_by, quota_cores: quota, affinity_cores: affinity }
    }

    /// The limits of this process as they are now.
    pub fn now(limits: &cgroup::Limits) -> Self {
        let affinity = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| affinity_in(&status))
            .filter(|&n| n > 0);
        let parallelism = std::thread::available_parallelism().ok().map(std::num::NonZero::get);
        Self::of(logical_cores(), affinity, limits.cpu_quota_cores, parallelism)
    }
}

/// The one number of threads that sizes every pool: looked up once, so that all pools of a process agree.
pub fn threads() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| Threads::now(&cgroup::limits()).count)
}

/// The processor of this machine.
pub fn cpu() -> Cpu {
    let mut system = System::new().ok();
    if let Some(system) = &mut system {
        system.refresh_cpu_list(CpuRefreshKind::nothing().with_frequency());
    }
    let first = system.as_ref().and_then(|system| system.cpus().first());
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = |key: &str, other: Option<&str>| {
        let other = other.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        other.or_else(|| field_of(&cpuinfo, key)).unwrap_or_else(|| "unknown".to_owned())
    };
    Cpu {
        model: named("model name", first.map(|cpu| cpu.brand())),
        vendor: named("vendor_id", first.map(|cpu| cpu.vendor_id())),
        architecture: std::env::consts::ARCH.to_owned(),
        physical_cores: System::physical_core_count().ok().filter(|&count| count > 0),
        logical_cores: logical_cores(),
        frequency_hertz: first.map(|cpu| cpu.frequency() * 1_000_000).filter(|&hertz| hertz > 0),
        instruction_sets: instruction_sets(),
        ops: models::backend::ops(),
        caches: caches(),
    }
}

/// Hardware threads of the machine, whatever this process may use of them.
fn logical_cores() -> usize {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| count_in_list(&list));
    listed
        .or_else(|| {
            let mut system = System::new().ok()?;
            system.refresh_cpu_list(CpuRefreshKind::nothing());
            Some(system.cpus().len())
        })
        .filter(|&count| count > 0)
        .or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get))
        .unwrap_or(1)
}

/// The number of CPUs that `/proc/self/status` lists as allowed.
pub fn affinity_in(status: &str) -> Option<usize> {
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(count_in_list)
}

/// The length of a list as the kernel writes it: `0-3,8,10-11` is seven.
pub fn count_in_list(list: &str) -> Option<usize> {
    list.trim()
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (last >= first).then(|| last - first + 1)
        })
        .sum()
}

/// The first value of `key : value` lines, as `/proc/cpuinfo` has them.
fn field_of(cpuinfo: &str, key: &str) -> Option<String> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<String> {
    macro_rules! detected {
        ($($name:tt),*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*] };
    }
    let mut found: Vec<String> = detected!(
        "sse4.1",
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi2",
        "avxvnni",
        "avxvnniint8",
        "avxneconvert",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512vbmi",
        "avx512ifma",
        "avx512bf16",
        "avx512fp16"
    )
    .into_iter()
    .filter(|&(_, there)| there)
    .map(|(name, _)| name.to_owned())
    .collect();
    // The standard library does not tell of AMX yet. The system has to grant it to a process that asks.
    if let Some(features) = raw_cpuid::CpuId::new().get_extended_feature_info() {
        let amx = [
            ("amx-tile", features.has_amx_tile()),
            ("amx-int8", features.has_amx_int8()),
            ("amx-bf16", features.has_amx_bf16()),
        ];
        found.extend(amx.into_iter().filter(|&(_, there)| there).map(|(name, _)| name.to_owned()));
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<String> {
    macro_rules! detected {
        ($($name:tt),*) => { [$(($name, std::arch::is_aarch64_feature_detected!($name))),*] };
    }
    detected!("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "fhm")
        .into_iter()
        .filter(|&(_, there)| there)
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<String> {
    Vec::new()
}

fn caches() -> Vec<Cache> {
    let mut caches = caches_in(&|path| std::fs::read_to_string(path).ok());
    #[cfg(target_arch = "x86_64")]
    if caches.is_empty() {
        caches = caches_by_instruction();
    }
    caches.sort_by_key(|cache| cache.level);
    caches
}

/// The data and unified caches of the first CPU as Linux lists them.
fn caches_in(read: cgroup::Read<'_>) -> Vec<Cache> {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    (0..16)
        .map_while(|index| {
            let file = |name: &str| read(&folder.join(format!("index{index}")).join(name));
            let kind = file("type")?;
            let cache = file("level").and_then(|level| level.trim().parse().ok()).zip(file("size").and_then(kib)).map(
                |(level, size_bytes)| Cache {
                    level,
                    size_bytes,
                    shared_by: file("shared_cpu_list").and_then(|list| count_in_list(&list)),
                },
            );
            Some(cache.filter(|_| kind.trim() != "Instruction"))
        })
        .flatten()
        .collect()
}

/// `32K` or `2048K`, as the kernel writes sizes.
fn kib(text: String) -> Option<u64> {
    text.trim().strip_suffix('K')?.parse::<u64>().ok().map(|size| size * 1024)
}

#[cfg(target_arch = "x86_64")]
fn caches_by_instruction() -> Vec<Cache> {
    use raw_cpuid::CacheType;
    let id = raw_cpuid::CpuId::new();
    let parameters = id.get_cache_parameters().into_iter().flatten();
    parameters
        .filter(|cache| matches!(cache.cache_type(), CacheType::Data | CacheType::Unified))
        .map(|cache| Cache {
            level: cache.level(),
            size_bytes: [
                cache.associativity(),
                cache.physical_line_partitions(),
                cache.coherency_line_size(),
                cache.sets(),
            ]
            .iter()
            .map(|&part| part as u64)
            .product(),
            shared_by: Some(cache.max_cores_for_cache()).filter(|&count| count > 0),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(logical: usize, affinity: Option<usize>, quota: Option<f64>, count: usize, by: Limit) {
        // The standard library's figure is the smallest that it knows of, as on Linux.
        let parallelism = affinity.unwrap_or(logical).min(quota.map_or(logical, |cores| (cores as usize).max(1)));
        for parallelism in [None, Some(parallelism)] {
            let threads = Threads::of(logical, affinity, quota, parallelism);
            assert_eq!((threads.count, threads.limited_by), (count, by), "{threads:?}");
        }
    }

    #[test]
    fn threads_are_the_smallest_limit_and_one_at_least() {
        check(16, None, None, 16, Limit::Machine);
        check(16, Some(16), None, 16, Limit::Machine);
        check(16, Some(4), None, 4, Limit::Affinity);
        check(16, Some(8), Some(2.0), 2, Limit::Quota);
        check(16, Some(2), Some(8.0), 2, Limit::Affinity);
        check(16, None, Some(3.9), 3, Limit::Quota);
        check(16, None, Some(0.25), 1, Limit::Quota);
        check(16, None, Some(64.0), 16, Limit::Machine);
        check(0, None, None, 1, Limit::Machine);
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        let check = |list: &str, count: Option<usize>| assert_eq!(count_in_list(list), count, "{list}");
        check("0-1\n", Some(2));
        check("0-3,8,10-11", Some(7));
        check("5", Some(1));
        check("", None);
        check("3-1", None);
        check("0-x", None);
        assert_eq!(affinity_in("Name:\tx\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1,4\nMems:\t1\n"), Some(3));
        assert_eq!(affinity_in("Name:\tx\n"), None);
    }

    #[test]
    fn caches_are_read_from_the_files_of_linux_without_the_instruction_cache() {
        let files = |path: &Path| {
            let answer = match path.strip_prefix("/sys/devices/system/cpu/cpu0/cache").ok()?.to_str()? {
                "index0/type" => "Data\n",
                "index0/level" => "1\n",
                "index0/size" => "32K\n",
                "index0/shared_cpu_list" => "0-1\n",
                "index1/type" => "Instruction\n",
                "index1/level" => "1\n",
                "index1/size" => "32K\n",
                "index2/type" => "Unified\n",
                "index2/level" => "3\n",
                "index2/size" => "32768K\n",
                _ => return None,
            };
            Some(answer.to_owned())
        };
        assert_eq!(
            caches_in(&files),
            [
                Cache { level: 1, size_bytes: 32 << 10, shared_by: Some(2) },
                Cache { level: 3, size_bytes: 32 << 20, shared_by: None }
            ]
        );
    }

    #[test]
    fn the_last_level_caches_of_all_sockets_are_added_up() {
        let check = |logical_cores: usize, shared_by: Option<usize>, bytes: u64| {
            let cache = |level, size_bytes| Cache { level, size_bytes, shared_by };
            let cpu = Cpu { logical_cores, caches: vec![cache(1, 32), cache(3, 1000)], ..Cpu::default() };
            assert_eq!(cpu.last_level_cache_bytes(), bytes);
        };
        check(16, Some(16), 1000);
        check(64, Some(16), 4000);
        check(2, Some(16), 1000);
        check(8, None, 1000);
        assert_eq!(Cpu::default().last_level_cache_bytes(), 0);
    }

    #[test]
    fn this_machine_has_a_processor_and_every_pool_gets_the_same_number() {
        let cpu = cpu();
        assert!(cpu.logical_cores >= 1 && !cpu.model.is_empty(), "{cpu:?}");
        assert!(cpu.ops.values().flatten().any(|op| op == "attention"), "{cpu:?}");
        assert!(threads() >= 1 && threads() <= cpu.logical_cores);
        assert_eq!(threads(), threads());
    }
}
