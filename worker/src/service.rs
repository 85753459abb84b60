//! The worker's own interface: tasks go in, replies come out; models, admission and state are asked and told. The HTTP
//! routes and the link to coordinators both stand on it. Knows neither.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use models::task::{Reply, Request};

use crate::admission::{Admission, Permit, State};
use crate::batch::Ran;
use crate::batch::backlog::Submission;
use crate::device::resident::{Condition, Resident};
use crate::device::{DeviceStatus, Devices};
use crate::error::Stage;
use crate::generate::Figures;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::text::{Begun, Inside, NewText, TextDone, Writing};
use crate::{Error, cache, finish, prepare, text};

/// A task as it enters the worker.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// `name` for the newest version at hand, or `name@version`.
    pub model: String,
    /// What is asked.
    pub request: Request,
    /// 0 to 9, higher first. [`NewTask::PRIORITY_DEFAULT`] when the caller has no opinion.
    pub priority: u8,
    /// When the answer is of no use any more. The worker's task timeout when absent.
    pub deadline: Option<Instant>,
}

impl NewTask {
    /// The priority of callers without an opinion.
    pub const PRIORITY_DEFAULT: u8 = coordinator_client::api::task::PRIORITY_DEFAULT;
    /// The highest priority.
    pub const PRIORITY_MAX: u8 = coordinator_client::api::task::PRIORITY_MAX;

    /// A task of the default priority without a deadline of its own.
    pub fn new(model: impl Into<String>, request: Request) -> Self {
        Self { model: model.into(), request, priority: Self::PRIORITY_DEFAULT, deadline: None }
    }
}

/// A task that was done.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The answer.
    pub reply: Reply,
    /// Tokens read, special tokens included; 0 for tensors.
    pub input_tokens: u64,
    /// Where the time went.
    pub timings: Timings,
    /// `name@version` of the model that answered.
    pub model: String,
    /// Digest of that model's files.
    pub model_digest: String,
    /// Inside which class of machines this answer is comparable.
    pub execution_class: String,
}

/// Where a task's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for the device.
    pub queue: Duration,
    /// Turning the request into what the device takes.
    pub prepare: Duration,
    /// In batches on the device, from the first one's start to the last one's end.
    pub device: Duration,
    /// Turning the device's outputs into the reply.
    pub finish: Duration,
}

/// How much more work the worker takes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Tasks that may be inside at once.
    pub capacity: usize,
    /// Tasks that may still come in. 0 while paused or draining.
    pub free: usize,
    /// Tasks that are inside.
    pub inside: usize,
}

/// The worker as it is now.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether tasks may come in.
    pub state: State,
    /// Whether the models that were to be loaded at the start are.
    pub has_started: bool,
    /// Places for tasks.
    pub slots: Slots,
    /// Tasks that were refused for want of a place or because the door was closed.
    pub refused: u64,
    /// How long the worker runs.
    pub uptime: Duration,
    /// The devices.
    pub devices: Vec<DeviceStatus>,
    /// The models that are loaded.
    pub loaded: Vec<LoadedModel>,
    /// Models that are being loaded.
    pub loading: Vec<String>,
    /// Why the worker does nothing, when it does nothing.
    pub idle_because: Option<&'static str>,
    /// Whether devices and cards are in order; tasks of coordinators come only then.
    pub is_fit: bool,
    /// What keeps it from being ready, in words; empty when it is ready.
    pub not_ready_because: Vec<String>,
}

/// A model that is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedModel {
    /// `name@version`.
    pub model: String,
    /// Digest of its files.
    pub digest: String,
    /// Whether it answers.
    pub condition: Condition,
    /// Where it runs and as what.
    pub info: models::engine::Info,
    /// Why this device and this backend.
    pub because: String,
    /// Bytes that are reserved for it on its device.
    pub memory_bytes: u64,
    /// How things stand with its texts, where it wrote any.
    pub texts: Option<Figures>,
    /// Tasks that use it now.
    pub uses: usize,
    /// How long nobody has used it.
    pub idle_for: Duration,
    /// How long loading took.
    pub loaded_in: Duration,
}

