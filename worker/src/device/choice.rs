//! Which devices a worker uses: what its owner asked for and the machine's profile go in, devices with the memory that models may take
//! there come out, or the reason why not. Pure. It never takes the CPU where a GPU was meant.

use std::str::FromStr;

use models::engine::Device;

use crate::config::DeviceOptions;
use crate::hardware::{Profile, Severity};

/// What an owner asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Every CUDA device that works in a build with CUDA, the Mac's GPU in one with Metal; else the CPU.
    Auto,
    /// This one.
    One(Device),
}

impl FromStr for Asked {
    type Err = String;

    /// `auto`, `cpu`, `cuda` and `metal` for the first one, `cuda:N`, `metal:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, number) = text.split_once(':').map_or((text, None), |(kind, number)| (kind, Some(number)));
        let ordinal = number.map_or(Ok(0), str::parse);
        match (kind, number, ordinal) {
            ("auto", None, _) => Ok(Asked::Auto),
            ("cpu", None, _) => Ok(Asked::One(Device::Cpu)),
            ("cuda", _, Ok(ordinal)) => Ok(Asked::One(Device::Cuda(ordinal))),
            ("metal", _, Ok(ordinal)) => Ok(Asked::One(Device::Metal(ordinal))),
            _ => Err(format!("{text:?} is no device; give auto, cpu, cuda, cuda:N, metal or metal:N")),
        }
    }
}

/// Why there is no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// CUDA was asked for, and the build has none.
    #[error("{asked} was asked for, and this build has no CUDA; use the CUDA binary or the CUDA container image")]
    NoCuda {
        /// As asked.
        asked: Device,
    },
    /// Metal was asked for, and the build has none.
    #[error("{asked} was asked for, and this build has no Metal; use the macOS binary, or build with --features metal")]
    NoMetal {
        /// As asked.
        asked: Device,
    },
    /// The build is for GPUs, and no device works.
    #[error("no {kind} device can be used: {why}\n  to run on the CPU all the same, give --device cpu")]
    NoneWorks {
        /// CUDA or Metal.
        kind: &'static str,
        /// What the driver said, with what mends it.
        why: String,
    },
    /// This one is not there or does not work.
    #[error("{asked} cannot be used: {why}; the devices that work are {have}")]
    NotThis {
        /// As asked.
        asked: Device,
        /// What the driver said, with what mends it.
        why: String,
        /// The devices that can be used.
        have: String,
    },
}

/// Of a device's free memory, what is left for the libraries' own buffers, which nobody counts.
const SHARE_LEFT: u64 = 20;

/// Chooses the devices in the order in which they were asked for, each once. An empty list is the CPU, as in [`crate::config::Devices`].
///
/// # Errors
/// When a device that was asked for cannot be used, or with [`Asked::Auto`] no GPU of a build for GPUs.
pub fn choose(asked: &[Asked], profile: &Profile) -> Result<Vec<DeviceOptions>, Error> {
    choose_in(cfg!(feature = "metal"), asked, profile)
}

/// [`choose`] in a build with or without Metal; the profile says whether it has CUDA.
fn choose_in(has_metal: bool, asked: &[Asked], profile: &Profile) -> Result<Vec<DeviceOptions>, Error> {
    let mut chosen: Vec<DeviceOptions> = Vec::new();
    for &asked in asked {
        let more = match asked {
            Asked::Auto if has_metal => vec![metal(0, profile)?],
            Asked::Auto => every(profile)?,
            Asked::One(Device::Cuda(ordinal)) => vec![cuda(ordinal, profile)?],
            Asked::One(asked @ Device::Metal(_)) if !has_metal => return Err(Error::NoMetal { asked }),
            Asked::One(Device::Metal(ordinal)) => vec![metal(ordinal, profile)?],
            Asked::One(device @ Device::Cpu) => vec![DeviceOptions { device, memory_bytes: of_host(profile) }],
        };
        let is_new = |new: &DeviceOptions| !chosen.iter().any(|old| old.device == new.device);
        let more: Vec<_> = more.into_iter().filter(is_new).collect();
        chosen.extend(more);
    }
    Ok(chosen)
}

