//! What the doctor says of GPUs: a machine's profile and what the system tells come in, checks with their proof and what mends them go
//! out. docs/gpu-owners.md has a line on each.

use super::{Check, Verdict};
use crate::output;
use std::process::Command;
use worker::hardware::{self, Profile, health, nvidia};

/// Every check.
pub(super) fn checks(profile: &Profile) -> Vec<Check> {
    let mut checks: Vec<Check> = profile.findings.iter().map(finding).collect();
    checks.extend(driver(profile));
    checks.extend(profile.nvidia.gpus.iter().flat_map(card));
    for device in profile.cuda.iter().flatten().filter(|device| device.works) {
        let (name, free) = (&device.name, output::bytes(device.free_bytes));
        let proof =
            format!("cuda:{} ({name}, {free} free): a trial calculation gave the right numbers", device.ordinal);
        checks.push(Check::new("cuda", Verdict::Ok, proof));
    }
    if !profile.nvidia.gpus.is_empty() {
        checks.push(faults(
            Command::new("dmesg")
                .output()
                .ok()
                .filter(|output| output.status.success())
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .as_deref(),
        ));
        if models::backend::cuda::IS_BUILT {
            let cache = Command::new("ldconfig").arg("-p").output().ok();
            checks.extend(cache.map(|cache| libraries(&String::from_utf8_lossy(&cache.stdout))));
        }
    }
    let variable = |name: &str| std::env::var(name).ok();
    checks.extend(container(
        is_container(),
        variable("NVIDIA_VISIBLE_DEVICES"),
        variable("NVIDIA_DRIVER_CAPABILITIES"),
    ));
    checks.push(use_of(profile.has_gpu(), super::super::serving::USES_GPU));
    checks
}

fn finding(finding: &hardware::Finding) -> Check {
    let verdict = match finding.severity {
        hardware::Severity::Info => Verdict::Note,
        hardware::Severity::Warning => Verdict::Warning,
        hardware::Severity::Error => Verdict::Failed,
    };
    let mut check = Check::new("hardware", verdict, format!("{} ({})", finding.message, finding.code));
    check.fix.clone_from(&finding.remedy);
    check
}

fn driver(profile: &Profile) -> Option<Check> {
    let driver = profile.nvidia.driver.as_ref()?;
    let version = driver.version.as_deref().unwrap_or("of unknown version");
    let Some(cuda) = &driver.cuda_version else {
        return Some(Check::new("driver", Verdict::Note, format!("NVIDIA {version}; its newest CUDA is not known")));
    };
    let proof = format!("NVIDIA {version}, CUDA up to {cuda}");
    let stale = health::assess(&health::Inputs { driver_cuda_version: Some(cuda.clone()), ..Default::default() });
    Some(match stale.reasons.into_iter().next() {
        None => Check::new("driver", Verdict::Ok, proof),
        Some(reason) => Check::new("driver", Verdict::Failed, proof).fix(reason.recommendation),
    })
}

