//! What an operator asks of a machine at least: in go a profile and the minimums, out come all shortfalls at once. It only
//! compares.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Profile;

/// The least that a machine must have; what is absent is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = hardware::Minimums)]
pub struct Minimums {
    /// Usable CPU threads, after quota and affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cpu_cores: Option<usize>,
    /// Main memory in 10⁹ bytes, after the limit of the control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_memory_gb: Option<f64>,
    /// Free space for models in 10⁹ bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_storage_gb: Option<f64>,
    /// Whether a GPU must be there.
    pub gpu_required: bool,
}

/// A minimum that is not met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Shortfall)]
pub struct Shortfall {
    /// Name of the setting.
    pub setting: String,
    /// What it asks for.
    pub needed: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, needed, found } = self;
        write!(f, "{setting}: needs {needed}, found {found}; use a larger machine or lower {setting}")
    }
}

/// Every minimum that the machine does not meet; empty when it meets all.
pub fn shortfalls(minimums: &Minimums, profile: &Profile) -> Vec<Shortfall> {
    let shortfall =
        |setting: &str, needed: String, found: String| Shortfall { setting: setting.to_owned(), needed, found };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let mut list = Vec::new();
    if let Some(needed) = minimums.min_cpu_cores.filter(|&needed| profile.threads.count < needed) {
        list.push(shortfall("min_cpu_cores", needed.to_string(), profile.threads.count.to_string()));
    }
    let memory = gb(profile.memory.total_bytes);
    if let Some(needed) = minimums.min_memory_gb.filter(|&needed| memory < needed) {
        list.push(shortfall("min_memory_gb", format!("{needed} GB"), format!("{memory:.1} GB")));
    }
    if let Some(needed) = minimums.min_storage_gb {
        match &profile.disk {
            None => list.push(shortfall("min_storage_gb", format!("{needed} GB"), "an unknown amount".to_owned())),
            Some(disk) if gb(disk.free_bytes) < needed => {
                let found = format!("{:.1} GB free at {}", gb(disk.free_bytes), disk.path);
                list.push(shortfall("min_storage_gb", format!("{needed} GB"), found));
            }
            Some(_) => {}
        }
    }
    if minimums.gpu_required && !profile.has_gpu() {
        list.push(shortfall("gpu_required", "a GPU".to_owned(), "none".to_owned()));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{Disk, adapters, nvidia};

    fn machine() -> Profile {
        let mut profile = Profile::default();
        profile.threads.count = 4;
        profile.memory.total_bytes = 16_000_000_000;
        profile.disk = Some(Disk { path: "/models".to_owned(), total_bytes: 1, free_bytes: 50_000_000_000 });
        profile
    }

    fn check(profile: &Profile, minimums: Minimums, expected: &[&str]) {
        let list = shortfalls(&minimums, profile);
        assert_eq!(list.iter().map(|shortfall| shortfall.setting.as_str()).collect::<Vec<_>>(), expected);
    }

    fn minimums(cores: usize, memory: f64, storage: f64, gpu_required: bool) -> Minimums {
        Minimums {
            min_cpu_cores: Some(cores),
            min_memory_gb: Some(memory),
            min_storage_gb: Some(storage),
            gpu_required,
        }
    }

    #[test]
    fn all_shortfalls_are_told_at_once() {
        check(&machine(), Minimums::default(), &[]);
        check(&machine(), minimums(4, 16.0, 50.0, false), &[]);
        check(&machine(), minimums(5, 16.0, 50.0, false), &["min_cpu_cores"]);
        check(
            &machine(),
            minimums(8, 32.0, 51.0, true),
            &["min_cpu_cores", "min_memory_gb", "min_storage_gb", "gpu_required"],
        );
        check(&Profile { disk: None, ..machine() }, minimums(1, 1.0, 1.0, false), &["min_storage_gb"]);
    }

    #[test]
    fn a_software_adapter_is_no_gpu() {
        let adapter = |kind| adapters::Adapter {
            name: "llvmpipe".to_owned(),
            vendor: "Mesa".to_owned(),
            vendor_id: 0x10005,
            device_id: 0,
            kind,
            backend: "vulkan".to_owned(),
            driver: String::new(),
            pci_address: None,
            f16: false,
            buffer_max_bytes: 1,
        };
        let required = || Minimums { gpu_required: true, ..Minimums::default() };
        let with = |kind| Profile { adapters: vec![adapter(kind)], ..machine() };
        check(&with(adapters::Kind::Software), required(), &["gpu_required"]);
        check(&with(adapters::Kind::Discrete), required(), &[]);
        let nvidia = nvidia::Nvidia { driver: None, gpus: vec![nvidia::Gpu::default()] };
        check(&Profile { nvidia, ..machine() }, required(), &[]);
    }

    #[test]
    fn a_shortfall_says_what_to_do() {
        let list = shortfalls(&Minimums { min_memory_gb: Some(64.0), ..Minimums::default() }, &machine());
        assert_eq!(
            list[0].to_string(),
            "min_memory_gb: needs 64 GB, found 16.0 GB; use a larger machine or lower min_memory_gb"
        );
    }
}
