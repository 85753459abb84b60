//! `neurogrid doctor`: every check with its proof and the line that mends it.

mod gpu;

use crate::args::{Access, Doctor, Global, Serving};
use crate::output;
use coordinator_client::wire::TaskInput;
use serde::Serialize;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use worker::hardware::{self, Profile};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Note,
    Warning,
    Failed,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was seen.
    proof: String,
    /// What mends it.
    fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, proof: impl Into<String>) -> Self {
        Self { name, verdict, proof: proof.into(), fix: None }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// Below this much free disk a model of usual size does not fit.
const DISK_FREE_BYTES_MIN: u64 = 5_000_000_000;
/// Below this much memory a small encoder beside the system is all that fits.
const MEMORY_BYTES_MIN: u64 = 2_000_000_000;
/// Session tokens and challenges live for minutes; a clock that is further off breaks logging in.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);

/// Runs it.
pub(crate) async fn run(global: &Global, options: Doctor) -> anyhow::Result<ExitCode> {
    let bar = super::serving::spinner(global.json, "looking at this machine");
    let hardware = hardware::Options { measure: false, ..super::serving::hardware_options(&options.serving) };
    let profile = hardware::profile(hardware).await;
    let mut checks = vec![port(options.bind), memory(&profile), disk(&profile), ops(&profile)];
    checks.extend(gpu::checks(&profile));
    checks.push(onnx(&options.serving).await?);
    checks.push(inference(&options.serving, &profile).await);
    for url in &options.coordinator {
        checks.extend(coordinator(url).await);
    }
    bar.finish_and_clear();
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    output::print(global.json, &checks, |checks| text(checks))?;
    Ok(if worst == Verdict::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, verdict, proof, fix } in checks {
        let sign = match verdict {
            Verdict::Ok => "ok     ",
            Verdict::Note => "note   ",
            Verdict::Warning => "WARNING",
            Verdict::Failed => "FAILED ",
        };
        text.push_str(&format!("{sign} {name}: {proof}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("        -> {fix}\n"));
        }
    }
    text
}

fn port(address: SocketAddr) -> Check {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Check::new("port", Verdict::Ok, format!("{address} can be bound")),
        Err(error) => Check::new("port", Verdict::Warning, format!("{address} cannot be bound: {error}"))
            .fix("stop what uses it (a worker that already runs, perhaps), or give another --bind"),
    }
}

fn memory(profile: &Profile) -> Check {
    let memory = &profile.memory;
    let proof = format!("{} of {} available", output::bytes(memory.available_bytes), output::bytes(memory.total_bytes));
    if memory.available_bytes >= MEMORY_BYTES_MIN {
        return Check::new("memory", Verdict::Ok, proof);
    }
    Check::new("memory", Verdict::Warning, proof).fix("end other programs, or raise the container's memory limit")
}

fn disk(profile: &Profile) -> Check {
    let Some(disk) = &profile.disk else {
        return Check::new("disk", Verdict::Warning, "free space is not known");
    };
    let proof = format!("{} free at {}", output::bytes(disk.free_bytes), disk.path);
    if disk.free_bytes >= DISK_FREE_BYTES_MIN {
        return Check::new("disk", Verdict::Ok, proof);
    }
    Check::new("disk", Verdict::Warning, proof).fix("free some space, or put models elsewhere with --cache-dir")
}

/// Which instructions encoders run on. Plain code is many times slower.
fn ops(profile: &Profile) -> Check {
    let sets: Vec<String> = profile.cpu.ops.iter().map(|(set, ops)| format!("{} on {set}", ops.join(", "))).collect();
    let proof = sets.join("; ");
    match profile.cpu.ops.contains_key("scalar") {
        false => Check::new("ops", Verdict::Ok, proof),
        true => Check::new("ops", Verdict::Warning, proof)
            .fix("encoders need AVX2 and FMA, or NEON, to be fast; a virtual machine may be hiding them (pass the host's CPU through)"),
    }
}

async fn onnx(serving: &Serving) -> anyhow::Result<Check> {
    let library = serving.onnx_library.clone();
    // Loading a library reads tens of megabytes.
    let runtime = tokio::task::spawn_blocking(move || models::backend::onnx::runtime(library.as_deref())).await?;
    Ok(match runtime.kind {
        models::backend::onnx::Kind::OnnxRuntime => Check::new("onnx", Verdict::Ok, runtime.describe()),
        models::backend::onnx::Kind::Tract => {
            let why = runtime.why_not.as_deref().unwrap_or("no library was found");
            Check::new("onnx", Verdict::Note, format!("{}; {why}", runtime.describe())).fix(
                "ONNX models run about twice as fast with ONNX Runtime: `pip install onnxruntime`, or --onnx-library FILE",
            )
        }
    })
}

/// The proof of the pudding: the bundled model answers.
async fn inference(serving: &Serving, profile: &Profile) -> Check {
    let access = Access { api_key: None, insecure: false };
    let mut options = super::serving::options(([127, 0, 0, 1], 0).into(), &access, serving);
    options.devices.devices = match super::serving::devices(serving, profile) {
        Ok(devices) => devices,
        // Another backend would find no device either.
        Err(error) => return Check::new("inference", Verdict::Failed, format!("{error:#}")),
    };
    let answer = async {
        let worker = worker::build(options)?;
        let input: TaskInput = serde_json::from_value(super::up::example_input())?;
        let task = worker::NewTask::new(super::up::EXAMPLE_MODEL, worker::convert::request_of(input)?);
        let done = worker.handle().execute(task).await?;
        anyhow::Ok((done.execution_class, worker::convert::output_of(done.reply)))
    };
    let started = Instant::now();
    match answer.await {
        Ok((class, output)) if super::up::best_label(&output) == Some(super::up::EXAMPLE_LABEL) => {
            let took = started.elapsed().as_millis();
            Check::new("inference", Verdict::Ok, format!("a digit was read right by {class}, {took} ms from nothing"))
        }
        Ok((class, output)) => {
            Check::new("inference", Verdict::Failed, format!("{class} read a digit wrong: {output:?}"))
                .fix("check the memory of this machine, and try --backend candle")
        }
        Err(error) => Check::new("inference", Verdict::Failed, format!("{error:#}")).fix("try --backend candle"),
    }
}

async fn coordinator(url: &str) -> Vec<Check> {
    let address = format!("{}/api/health", url.trim_end_matches('/'));
    let started = Instant::now();
    let response = async { anyhow::Ok(crate::http::client()?.get(&address).send().await?) };
    let response = match response.await {
        Ok(response) => response,
        Err(error) => {
            let check = Check::new("coordinator", Verdict::Failed, format!("{address}: {error:#}"));
            return vec![
                check.fix("check the address, and that it runs; workers only dial out, no port of yours is needed"),
            ];
        }
    };
    let took = started.elapsed().as_millis();
    let status = response.status();
    let verdict = if status.is_success() { Verdict::Ok } else { Verdict::Failed };
    let mut checks = vec![Check::new("coordinator", verdict, format!("{address} answered {status} in {took} ms"))];
    if let Some(skew) = response.headers().get("date").and_then(|date| clock_skew(date.to_str().ok()?)) {
        let proof = format!("{:.0} s off the coordinator's", skew.as_secs_f64());
        checks.push(match skew <= CLOCK_SKEW_MAX {
            true => Check::new("clock", Verdict::Ok, proof),
            false => Check::new("clock", Verdict::Failed, proof).fix("set the clock, e.g. `timedatectl set-ntp true`"),
        });
    }
    checks
}

/// How far this machine's clock is from an HTTP date, either way. HTTP dates have whole seconds.
fn clock_skew(date: &str) -> Option<Duration> {
    let theirs = httpdate::parse_http_date(date).ok()?;
    let ours = SystemTime::now();
    Some(ours.duration_since(theirs).unwrap_or_else(|error| error.duration()))
}
