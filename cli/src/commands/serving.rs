//! What `up`, `worker`, `doctor` and `run` have in common: flags become the worker's options.

use crate::args::{Access, Backend, Serving};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use worker::config;
use worker::device::choice;
use worker::hardware::{self, Minimums};

/// The devices that were asked for, as the machine's profile has them.
pub(crate) fn devices(serving: &Serving, profile: &hardware::Profile) -> anyhow::Result<Vec<config::DeviceOptions>> {
    Ok(choice::choose(&serving.device, profile)?)
}

/// The same where nothing else needs the profile: it is made only where it decides.
pub(crate) async fn find_devices(serving: &Serving) -> anyhow::Result<Vec<config::DeviceOptions>> {
    let decides = USES_GPU || serving.device != [choice::Asked::Auto];
    let profile = if decides { hardware::profile(quick_profile(serving)).await } else { hardware::Profile::default() };
    devices(serving, &profile)
}

/// The worker's options.
pub(crate) fn options(address: SocketAddr, access: &Access, serving: &Serving) -> worker::Options {
    let mut options = worker::Options {
        http: config::Http {
            address,
            api_key: access.api_key.clone(),
            insecure: access.insecure,
            ..config::Http::default()
        },
        ..worker::Options::default()
    };
    options.admission.task_timeout = serving.task_timeout;
    if let Some(count) = serving.max_concurrent_tasks {
        options.admission.tasks_max = count;
    }
    options.text.sequences_max = serving.max_sequences;
    options.text.cache_bytes = serving.kv_cache_gb.map(|gb| (gb * 1e9) as u64);
    options.devices.preload.clone_from(&serving.preload);
    options.cache = cache(serving);
    options.compute.threads = serving.threads;
    options.compute.backend = match serving.backend {
        Backend::Auto => models::load::Backend::Auto,
        Backend::Kernels => models::load::Backend::Kernels,
        Backend::Candle => models::load::Backend::Candle,
        Backend::Onnx => models::load::Backend::Onnx,
    };
    options.compute.onnx_library.clone_from(&serving.onnx_library);
    options.hardware = Some(hardware_options(serving));
    options
}

/// Where models are kept and come from.
pub(crate) fn cache(serving: &Serving) -> config::Cache {
    let mut cache = super::models::cache(&serving.store);
    cache.folders.clone_from(&serving.model_folder);
    cache.quantization = serving.quantization.map(Into::into);
    cache
}

/// How the machine is profiled.
pub(crate) fn hardware_options(serving: &Serving) -> hardware::Options {
    let folder = serving.store.cache_dir.clone().unwrap_or_else(|| config::Cache::default().folder);
    hardware::Options {
        nvml_library: serving.nvml_library.clone(),
        matmul: Some(matmul_seconds),
        ..hardware::Options::new(folder)
    }
}

/// Times products of the library that serves the models; NaN when it cannot multiply.
pub(crate) fn matmul_seconds(m: usize, n: usize, k: usize, iterations: usize) -> f64 {
    let Some(mut multiply) = models::backend::speed::matmul(m, n, k) else { return f64::NAN };
    let started = Instant::now();
    match (0..iterations).all(|_| multiply()) {
        true => started.elapsed().as_secs_f64(),
        false => f64::NAN,
    }
}

/// The same without the speed measurement, which would delay a start by a second.
pub(crate) fn quick_profile(serving: &Serving) -> hardware::Options {
    hardware::Options { measure: false, ..hardware_options(serving) }
}

/// The same with what `neurogrid profile` has measured of the devices, and kept in this data folder. Nothing is measured beside models that
/// are loaded.
pub(crate) fn with_capabilities(hardware: hardware::Options, data: &Path) -> hardware::Options {
    hardware::Options { capabilities: Some(hardware::capability::Options::kept(data)), ..hardware }
}

/// Refuses to start on a machine that is smaller than was asked for; all that is missing is said at once.
pub(crate) fn check_minimums(serving: &Serving, profile: &hardware::Profile) -> anyhow::Result<()> {
    let minimums = Minimums {
        min_cpu_cores: Some(serving.min_cpu_cores),
        min_memory_gb: Some(serving.min_memory_gb),
        min_storage_gb: Some(serving.min_storage_gb),
        gpu_required: serving.gpu_required,
    };
    let mut missing: Vec<String> =
        hardware::minimums::shortfalls(&minimums, profile).iter().map(ToString::to_string).collect();
    if serving.gpu_required && !USES_GPU {
        missing.push("a GPU is required, and this build cannot use one; use the CUDA or Metal build".into());
    }
    anyhow::ensure!(missing.is_empty(), "this machine is not enough:\n  {}", missing.join("\n  "));
    Ok(())
}

/// Whether this build can run models on a GPU.
pub(crate) const USES_GPU: bool = cfg!(any(feature = "cuda", feature = "metal"));

/// Says aloud what would otherwise pass unseen: a GPU that is there and is not used.
pub(crate) fn warn_of_idle_gpu(profile: &hardware::Profile) {
    for finding in &profile.findings {
        let remedy = finding.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        match finding.severity {
            hardware::Severity::Info => tracing::debug!(code = finding.code, "{}{remedy}", finding.message),
            hardware::Severity::Warning => tracing::info!(code = finding.code, "{}{remedy}", finding.message),
            hardware::Severity::Error => tracing::warn!(code = finding.code, "{}{remedy}", finding.message),
        }
    }
    if profile.has_gpu() && !USES_GPU {
        tracing::warn!("this machine has a GPU, and this build runs models on the CPU; use the CUDA or Metal build");
    }
}

/// A sign of life on the terminal while something takes seconds.
pub(crate) fn spinner(json: bool, what: &'static str) -> indicatif::ProgressBar {
    if json {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
