//! Graphics adapters of every vendor through wgpu (Vulkan, Metal, Direct3D 12): out go names, makers, kinds and drivers.
//! It opens no device and runs nothing. It runs in the probe's child process, because drivers crash.

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Finding;
use super::pci::{normal_address, vendor_name};
use super::probe::{Answer, Reporter};

/// One adapter as one interface shows it; a card may be listed once for each interface that reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Adapter)]
pub struct Adapter {
    /// As the driver names it.
    pub name: String,
    /// Its maker, or the number of one that is not known by name.
    pub vendor: String,
    /// PCI vendor number, or Khronos' own number of a maker without one.
    pub vendor_id: u32,
    /// The maker's number of the device.
    pub device_id: u32,
    /// What sort of device it is.
    pub kind: Kind,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// Driver's name and version.
    pub driver: String,
    /// Bus address, where the driver tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
    /// Whether its programs may calculate in 16-bit floats.
    pub f16: bool,
    /// The largest buffer that it allows.
    pub buffer_max_bytes: u64,
}

/// What sort of device an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = hardware::AdapterKind)]
pub enum Kind {
    /// A card with its own memory.
    Discrete,
    /// A part of the processor that shares its memory.
    Integrated,
    /// A share of a card of the machine's host.
    Virtual,
    /// A program that draws on the processor. Not a GPU: correct, and slow.
    Software,
    /// The driver does not say.
    Other,
}

/// Tells every adapter.
pub(super) fn tell_all(reporter: &mut Reporter<'_>) {
    let descriptor = wgpu::InstanceDescriptor {
        // Debug layers of a developer's machine have no place in a probe.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let Some(instance) = reporter.step("graphics: load drivers", || wgpu::Instance::new(descriptor)) else { return };
    let found = reporter.step("graphics: list adapters", || {
        // Off the web the list is ready at once.
        instance.enumerate_adapters(wgpu::Backends::all()).now_or_never().unwrap_or_default()
    });
    let Some(found) = found else { return };
    if found.is_empty() {
        reporter.say(Answer::Finding(Finding::info("adapters.none", "no graphics adapter answers").with_remedy(
            "where there is a GPU, install its graphics driver and the Vulkan loader (libvulkan1 on Debian)",
        )));
    }
    for (index, adapter) in found.iter().enumerate() {
        let told = reporter
            .step(&format!("graphics: adapter {index}"), || (adapter.get_info(), adapter.features(), adapter.limits()));
        if let Some((info, features, limits)) = told {
            reporter.say(Answer::Adapter(describe(&info, features, &limits)));
        }
    }
}

fn describe(info: &wgpu::AdapterInfo, features: wgpu::Features, limits: &wgpu::Limits) -> Adapter {
    let driver = [info.driver.as_str(), info.driver_info.as_str()];
    Adapter {
        name: info.name.clone(),
        vendor: vendor_name(info.vendor).map_or_else(|| format!("{:#06x}", info.vendor), str::to_owned),
        vendor_id: info.vendor,
        device_id: info.device,
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
            wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
            wgpu::DeviceType::VirtualGpu => Kind::Virtual,
            wgpu::DeviceType::Cpu => Kind::Software,
            wgpu::DeviceType::Other => Kind::Other,
        },
        backend: info.backend.to_string().to_lowercase(),
        driver: driver.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
        pci_address: Some(normal_address(&info.device_pci_bus_id)).filter(|address| !address.is_empty()),
        f16: features.contains(wgpu::Features::SHADER_F16),
        buffer_max_bytes: limits.max_buffer_size,
    }
}