/// Four fifths of the machine's memory, as where nothing is asked for.
fn of_host(profile: &Profile) -> u64 {
    profile.memory.total_bytes / 5 * 4
}

/// A GPU of a Mac, whose memory is the machine's.
fn metal(ordinal: usize, profile: &Profile) -> Result<DeviceOptions, Error> {
    let device = Device::Metal(ordinal);
    let have = profile.apple.len();
    if ordinal < have {
        return Ok(DeviceOptions { device, memory_bytes: of_host(profile) });
    }
    let findings = profile.findings.iter().filter(|finding| finding.code.starts_with("apple."));
    let why = findings.map(|finding| finding.message.as_str()).next();
    let why = why.map_or_else(|| format!("this machine lists {have} GPUs of Apple's"), str::to_owned);
    match have {
        0 => Err(Error::NoneWorks { kind: "Metal", why }),
        _ => Err(Error::NotThis { asked: device, why, have: format!("metal:0 to metal:{}", have - 1) }),
    }
}

/// Every CUDA device that works.
fn every(profile: &Profile) -> Result<Vec<DeviceOptions>, Error> {
    let Some(devices) = &profile.cuda else { return Ok(Vec::new()) };
    let working: Vec<DeviceOptions> = devices.iter().filter(|device| device.works).map(options).collect();
    if working.is_empty() {
        return Err(Error::NoneWorks { kind: "CUDA", why: said(profile, None) });
    }
    Ok(working)
}

fn cuda(ordinal: usize, profile: &Profile) -> Result<DeviceOptions, Error> {
    let asked = Device::Cuda(ordinal);
    let devices = profile.cuda.as_ref().ok_or(Error::NoCuda { asked })?;
    let found = devices.iter().find(|device| device.ordinal as usize == ordinal);
    if let Some(device) = found.filter(|device| device.works) {
        return Ok(options(device));
    }
    let have: Vec<String> =
        devices.iter().filter(|device| device.works).map(|device| format!("cuda:{}", device.ordinal)).collect();
    let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
    Err(Error::NotThis { asked, why: said(profile, Some(asked)), have })
}

fn options(device: &crate::hardware::cuda::Device) -> DeviceOptions {
    let memory_bytes = device.free_bytes - device.free_bytes / SHARE_LEFT;
    DeviceOptions { device: Device::Cuda(device.ordinal as usize), memory_bytes }
}

/// What was found of CUDA, or of it what speaks of this device.
fn said(profile: &Profile, of: Option<Device>) -> String {
    let errors = profile.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let speaks = |message: &str| of.is_none_or(|device| names(message, &device.to_string()));
    let about = errors.filter(|finding| finding.code.starts_with("cuda.") && speaks(&finding.message));
    let words = about.map(|finding| match &finding.remedy {
        Some(remedy) => format!("{}; {remedy}", finding.message),
        None => finding.message.clone(),
    });
    let words: Vec<String> = words.collect();
    match words.as_slice() {
        [] => "CUDA does not list it; check CUDA_VISIBLE_DEVICES, and --gpus in Docker".to_owned(),
        words => words.join("\n  "),
    }
}