/// A card's name, and a line for each thing that its owner can do something about.
fn card(gpu: &nvidia::Gpu) -> Vec<Check> {
    let load = &gpu.load;
    let of = |what: String| format!("GPU {}: {what}", gpu.index);
    let mut checks = Vec::new();
    let mut say = |name, verdict, what: String, fix: Option<&str>| {
        let check = Check::new(name, verdict, of(what));
        checks.push(match fix {
            Some(fix) => check.fix(fix),
            None => check,
        });
    };
    let name = gpu.name.as_deref().unwrap_or("unnamed");
    let memory = load.vram_total_bytes.map(|total| {
        let free = load.vram_free_bytes.map(|free| format!(", {} free", output::bytes(free))).unwrap_or_default();
        format!(", {}{free}", output::bytes(total))
    });
    say("gpu", Verdict::Ok, format!("{name}{}", memory.unwrap_or_default()), None);
    match (load.ecc_uncorrected_errors, gpu.ecc_enabled) {
        (Some(errors @ 1..), _) => say(
            "memory errors",
            Verdict::Failed,
            format!("{errors} were not corrected since the driver was loaded"),
            Some("reset the card (nvidia-smi --gpu-reset) or restart the machine; if they come back, replace it"),
        ),
        (_, Some(true)) => {
            let corrected = load.ecc_corrected_errors.unwrap_or(0);
            say("memory errors", Verdict::Ok, format!("ECC is on, {corrected} corrected, none uncorrected"), None);
        }
        (_, Some(false)) => say(
            "memory errors",
            Verdict::Note,
            "ECC is off, so errors go unseen".into(),
            Some("nvidia-smi --ecc-config=1, and restart, unless the memory that it takes is wanted more"),
        ),
        (_, None) => {}
    }
    match (gpu.power_limit_watts, gpu.power_limit_default_watts) {
        (Some(limit), Some(default)) if limit < 0.98 * default => {
            let proof = format!("may draw {limit:.0} of {default:.0} W: quieter, and a little slower");
            let fix = format!("if that was not meant: nvidia-smi --id={} --power-limit={default:.0}", gpu.index);
            say("power", Verdict::Note, proof, Some(&fix));
        }
        (Some(limit), _) => say("power", Verdict::Ok, format!("may draw {limit:.0} W"), None),
        (None, _) => {}
    }
    if let Some((width, max)) = load.pcie_width.zip(gpu.pcie_width_max) {
        let proof = format!("PCIe x{width} of x{max}");
        let fix = "loading takes longer: seat the card anew, use the slot next to the processor, take risers and adapters out";
        match width < max {
            true => say("pcie", Verdict::Warning, proof, Some(fix)),
            false => say("pcie", Verdict::Ok, proof, None),
        }
    }
    let (capped, slowed): (Vec<&str>, Vec<&str>) =
        load.throttled_by.iter().map(String::as_str).partition(|reason| *reason == "power_cap");
    if !slowed.is_empty() {
        let at = load.temperature_celsius.map(|celsius| format!(" at {celsius} °C")).unwrap_or_default();
        let fix = "clean its fans, let air through, set a power cap; power_brake and hardware_slowdown: check the power supply";
        say("clocks", Verdict::Warning, format!("it slows itself down{at}: {}", slowed.join(", ")), Some(fix));
    } else if !capped.is_empty() {
        say("clocks", Verdict::Ok, "held by its power limit, as cards at work are".into(), None);
    }
    if gpu.mig_enabled == Some(true) {
        let names = gpu.mig_instances.iter().filter_map(|instance| instance.uuid.as_deref());
        let names: Vec<&str> = names.collect();
        match names.as_slice() {
            [] => say(
                "mig",
                Verdict::Failed,
                "MIG mode is on, and there is no instance: nothing can run on it".into(),
                Some("make one (nvidia-smi mig -cgi PROFILE -C), or switch the mode off (nvidia-smi -mig 0)"),
            ),
            names => say(
                "mig",
                Verdict::Note,
                format!("divided into {}", names.join(", ")),
                Some("a process uses one of them: start a worker for each, with CUDA_VISIBLE_DEVICES=MIG-…"),
            ),
        }
    }
    checks
}

/// What the kernel's log says of faults, where it may be read.
fn faults(log: Option<&str>) -> Check {
    let Some(log) = log else {
        return Check::new(
            "faults",
            Verdict::Note,
            "the kernel's log may not be read, so earlier faults (Xid) are not known",
        )
        .fix("sudo dmesg | grep Xid");
    };
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("NVRM: Xid")).collect();
    match lines.last() {
        None => Check::new("faults", Verdict::Ok, "no fault (Xid) of a card in the kernel's log"),
        Some(last) => Check::new("faults", Verdict::Warning, format!("{} faults, the last: {}", lines.len(), last.trim()))
            .fix("look the number up in NVIDIA's list of Xid errors; 13, 31 and 43 are a program's, 48, 79 and 95 the card's"),
    }
}

