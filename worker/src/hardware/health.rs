//! The health score: in go figures of this moment, out come 0 to 100 points, what cost how many of them, and what to do about
//! it. It measures nothing and knows no clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Disk, Memory, Severity, live, nvidia};

/// What the score is made of. What is absent costs nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inputs {
    /// Main memory.
    pub memory: Option<Memory>,
    /// The disk of the models.
    pub disk: Option<Disk>,
    /// The cards' load.
    pub gpus: Vec<nvidia::GpuSample>,
    /// GPUs that are there and cannot be used.
    pub gpus_unusable: usize,
    /// Requests that failed by this worker's fault, and all requests, in the recent past.
    pub requests_failed: u64,
    /// All requests in the recent past.
    pub requests: u64,
    /// Round trip to the coordinator.
    pub link_latency: Option<Duration>,
    /// Whether a coordinator is wanted and not reached.
    pub link_down: bool,
    /// How far this machine's clock is off the coordinator's, either way.
    pub clock_skew: Option<Duration>,
    /// The newest CUDA of the installed driver, such as `12.4`.
    pub driver_cuda_version: Option<String>,
}

impl Inputs {
    /// The part that a live sample knows; the rest is for the caller to add.
    pub fn of(sample: &live::Sample) -> Self {
        let unusable = sample.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        Self {
            memory: Some(sample.memory.clone()),
            disk: sample.disk.clone(),
            gpus: sample.gpus.clone(),
            gpus_unusable: unusable,
            ..Self::default()
        }
    }
}

/// How well the machine does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Health)]
pub struct Health {
    /// 100 is nothing to complain of, 0 is not usable.
    pub score: u8,
    /// What cost points, the most expensive first.
    pub reasons: Vec<Reason>,
}

/// Something that cost points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::HealthReason)]
pub struct Reason {
    /// Stable name, such as `disk`.
    pub code: String,
    /// Points that it cost.
    pub points: u8,
    /// What is wrong, with its values.
    pub message: String,
    /// What to do.
    pub recommendation: String,
}

/// CUDA versions below this cannot run our kernels: they are compiled for CUDA 13.
pub const CUDA_VERSION_MIN: (u32, u32) = (13, 0);

/// Most cards slow themselves down somewhere from 83 to 93 °C: from here on they are warm …
const WARM_CELSIUS: f64 = 80.0;
/// … and here they are hot.
const HOT_CELSIUS: f64 = 90.0;

