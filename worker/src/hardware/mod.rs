//! What this machine is and how it does: out go a profile, live samples, a health score and unmet minimums. GPUs are asked in
//! a child process, so that a driver that crashes is a finding. It changes nothing on the machine.

pub mod adapters;
pub mod apple;
pub mod capability;
pub mod cgroup;
pub mod cpu;
pub mod cuda;
pub mod disk;
mod finding;
pub mod fitness;
pub mod health;
pub mod live;
mod memory;
pub mod minimums;
pub mod network;
pub mod nvidia;
pub mod pci;
pub mod probe;
mod render;
pub mod speed;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sysinfo::System;
use utoipa::ToSchema;

pub use cpu::threads;
pub use disk::Disk;
pub use finding::{Finding, Severity};
pub use health::Health;
pub use memory::Memory;
pub use minimums::{Minimums, Shortfall, shortfalls};
pub use probe::run_probe_child;

/// How the machine is profiled.
#[derive(Debug, Clone)]
pub struct Options {
    /// The NVML library, where it is not to be searched.
    pub nvml_library: Option<PathBuf>,
    /// How the child that asks the drivers is started; `None` is this executable with [`probe::CHILD_ARGUMENT`].
    pub probe: Option<probe::Command>,
    /// How long the child may be silent before it is killed. A driver that is not kept loaded takes seconds for each card.
    pub probe_timeout: Duration,
    /// Whether to measure speed, which takes about a second of all cores.
    pub measure: bool,
    /// The matrix product to measure; without one there is no matrix rate.
    pub matmul: Option<speed::Matmul>,
    /// Whether and how it is measured what each device can do; `None` leaves that out.
    pub capabilities: Option<capability::Options>,
    /// Where models are kept.
    pub storage_path: PathBuf,
}

impl Options {
    /// Everything, for models kept at `storage_path`.
    pub fn new(storage_path: impl Into<PathBuf>) -> Self {
        Self {
            nvml_library: None,
            probe: None,
            probe_timeout: Duration::from_secs(15),
            measure: true,
            matmul: None,
            capabilities: None,
            storage_path: storage_path.into(),
        }
    }
}

/// What this machine is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Profile)]
pub struct Profile {
    /// The system that runs on it.
    pub system: SystemInfo,
    /// The processor.
    pub cpu: cpu::Cpu,
    /// How many threads may run.
    pub threads: cpu::Threads,
    /// Limits of the control group.
    pub limits: cgroup::Limits,
    /// Main memory.
    pub memory: Memory,
    /// The disk that holds the models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Network interfaces.
    pub network: Vec<network::Interface>,
    /// Graphics cards that the bus lists, with or without a driver.
    pub pci_cards: Vec<pci::Card>,
    /// NVIDIA's driver and cards.
    pub nvidia: nvidia::Nvidia,
    /// The devices that CUDA shows to this process; absent in a build without CUDA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<Vec<cuda::Device>>,
    /// Graphics adapters of every maker.
    pub adapters: Vec<adapters::Adapter>,
    /// GPUs of a Mac.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apple: Vec<apple::Gpu>,
    /// Measured speed, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<speed::Measured>,
    /// What each device can do, where it was measured on this machine with this build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<capability::Capability>,
    /// What was noticed, the worst first.
    pub findings: Vec<Finding>,
}

