//! The GPU of a Mac: in goes what `system_profiler` prints, out go its name and cores. Elsewhere there is nothing to ask.
//! Its memory is the machine's own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A GPU that shares the machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::AppleGpu)]
pub struct Gpu {
    /// Such as `Apple M3 Max`.
    pub name: String,
    /// GPU cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// The newest Metal that it runs, in the system's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metal: Option<String>,
    /// Whether it shares the processor's memory.
    pub unified_memory: bool,
}

/// The GPUs of this Mac, or a finding that says why they are not known.
#[cfg(target_os = "macos")]
pub(super) async fn gpus(timeout: std::time::Duration) -> Result<Vec<Gpu>, super::Finding> {
    let mut command = tokio::process::Command::new("/usr/sbin/system_profiler");
    command.args(["-json", "SPDisplaysDataType"]).kill_on_drop(true).stdin(std::process::Stdio::null());
    let failed = |reason: String| super::Finding::warning("apple.unknown", format!("the GPU is not known: {reason}"));
    match tokio::time::timeout(timeout, command.output()).await {
        Err(_) => Err(failed(format!("system_profiler was silent for {timeout:?}"))),
        Ok(Err(error)) => Err(failed(format!("system_profiler: {error}"))),
        Ok(Ok(output)) => parse(&output.stdout).ok_or_else(|| failed("system_profiler printed no JSON".to_owned())),
    }
}

/// No other system has one.
#[cfg(not(target_os = "macos"))]
pub(super) async fn gpus(_: std::time::Duration) -> Result<Vec<Gpu>, super::Finding> {
    Ok(Vec::new())
}

/// The GPUs in the JSON of `system_profiler -json SPDisplaysDataType`.
#[cfg(any(target_os = "macos", test))]
fn parse(json: &[u8]) -> Option<Vec<Gpu>> {
    let json: serde_json::Value = serde_json::from_slice(json).ok()?;
    let text = |card: &serde_json::Value, key: &str| card.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let cards = json.get("SPDisplaysDataType")?.as_array()?;
    let gpu = |card: &serde_json::Value| {
        let name = text(card, "sppci_model").or_else(|| text(card, "_name"))?;
        Some(Gpu {
            unified_memory: name.starts_with("Apple"),
            cores: text(card, "sppci_cores").and_then(|cores| cores.parse().ok()),
            metal: text(card, "spdisplays_mtlgpufamilysupport").map(|family| family.replace("spdisplays_", "")),
            name,
        })
    };
    Some(cards.iter().filter_map(gpu).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profiler_of_a_mac_is_understood() {
        let json = r#"{"SPDisplaysDataType":[
            {"_name":"Apple M3 Max","sppci_model":"Apple M3 Max","sppci_cores":"40","spdisplays_mtlgpufamilysupport":"spdisplays_metal3"},
            {"_name":"kHW_AMDRadeonItem","sppci_model":"Radeon Pro 555X"},
            {"spdisplays_vram":"1 GB"}]}"#;
        let gpu = |name: &str, cores, metal: Option<&str>, unified_memory| Gpu {
            name: name.to_owned(),
            cores,
            metal: metal.map(str::to_owned),
            unified_memory,
        };
        let expected =
            vec![gpu("Apple M3 Max", Some(40), Some("metal3"), true), gpu("Radeon Pro 555X", None, None, false)];
        assert_eq!(parse(json.as_bytes()), Some(expected));
        assert_eq!(parse(b"{}"), None);
        assert_eq!(parse(b"not JSON"), None);
    }
}
