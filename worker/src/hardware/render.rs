//! A profile for people: in goes a profile, out go lines of text, one thing a line. It leaves out what is not known.

use std::fmt::{self, Display, Formatter};

use super::cpu::Limit;
use super::{Profile, adapters, capability, nvidia};

impl Display for Profile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let row = |f: &mut Formatter<'_>, name: &str, text: &str| writeln!(f, "{name:<11} {text}");

        let system =
            [self.system.version.as_deref().unwrap_or(&self.system.os), self.system.kernel.as_deref().unwrap_or("")];
        row(f, "System", system.join(" ").trim())?;

        let cores = self.cpu.physical_cores.map(|count| format!("{count} cores, ")).unwrap_or_default();
        row(f, "CPU", &format!("{} ({cores}{} threads)", self.cpu.model, self.cpu.logical_cores))?;
        if !self.cpu.instruction_sets.is_empty() {
            row(f, "", &self.cpu.instruction_sets.join(" "))?;
        }
        for (index, (set, ops)) in self.cpu.ops.iter().enumerate() {
            row(f, if index == 0 { "Ops" } else { "" }, &format!("on {set}: {}", ops.join(", ")))?;
        }
        let caches: Vec<String> =
            self.cpu.caches.iter().map(|cache| format!("L{} {}", cache.level, binary(cache.size_bytes))).collect();
        if !caches.is_empty() {
            row(f, "Caches", &caches.join(", "))?;
        }
        let reason = match self.threads.limited_by {
            Limit::Machine => "all of the machine".to_owned(),
            Limit::Affinity => "limited by the affinity of this process".to_owned(),
            Limit::Quota => {
                format!("limited by the CPU quota of {:.1} cores", self.threads.quota_cores.unwrap_or_default())
            }
        };
        row(f, "Threads", &format!("{} ({reason})", self.threads.count))?;

        let limit = match self.memory.limit_bytes {
            Some(_) => format!(", limited by the control group; {} are installed", binary(self.memory.installed_bytes)),
            None => String::new(),
        };
        let (total, free) = (binary(self.memory.total_bytes), binary(self.memory.available_bytes));
        row(f, "Memory", &format!("{total}, {free} available{limit}"))?;
        if let Some(disk) = &self.disk {
            row(
                f,
                "Disk",
                &format!("{} free of {} at {}", decimal(disk.free_bytes), decimal(disk.total_bytes), disk.path),
            )?;
        }
        for interface in &self.network {
            let speed = interface.link_bits_per_s.map(|bits| format!(", {:.1} Gbit/s", bits as f64 / 1e9));
            let state = if interface.up { "up" } else { "not up" };
            row(f, "Network", &format!("{} ({state}{})", interface.name, speed.unwrap_or_default()))?;
        }

        if let Some(driver) = &self.nvidia.driver {
            let version = driver.version.as_deref().unwrap_or("of unknown version");
            let cuda = driver.cuda_version.as_ref().map(|cuda| format!(", CUDA up to {cuda}")).unwrap_or_default();
            row(f, "Driver", &format!("NVIDIA {version}{cuda}"))?;
        }
        for gpu in &self.nvidia.gpus {
            row(f, &format!("GPU {}", gpu.index), &describe(gpu))?;
        }
        for gpu in &self.apple {
            let cores = gpu.cores.map(|count| format!(", {count} cores")).unwrap_or_default();
            row(f, "GPU", &format!("{}{cores}{}", gpu.name, if gpu.unified_memory { ", unified memory" } else { "" }))?;
        }
        for adapter in &self.adapters {
            let kind = match adapter.kind {
                adapters::Kind::Discrete => "discrete",
                adapters::Kind::Integrated => "integrated",
                adapters::Kind::Virtual => "virtual",
                adapters::Kind::Software => "software, no GPU",
                adapters::Kind::Other => "of unknown kind",
            };
            let driver = if adapter.driver.is_empty() { String::new() } else { format!(", {}", adapter.driver) };
            row(f, "Adapter", &format!("{} ({}, {kind}, {}{driver})", adapter.name, adapter.vendor, adapter.backend))?;
        }
        if !self.has_gpu() {
            row(f, "GPU", "none that answers")?;
        }

        if let Some(measured) = &self.measured {
            let threads = measured.threads;
            if let Some(bandwidth) = measured.memory_bandwidth_bytes_per_s {
                let text = format!("{:.1} GB/s of main memory, copying, CPU, {threads} threads", bandwidth / 1e9);
                row(f, "Measured", &text)?;
            }
            if let Some(rate) = measured.f32_matmul_flops_per_s {
                row(f, "Measured", &format!("{:.1} GFLOP/s f32 matrix product, CPU, {threads} threads", rate / 1e9))?;
            }
        }
        for capability in &self.capabilities {
            row(f, "Capability", &able(capability))?;
        }
        for finding in &self.findings {
            row(f, "Finding", &finding.to_string())?;
        }
        Ok(())
    }
}

