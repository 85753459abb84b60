//! `neurogrid worker`: serves models, alone or for grids.

use crate::args::{Global, Worker};
use crate::{output, shutdown};
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use worker::{hardware, link};

/// How long work that a coordinator gave may still take when the worker is asked to end. Below the 30 s after which service
/// managers and Kubernetes kill.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

/// How often readiness is looked at while a worker starts.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whom a worker works for.
pub(crate) struct Linking {
    /// Coordinators, each a grid of its own.
    pub(crate) addresses: Vec<String>,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) enrolment_token: Option<String>,
    pub(crate) data: PathBuf,
}

/// A worker that serves.
pub(crate) struct Serving {
    pub(crate) links: link::Handle,
    serving: tokio::task::JoinHandle<Result<(), worker::StartError>>,
}

impl Serving {
    /// Waits until it has ended.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        let ended = self.serving.await.context("the worker crashed")?;
        Ok(ended?)
    }
}

/// Runs it.
pub(crate) async fn run(global: &Global, options: Worker) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal()?;
    let data = super::places::data(options.data_dir);
    let looking = super::serving::quick_profile(&options.serving);
    let profile = hardware::profile(super::serving::with_capabilities(looking, &data)).await;
    super::serving::check_minimums(&options.serving, &profile)?;
    super::serving::warn_of_idle_gpu(&profile);
    let mut worker_options = super::serving::options(options.bind, &options.access, &options.serving);
    worker_options.devices.devices = super::serving::devices(&options.serving, &profile)?;
    worker_options.hardware = worker_options.hardware.map(|looking| super::serving::with_capabilities(looking, &data));
    let worker = ::worker::build(worker_options)?;
    let url = format!("http://{}", worker.address());
    let linking = Linking {
        addresses: options.coordinator,
        name: options.name.unwrap_or_else(machine_name),
        region: options.region,
        enrolment_token: options.enrolment_token,
        data,
    };
    let for_whom = match linking.addresses.as_slice() {
        [] => "no coordinator: it serves its local API only".to_owned(),
        addresses => format!("for {}", addresses.join(", ")),
    };
    let machine = link::Sampled::start(profile, super::serving::hardware_options(&options.serving));
    let serving = serve(worker, linking, machine, stop)?;
    let node = serving.links.node().to_string();
    let ready = serde_json::json!({ "event": "ready", "worker": url, "node": node });
    output::announce(global.json, &ready, |_| {
        format!("worker is ready at {url} ({for_whom}); all routes at {url}/docs")
    })?;
    serving.ended().await?;
    Ok(ExitCode::SUCCESS)
}

/// Starts serving: the local API, and a link to each coordinator. When `stop` is cancelled, the links take no more work and
/// hand in what is done, then the worker ends.
pub(crate) fn serve(
    mut worker: worker::Worker,
    linking: Linking,
    machine: link::Sampled,
    stop: CancellationToken,
) -> anyhow::Result<Serving> {
    let Linking { addresses, name, region, enrolment_token, data } = linking;
    let is_linked = !addresses.is_empty();
    let options = link::Options {
        coordinators: addresses,
        name,
        region,
        enrolment_token,
        data_folder: data.join("worker"),
        slots_max: None,
    };
    let links = link::Links::new(options, worker.handle(), Arc::new(machine))?;
    let handle = links.handle();
    if is_linked {
        worker.show_links(handle.clone());
    }
    let (stop_links, stop_worker) = (CancellationToken::new(), CancellationToken::new());
    let linking = tokio::spawn(links.run(stop_links.clone()));
    let serving = tokio::spawn(worker.run(stop_worker.clone()));
    let draining = handle.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        if tokio::time::timeout(DRAIN_WITHIN, draining.drain()).await.is_err() {
            tracing::warn!("not everything was done in time; the rest is given back to the coordinator");
        }
        stop_links.cancel();
        drop(linking.await);
        stop_worker.cancel();
    });
    Ok(Serving { links: handle, serving })
}

/// Waits until the models that were asked for are loaded and every link is up.
pub(crate) async fn until_ready(handle: &worker::Handle, links: &link::Handle, within: Duration) -> anyhow::Result<()> {
    let ready = async {
        links.connected().await;
        while !handle.status().has_started {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(within, ready).await.with_context(|| {
        let errors: Vec<String> = links.status().into_iter().filter_map(|link| link.last_error).collect();
        format!("not ready after {} s: {}", within.as_secs(), errors.join("; "))
    })
}

fn machine_name() -> String {
    hardware::host_name().unwrap_or_else(|| "worker".into())
}
