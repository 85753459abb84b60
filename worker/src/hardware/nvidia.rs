//! NVIDIA cards through the driver's management library (NVML): out go facts and load of every card, each field on its own.
//! A query that fails or that the library lacks is a finding and leaves its field empty; nothing here ends the process on
//! purpose, and a library that does is survived because all of this runs in the probe's child process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Finding;
use super::pci::normal_address;
use super::probe::{Answer, Reporter};

/// The driver and its cards.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Nvidia)]
pub struct Nvidia {
    /// The driver, if one answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// The cards in the driver's order.
    pub gpus: Vec<Gpu>,
}

/// The installed driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::NvidiaDriver)]
pub struct Driver {
    /// Such as `580.65.06`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The newest CUDA that the driver runs, such as `13.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// The management library's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvml_version: Option<String>,
}

/// One card: what it is, and how it does at the moment of asking. Every figure that the driver does not tell is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Gpu)]
pub struct Gpu {
    /// Number in the driver's order, which is that of the bus.
    pub index: u32,
    /// Such as `NVIDIA GeForce RTX 4090`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Stays the same when cards are moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Bus address, such as `0000:01:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
    /// CUDA compute capability, such as `8.9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// Whether memory errors are corrected by the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_enabled: Option<bool>,
    /// PCI Express generation that card and slot could use together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_generation_max: Option<u32>,
    /// PCI Express lanes that card and slot could use together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_width_max: Option<u32>,
    /// Power that the card may draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f64>,
    /// Power that it may draw as its maker set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_default_watts: Option<f64>,
    /// Whether the card is divided into instances (MIG).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_enabled: Option<bool>,
    /// Its instances, where it is divided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mig_instances: Vec<MigInstance>,
    /// Highest clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_max_hertz: Option<u64>,
    /// Temperature at which the card slows itself down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_slowdown_celsius: Option<u32>,
    /// How it does at the moment of asking.
    #[serde(flatten)]
    pub load: Load,
}

/// A part of a card that programs see as a card of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::MigInstance)]
pub struct MigInstance {
    /// Such as `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `MIG-…`, which is what `CUDA_VISIBLE_DEVICES` takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its share of the device memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_total_bytes: Option<u64>,
}

/// What changes from moment to moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::GpuLoad)]
pub struct Load {
    /// Device memory that is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_total_bytes: Option<u64>,
    /// Device memory that can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_free_bytes: Option<u64>,
    /// Device memory in use, by anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_used_bytes: Option<u64>,
    /// Share of the last moments in which a kernel ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation_percent: Option<u32>,
    /// Share of the last moments in which device memory was read or written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_utilisation_percent: Option<u32>,
    /// Temperature of the die.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Power drawn now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
    /// Clock of the multiprocessors now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_hertz: Option<u64>,
    /// Why the card holds its clock down, without the reasons that are no fault (idle, a chosen clock).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttled_by: Vec<String>,
    /// Memory errors that were corrected since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_corrected_errors: Option<u64>,
    /// Memory errors that were not corrected since the driver was loaded: results of that time cannot be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected_errors: Option<u64>,
    /// PCI Express generation in use now; cards lower it when idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_generation: Option<u32>,
    /// PCI Express lanes in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_width: Option<u32>,
}

/// One card's load in a live sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::GpuSample)]
pub struct GpuSample {
    /// Number in the driver's order.
    pub index: u32,
    /// Stays the same when cards are moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// How it does.
    #[serde(flatten)]
    pub load: Load,
    /// Faults that the driver reported (Xid) since sampling began.
    pub xid_faults: u64,
    /// Number of the last fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid_last: Option<u64>,
    /// The numbers of all faults so far.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub xids: BTreeSet<u64>,
}

/// The library as the child holds it. It is never shut down: the end of the child does that, and a shutdown that hangs or
/// crashes would only spoil what is already known.
#[derive(Default)]
pub(super) struct Session {
    nvml: Option<&'static Nvml>,
    faults: Faults,
}