fn able(capability: &capability::Capability) -> String {
    let rate = |value: f64| match value {
        1e12.. => format!("{:.1} T", value / 1e12),
        _ => format!("{:.1} G", value / 1e9),
    };
    let products = capability.matmul_ops_per_s.iter().map(|(name, ops)| format!("{}OP/s {name}", rate(*ops)));
    let parts = [
        capability.copy_bytes_per_s.map(|bytes| format!("{}B/s copying", rate(bytes))),
        Some(products.collect::<Vec<_>>().join(", ")).filter(|products| !products.is_empty()),
        capability.embeddings_per_s.map(|count| format!("{count:.0} embeddings/s")),
        capability.tokens_per_s.map(|count| format!("{count:.0} tokens/s")),
    ];
    format!("{}: {}", capability.key.device, parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn describe(gpu: &nvidia::Gpu) -> String {
    let load = &gpu.load;
    let memory = load.vram_total_bytes.map(|total| {
        let free = load.vram_free_bytes.map(|free| format!(" ({} free)", binary(free))).unwrap_or_default();
        format!("{}{free}", binary(total))
    });
    let power = load.power_watts.map(|watts| match gpu.power_limit_watts {
        Some(limit) => format!("{watts:.0} of {limit:.0} W"),
        None => format!("{watts:.0} W"),
    });
    let pcie =
        load.pcie_generation.zip(load.pcie_width).map(|(generation, width)| format!("PCIe {generation}.0 x{width}"));
    let errors = load.ecc_uncorrected_errors.filter(|&errors| errors > 0);
    let parts = [
        Some(gpu.name.clone().unwrap_or_else(|| "unnamed".to_owned())),
        memory,
        gpu.compute_capability.as_ref().map(|capability| format!("compute capability {capability}")),
        load.utilisation_percent.map(|percent| format!("{percent} % busy")),
        load.temperature_celsius.map(|celsius| format!("{celsius} °C")),
        power,
        pcie,
        errors.map(|errors| format!("{errors} uncorrected memory errors")),
        gpu.uuid.clone(),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Memory, as it is sold: in powers of two.
fn binary(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..0x10_0000 => format!("{:.0} KiB", value / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", value / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", value / f64::from(1 << 30)),
    }
}

/// Disks, as they are sold: in powers of ten.
fn decimal(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{Finding, speed};

    fn check(profile: &Profile, lines: &[&str], absent: &[&str]) {
        let text = profile.to_string();
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "no line {line:?} in:\n{text}");
        }
        for word in absent {
            assert!(!text.contains(word), "{word:?} in:\n{text}");
        }
    }

    #[test]
    fn a_machine_without_a_gpu_says_so_and_shows_no_gpu_figures() {
        let mut profile = Profile::default();
        profile.threads.count = 2;
        profile.threads.limited_by = Limit::Quota;
        profile.threads.quota_cores = Some(2.5);
        profile.memory.total_bytes = 8 << 30;
        profile.memory.installed_bytes = 16 << 30;
        profile.memory.limit_bytes = Some(8 << 30);
        profile.memory.available_bytes = 512 << 20;
        profile.measured = Some(speed::Measured {
            memory_bandwidth_bytes_per_s: Some(12.34e9),
            f32_matmul_flops_per_s: None,
            threads: 2,
        });
        profile.capabilities = vec![capability::Capability {
            key: capability::Key { device: "cpu".into(), ..capability::Key::default() },
            copy_bytes_per_s: Some(12.34e9),
            matmul_ops_per_s: [("f32".to_owned(), 345.6e9), ("int8".to_owned(), 1.26e12)].into(),
            tokens_per_s: Some(1234.5),
            ..capability::Capability::default()
        }];
        profile.findings = vec![Finding::info("nvidia.library_missing", "no library").with_remedy("nothing to do")];
        check(
            &profile,
            &[
                "Threads     2 (limited by the CPU quota of 2.5 cores)",
                "Memory      8.0 GiB, 512 MiB available, limited by the control group; 16.0 GiB are installed",
                "GPU         none that answers",
                "Measured    12.3 GB/s of main memory, copying, CPU, 2 threads",
                "Capability  cpu: 12.3 GB/s copying, 345.6 GOP/s f32, 1.3 TOP/s int8, 1234 tokens/s",
                "Finding     info [nvidia.library_missing] no library; nothing to do",
            ],
            &["GFLOP", "embeddings", "Driver", "Adapter", "Disk"],
        );
    }

    #[test]
    fn a_card_is_shown_with_what_it_tells_and_without_what_it_does_not() {
        let gpu = nvidia::Gpu {
            name: Some("NVIDIA Test 1".to_owned()),
            load: nvidia::Load {
                vram_total_bytes: Some(24 << 30),
                vram_free_bytes: Some(20 << 30),
                temperature_celsius: Some(41),
                ..nvidia::Load::default()
            },
            ..nvidia::Gpu::default()
        };
        let driver = nvidia::Driver { version: Some("580.1".to_owned()), ..nvidia::Driver::default() };
        let profile =
            Profile { nvidia: nvidia::Nvidia { driver: Some(driver), gpus: vec![gpu] }, ..Profile::default() };
        check(
            &profile,
            &["Driver      NVIDIA 580.1", "GPU 0       NVIDIA Test 1, 24.0 GiB (20.0 GiB free), 41 °C"],
            &["none that answers", " W", "busy", "PCIe", "CUDA"],
        );
    }
}
