//! A worker on a free port of loopback with a fake model for each task, and a gate before its engine that tests shut and open:
//! options go in, a running worker comes out.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ::models::backend::fake;
use ::models::engine::{self, Engine, Info, Item, Output};
use ::models::load::Backend;
use ::models::manifest::Task;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::hardware::{self, probe};
use worker::{Options, StartError};

use crate::api::Api;

/// The fake models' names and tasks.
const FAKES: [(&str, Task); 5] = [
    ("texts", Task::Embed),
    ("pairs", Task::Rerank),
    ("labels", Task::Classify),
    ("tensors", Task::Infer),
    ("writer", Task::Generate),
];

/// A running worker.
pub(crate) struct Bench {
    pub(crate) api: Api,
    pub(crate) worker: worker::Handle,
    pub(crate) gate: Gate,
    pub(crate) stop: CancellationToken,
    pub(crate) running: JoinHandle<Result<(), StartError>>,
    _folder: tempfile::TempDir,
}

/// A worker with the usual options.
pub(crate) fn start() -> Bench {
    start_with(|_| {})
}

/// A worker with other options.
pub(crate) fn start_with(set: impl FnOnce(&mut Options)) -> Bench {
    start_behind(Gate::default(), set)
}

/// A worker whose gate is there before it.
pub(crate) fn start_behind(gate: Gate, set: impl FnOnce(&mut Options)) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.compute.loader = Some(gate.loader());
    set(&mut options);
    let worker = worker::build(options).unwrap();
    let handle = worker.handle();
    for (name, task) in FAKES {
        handle.cache().add(fake::manifest_for(name, task), folder.path().to_owned()).unwrap();
    }
    let api = Api::new(worker.address());
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    Bench { api, worker: handle, gate, stop, running, _folder: folder }
}

/// Options of a worker that looks at no hardware and serves on a free port.
pub(crate) fn options(folder: &std::path::Path) -> Options {
    let mut options = Options::default();
    options.cache.folder = folder.join("models");
    options.http.address = ([127, 0, 0, 1], 0).into();
    options.compute.threads = 1;
    options.compute.backend = Backend::Fake;
    // The gate counts every run.
    options.batch.is_measured = false;
    // A child that ends without a word: the drivers of this machine have no part in these tests.
    let child = probe::Command {
        program: std::env::current_exe().unwrap(),
        args: vec!["--exact".into(), "no such test".into()],
        environment: vec![],
    };
    let looks = hardware::Options { probe: Some(child), measure: false, ..hardware::Options::new(folder) };
    options.hardware = Some(looks);
    options
}

impl Bench {
    /// Waits until this holds.
    pub(crate) async fn until(&self, holds: impl Fn(&worker::Status) -> bool) {
        while !holds(&self.worker.status()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until so many items wait for the device.
    pub(crate) async fn waiting(&self, items: usize) {
        self.until(|status| status.devices[0].waiting_items == items).await;
    }

    /// Waits until so many tasks are inside.
    pub(crate) async fn inside(&self, tasks: usize) {
        self.until(|status| status.slots.inside == tasks).await;
    }

    /// Sends a request that goes on while the test does.
    pub(crate) fn begin(&self, task: serde_json::Value) -> JoinHandle<crate::api::Answer> {
        let api = self.api.clone();
        tokio::spawn(async move { api.execute(task).await })
    }

    /// Shuts the gate behind one task that is on the device.
    pub(crate) async fn occupy(&self) -> JoinHandle<crate::api::Answer> {
        let before = self.gate.batches().len();
        self.gate.shut();
        let task = self.begin(crate::api::embed("occupies the device"));
        self.gate.begun(before + 1).await;
        task
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A thread that waits at the gate would outlive the test.
        self.gate.open();
        self.gate.let_load();
        self.stop.cancel();
    }
}

/// Stands before the engines of the fake models and before their loading.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    moved: Condvar,
    begun: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    is_shut: bool,
    holds_loading: bool,
    loads: usize,
    batches: Vec<Vec<usize>>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn shut(&self) {
        self.state().is_shut = true;
    }

    pub(crate) fn open(&self) {
        self.state().is_shut = false;
        self.0.moved.notify_all();
    }

    pub(crate) fn hold_loading(&self) {
        self.state().holds_loading = true;
    }

    pub(crate) fn let_load(&self) {
        self.state().holds_loading = false;
        self.0.moved.notify_all();
    }

    /// How often a model was loaded.
    pub(crate) fn loads(&self) -> usize {
        self.state().loads
    }

    /// The runs that have begun, each by the costs of its items: a text's is its words and one.
    pub(crate) fn batches(&self) -> Vec<Vec<usize>> {
        self.state().batches.clone()
    }

    /// Waits until so many runs have begun.
    pub(crate) async fn begun(&self, runs: usize) {
        self.0.begun.subscribe().wait_for(|begun| *begun >= runs).await.unwrap();
    }

    fn loader(&self) -> worker::config::Loader {
        let gate = self.clone();
        Arc::new(move |manifest, folder, options| {
            if manifest.architecture != "fake" {
                return ::models::load(manifest, folder, options);
            }
            let mut state = gate.state();
            state.loads += 1;
            drop(gate.0.moved.wait_while(state, |state| state.holds_loading).unwrap());
            let loaded = fake::loaded_as(manifest.clone());
            let engine = Box::new(Gated { gate: gate.clone(), engine: loaded.engine });
            Ok(::models::Loaded { engine, ..loaded })
        })
    }
}

/// An engine behind the gate.
struct Gated {
    gate: Gate,
    engine: Box<dyn Engine>,
}

impl Engine for Gated {
    fn info(&self) -> &Info {
        self.engine.info()
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, engine::Error> {
        let mut state = self.gate.state();
        state.batches.push(items.iter().map(Item::cost).collect());
        self.gate.0.begun.send_replace(state.batches.len());
        drop(self.gate.0.moved.wait_while(state, |state| state.is_shut).unwrap());
        self.engine.run(items)
    }
}