impl Session {
    /// Tells the driver and every card in full.
    pub(super) fn tell_all(&mut self, library: Option<&Path>, reporter: &mut Reporter<'_>) {
        let Some(nvml) = self.open(library, reporter) else { return };
        let mut ask = Ask::new("driver", reporter);
        let driver = Driver {
            version: ask.get("driver version", || nvml.sys_driver_version()),
            cuda_version: ask.get("CUDA version", || nvml.sys_cuda_driver_version()).map(cuda_version),
            nvml_version: ask.get("NVML version", || nvml.sys_nvml_version()),
        };
        ask.end();
        reporter.say(Answer::Driver(driver));
        each_device(nvml, reporter, |device, index, reporter| {
            let gpu = gpu(device, index, reporter);
            reporter.say(Answer::Gpu(gpu));
        });
    }

    /// Tells the load of every card.
    pub(super) fn tell_load(&mut self, library: Option<&Path>, reporter: &mut Reporter<'_>) {
        let Some(nvml) = self.open(library, reporter) else { return };
        self.faults.collect(nvml, reporter);
        each_device(nvml, reporter, |device, index, reporter| {
            let mut ask = Ask::new(&format!("GPU {index}"), reporter);
            let uuid = ask.get("UUID", || device.uuid());
            let load = load(device, &mut ask);
            let Seen { count: xid_faults, last: xid_last, numbers: xids } = self.faults.of(index);
            reporter.say(Answer::GpuSample(GpuSample { index, uuid, load, xid_faults, xid_last, xids }));
        });
    }

    fn open(&mut self, library: Option<&Path>, reporter: &mut Reporter<'_>) -> Option<&'static Nvml> {
        if self.nvml.is_none() {
            let mut builder = Nvml::builder();
            if let Some(path) = library {
                builder.lib_path(path.as_os_str());
            }
            match reporter.step("driver: load the library", || builder.init())? {
                Ok(nvml) => self.nvml = Some(Box::leak(Box::new(nvml))),
                Err(error) => reporter.say(Answer::Finding(not_opened(library, &error))),
            }
        }
        self.nvml
    }
}

/// Faults (Xid) that the driver reported, collected while the child lives.
#[derive(Default)]
struct Faults {
    /// The outer layer is empty before the first attempt, the inner one where events cannot be had.
    events: Option<Option<EventSet<'static>>>,
    seen: BTreeMap<u32, Seen>,
}

/// A card's faults.
#[derive(Debug, Clone, Default)]
struct Seen {
    count: u64,
    last: Option<u64>,
    /// At most some hundred: so many numbers there are.
    numbers: BTreeSet<u64>,
}

impl Faults {
    fn collect(&mut self, nvml: &'static Nvml, reporter: &mut Reporter<'_>) {
        if self.events.is_none() {
            let registered = reporter.step("driver: register for faults", || register(nvml)).unwrap_or(Ok(None));
            self.events = Some(registered.unwrap_or_else(|error| {
                let message = format!("faults of the cards (Xid) are not watched: {error}");
                reporter.say(Answer::Finding(Finding::info("nvidia.faults_unwatched", message)));
                None
            }));
        }
        let Some(Some(events)) = &self.events else { return };
        // The bound keeps a driver that repeats itself from holding the sample up.
        for _ in 0..64 {
            let Some(Ok(event)) = reporter.step("driver: wait for faults", || events.wait(0)) else { break };
            let Ok(index) = event.device.index() else { break };
            let seen = self.seen.entry(index).or_default();
            seen.count += 1;
            seen.last = event.event_data.map(|xid| match xid {
                XidError::Value(value) => value,
                XidError::Unknown => 999,
            });
            seen.numbers.extend(seen.last);
        }
    }

