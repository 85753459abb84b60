//! What everything around the engine costs: requests at concurrency 1 to a worker, and to a coordinator with that worker
//! behind it, over loopback. The engine is the fake, which answers at once. Latencies as callers see them come out; they
//! contain the client's own work, which the health probe shows. Never here: a model.
//!
//! `cargo bench -p benches --bench overhead`; `OVERHEAD_ROUNDS` sets how often each request is sent.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::machine;
use models::backend::fake;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use worker::link::{Links, Machine};

/// How often each request is sent, when `OVERHEAD_ROUNDS` says nothing.
const ROUNDS: usize = 3_000;
/// Rounds before the first that counts.
const WARM_UP: usize = 200;
/// The model's name.
const MODEL: &str = "fake";

/// A machine of no interest: its profile is not what is measured.
struct Still;

impl Machine for Still {
    fn profile(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn temperature_c(&self) -> Option<f32> {
        None
    }

    fn utilisation(&self) -> f32 {
        0.0
    }

    fn health_score(&self) -> u8 {
        100
    }
}

/// One kind of request, and how long each took.
struct Case {
    name: &'static str,
    request: reqwest::Request,
    took: Vec<Duration>,
}

fn main() {
    // `cargo test --benches` and filters pass arguments; this bench is one table.
    let rounds = std::env::var("OVERHEAD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stop = CancellationToken::new();
    // A runtime each, as in processes of their own.
    let (coordinator_runtime, worker_runtime) = (runtime(), runtime());
    let coordinator = start_coordinator(&coordinator_runtime, folder.path(), &stop);
    let worker = start_worker(&worker_runtime, folder.path(), &coordinator, &stop);
    let client = Builder::new_current_thread().enable_all().build().expect("a runtime");
    client.block_on(measure(&worker, &coordinator, rounds));
    stop.cancel();
    worker_runtime.shutdown_timeout(Duration::from_secs(5));
    coordinator_runtime.shutdown_timeout(Duration::from_secs(5));
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// Starts a coordinator as `neurogrid coordinator` does, with its store on disk. Returns its address.
fn start_coordinator(runtime: &Runtime, folder: &Path, stop: &CancellationToken) -> String {
    let mut options = coordinator::Options::default();
    options.http.address = ([127, 0, 0, 1], 0).into();
    options.store.folder = folder.join("coordinator");
    let coordinator = runtime.block_on(coordinator::build(options)).expect("a coordinator");
    let address = format!("http://{}", coordinator.local_addr());
    runtime.spawn(coordinator.run_until(stop.clone().cancelled_owned()));
    address
}

/// Starts a worker for it as `neurogrid worker` does, and waits until both know each other. Returns its address.
fn start_worker(runtime: &Runtime, folder: &Path, coordinator: &str, stop: &CancellationToken) -> String {
    let _inside = runtime.enter();
    let mut options = worker::Options::default();
    options.cache.folder = folder.join("models");
    options.cache.bundled = false;
    options.http.address = ([127, 0, 0, 1], 0).into();
    options.compute.backend = models::load::Backend::Fake;
    let worker = worker::build(options).expect("a worker");
    let handle = worker.handle();
    handle.cache().add(fake::manifest(MODEL), folder.join("none")).expect("the only model");
    let address = format!("http://{}", worker.address());
    let options = worker::link::Options {
        coordinators: vec![coordinator.into()],
        name: "bench".into(),
        data_folder: folder.join("worker"),
        ..worker::link::Options::default()
    };
    let links = Links::new(options, handle, Arc::new(Still)).expect("a link");
    let connected = links.handle();
    runtime.spawn(worker.run(stop.clone()));
    runtime.spawn(links.run(stop.clone()));
    runtime.block_on(async { connected.connected().await });
    address
}

/// Sends every request in turn, round after round, so that whatever else the machine does touches all alike.
async fn measure(worker: &str, coordinator: &str, rounds: usize) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let embeddings = serde_json::json!({"model": MODEL, "input": "the quick brown fox jumps over the lazy dog"});
    let task = serde_json::json!({
        "kind": "embed", "model": MODEL, "input": {"inputs": ["the quick brown fox jumps over the lazy dog"]},
    });
    let get = |url: String| client.get(url).build().expect("a request");
    let post = |url: String, body: &serde_json::Value| client.post(url).header("Prefer", "wait=30").json(body);
    let post = |url: String, body: &serde_json::Value| post(url, body).build().expect("a request");
    let case = |name, request| Case { name, request, took: Vec::with_capacity(rounds) };
    let mut cases = [
        case("worker       GET  /health/live", get(format!("{worker}/health/live"))),
        case("worker       POST /v1/embeddings", post(format!("{worker}/v1/embeddings"), &embeddings)),
        case("worker       POST /api/tasks/execute", post(format!("{worker}/api/tasks/execute"), &task)),
        case("coordinator  GET  /api/health", get(format!("{coordinator}/api/health"))),
        case("coordinator  POST /v1/embeddings", post(format!("{coordinator}/v1/embeddings"), &embeddings)),
        case("coordinator  POST /api/tasks, waiting", post(format!("{coordinator}/api/tasks"), &task)),
    ];
    for round in 0..WARM_UP + rounds {
        for case in &mut cases {
            let took = answered(&client, &case.request).await;
            if round >= WARM_UP {
                case.took.push(took);
            }
        }
    }
    report(&mut cases, rounds);
}

/// Sends one request and reads the whole answer, which must be a success.
async fn answered(client: &reqwest::Client, request: &reqwest::Request) -> Duration {
    let request = request.try_clone().expect("its body is in memory");
    let start = Instant::now();
    let response = client.execute(request).await.expect("an answer");
    let status = response.status();
    let body = response.bytes().await.expect("a whole answer");
    let took = start.elapsed();
    assert!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
    took
}

#[expect(clippy::print_stdout, reason = "the table is what a bench is run for")]
fn report(cases: &mut [Case], rounds: usize) {
    println!("processor {}; {rounds} rounds, one request at a time; milliseconds", machine::processor());
    println!("{:<40} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99");
    let mut medians = Vec::new();
    for case in cases.iter_mut() {
        case.took.sort_unstable();
        let at = |share: f64| case.took[((case.took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("{:<40} {:>8.3} {:>8.3} {:>8.3}", case.name, at(0.5), at(0.9), at(0.99));
        medians.push(at(0.5));
    }
    println!("the grid adds {:.3} ms to /v1/embeddings (p50 less the worker's own)", medians[4] - medians[1]);
    println!("the grid adds {:.3} ms to a task (p50 less the worker's own)", medians[5] - medians[2]);
}
