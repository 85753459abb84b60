//! The CUDA devices that this build can use, each tried with a small calculation: out go facts and findings, and whether NVML, CUDA and
//! Vulkan speak of the same cards. Asked in the probe's child process, because drivers crash and hang. It chooses no device.

use models::backend::cuda as backend;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::probe::{Answer, Reporter};
use super::{Finding, Profile, adapters, nvidia, pci};

/// One device as CUDA shows it to this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::CudaDevice)]
pub struct Device {
    /// Number in CUDA's order for this process: the N of `cuda:N`.
    pub ordinal: u32,
    /// Such as `NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// The same as NVML's; of a MIG instance its own.
    pub uuid: String,
    /// Bus address, such as `0000:01:00.0`.
    pub pci_address: String,
    /// Such as `8.9`.
    pub compute_capability: String,
    /// Device memory in all.
    pub memory_bytes: u64,
    /// Device memory that could be had when it was asked, while a process had the device open.
    pub free_bytes: u64,
    /// Whether a small calculation with this build's code gave the right numbers.
    pub works: bool,
}

/// Tells every device. A build without CUDA has nothing to tell.
pub(super) fn tell_all(reporter: &mut Reporter<'_>) {
    if !backend::IS_BUILT {
        return;
    }
    let finding = |code: &str, what: &str, error: &backend::Error| {
        Finding::error(code, format!("{what}: {error}")).with_remedy(error.remedy())
    };
    let count = match reporter.step("CUDA: start", backend::count) {
        None => return,
        Some(Err(error)) => return reporter.say(Answer::Finding(finding("cuda.not_started", "CUDA", &error))),
        Some(Ok(count)) => count,
    };
    for ordinal in 0..count {
        let what = format!("cuda:{ordinal}");
        let facts = match reporter.step(&format!("{what}: open"), || backend::device(ordinal)) {
            None => continue,
            Some(Err(error)) => {
                reporter.say(Answer::Finding(finding("cuda.not_opened", &what, &error)));
                continue;
            }
            Some(Ok(facts)) => facts,
        };
        let tried = reporter.step(&format!("{what}: trial"), || backend::try_device(ordinal));
        if let Some(Err(error)) = &tried {
            reporter.say(Answer::Finding(finding("cuda.trial_failed", &what, error)));
        }
        reporter.say(Answer::CudaDevice(described(facts, tried == Some(Ok(())))));
    }
}

fn described(facts: backend::CudaDevice, works: bool) -> Device {
    let (major, minor) = facts.compute_capability;
    Device {
        ordinal: u32::try_from(facts.ordinal).unwrap_or(u32::MAX),
        name: facts.name,
        uuid: facts.uuid,
        pci_address: facts.pci_address,
        compute_capability: format!("{major}.{minor}"),
        memory_bytes: facts.memory_bytes,
        free_bytes: facts.free_bytes,
        works,
    }
}

/// Where NVML, CUDA and Vulkan do not speak of the same cards.
pub(super) fn disagreements(profile: &Profile) -> Vec<Finding> {
    // Without CUDA in the build there is nobody to disagree, and where it told nothing a finding has said why.
    let Some(devices) = profile.cuda.as_ref().filter(|devices| !devices.is_empty()) else { return Vec::new() };
    let mut findings = Vec::new();
    for gpu in &profile.nvidia.gpus {
        let Some(device) = devices.iter().find(|device| is_of(device, gpu)) else {
            findings.push(not_seen_by_cuda(gpu));
            continue;
        };
        let differs = |theirs: &Option<String>| theirs.as_ref().is_some_and(|text| *text != device.compute_capability);
        if differs(&gpu.compute_capability) {
            let (nvml, cuda) = (gpu.compute_capability.as_deref().unwrap_or_default(), &device.compute_capability);
            let message = format!("GPU {}: compute capability is {nvml} to NVML and {cuda} to CUDA", gpu.index);
            findings.push(Finding::warning("cuda.disagrees", message).with_remedy(REINSTALL));
        }
        if gpu.index != device.ordinal {
            let message = format!("GPU {} of nvidia-smi is cuda:{} here", gpu.index, device.ordinal);
            findings.push(
                Finding::info("cuda.order", message)
                    .with_remedy("set CUDA_DEVICE_ORDER=PCI_BUS_ID if both should count alike"),
            );
        }
    }
    for device in devices {
        // Without NVML nothing can be compared, and its own finding says that it is missing.
        if !profile.nvidia.gpus.is_empty() && !profile.nvidia.gpus.iter().any(|gpu| is_of(device, gpu)) {
            let message = format!("cuda:{} ({}) is not listed by NVML", device.ordinal, device.name);
            findings.push(Finding::warning("cuda.disagrees", message).with_remedy(REINSTALL));
        }
    }
    findings.extend(not_seen_by_vulkan(profile, devices));
    findings
}

/// Libraries of one driver always agree.
const REINSTALL: &str = "parts of two drivers are installed: reinstall the driver, and restart the machine";

/// By bus address, for of a MIG instance that is the card's and the UUID is not.
fn is_of(device: &Device, gpu: &nvidia::Gpu) -> bool {
    gpu.uuid.as_ref() == Some(&device.uuid) || gpu.pci_address.as_ref() == Some(&device.pci_address)
}

