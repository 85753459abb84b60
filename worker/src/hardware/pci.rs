//! Graphics cards as the bus lists them, whether or not a driver is loaded: in go the kernel's files, out go addresses and
//! makers. It knows whether a card is there that no driver library speaks for. It never touches a device.

use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A display or 3D controller on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::PciCard)]
pub struct Card {
    /// Bus address, such as `0000:01:00.0`.
    pub address: String,
    /// PCI vendor number.
    pub vendor_id: u32,
    /// PCI device number.
    pub device_id: u32,
}

/// PCI's number for NVIDIA.
pub const NVIDIA: u32 = 0x10de;

/// The graphics cards that this machine's bus lists. Empty where the system does not show its bus in files.
pub fn cards() -> Vec<Card> {
    let Ok(entries) = std::fs::read_dir("/sys/bus/pci/devices") else { return Vec::new() };
    let mut cards: Vec<Card> = entries
        .flatten()
        .filter_map(|entry| {
            let read = |name: &str| std::fs::read_to_string(Path::new(&entry.path()).join(name)).ok();
            card(&entry.file_name().to_string_lossy(), &read("class")?, &read("vendor")?, &read("device")?)
        })
        .collect();
    cards.sort_by(|a, b| a.address.cmp(&b.address));
    cards
}

/// A card, if the class is that of a display controller (`0x03…`).
pub fn card(address: &str, class: &str, vendor: &str, device: &str) -> Option<Card> {
    let number = |text: &str| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    (number(class)? >> 16 == 0x03).then_some(Card {
        address: address.to_owned(),
        vendor_id: number(vendor)?,
        device_id: number(device)?,
    })
}

/// The maker of a PCI vendor number, where it makes graphics cards.
pub fn vendor_name(vendor_id: u32) -> Option<&'static str> {
    Some(match vendor_id {
        NVIDIA => "NVIDIA",
        0x1002 | 0x1022 => "AMD",
        0x8086 => "Intel",
        0x106b => "Apple",
        0x13b5 => "Arm",
        0x5143 => "Qualcomm",
        0x1010 => "Imagination",
        0x1414 => "Microsoft",
        0x1af4 => "virtio",
        // Khronos gives numbers above 16 bits to makers that have no PCI number; this one is Mesa's.
        0x10005 => "Mesa",
        _ => return None,
    })
}

/// The bus address in the short form that all tools share: NVML writes eight digits of domain, the kernel four, and some
/// write capitals.
pub fn normal_address(address: &str) -> String {
    let address = address.trim().to_lowercase();
    match address.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 && domain.starts_with("0000") => format!("{}:{rest}", &domain[4..]),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_display_controllers_are_cards() {
        let check = |class: &str, found: bool| {
            assert_eq!(card("0000:01:00.0", class, "0x10de\n", "0x2684\n").is_some(), found, "{class}");
        };
        check("0x030000\n", true);
        check("0x030200\n", true);
        check("0x040300\n", false);
        check("0x010802\n", false);
        check("nonsense", false);
    }

    #[test]
    fn addresses_of_different_tools_become_the_same() {
        let check = |address: &str, normal: &str| assert_eq!(normal_address(address), normal);
        check("00000000:01:00.0", "0000:01:00.0");
        check("0000:01:00.0", "0000:01:00.0");
        check("00000000:C1:00.0", "0000:c1:00.0");
        check("00010000:01:00.0", "00010000:01:00.0");
        check("", "");
    }
}