/// A model that is at hand, loaded or not.
#[derive(Debug, Clone)]
pub struct Model {
    /// What it is.
    pub cached: Arc<cache::CachedModel>,
    /// Whether it is never evicted.
    pub is_pinned: bool,
    /// Where it runs, when it is loaded.
    pub loaded: Option<LoadedModel>,
}

/// The way into the worker. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) admission: Admission,
    pub(crate) pool: Pool,
    pub(crate) devices: Devices,
    pub(crate) cache: cache::Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) task_timeout: Duration,
    pub(crate) preload: Vec<String>,
    pub(crate) started: Instant,
    pub(crate) has_started: std::sync::atomic::AtomicBool,
    /// Why the machine takes no tasks, as its samples show it.
    pub(crate) unfit: std::sync::Mutex<Vec<String>>,
}

/// A task timeout beyond what the clock can tell is none.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

impl Handle {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Does a task. Dropping the future calls the task off: its place is free at once, and what was not on the device
    /// yet never gets there.
    ///
    /// # Errors
    /// At once when there is no place; later when the task cannot be done.
    pub async fn execute(&self, task: NewTask) -> Result<Done, Error> {
        self.begin(task)?.await
    }

    /// Takes a task in; the future does it. Dropping the future calls the task off.
    ///
    /// # Errors
    /// At once when there is no place; the future's when the task cannot be done.
    pub fn begin(&self, task: NewTask) -> Result<impl Future<Output = Result<Done, Error>> + Send + 'static, Error> {
        let started = Instant::now();
        let watched = Watched { metrics: Arc::clone(&self.0.metrics), ended: false };
        let admitted = self.admit(task.priority, task.deadline, started);
        let (permit, deadline) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                watched.end(&Err(error.clone()), started.elapsed());
                return Err(error);
            }
        };
        let handle = self.clone();
        Ok(async move {
            let _permit = permit;
            let stage = AtomicU8::new(Stage::Loading as u8);
            let run = handle.run(task, deadline, &stage);
            let result = tokio::time::timeout_at(deadline.into(), run).await;
            let late = |_| Err(Error::DeadlineExceeded { stage: Stage::from_u8(stage.load(Ordering::Relaxed)) });
            let result = result.unwrap_or_else(late);
            watched.end(&result, started.elapsed());
            result
        })
    }

    fn admit(&self, priority: u8, deadline: Option<Instant>, now: Instant) -> Result<(Permit, Instant), Error> {
        if priority > NewTask::PRIORITY_MAX {
            return Err(Error::Request(format!("priority is {priority}, it must be 0 to 9")));
        }
        let deadline = deadline.or_else(|| now.checked_add(self.0.task_timeout)).unwrap_or(now + YEAR);
        if deadline <= now {
            return Err(Error::DeadlineExceeded { stage: Stage::Loading });
        }
        Ok((self.0.admission.enter()?, deadline))
    }

    /// The road: model, items, outputs, reply.
    async fn run(&self, task: NewTask, deadline: Instant, stage: &AtomicU8) -> Result<Done, Error> {
        let at = |now: Stage| stage.store(now as u8, Ordering::Relaxed);
        let Parts { pool, devices, .. } = &*self.0;
        let model = devices.obtain(&task.model).await?;
        let pipeline = model.pipeline(task.request.name())?;
        at(Stage::Preparing);
        let encoded = prepare::prepare(pool, pipeline, task.request).await?;
        at(Stage::Queued);
        let items = encoded.prepared.items;
        let submission = Submission { items, priority: task.priority, deadline: Some(deadline) };
        let ticket = devices.queue_of(&model).submit(model.lane, submission);
        let ticket = ticket.map_err(|_| match model.condition() {
            Condition::Broken => Error::Broken { model: model.id.clone(), times: model.panics() },
            Condition::Ready | Condition::Reloading => Error::Unloaded { model: model.id.clone() },
        })?;
        let Ran { outputs, queued, device } = ticket.outputs().await?;
        at(Stage::Finishing);
        let (reply, finish) = finish::finish(pool, pipeline, encoded.prepared.pending, outputs).await?;
        Ok(Done {
            reply,
            input_tokens: encoded.prepared.tokens as u64,
            timings: Timings { queue: queued, prepare: encoded.took, device, finish },
            model: model.id.clone(),
            model_digest: model.digest.clone(),
            execution_class: model.info.execution_class.clone(),
        })
    }

    /// Writes a text. Dropping the future or what comes of it calls the text off: its place is free at once, and its memory before the
    /// next step.
    ///
    /// # Errors
    /// At once when there is no place; later when the text cannot be written.
    pub async fn write(&self, text: NewText) -> Result<Writing, Error> {
        self.begin_writing(text)?.await
    }

    /// Takes a text in; the future puts it on its way. Dropping the future calls it off.
    ///
    /// # Errors
    /// At once when there is no place; the future's when the text cannot be written.
    pub fn begin_writing(
        &self,
        text: NewText,
    ) -> Result<impl Future<Output = Result<Writing, Error>> + Send + 'static, Error> {
        let started = Instant::now();
        let watched = Watched { metrics: Arc::clone(&self.0.metrics), ended: false };
        let (permit, deadline) = match self.admit(text.priority, text.deadline, started) {
            Ok(admitted) => admitted,
            Err(error) => {
                watched.failed(&error);
                return Err(error);
            }
        };
        let worker = self.clone();
        Ok(async move {
            let stage = AtomicU8::new(Stage::Loading as u8);
            let begun = tokio::time::timeout_at(deadline.into(), worker.begin_text(text, deadline, &stage)).await;
            let late = |_| Err(Error::DeadlineExceeded { stage: Stage::from_u8(stage.load(Ordering::Relaxed)) });
            match begun.unwrap_or_else(late) {
                Ok(begun) => Ok(Writing::new(begun, Inside { worker, started, watched, permit })),
                Err(error) => {
                    watched.failed(&error);
                    Err(error)
                }
            }
        })
    }

    /// The road of a text up to where it is written.
    async fn begin_text(&self, text: NewText, deadline: Instant, stage: &AtomicU8) -> Result<Begun, Error> {
        let at = |now: Stage| stage.store(now as u8, Ordering::Relaxed);
        let Parts { pool, devices, .. } = &*self.0;
        let NewText { model, input, priority, deadline: _, salt } = text;
        let model = devices.obtain(&model).await?;
        let language = Arc::clone(model.language(input.name())?);
        at(Stage::Preparing);
        let begun = Instant::now();
        let prepared = {
            let (language, id) = (Arc::clone(&language), model.id.clone());
            let context = model.info.max_tokens.unwrap_or(0);
            pool.run(move || {
                text::prepare(&language, input, &text::For { model: &id, context, priority, deadline, salt })
            })
        };
        let text::Prepared { ask, shown, parser } = prepared.await??;
        at(Stage::Writing);
        let prepared_in = begun.elapsed();
        let (generated, prompt_tokens) = (ask.request.generated.clone(), ask.request.prompt.len());
        let from = match text::complete(ask, language.tokenizer()) {
            Ok(ended) => ended,
            Err(ask) => devices.write(&model, *ask).await?,
        };
        Ok(Begun { model, language, from, parser, shown, generated, prompt_tokens, prepared_in })
    }

    /// Why a model that was at hand is so no more.
    pub(crate) fn why_gone(&self, model: &str) -> Error {
        match self.0.admission.state() {
            State::Open => Error::Unloaded { model: model.to_owned() },
            State::Paused => Error::Paused,
            State::Draining => Error::Draining,
        }
    }

    /// How much more work the worker takes now.
    pub fn slots(&self) -> Slots {
        let admission = &self.0.admission;
        let (capacity, inside) = (admission.capacity(), admission.inside());
        let free = match admission.state() {
            State::Open => capacity - inside,
            State::Paused | State::Draining => 0,
        };
        Slots { capacity, free, inside }
    }

    /// The worker as it is now.
    pub fn status(&self) -> Status {
        let state = self.0.admission.state();
        let slots = self.slots();
        let devices = self.0.devices.status();
        let loaded: Vec<_> = self.0.devices.residents().iter().map(|resident| loaded_model(resident)).collect();
        let loading = self.0.devices.loading();
        let has_started = self.0.has_started.load(Ordering::SeqCst);
        let idle_because = match state {
            State::Paused => Some("its owner paused it"),
            State::Draining => Some("it is shutting down"),
            State::Open if self.0.admission.inside() > 0 => None,
            State::Open if !loading.is_empty() => Some("a model is being loaded"),
            State::Open => Some("no task has come"),
        };
        let mut not_ready_because = Vec::new();
        match state {
            State::Open => {}
            State::Paused => not_ready_because.push("paused by its owner".to_owned()),
            State::Draining => not_ready_because.push("shutting down".to_owned()),
        }
        if !has_started {
            not_ready_because.push("still loading the models that were asked for at the start".to_owned());
        }
        let ill = loaded.iter().filter(|model| model.condition != Condition::Ready);
        not_ready_because.extend(ill.map(|model| format!("{} is {}", model.model, model.condition.name())));
        let failing = devices.iter().filter(|device| device.is_failing && !device.is_lost);
        not_ready_because.extend(failing.map(|device| format!("{} is failing", device.device)));
        let unfit = self.unfit_because(&devices);
        let is_fit = unfit.is_empty();
        not_ready_because.extend(unfit);
        Status {
            state,
            has_started,
            slots,
            refused: self.0.admission.refused(),
            uptime: self.0.started.elapsed(),
            devices,
            loaded,
            loading,
            idle_because,
            is_fit,
            not_ready_because,
        }
    }

    /// Why none of the machine's work can be trusted or done.
    fn unfit_because(&self, devices: &[DeviceStatus]) -> Vec<String> {
        let mut because = self.0.unfit.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lost = devices.iter().filter(|device| device.is_lost);
        because.extend(lost.map(|device| {
            format!(
                "{} is lost: its last runs failed one after the other; restart the worker, and see `neurogrid doctor` if that does not help",
                device.device
            )
        }));
        because
    }

    /// Tells what the machine's samples show: reasons to take no tasks, or none.
    pub(crate) fn set_unfit(&self, because: &[String]) {
        let mut known = self.0.unfit.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != because {
            match because {
                [] => tracing::info!("the machine is fit for work again"),
                because => tracing::error!("no tasks are taken: {}", because.join("; ")),
            }
            *known = because.to_vec();
        }
    }

    /// The figures.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The models that are at hand.
    pub fn models(&self) -> Vec<Model> {
        let residents = self.0.devices.residents();
        let of_entry = |cached: Arc<cache::CachedModel>| {
            let id = cached.manifest.id();
            let resident = residents.iter().find(|resident| resident.id == id);
            let is_pinned = self.0.cache.is_pinned(&id);
            Model { cached, is_pinned, loaded: resident.map(|resident| loaded_model(resident)) }
        };
        self.0.cache.list().into_iter().map(of_entry).collect()
    }

    /// The model of this name that is at hand, loaded or not.
    pub fn model(&self, name: &str) -> Option<Model> {
        let id = self.0.cache.find(name)?;
        self.models().into_iter().find(|model| model.cached.manifest.id() == id)
    }

    /// Where models are kept.
    pub fn cache(&self) -> &cache::Handle {
        &self.0.cache
    }

    /// Loads a model, fetching it where it is not at hand.
    ///
    /// # Errors
    /// When it is not to be had, or does not fit.
    pub async fn load(&self, model: &str) -> Result<LoadedModel, Error> {
        match self.0.admission.state() {
            State::Open => Ok(loaded_model(&*self.0.devices.obtain(model).await?)),
            State::Paused => Err(Error::Paused),
            State::Draining => Err(Error::Draining),
        }
    }

    /// Unloads a model after those who use it are done, within a limit; its files stay.
    ///
    /// # Errors
    /// When it is not loaded.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        self.0.devices.unload(model).await
    }

    /// Keeps a model from being evicted, or allows it again.
    ///
    /// # Errors
    /// When it is not at hand.
    pub fn pin(&self, model: &str, pinned: bool) -> Result<(), Error> {
        Ok(self.0.cache.pin(model, pinned)?)
    }

    /// Refuses tasks, hands back those inside, and frees the devices' memory.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn pause(&self) -> Result<(), Error> {
        if !self.0.admission.set_paused(true) {
            return Err(Error::Draining);
        }
        self.0.devices.clear(&Error::Paused).await;
        Ok(())
    }

    /// Takes tasks again.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub fn resume(&self) -> Result<(), Error> {
        if !self.0.admission.set_paused(false) {
            return Err(Error::Draining);
        }
        self.0.devices.reopen();
        Ok(())
    }

    /// Refuses tasks for good and waits until those inside are done, at most so long. Returns whether they are.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.0.admission.drain();
        self.0.admission.empty(limit).await
    }

    /// Runs a closure on the CPU pool, for what is too long for an async thread.
    ///
    /// # Errors
    /// When the closure panicked.
    pub async fn on_cpu<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        self.0.pool.run(work).await
    }

    /// Loads the models that were asked for at the start. What cannot be loaded is logged and left.
    pub(crate) async fn preload(&self) {
        for model in &self.0.preload {
            if let Err(error) = self.load(model).await {
                tracing::error!(model, "not loaded at the start: {error}");
            }
        }
        self.0.has_started.store(true, Ordering::SeqCst);
    }

    /// Ends the devices' threads.
    pub(crate) async fn stop(&self) {
        self.0.devices.stop(&Error::Draining).await;
    }
}