fn not_seen_by_cuda(gpu: &nvidia::Gpu) -> Finding {
    let name = gpu.name.as_deref().unwrap_or("unnamed");
    let message = format!("GPU {} ({name}) is there, and CUDA does not show it to this process", gpu.index);
    let remedy = match gpu.mig_enabled {
        Some(true) => {
            "it is in MIG mode: make an instance (nvidia-smi mig -cgi … -C), and run a worker for each with CUDA_VISIBLE_DEVICES=MIG-…"
        }
        _ => "check CUDA_VISIBLE_DEVICES, and the list behind --gpus in Docker",
    };
    Finding::warning("cuda.card_hidden", message).with_remedy(remedy)
}

/// Only where Vulkan shows some of the cards: a container without the driver's graphics part shows none, which is as it should be.
fn not_seen_by_vulkan(profile: &Profile, devices: &[Device]) -> Vec<Finding> {
    let is_nvidia = |adapter: &&adapters::Adapter| adapter.vendor_id == pci::NVIDIA && adapter.backend == "vulkan";
    let listed: Vec<&String> =
        profile.adapters.iter().filter(is_nvidia).filter_map(|adapter| adapter.pci_address.as_ref()).collect();
    let is_missing = |device: &&Device| !listed.is_empty() && !listed.contains(&&device.pci_address);
    let finding = |device: &Device| {
        let message = format!("cuda:{} ({}) is not among Vulkan's adapters, others are", device.ordinal, device.name);
        Finding::info("cuda.not_in_vulkan", message)
    };
    devices.iter().filter(is_missing).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(ordinal: u32, address: &str) -> Device {
        let uuid = format!("GPU-{address}");
        let (pci_address, compute_capability) = (address.to_owned(), "8.9".to_owned());
        Device { ordinal, uuid, pci_address, compute_capability, works: true, ..Device::default() }
    }

    fn gpu(index: u32, address: &str) -> nvidia::Gpu {
        nvidia::Gpu {
            index,
            uuid: Some(format!("GPU-{address}")),
            pci_address: Some(address.to_owned()),
            compute_capability: Some("8.9".to_owned()),
            ..nvidia::Gpu::default()
        }
    }

    fn adapter(address: &str) -> adapters::Adapter {
        adapters::Adapter {
            name: "Card".to_owned(),
            vendor: "NVIDIA".to_owned(),
            vendor_id: pci::NVIDIA,
            device_id: 1,
            kind: adapters::Kind::Discrete,
            backend: "vulkan".to_owned(),
            driver: String::new(),
            pci_address: Some(address.to_owned()),
            f16: true,
            buffer_max_bytes: 1,
        }
    }

    fn check(gpus: Vec<nvidia::Gpu>, cuda: Option<Vec<Device>>, adapters: Vec<adapters::Adapter>, expected: &[&str]) {
        let nvidia = nvidia::Nvidia { driver: None, gpus };
        let profile = Profile { nvidia, cuda, adapters, ..Profile::default() };
        let found = disagreements(&profile);
        assert_eq!(found.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), expected, "{found:?}");
    }

    #[test]
    fn libraries_that_speak_of_the_same_cards_agree() {
        let (a, b) = ("0000:01:00.0", "0000:02:00.0");
        check(vec![], None, vec![], &[]);
        check(vec![gpu(0, a)], None, vec![adapter(a)], &[]);
        check(vec![gpu(0, a)], Some(vec![]), vec![], &[]);
        check(vec![gpu(0, a), gpu(1, b)], Some(vec![device(0, a), device(1, b)]), vec![adapter(a), adapter(b)], &[]);
        check(vec![gpu(0, a)], Some(vec![device(0, a)]), vec![], &[]);
        check(vec![], Some(vec![device(0, a)]), vec![], &[]);
    }

    #[test]
    fn each_disagreement_has_its_finding() {
        let (a, b) = ("0000:01:00.0", "0000:02:00.0");
        check(vec![gpu(0, a), gpu(1, b)], Some(vec![device(0, a)]), vec![], &["cuda.card_hidden"]);
        check(
            vec![gpu(0, a), gpu(1, b)],
            Some(vec![device(0, b), device(1, a)]),
            vec![],
            &["cuda.order", "cuda.order"],
        );
        check(vec![gpu(0, a)], Some(vec![device(0, a), device(1, b)]), vec![], &["cuda.disagrees"]);
        let older = nvidia::Gpu { compute_capability: Some("8.6".to_owned()), ..gpu(0, a) };
        check(vec![older], Some(vec![device(0, a)]), vec![], &["cuda.disagrees"]);
        let both = || Some(vec![device(0, a), device(1, b)]);
        check(vec![gpu(0, a), gpu(1, b)], both(), vec![adapter(a)], &["cuda.not_in_vulkan"]);
    }

    #[test]
    fn a_card_in_mig_mode_is_told_how_to_use_its_instances() {
        let (a, b) = ("0000:01:00.0", "0000:02:00.0");
        let profile = |gpu| Profile {
            nvidia: nvidia::Nvidia { driver: None, gpus: vec![gpu] },
            cuda: Some(vec![device(0, b)]),
            ..Profile::default()
        };
        let remedy = |gpu| disagreements(&profile(gpu))[0].remedy.clone().unwrap();
        assert!(remedy(nvidia::Gpu { mig_enabled: Some(true), ..gpu(0, a) }).contains("MIG-"));
        assert!(remedy(gpu(0, a)).contains("CUDA_VISIBLE_DEVICES"));
        // An instance of a card has the card's address and a UUID of its own.
        let instance = Device { uuid: "MIG-1".to_owned(), ..device(0, a) };
        check(vec![gpu(0, a)], Some(vec![instance]), vec![], &[]);
    }
}