/// The score and its reasons.
pub fn assess(inputs: &Inputs) -> Health {
    let mut reasons = Vec::new();
    let mut cost = |code: &str, points: u8, message: String, recommendation: &str| {
        if points > 0 {
            let recommendation = recommendation.to_owned();
            reasons.push(Reason { code: code.to_owned(), points, message, recommendation });
        }
    };

    if let Some(memory) = inputs.memory.as_ref().filter(|memory| memory.total_bytes > 0) {
        let free = share(memory.available_bytes, memory.total_bytes);
        // Below a tenth the kernel begins to evict what is needed; below a fiftieth it kills.
        let message = format!("{:.0} % of main memory ({} MiB) are left", free * 100.0, memory.available_bytes >> 20);
        cost("memory", falling(free, 0.10, 0.02, 30), message, "unload a model or stop other programs");
    }
    if let Some(disk) = inputs.disk.as_ref().filter(|disk| disk.total_bytes > 0) {
        // A full disk stops downloads and the spool of results, however large it is: a share alone would not say it.
        let free = share(disk.free_bytes, disk.total_bytes);
        let points = falling(free, 0.10, 0.01, 20)
            .min(falling(disk.free_bytes as f64 / 1e9, 50.0, 5.0, 20))
            .max(falling(disk.free_bytes as f64 / 1e9, 5.0, 0.5, 30));
        let message = format!("{:.1} GB are free at {}", disk.free_bytes as f64 / 1e9, disk.path);
        cost("disk", points, message, "remove models that are not used (neurogrid models rm) or lower the cache quota");
    }
    for gpu in &inputs.gpus {
        let named = format!("GPU {}", gpu.index);
        if let Some(celsius) = gpu.load.temperature_celsius {
            let points = rising(f64::from(celsius), WARM_CELSIUS, HOT_CELSIUS, 20);
            cost("temperature", points, format!("{named} is at {celsius} °C"), "clean its fans, or set a power cap");
        }
        let slowed = gpu.load.throttled_by.iter().any(|reason| reason != "power_cap");
        if slowed {
            let message = format!("{named} slows itself down: {}", gpu.load.throttled_by.join(", "));
            cost("throttled", 10, message, "check its cooling and its power supply");
        }
        if let Some(errors) = gpu.load.ecc_uncorrected_errors.filter(|&errors| errors > 0) {
            let message = format!("{named} had {errors} memory errors that were not corrected");
            cost("memory_errors", 50, message, "restart the machine; if they come back, replace the card");
        }
        if gpu.xid_faults > 0 {
            let last = gpu.xid_last.map(|xid| format!(", the last was Xid {xid}")).unwrap_or_default();
            let message = format!("{named}'s driver reported {} faults{last}", gpu.xid_faults);
            cost("faults", 30, message, "look the number up in NVIDIA's list of Xid errors; update the driver");
        }
    }
    if inputs.gpus_unusable > 0 {
        let message = format!("{} parts of the GPU's driver do not work", inputs.gpus_unusable);
        cost("gpu_unusable", 40, message, "see the findings of neurogrid profile");
    }
    // Two failures in a hundred are noticed, one in four makes a worker useless. Under 20 requests a share says nothing.
    if inputs.requests >= 20 {
        let failed = share(inputs.requests_failed, inputs.requests);
        let message = format!("{} of the last {} requests failed here", inputs.requests_failed, inputs.requests);
        cost("error_rate", rising(failed, 0.02, 0.25, 60), message, "see the log for the first error of each kind");
    }
    if inputs.link_down {
        let message = "no coordinator is reached".to_owned();
        cost("link_down", 40, message, "check the network and the coordinator's address");
    } else if let Some(latency) = inputs.link_latency {
        let message = format!("a message to the coordinator and back takes {} ms", latency.as_millis());
        let points = rising(latency.as_secs_f64(), 0.25, 2.0, 20);
        cost("link_latency", points, message, "use a nearer coordinator or a better line");
    }
    if let Some(skew) = inputs.clock_skew {
        // Tokens are refused at 30 s; deadlines go wrong long before.
        let message = format!("the clock is {:.1} s off the coordinator's", skew.as_secs_f64());
        cost("clock_skew", rising(skew.as_secs_f64(), 1.0, 30.0, 40), message, "turn on time synchronisation (NTP)");
    }
    let stale = inputs.driver_cuda_version.as_deref().and_then(version).filter(|&cuda| cuda < CUDA_VERSION_MIN);
    if let Some((major, minor)) = stale {
        let message = format!("the NVIDIA driver runs CUDA up to {major}.{minor}");
        cost("stale_driver", 20, message, "update the NVIDIA driver to one for CUDA 13.0 (580) or newer");
    }

    let lost: u32 = reasons.iter().map(|reason| u32::from(reason.points)).sum();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.points));
    Health { score: u8::try_from(100_u32.saturating_sub(lost)).expect("it is 100 at most"), reasons }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// Nothing up to `good`, everything from `bad` on, a straight line between.
fn rising(value: f64, good: f64, bad: f64, points_max: u8) -> u8 {
    (((value - good) / (bad - good)).clamp(0.0, 1.0) * f64::from(points_max)).round() as u8
}

