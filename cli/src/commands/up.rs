//! `neurogrid up`: a whole grid in one process, and a line to try it with.

use crate::args::{Access, Global, Up};
use crate::{output, shutdown};
use ::worker::{hardware, link};
use anyhow::Context;
use coordinator_client::wire::TaskOutput;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The bundled model that turns text into vectors.
const TEXT_MODEL: &str = "minilm-tiny";

/// The bundled model that writes text, and what it is asked.
const CHAT_MODEL: &str = "debian-tiny-chat";
const QUESTION: &str = "What is git?";

/// The bundled model that the example asks.
pub(crate) const EXAMPLE_MODEL: &str = "digits";

/// What it should answer.
pub(crate) const EXAMPLE_LABEL: &str = "2";

/// A handwritten digit that the model was not trained on: 8 × 8 pixels, 0 to 16.
#[rustfmt::skip]
const EXAMPLE_PIXELS: [u8; 64] = [
    0,  0, 11, 16, 11,  0,  0,  0,
    0,  3, 16, 11, 15,  6,  0,  0,
    0,  1, 10,  3, 10, 10,  0,  0,
    0,  0,  0,  0,  9, 10,  0,  0,
    0,  0,  0,  0, 12,  9,  0,  0,
    0,  0,  0,  5, 16,  5,  0,  0,
    0,  1, 13, 16, 16, 13,  8,  0,
    0,  0, 11, 11,  8, 13, 16,  7,
];

/// How long a start may take before it is given up.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The example as a task's kind and input.
pub(crate) fn example_input() -> serde_json::Value {
    let pixels = EXAMPLE_PIXELS.as_slice();
    serde_json::json!({
        "kind": "classify",
        "input": {
            "tensors": [{ "name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": pixels }],
            "top_n": 3,
        },
    })
}

/// The best label of the first input.
pub(crate) fn best_label(output: &TaskOutput) -> Option<&str> {
    match output {
        TaskOutput::Classify { results } => Some(results.first()?.first()?.label.as_str()),
        _ => None,
    }
}

/// Runs it.
pub(crate) async fn run(global: &Global, options: Up) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let data = super::places::data(options.data_dir.clone());
    let looking = super::serving::quick_profile(&options.serving);
    let profile = hardware::profile(super::serving::with_capabilities(looking, &data)).await;
    super::serving::warn_of_idle_gpu(&profile);
    let devices = super::serving::devices(&options.serving, &profile)?;
    let coordinator = ::coordinator::build(coordinator_options(&options, data.join("coordinator"))).await?;
    let coordinator_address = coordinator.local_addr();
    let coordinator_url = format!("http://{coordinator_address}");

    let mut worker_options = super::serving::options(options.worker_bind, &options.access, &options.serving);
    worker_options.devices.devices = devices;
    worker_options.hardware = worker_options.hardware.map(|looking| super::serving::with_capabilities(looking, &data));
    let examples = examples(worker_options.compute.backend);
    for model in &examples {
        if !worker_options.devices.preload.iter().any(|other| other == model) {
            worker_options.devices.preload.push((*model).into());
        }
    }
    let worker = ::worker::build(worker_options)?;
    let worker_url = format!("http://{}", worker.address());
    let handle = worker.handle();

    let signal = shutdown::on_signal()?;
    let stop_coordinator = CancellationToken::new();
    let mut coordinating = tokio::spawn(coordinator.run_until(stop_coordinator.clone().cancelled_owned()));
    let links = super::worker::Linking {
        addresses: vec![coordinator_url.clone()],
        name: "up".into(),
        region: String::new(),
        enrolment_token: None,
        data,
    };
    let machine = link::Sampled::start(profile, super::serving::hardware_options(&options.serving));
    let serving = super::worker::serve(worker, links, machine, signal.clone())?;
    let ready = super::worker::until_ready(&handle, &serving.links, READY_WITHIN);
    tokio::select! {
        biased;
        () = signal.cancelled() => {}
        ready = ready => {
            ready?;
            let ready = Ready::new(coordinator_url, worker_url, &handle, &options.access, &examples, started.elapsed());
            output::announce(global.json, &ready, Ready::text)?;
        }
        ended = &mut coordinating => {
            signal.cancel();
            ended.context("the coordinator crashed")??;
        }
    }
    // The worker first: its results still have somewhere to go.
    let served = serving.ended().await;
    stop_coordinator.cancel();
    coordinating.await.context("the coordinator crashed")??;
    served?;
    Ok(ExitCode::SUCCESS)
}