/// The operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::System)]
pub struct SystemInfo {
    /// Such as `linux`.
    pub os: String,
    /// Such as `Debian GNU/Linux 12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The kernel's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

impl Profile {
    /// Whether there is a GPU that answers; an adapter that calculates on the processor is none.
    pub fn has_gpu(&self) -> bool {
        let real = |adapter: &adapters::Adapter| {
            use adapters::Kind;
            matches!(adapter.kind, Kind::Discrete | Kind::Integrated | Kind::Virtual)
        };
        !self.nvidia.gpus.is_empty() || !self.apple.is_empty() || self.adapters.iter().any(real)
    }
}

/// The machine's name in its network.
pub fn host_name() -> Option<String> {
    System::host_name().ok()
}

/// Profiles this machine. Never fails: what cannot be found out is missing from the profile, and a finding says why.
pub async fn profile(options: Options) -> Profile {
    let path = options.storage_path.clone();
    let machine = tokio::task::spawn_blocking(move || look_at_machine(&path));
    let graphics = look_at_graphics(&options);
    let (machine, (answers, apple, mut findings)) = tokio::join!(machine, graphics);
    let mut profile = machine.unwrap_or_else(|error| {
        findings.push(Finding::error("system.failed", format!("the machine could not be looked at: {error}")));
        Profile::default()
    });
    profile.findings.append(&mut findings);
    profile.apple = apple;
    profile.cuda = models::backend::cuda::IS_BUILT.then(Vec::new);
    for answer in answers {
        match answer {
            probe::Answer::Driver(driver) => profile.nvidia.driver = Some(driver),
            probe::Answer::Gpu(gpu) => profile.nvidia.gpus.push(gpu),
            probe::Answer::CudaDevice(device) => profile.cuda.get_or_insert_default().push(device),
            probe::Answer::Adapter(adapter) => profile.adapters.push(adapter),
            probe::Answer::Finding(finding) => profile.findings.push(finding),
            probe::Answer::Ready | probe::Answer::Step(_) | probe::Answer::GpuSample(_) | probe::Answer::Done => {}
        }
    }
    profile.findings.extend(unseen_cards(&profile));
    profile.findings.extend(cuda::disagreements(&profile));
    if options.measure {
        // Last, when nothing else of ours runs.
        let bench = speed::Bench {
            threads: profile.threads.count,
            available_bytes: profile.memory.available_bytes,
            cache_bytes: profile.cpu.last_level_cache_bytes(),
            matmul: options.matmul,
        };
        let measured = tokio::task::spawn_blocking(move || speed::measure(&bench)).await;
        match measured {
            Ok((measured, findings)) => {
                profile.measured = Some(measured);
                profile.findings.extend(findings);
            }
            Err(error) => {
                let message = format!("speed was not measured: {error}");
                profile.findings.push(Finding::warning("speed.failed", message));
            }
        }
    }
    if let Some(options) = options.capabilities {
        // Also where a library panics, which some do without a driver, what was found before stays.
        let before = profile.clone();
        let measured = tokio::task::spawn_blocking(move || capability::of_all(&before, &options)).await;
        match measured {
            Ok((capabilities, findings)) => {
                profile.capabilities = capabilities;
                profile.findings.extend(findings);
            }
            Err(error) => {
                let message = format!("what the devices can do was not measured: {error}");
                profile.findings.push(Finding::warning("capability.failed", message));
            }
        }
    }
    profile.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    profile
}

/// Everything but graphics and speed.
fn look_at_machine(storage_path: &Path) -> Profile {
    let limits = cgroup::limits();
    let mut findings = Vec::new();
    let memory = match System::new() {
        Ok(mut system) => Memory::now(&mut system, &limits),
        Err(error) => {
            findings.push(Finding::error("memory.unknown", format!("main memory is not known: {error:?}")));
            Memory::default()
        }
    };
    let disk = disk::at(storage_path).map_err(|finding| findings.push(finding)).ok();
    Profile {
        system: SystemInfo {
            os: std::env::consts::OS.to_owned(),
            version: System::long_os_version().ok(),
            kernel: System::kernel_version().ok(),
        },
        cpu: cpu::cpu(),
        threads: cpu::Threads::now(&limits),
        limits,
        memory,
        disk,
        network: network::interfaces(),
        pci_cards: pci::cards(),
        findings,
        ..Profile::default()
    }
}

/// What the drivers tell, each in a child of its own: one that crashes takes no other with it.
async fn look_at_graphics(options: &Options) -> (Vec<probe::Answer>, Vec<apple::Gpu>, Vec<Finding>) {
    let mut findings = Vec::new();
    let command = match options.probe.clone().map_or_else(probe::Command::this_executable, Ok) {
        Ok(command) => command,
        Err(error) => {
            let message = format!("GPUs were not looked for: the path of this executable is not known: {error}");
            findings.push(Finding::error("probe.not_started", message));
            return (Vec::new(), Vec::new(), findings);
        }
    };
    let ask = |subject| probe::ask_once(&command, subject, options.nvml_library.as_deref(), options.probe_timeout);
    // Macs have had no NVIDIA driver for years.
    let nvidia = async { if cfg!(target_os = "macos") { Vec::new() } else { ask(probe::Subject::Nvidia).await } };
    let cuda = async { if models::backend::cuda::IS_BUILT { ask(probe::Subject::Cuda).await } else { Vec::new() } };
    let (mut answers, adapters, cuda, apple) =
        tokio::join!(nvidia, ask(probe::Subject::Adapters), cuda, apple::gpus(options.probe_timeout));
    let apple = apple.unwrap_or_else(|finding| {
        findings.push(finding);
        Vec::new()
    });
    answers.extend(adapters);
    answers.extend(cuda);
    (answers, apple, findings)
}

/// Cards that the bus lists and no driver speaks for: a GPU must never be left unused in silence.
fn unseen_cards(profile: &Profile) -> Vec<Finding> {
    // A driver that does not tell its cards' addresses may speak for any of them.
    let by_nvml = |card: &pci::Card| {
        let mut addresses = profile.nvidia.gpus.iter().map(|gpu| gpu.pci_address.as_ref());
        card.vendor_id == pci::NVIDIA && addresses.any(|address| address.is_none_or(|address| *address == card.address))
    };
    let by_adapter = |card: &pci::Card| {
        let mut same_maker = profile.adapters.iter().filter(|adapter| adapter.vendor_id == card.vendor_id);
        same_maker.any(|adapter| adapter.pci_address.as_ref().is_none_or(|address| *address == card.address))
    };
    let finding = |card: &pci::Card| {
        let message = |maker: &str| format!("{maker} card at {} is there, but no driver answers for it", card.address);
        match pci::vendor_name(card.vendor_id) {
            Some(maker @ "NVIDIA") => Some(
                Finding::error("nvidia.card_without_driver", message(maker))
                    .with_remedy("install NVIDIA's driver; in Docker, start the container with --gpus all"),
            ),
            Some(maker @ ("AMD" | "Intel")) => Some(
                Finding::info("adapters.card_without_driver", message(maker))
                    .with_remedy("install its Vulkan driver (mesa-vulkan-drivers on Debian) to use it"),
            ),
            // The others are consoles of servers and of virtual machines.
            _ => None,
        }
    };
    let cards = profile.pci_cards.iter();
    cards
        .filter(|card| if card.vendor_id == pci::NVIDIA { !by_nvml(card) } else { !by_adapter(card) })
        .filter_map(finding)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cards: &[(&str, u32)], gpus: &[Option<&str>], expected: &[&str]) {
        let card =
            |&(address, vendor_id): &(&str, u32)| pci::Card { address: address.to_owned(), vendor_id, device_id: 1 };
        let gpu =
            |address: &Option<&str>| nvidia::Gpu { pci_address: address.map(str::to_owned), ..nvidia::Gpu::default() };
        let profile = Profile {
            pci_cards: cards.iter().map(card).collect(),
            nvidia: nvidia::Nvidia { driver: None, gpus: gpus.iter().map(gpu).collect() },
            ..Profile::default()
        };
        let codes: Vec<String> = unseen_cards(&profile).into_iter().map(|finding| finding.code).collect();
        assert_eq!(codes, expected);
    }