/// Whether a text has a device's name in it, and not that of another which begins so: `cuda:1` is not in `cuda:10`.
fn names(text: &str, device: &str) -> bool {
    text.match_indices(device).any(|(at, _)| !text[at + device.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{Finding, apple, cuda};

    /// A machine with these devices, each with 100 bytes free and whether it works; `None` for a build without CUDA.
    fn machine(works: Option<&[bool]>) -> Profile {
        let device = |(ordinal, works): (usize, &bool)| cuda::Device {
            ordinal: ordinal as u32,
            free_bytes: 100,
            works: *works,
            ..cuda::Device::default()
        };
        let mut profile =
            Profile { cuda: works.map(|works| works.iter().enumerate().map(device).collect()), ..Profile::default() };
        profile.memory.total_bytes = 1000;
        profile
    }

    fn check(asked: &[&str], works: Option<&[bool]>, expected: &[(Device, u64)]) {
        let asked: Vec<Asked> = asked.iter().map(|asked| asked.parse().unwrap()).collect();
        let chosen = choose(&asked, &machine(works)).unwrap();
        let chosen: Vec<_> = chosen.iter().map(|options| (options.device, options.memory_bytes)).collect();
        assert_eq!(chosen, expected);
    }

    #[test]
    fn every_device_that_works_is_used_and_the_cpu_only_where_it_was_asked_for() {
        let gpu = |ordinal| (Device::Cuda(ordinal), 95);
        check(&["auto"], None, &[]);
        check(&["auto"], Some(&[true, false, true]), &[gpu(0), gpu(2)]);
        check(&["cuda"], Some(&[true, true]), &[gpu(0)]);
        check(&["cuda:1", "cpu", "auto"], Some(&[true, true]), &[gpu(1), (Device::Cpu, 800), gpu(0)]);
        check(&["cpu"], Some(&[]), &[(Device::Cpu, 800)]);
        check(&["cpu"], None, &[(Device::Cpu, 800)]);
    }

    #[test]
    fn a_device_is_not_taken_for_one_whose_name_begins_alike() {
        for (text, expected) in [
            ("cuda:1: it is broken", true),
            ("it is broken on cuda:1", true),
            ("cuda:10: it is broken", false),
            ("cuda:10 and cuda:1 are broken", true),
            ("the driver is too old", false),
        ] {
            assert_eq!(names(text, "cuda:1"), expected, "{text}");
        }
        let failed =
            ["cuda:10: it is broken", "cuda:1: it is too hot"].map(|of| Finding::error("cuda.trial_failed", of));
        let profile = Profile { findings: failed.into(), ..machine(Some(&[false; 11])) };
        let why = choose(&["cuda:1".parse().unwrap()], &profile).unwrap_err().to_string();
        assert!(why.contains("too hot") && !why.contains("broken"), "{why}");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_what_the_driver_said() {
        let refused = |asked: &str, works: Option<&[bool]>| {
            let failed = Finding::error("cuda.trial_failed", "cuda:0: it is broken").with_remedy("mend it");
            let profile = Profile { findings: vec![failed], ..machine(works) };
            choose(&[asked.parse().unwrap()], &profile).unwrap_err().to_string()
        };
        for asked in ["auto", "cuda", "cuda:0"] {
            let words = refused(asked, Some(&[false]));
            assert!(words.contains("cuda:0: it is broken; mend it"), "{words}");
        }
        assert!(refused("auto", Some(&[])).contains("--device cpu"));
        // Not what was said of another device.
        let of_another = refused("cuda:1", Some(&[false; 2]));
        assert!(!of_another.contains("is broken"), "{of_another}");
        assert!(refused("cuda:1", Some(&[true])).contains("the devices that work are cuda:0"));
        assert!(refused("cuda:1", Some(&[true])).contains("CUDA_VISIBLE_DEVICES"));
        assert!(refused("cuda:0", None).contains("this build has no CUDA"));
    }

    #[test]
    fn a_build_with_metal_uses_the_macs_gpu() {
        let mac = |gpus: usize| {
            let gpu = apple::Gpu { name: "Apple M3".into(), cores: None, metal: None, unified_memory: true };
            Profile { apple: vec![gpu; gpus], ..machine(None) }
        };
        let devices = |has_metal, asked: &str, gpus| {
            let chosen = choose_in(has_metal, &[asked.parse().unwrap()], &mac(gpus));
            chosen.map(|all| all.iter().map(|options| (options.device, options.memory_bytes)).collect::<Vec<_>>())
        };
        for asked in ["auto", "metal", "metal:0"] {
            assert_eq!(devices(true, asked, 1), Ok(vec![(Device::Metal(0), 800)]), "{asked}");
            let refused = devices(true, asked, 0).unwrap_err().to_string();
            assert!(refused.contains("no Metal device") && refused.contains("--device cpu"), "{refused}");
        }
        assert_eq!(devices(true, "cpu", 1), Ok(vec![(Device::Cpu, 800)]));
        assert!(devices(true, "metal:1", 1).unwrap_err().to_string().contains("the devices that work are metal:0"));
        assert_eq!(devices(false, "metal", 1), Err(Error::NoMetal { asked: Device::Metal(0) }));
        assert_eq!(devices(false, "auto", 1), Ok(vec![]));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:0", "metal:"] {
            assert!(text.parse::<Asked>().is_err(), "{text:?}");
        }
    }
}