/// Libraries that ONNX models need on a GPU. The executable itself would not have started without its own.
fn libraries(cache: &str) -> Check {
    match cache.contains("libcudnn.so.9") {
        true => Check::new("cudnn", Verdict::Ok, "libcudnn.so.9 is there, which ONNX Runtime needs on a GPU"),
        false => Check::new("cudnn", Verdict::Note, "libcudnn.so.9 is not there: ONNX models do not run on the GPU")
            .fix("install cuDNN 9 for CUDA 13; models of safetensors do not need it"),
    }
}

fn is_container() -> bool {
    std::path::Path::new("/.dockerenv").exists() || std::path::Path::new("/run/.containerenv").exists()
}

/// What NVIDIA's container toolkit was told to bring in.
fn container(inside: bool, visible: Option<String>, capabilities: Option<String>) -> Option<Check> {
    if !inside {
        return None;
    }
    let Some(visible) = visible.filter(|visible| !matches!(visible.as_str(), "" | "void" | "none")) else {
        return Some(Check::new("container", Verdict::Note, "this container was given no GPU").fix(
            "with one in the machine: install NVIDIA's container toolkit, and start the container with --gpus all",
        ));
    };
    let capabilities = capabilities.unwrap_or_default();
    let has = |name: &str| capabilities.split(',').any(|part| part == name || part == "all");
    let proof = format!("NVIDIA_VISIBLE_DEVICES={visible}, NVIDIA_DRIVER_CAPABILITIES={capabilities}");
    Some(match has("compute") && has("utility") {
        true => Check::new("container", Verdict::Ok, proof),
        false => Check::new("container", Verdict::Failed, proof)
            .fix("set NVIDIA_DRIVER_CAPABILITIES=compute,utility: CUDA is of the first, NVML of the second"),
    })
}

