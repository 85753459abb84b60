//! Main memory: out go the machine's and the control group's figures and the one that counts. It never allocates to try.

use serde::{Deserialize, Serialize};
use sysinfo::System;
use utoipa::ToSchema;

use super::cgroup;

/// Main memory as this process may use it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Memory)]
pub struct Memory {
    /// What is built in.
    pub installed_bytes: u64,
    /// What the control group allows, where it allows less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// The smaller of the two: what this process has to live within.
    pub total_bytes: u64,
    /// What can be had now without swapping or being killed.
    pub available_bytes: u64,
    /// Swap space; models should never be in it.
    pub swap_total_bytes: u64,
}

impl Memory {
    /// What is in use, of [`Memory::total_bytes`].
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.available_bytes)
    }

    /// The figures of this moment; `system` is only refreshed in its memory part.
    pub fn now(system: &mut System, limits: &cgroup::Limits) -> Self {
        system.refresh_memory();
        Self::of(system.total_memory(), system.available_memory(), system.total_swap(), limits)
    }

    /// The machine's figures under the limits of the control group.
    pub fn of(installed: u64, available: u64, swap_total: u64, limits: &cgroup::Limits) -> Self {
        let limit = limits.memory_limit_bytes.filter(|&limit| installed == 0 || limit < installed);
        let left = limit.and(limits.memory_left_bytes);
        Self {
            installed_bytes: installed,
            limit_bytes: limit,
            total_bytes: limit.unwrap_or(installed),
            available_bytes: left.map_or(available, |left| left.min(available)),
            swap_total_bytes: swap_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limit: Option<u64>, left: Option<u64>, total: u64, available: u64) {
        let limits = cgroup::Limits { cpu_quota_cores: None, memory_limit_bytes: limit, memory_left_bytes: left };
        let memory = Memory::of(1000, 700, 0, &limits);
        assert_eq!((memory.total_bytes, memory.available_bytes), (total, available), "{limits:?}");
    }

    #[test]
    fn what_counts_is_the_smaller_of_machine_and_control_group() {
        check(None, None, 1000, 700);
        check(Some(500), Some(400), 500, 400);
        check(Some(900), Some(850), 900, 700);
        check(Some(500), Some(0), 500, 0);
        // A limit above what is built in limits nothing.
        check(Some(2000), Some(100), 1000, 700);
    }
}