    fn of(&self, index: u32) -> Seen {
        self.seen.get(&index).cloned().unwrap_or_default()
    }
}

#[cfg(target_os = "linux")]
fn register(nvml: &'static Nvml) -> Result<Option<EventSet<'static>>, NvmlError> {
    let mut events = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        events = device.register_events(EventTypes::CRITICAL_XID_ERROR, events).map_err(|failed| failed.error)?;
    }
    Ok(Some(events))
}

#[cfg(not(target_os = "linux"))]
fn register(_: &'static Nvml) -> Result<Option<EventSet<'static>>, NvmlError> {
    let _ = EventTypes::CRITICAL_XID_ERROR;
    Err(NvmlError::NotSupported)
}

fn each_device(
    nvml: &'static Nvml,
    reporter: &mut Reporter<'_>,
    mut tell: impl FnMut(&Device<'static>, u32, &mut Reporter<'_>),
) {
    let mut ask = Ask::new("driver", reporter);
    let count = ask.get("number of cards", || nvml.device_count()).unwrap_or(0);
    for index in 0..count {
        let mut ask = Ask::new(&format!("GPU {index}"), reporter);
        if let Some(device) = ask.get("handle", || nvml.device_by_index(index)) {
            tell(&device, index, reporter);
        }
    }
}

fn gpu(device: &Device<'_>, index: u32, reporter: &mut Reporter<'_>) -> Gpu {
    let mut ask = Ask::new(&format!("GPU {index}"), reporter);
    let mig_enabled = ask.get("MIG mode", || device.mig_mode()).map(|mode| mode.current == MIG_ENABLED);
    let gpu = Gpu {
        index,
        name: ask.get("name", || device.name()),
        uuid: ask.get("UUID", || device.uuid()),
        pci_address: ask.get("bus address", || device.pci_info()).map(|pci| normal_address(&pci.bus_id)),
        compute_capability: ask
            .get("compute capability", || device.cuda_compute_capability())
            .map(|capability| format!("{}.{}", capability.major, capability.minor)),
        ecc_enabled: ask.get("ECC mode", || device.is_ecc_enabled()).map(|mode| mode.currently_enabled),
        pcie_generation_max: ask.get("highest PCIe generation", || device.max_pcie_link_gen()),
        pcie_width_max: ask.get("widest PCIe link", || device.max_pcie_link_width()),
        power_limit_watts: ask.get("power limit", || device.enforced_power_limit()).map(watts),
        power_limit_default_watts: ask
            .get("power limit by default", || device.power_management_limit_default())
            .map(watts),
        mig_enabled,
        mig_instances: if mig_enabled == Some(true) { mig_instances(device, &mut ask) } else { Vec::new() },
        clock_max_hertz: ask.get("highest clock", || device.max_clock_info(Clock::SM)).map(hertz),
        temperature_slowdown_celsius: ask
            .get("slowdown temperature", || device.temperature_threshold(TemperatureThreshold::Slowdown)),
        load: load(device, &mut ask),
    };
    ask.end();
    gpu
}

/// NVML's number for a card that is divided.
const MIG_ENABLED: u32 = 1;

/// Places for instances are numbered; those that are free answer that there is none.
fn mig_instances(device: &Device<'_>, ask: &mut Ask<'_, '_>) -> Vec<MigInstance> {
    let places = ask.get("number of MIG instances", || device.mig_device_count()).unwrap_or(0);
    let mut instances = Vec::new();
    for place in 0..places {
        let found = ask.get("MIG instance", || match device.mig_device_by_index(place) {
            Ok(instance) => Ok(Some(instance)),
            Err(NvmlError::NotFound) => Ok(None),
            Err(error) => Err(error),
        });
        let Some(Some(instance)) = found else { continue };
        instances.push(MigInstance {
            name: ask.get("MIG instance's name", || instance.name()),
            uuid: ask.get("MIG instance's UUID", || instance.uuid()),
            vram_total_bytes: ask.get("MIG instance's memory", || instance.memory_info()).map(|memory| memory.total),
        });
    }
    instances
}

fn load(device: &Device<'_>, ask: &mut Ask<'_, '_>) -> Load {
    let memory = ask.get("memory", || device.memory_info());
    let utilisation = ask.get("utilisation", || device.utilization_rates());
    let ecc = |kind: MemoryError| device.total_ecc_errors(kind, EccCounter::Volatile);
    Load {
        vram_total_bytes: memory.as_ref().map(|memory| memory.total),
        vram_free_bytes: memory.as_ref().map(|memory| memory.free),
        vram_used_bytes: memory.as_ref().map(|memory| memory.used),
        utilisation_percent: utilisation.as_ref().map(|shares| shares.gpu),
        memory_utilisation_percent: utilisation.as_ref().map(|shares| shares.memory),
        temperature_celsius: ask.get("temperature", || device.temperature(TemperatureSensor::Gpu)),
        power_watts: ask.get("power", || device.power_usage()).map(watts),
        clock_hertz: ask.get("clock", || device.clock_info(Clock::SM)).map(hertz),
        throttled_by: ask
            .get("throttle reasons", || device.current_throttle_reasons())
            .map(throttled_by)
            .unwrap_or_default(),
        ecc_corrected_errors: ask.get("corrected memory errors", || ecc(MemoryError::Corrected)),
        ecc_uncorrected_errors: ask.get("uncorrected memory errors", || ecc(MemoryError::Uncorrected)),
        pcie_generation: ask.get("PCIe generation", || device.current_pcie_link_gen()),
        pcie_width: ask.get("PCIe width", || device.current_pcie_link_width()),
    }
}

/// Asks one thing after the other, and turns what fails into findings.
struct Ask<'r, 'w> {
    of: String,
    reporter: &'r mut Reporter<'w>,
    unsupported: Vec<&'static str>,
}

impl<'r, 'w> Ask<'r, 'w> {
    fn new(of: &str, reporter: &'r mut Reporter<'w>) -> Self {
        Self { of: of.to_owned(), reporter, unsupported: Vec::new() }
    }

    fn get<T>(&mut self, what: &'static str, query: impl FnOnce() -> Result<T, NvmlError>) -> Option<T> {
        let finding = match self.reporter.step(&format!("{}: {what}", self.of), query)? {
            Ok(value) => return Some(value),
            Err(NvmlError::NotSupported) => {
                self.unsupported.push(what);
                return None;
            }
            Err(NvmlError::FailedToLoadSymbol(_)) => Finding::warning(
                "nvidia.symbol_missing",
                format!("{}: {what} is not known, the driver's library has no such query", self.of),
            )
            .with_remedy("update the NVIDIA driver"),
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => {
                Finding::error("nvidia.card_lost", format!("{}: {error} (asked for {what})", self.of))
                    .with_remedy("restart the machine; if it comes back, check the card's power cables and its seat")
            }
            Err(error) => Finding::warning("nvidia.query_failed", format!("{}: {what} is not known: {error}", self.of)),
        };
        self.reporter.say(Answer::Finding(finding));
        None
    }

    /// Lists what the card does not offer, as one finding: cards for players lack a good part of it, and that is no fault.
    fn end(self) {
        if !self.unsupported.is_empty() {
            let message = format!("{}: does not tell {}", self.of, self.unsupported.join(", "));
            self.reporter.say(Answer::Finding(Finding::info("nvidia.not_supported", message)));
        }
    }
}

/// Why the library could not be opened, and what mends it.
fn not_opened(library: Option<&Path>, error: &NvmlError) -> Finding {
    let message = format!("NVML cannot be used: {error}");
    match error {
        NvmlError::LibloadingError(_) if library.is_none() => Finding::info("nvidia.library_missing", message)
            .with_remedy("nothing to do without an NVIDIA card; with one, install its driver (in Docker: --gpus all)"),
        NvmlError::LibloadingError(_) => Finding::error("nvidia.library_missing", message)
            .with_remedy("correct the configured path of the NVML library, or leave it out"),
        NvmlError::DriverNotLoaded => Finding::error("nvidia.driver_not_loaded", message)
            .with_remedy("load the kernel module (modprobe nvidia), or restart after installing the driver"),
        NvmlError::LibRmVersionMismatch => Finding::error("nvidia.driver_mismatch", message)
            .with_remedy("the driver was updated while it was in use: restart the machine"),
        NvmlError::NoPermission => {
            Finding::error("nvidia.no_permission", message).with_remedy("let this user read and write /dev/nvidia*")
        }
        NvmlError::FailedToLoadSymbol(_) => {
            Finding::error("nvidia.symbol_missing", message).with_remedy("update the NVIDIA driver")
        }
        _ => Finding::error("nvidia.not_opened", message)
            .with_remedy("see whether nvidia-smi works, and reinstall the driver"),
    }
}

/// NVML counts 13.0 as 13000.
fn cuda_version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// NVML counts milliwatts.
fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

/// NVML counts megahertz.
fn hertz(megahertz: u32) -> u64 {
    u64::from(megahertz) * 1_000_000
}

fn throttled_by(reasons: ThrottleReasons) -> Vec<String> {
    [
        (ThrottleReasons::SW_POWER_CAP, "power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware_slowdown"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature_hardware"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power_brake"),
    ]
    .into_iter()
    .filter(|&(reason, _)| reasons.contains(reason))
    .map(|(_, name)| name.to_owned())
    .collect()
}