/// Whether what is there is used.
fn use_of(has_gpu: bool, uses_gpu: bool) -> Check {
    match (has_gpu, uses_gpu) {
        (true, true) => Check::new("gpu", Verdict::Ok, "this build runs models on GPUs"),
        (true, false) => Check::new("gpu", Verdict::Failed, "a GPU is there, and this build runs models on the CPU only")
            .fix("use the CUDA build (`docker run --gpus all …`, `cargo xtask cuda`, or `cargo build --release --features cuda`)"),
        (false, true) => Check::new("gpu", Verdict::Failed, "this build is for GPUs, and none answers")
            .fix("see the lines above; with --device cpu it runs on the CPU all the same"),
        (false, false) => Check::new("gpu", Verdict::Note, "no GPU; models run on the CPU"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and verdicts of the lines that are not in order.
    fn complaints(gpu: nvidia::Gpu) -> Vec<(&'static str, Verdict)> {
        let checks = card(&gpu);
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok || check.fix.is_some()), "{checks:?}");
        assert!(checks.iter().all(|check| check.proof.starts_with("GPU 0: ")), "{checks:?}");
        checks.iter().filter(|check| check.verdict != Verdict::Ok).map(|check| (check.name, check.verdict)).collect()
    }

    fn healthy() -> nvidia::Gpu {
        nvidia::Gpu {
            ecc_enabled: Some(true),
            power_limit_watts: Some(450.0),
            power_limit_default_watts: Some(450.0),
            pcie_width_max: Some(16),
            load: nvidia::Load {
                pcie_width: Some(16),
                ecc_uncorrected_errors: Some(0),
                throttled_by: vec!["power_cap".into()],
                ..nvidia::Load::default()
            },
            ..nvidia::Gpu::default()
        }
    }

    #[test]
    fn a_healthy_card_has_nothing_to_mend() {
        assert_eq!(complaints(healthy()), []);
        assert_eq!(complaints(nvidia::Gpu::default()), [], "what a card does not tell is no fault");
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_card_has_its_line() {
        let with = |change: fn(&mut nvidia::Gpu)| {
            let mut gpu = healthy();
            change(&mut gpu);
            complaints(gpu)
        };
        assert_eq!(with(|gpu| gpu.load.ecc_uncorrected_errors = Some(2)), [("memory errors", Verdict::Failed)]);
        assert_eq!(with(|gpu| gpu.ecc_enabled = Some(false)), [("memory errors", Verdict::Note)]);
        assert_eq!(with(|gpu| gpu.power_limit_watts = Some(300.0)), [("power", Verdict::Note)]);
        assert_eq!(with(|gpu| gpu.load.pcie_width = Some(4)), [("pcie", Verdict::Warning)]);
        assert_eq!(with(|gpu| gpu.load.throttled_by.push("temperature".into())), [("clocks", Verdict::Warning)]);
        assert_eq!(with(|gpu| gpu.mig_enabled = Some(true)), [("mig", Verdict::Failed)]);
        let instance = |gpu: &mut nvidia::Gpu| {
            gpu.mig_enabled = Some(true);
            gpu.mig_instances = vec![nvidia::MigInstance { uuid: Some("MIG-1".into()), ..Default::default() }];
        };
        assert_eq!(with(instance), [("mig", Verdict::Note)]);
    }

    #[test]
    fn the_driver_must_run_our_cuda() {
        let verdict = |cuda: Option<&str>| {
            let driver = nvidia::Driver { cuda_version: cuda.map(str::to_owned), ..nvidia::Driver::default() };
            let nvidia = nvidia::Nvidia { driver: Some(driver), gpus: vec![] };
            driver_of(&Profile { nvidia, ..Profile::default() })
        };
        assert_eq!(verdict(Some("13.0")), Verdict::Ok);
        assert_eq!(verdict(Some("12.9")), Verdict::Failed);
        assert_eq!(verdict(None), Verdict::Note);
    }

    fn driver_of(profile: &Profile) -> Verdict {
        driver(profile).unwrap().verdict
    }

    #[test]
    fn the_kernels_log_tells_of_faults() {
        assert_eq!(faults(None).verdict, Verdict::Note);
        assert_eq!(faults(Some("[1.0] usb 1-1: new device")).verdict, Verdict::Ok);
        let check =
            faults(Some("[1.0] NVRM: Xid (PCI:0000:01:00): 31, pid=1\n[2.0] NVRM: Xid (PCI:0000:01:00): 79, x\n"));
        assert_eq!(check.verdict, Verdict::Warning);
        assert!(check.proof.contains("2 faults") && check.proof.contains("79, x"), "{}", check.proof);
    }

    #[test]
    fn a_container_without_the_right_capabilities_is_told_which_it_needs() {
        let check = |visible: Option<&str>, capabilities: Option<&str>| {
            container(true, visible.map(str::to_owned), capabilities.map(str::to_owned)).unwrap().verdict
        };
        assert!(container(false, None, None).is_none());
        assert_eq!(check(None, None), Verdict::Note);
        assert_eq!(check(Some("void"), Some("all")), Verdict::Note);
        assert_eq!(check(Some("all"), Some("compute,utility")), Verdict::Ok);
        assert_eq!(check(Some("0"), Some("all")), Verdict::Ok);
        assert_eq!(check(Some("all"), Some("utility")), Verdict::Failed);
        assert_eq!(check(Some("all"), None), Verdict::Failed);
    }

    #[test]
    fn a_gpu_and_a_build_that_do_not_belong_together_are_said_aloud() {
        assert_eq!(use_of(true, true).verdict, Verdict::Ok);
        assert_eq!(use_of(true, false).verdict, Verdict::Failed);
        assert_eq!(use_of(false, true).verdict, Verdict::Failed);
        assert_eq!(use_of(false, false).verdict, Verdict::Note);
        assert!(use_of(true, false).fix.unwrap().contains("CUDA build"));
    }

    #[test]
    fn cudnn_is_looked_for_in_the_linkers_list() {
        assert_eq!(libraries("\tlibcudnn.so.9 (libc6,x86-64) => /usr/lib/libcudnn.so.9").verdict, Verdict::Ok);
        assert_eq!(libraries("\tlibcudnn.so.8 (libc6,x86-64) => /usr/lib/libcudnn.so.8").verdict, Verdict::Note);
    }
}
