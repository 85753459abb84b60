//! Network interfaces: out go names, speeds and byte counts. It never sends anything, and addresses stay on the machine.

use std::ffi::OsStr;

use serde::{Deserialize, Serialize};
use sysinfo::{InterfaceOperationalState, Networks};
use utoipa::ToSchema;

/// One network interface; the loopback is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Interface)]
pub struct Interface {
    /// The system's name of it.
    pub name: String,
    /// Whether it is known to be able to send.
    pub up: bool,
    /// Largest packet.
    pub mtu_bytes: u64,
    /// Link speed, where the driver tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_bits_per_s: Option<u64>,
}

/// The interfaces of this machine by name.
pub fn interfaces() -> Vec<Interface> {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return Vec::new() };
    let mut found: Vec<Interface> = networks
        .iter()
        .filter(|(name, _)| !is_loopback(name))
        .map(|(name, data)| Interface {
            name: name.to_string_lossy().into_owned(),
            up: matches!(data.operational_state(), InterfaceOperationalState::Up),
            mtu_bytes: data.mtu(),
            link_bits_per_s: data.receive_link_speed().filter(|&speed| speed > 0),
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Bytes received and sent by all interfaces but the loopback since the system started.
pub fn total_bytes(networks: &Networks) -> (u64, u64) {
    networks
        .iter()
        .filter(|(name, _)| !is_loopback(name))
        .fold((0, 0), |(received, sent), (_, data)| (received + data.total_received(), sent + data.total_transmitted()))
}

fn is_loopback(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "lo" || name == "lo0" || name.starts_with("Loopback")
}