fn loaded_model(resident: &Resident) -> LoadedModel {
    LoadedModel {
        model: resident.id.clone(),
        digest: resident.digest.clone(),
        condition: resident.condition(),
        info: resident.info.clone(),
        because: format!("{}; {}", resident.placement, resident.choice),
        memory_bytes: resident.memory_bytes,
        texts: resident.texts(),
        uses: resident.uses(),
        idle_for: resident.idle_for(),
        loaded_in: resident.loaded_in,
    }
}

/// Counts a task's end, also when its caller leaves.
pub(crate) struct Watched {
    metrics: Arc<Metrics>,
    ended: bool,
}

impl Watched {
    fn end(self, result: &Result<Done, Error>, took: Duration) {
        match result {
            Ok(done) => self.metrics(|metrics| metrics.task_done(done.input_tokens, done.timings, took)),
            Err(error) => self.failed(error),
        }
    }

    /// A text is at its end.
    pub(crate) fn wrote(self, done: &TextDone, new_tokens: usize, took: Duration) {
        self.metrics(|metrics| {
            metrics.task_done(done.input_tokens, done.timings, took);
            metrics.text_done(new_tokens, done.first_token, done.timings.device);
        });
    }

    pub(crate) fn failed(self, error: &Error) {
        self.metrics(|metrics| metrics.task_failed(error.fault()));
    }

    fn metrics(mut self, count: impl FnOnce(&Metrics)) {
        self.ended = true;
        count(&self.metrics);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.ended {
            self.metrics.task_failed(crate::error::Fault::Cancelled);
        }
    }
}