    #[test]
    fn a_card_that_no_driver_speaks_for_is_never_passed_over_in_silence() {
        let first = ("0000:01:00.0", pci::NVIDIA);
        let second = ("0000:02:00.0", pci::NVIDIA);
        check(&[], &[], &[]);
        check(&[first], &[], &["nvidia.card_without_driver"]);
        check(&[first, second], &[Some("0000:01:00.0")], &["nvidia.card_without_driver"]);
        check(&[first, second], &[Some("0000:01:00.0"), Some("0000:02:00.0")], &[]);
        check(&[first, second], &[None], &[]);
        check(&[("0000:03:00.0", 0x1002)], &[], &["adapters.card_without_driver"]);
        // A virtual machine's console.
        check(&[("0000:00:02.0", 0x1234)], &[], &[]);
    }

    #[test]
    fn every_type_of_a_profile_has_a_schema_of_its_own_in_the_description_of_the_api() {
        let mut schemas = Vec::new();
        <Profile as ToSchema>::schemas(&mut schemas);
        <live::Sample as ToSchema>::schemas(&mut schemas);
        let mut seen = std::collections::BTreeMap::new();
        for (name, schema) in schemas {
            assert!(name.starts_with("hardware."), "{name}");
            let schema = serde_json::to_string(&schema).unwrap();
            let first = seen.entry(name.clone()).or_insert_with(|| schema.clone());
            assert_eq!(*first, schema, "two types are called {name}");
        }
        for name in ["hardware.Gpu", "hardware.Adapter", "hardware.Disk", "hardware.GpuSample", "hardware.Finding"] {
            assert!(seen.contains_key(name), "{name} is not in {:?}", seen.keys());
        }
    }

    #[test]
    fn a_profile_survives_being_written_as_json_and_read() {
        let gpu = nvidia::Gpu {
            name: Some("Test".to_owned()),
            load: nvidia::Load { vram_total_bytes: Some(8 << 30), ..nvidia::Load::default() },
            ..nvidia::Gpu::default()
        };
        let profile = Profile {
            nvidia: nvidia::Nvidia { driver: Some(nvidia::Driver::default()), gpus: vec![gpu] },
            findings: vec![Finding::info("a.b", "c").with_remedy("d")],
            measured: Some(speed::Measured::default()),
            ..look_at_machine(Path::new("."))
        };
        let json = serde_json::to_value(&profile).unwrap();
        assert_eq!(json["nvidia"]["gpus"][0]["vram_total_bytes"], serde_json::json!(8_u64 << 30));
        assert_eq!(serde_json::from_value::<Profile>(json).unwrap(), profile);
    }
}