/// The bundled models that the backend which was asked for can run: an ONNX engine has no graph of the encoder, for instance.
fn examples(backend: models::load::Backend) -> Vec<&'static str> {
    let options = models::Options { backend, ..models::Options::default() };
    let can_run = |model: &&models::bundled::Bundled| models::load::check_backend(&model.manifest(), &options).is_ok();
    models::bundled::all().iter().filter(can_run).map(|model| model.name).collect()
}

fn coordinator_options(options: &Up, folder: std::path::PathBuf) -> ::coordinator::Options {
    let mut coordinator = ::coordinator::Options::default();
    coordinator.http.address = options.bind;
    coordinator.http.api_key.clone_from(&options.access.api_key);
    coordinator.http.insecure = options.access.insecure;
    coordinator.store.folder = folder;
    coordinator
}

/// What is said when everything answers.
#[derive(serde::Serialize)]
struct Ready {
    event: &'static str,
    coordinator: String,
    worker: String,
    models: Vec<String>,
    ready_in_ms: u128,
    /// Reads a digit.
    try_it: Option<String>,
    /// Embeds two texts.
    embed: Option<String>,
    /// Asks a question.
    chat: Option<String>,
}

impl Ready {
    fn new(
        coordinator: String,
        worker: String,
        handle: &::worker::Handle,
        access: &Access,
        examples: &[&str],
        took: Duration,
    ) -> Self {
        let loaded = handle.status().loaded;
        let models = loaded.iter().map(|m| format!("{} on {} ({})", m.model, m.info.device, m.info.provider)).collect();
        let key = if access.api_key.is_some() { " -H \"Authorization: Bearer $NEUROGRID_API_KEY\"" } else { "" };
        let curl = |path: &str, more: &str, body: &serde_json::Value| {
            format!("curl -s {coordinator}{path}{key} -H 'Content-Type: application/json'{more} -d '{body}'")
        };
        let mut body = example_input();
        body["model"] = EXAMPLE_MODEL.into();
        let try_it = curl("/api/tasks", " -H 'Prefer: wait=30'", &body);
        let body =
            serde_json::json!({ "model": TEXT_MODEL, "input": ["Where do lions live?", "The habitat of big cats"] });
        let embed = curl("/v1/embeddings", "", &body);
        let messages = serde_json::json!([{ "role": "user", "content": QUESTION }]);
        let body = serde_json::json!({ "model": CHAT_MODEL, "messages": messages });
        let chat = curl("/v1/chat/completions", "", &body);
        Self {
            event: "ready",
            models,
            ready_in_ms: took.as_millis(),
            try_it: examples.contains(&EXAMPLE_MODEL).then_some(try_it),
            embed: examples.contains(&TEXT_MODEL).then_some(embed),
            chat: examples.contains(&CHAT_MODEL).then_some(chat),
            coordinator,
            worker,
        }
    }

    fn text(&self) -> String {
        let Self { coordinator, worker, models, ready_in_ms, .. } = self;
        let line = |line: &Option<String>, says: String| match line {
            Some(line) => format!("{says}\n\n{line}\n\n"),
            None => String::new(),
        };
        let read = format!("This asks the grid to read a handwritten digit (the answer should be {EXAMPLE_LABEL}):");
        format!(
            "NeuroGrid is ready ({ready_in_ms} ms).\n\n\
             coordinator  {coordinator}   tasks at /api/tasks, OpenAI's API at /v1, all routes at /docs\n\
             worker       {worker}   OpenAI's and KServe's APIs, all routes at /docs\n\
             models       {}\n\n\
             {}{}{}\
             Ctrl-C stops everything.",
            models.join(", "),
            line(&self.try_it, read),
            line(&self.embed, "This turns two texts into vectors:".into()),
            line(
                &self.chat,
                format!(
                    "This asks a question (`neurogrid run chat {CHAT_MODEL} --coordinator {coordinator}` asks more):"
                )
            ),
        )
    }
}