/// The same for figures of which less is worse.
fn falling(value: f64, good: f64, bad: f64, points_max: u8) -> u8 {
    rising(-value, -good, -bad, points_max)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn check(inputs: Inputs, score: u8, codes: &[&str]) {
        let health = assess(&inputs);
        let found: Vec<&str> = health.reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!((health.score, found.as_slice()), (score, codes), "{health:?}");
        assert!(health.reasons.iter().all(|reason| !reason.recommendation.is_empty() && !reason.message.is_empty()));
    }

    fn memory(available_percent: u64) -> Inputs {
        let memory = Memory { total_bytes: 100 * GB, available_bytes: available_percent * GB, ..Memory::default() };
        Inputs { memory: Some(memory), ..Inputs::default() }
    }

    fn disk(total_gb: u64, free_gb: u64) -> Inputs {
        let disk = Disk { path: "/models".to_owned(), total_bytes: total_gb * GB, free_bytes: free_gb * GB };
        Inputs { disk: Some(disk), ..Inputs::default() }
    }

    fn gpu(load: nvidia::Load) -> Inputs {
        Inputs { gpus: vec![nvidia::GpuSample { load, ..nvidia::GpuSample::default() }], ..Inputs::default() }
    }

    #[test]
    fn a_machine_with_nothing_to_complain_of_has_100_points() {
        check(Inputs::default(), 100, &[]);
        check(memory(50), 100, &[]);
        check(disk(1000, 500), 100, &[]);
    }

    #[test]
    fn little_memory_costs_up_to_30_points() {
        check(memory(10), 100, &[]);
        check(memory(6), 85, &["memory"]);
        check(memory(2), 70, &["memory"]);
        check(memory(0), 70, &["memory"]);
    }

    #[test]
    fn a_large_disk_may_be_full_by_share_and_a_small_one_may_not_by_size() {
        check(disk(10_000, 400), 100, &[]);
        check(disk(1000, 20), 87, &["disk"]);
        check(disk(100, 1), 73, &["disk"]);
        check(disk(100, 0), 70, &["disk"]);
    }

    #[test]
    fn heat_and_faults_of_a_card_cost_points() {
        let at = |celsius| gpu(nvidia::Load { temperature_celsius: Some(celsius), ..nvidia::Load::default() });
        check(at(60), 100, &[]);
        check(at(85), 90, &["temperature"]);
        check(at(95), 80, &["temperature"]);
        let throttled = |by: &str| gpu(nvidia::Load { throttled_by: vec![by.to_owned()], ..nvidia::Load::default() });
        check(throttled("power_cap"), 100, &[]);
        check(throttled("temperature"), 90, &["throttled"]);
        let ecc = |errors| gpu(nvidia::Load { ecc_uncorrected_errors: Some(errors), ..nvidia::Load::default() });
        check(ecc(0), 100, &[]);
        check(ecc(1), 50, &["memory_errors"]);
        let faulty = nvidia::GpuSample { xid_faults: 2, xid_last: Some(79), ..nvidia::GpuSample::default() };
        check(Inputs { gpus: vec![faulty], ..Inputs::default() }, 70, &["faults"]);
        check(Inputs { gpus_unusable: 1, ..Inputs::default() }, 60, &["gpu_unusable"]);
    }

    #[test]
    fn the_error_rate_counts_once_there_are_enough_requests() {
        let failed = |requests_failed, requests| Inputs { requests_failed, requests, ..Inputs::default() };
        check(failed(5, 10), 100, &[]);
        check(failed(1, 100), 100, &[]);
        check(failed(25, 100), 40, &["error_rate"]);
        check(failed(100, 100), 40, &["error_rate"]);
    }

    #[test]
    fn a_far_or_lost_coordinator_and_a_wrong_clock_cost_points() {
        let latency = |ms| Inputs { link_latency: Some(Duration::from_millis(ms)), ..Inputs::default() };
        check(latency(100), 100, &[]);
        check(latency(2000), 80, &["link_latency"]);
        check(Inputs { link_down: true, ..latency(2000) }, 60, &["link_down"]);
        let skew = |seconds| Inputs { clock_skew: Some(Duration::from_secs(seconds)), ..Inputs::default() };
        check(skew(1), 100, &[]);
        check(skew(60), 60, &["clock_skew"]);
    }

    #[test]
    fn a_stale_driver_costs_points_and_an_unreadable_version_none() {
        let driver = |version: &str| Inputs { driver_cuda_version: Some(version.to_owned()), ..Inputs::default() };
        check(driver("13.0"), 100, &[]);
        check(driver("13.1"), 100, &[]);
        check(driver("12.8"), 80, &["stale_driver"]);
        check(driver("new"), 100, &[]);
    }

    #[test]
    fn the_dearest_reason_comes_first_and_the_score_stops_at_zero() {
        let all = Inputs {
            requests_failed: 50,
            requests: 50,
            gpus_unusable: 1,
            driver_cuda_version: Some("11.0".to_owned()),
            ..memory(6)
        };
        check(all, 0, &["error_rate", "gpu_unusable", "stale_driver", "memory"]);
    }
}
