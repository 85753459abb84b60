//! One loaded model: what it is, where it runs, how it does and who uses it. Shared by all; the engine itself is not
//! here but on its device's thread.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use models::engine::{self, Info};
use models::task::generate::language::Language;
use models::task::{self, Pipeline};
use tokio::sync::Notify;

use super::thread::{Report, Watcher};
use crate::Error;
use crate::batch::backlog::LaneId;
use crate::cache::CachedModel;
use crate::generate::Figures;
use crate::metrics::Metrics;

/// A model that is loaded on a device.
pub struct Resident {
    /// `name@version`.
    pub id: String,
    /// Digest of its files.
    pub digest: String,
    /// Its files, which stay in the cache as long as this lives.
    pub cached: Arc<CachedModel>,
    /// What it does for callers.
    pub does: Does,
    /// What the engine is and where it runs.
    pub info: Info,
    /// Why this backend.
    pub choice: String,
    /// Why this device.
    pub placement: String,
    /// Bytes that are reserved for it.
    pub memory_bytes: u64,
    /// How long loading took.
    pub loaded_in: Duration,
    /// Position of its device.
    pub(super) seat: usize,
    /// Its lane in that device's queue.
    pub(crate) lane: LaneId,
    /// How it does.
    pub(super) health: Arc<Health>,
    uses: AtomicUsize,
    last_used: AtomicU64,
    unused: Notify,
}

/// What a model does for callers, as far as that needs no device.
pub enum Does {
    /// It answers requests: preparation and finishing.
    Answer(Arc<Pipeline>),
    /// It writes text: conversations to prompts, tokens to text.
    Write(Arc<Language>),
}

/// Whether a model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It does.
    Ready,
    /// Its engine panicked; another is on its way, and tasks wait for it.
    Reloading,
    /// It panicked too often, or could not be loaded again.
    Broken,
}

impl Condition {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Ready => "ready",
            Condition::Reloading => "reloading",
            Condition::Broken => "broken",
        }
    }
}

/// What was known of a model when it was loaded.
pub(super) struct New {
    pub(super) cached: Arc<CachedModel>,
    pub(super) does: Does,
    pub(super) info: Info,
    pub(super) choice: String,
    pub(super) placement: String,
    pub(super) memory_bytes: u64,
    pub(super) loaded_in: Duration,
    pub(super) seat: usize,
    pub(super) lane: LaneId,
    pub(super) health: Arc<Health>,
}

impl Resident {
    pub(super) fn new(new: New) -> Self {
        Self {
            id: new.cached.manifest.id(),
            digest: new.cached.manifest.digest(),
            cached: new.cached,
            does: new.does,
            info: new.info,
            choice: new.choice,
            placement: new.placement,
            memory_bytes: new.memory_bytes,
            loaded_in: new.loaded_in,
            seat: new.seat,
            lane: new.lane,
            health: new.health,
            uses: AtomicUsize::new(0),
            last_used: AtomicU64::new(now_ms()),
            unused: Notify::new(),
        }
    }

    /// Preparation and finishing of requests.
    ///
    /// # Errors
    /// When it writes text.
    pub fn pipeline(&self, asked: &'static str) -> Result<&Arc<Pipeline>, Error> {
        match &self.does {
            Does::Answer(pipeline) => Ok(pipeline),
            Does::Write(_) => Err(self.wrong_task("generate", asked)),
        }
    }

    /// Prompts and text.
    ///
    /// # Errors
    /// When it does not write any.
    pub fn language(&self, asked: &'static str) -> Result<&Arc<Language>, Error> {
        match &self.does {
            Does::Answer(pipeline) => Err(self.wrong_task(pipeline.task().name(), asked)),
            Does::Write(language) => Ok(language),
        }
    }

    fn wrong_task(&self, does: &'static str, asked: &'static str) -> Error {
        task::Error::WrongTask { model: self.id.clone(), does, asked }.into()
    }

    /// Whether it answers.
    pub fn condition(&self) -> Condition {
        match self.health.condition.load(Ordering::SeqCst) {
            0 => Condition::Ready,
            1 => Condition::Reloading,
            _ => Condition::Broken,
        }
    }

    /// Waits until it is not being loaded again, and says how it is.
    pub(super) async fn settled(&self) -> Condition {
        loop {
            let changed = self.health.changed.notified();
            match self.condition() {
                Condition::Reloading => changed.await,
                settled => return settled,
            }
        }
    }

    /// How things stand with its texts, where it writes any.
    pub fn texts(&self) -> Option<Figures> {
        *self.health.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Panics since its last answer.
    pub fn panics(&self) -> u32 {
        self.health.panics.load(Ordering::SeqCst)
    }

    /// Tasks that use it.
    pub fn uses(&self) -> usize {
        self.uses.load(Ordering::SeqCst)
    }

    /// The larger, the later it was used.
    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// How long it has not been used.
    pub fn idle_for(&self) -> Duration {
        match self.uses() {
            0 => Duration::from_millis(now_ms().saturating_sub(self.last_used())),
            _ => Duration::ZERO,
        }
    }

    /// Waits until no task uses it, at most so long.
    pub(super) async fn unused(&self, limit: Duration) -> bool {
        let all_done = async {
            loop {
                let unused = self.unused.notified();
                if self.uses() == 0 {
                    return;
                }
                unused.await;
            }
        };
        tokio::time::timeout(limit, all_done).await.is_ok()
    }
}

/// Milliseconds since the program first asked.
fn now_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// A task's use of a model. While it lives, the model is not evicted.
pub struct Use(Arc<Resident>);

impl Use {
    pub(super) fn of(resident: &Arc<Resident>) -> Self {
        resident.uses.fetch_add(1, Ordering::SeqCst);
        resident.last_used.store(now_ms(), Ordering::Relaxed);
        Self(Arc::clone(resident))
    }
}

impl std::ops::Deref for Use {
    type Target = Resident;

    fn deref(&self) -> &Resident {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.last_used.store(now_ms(), Ordering::Relaxed);
        if self.0.uses.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.unused.notify_waiters();
        }
    }
}

/// How a model does: written by its device's thread, read by all.
pub(super) struct Health {
    condition: AtomicU8,
    panics: AtomicU32,
    panics_max: u32,
    device_failures: Arc<AtomicU32>,
    metrics: Arc<Metrics>,
    changed: Notify,
    /// Of its texts, where it writes any.
    texts: Mutex<Option<Figures>>,
    /// Called when an engine has to be loaded again, or must not be.
    reload: Box<dyn Fn(Condition) + Send + Sync>,
}

impl Health {
    pub(super) fn new(
        panics_max: u32,
        device_failures: Arc<AtomicU32>,
        metrics: Arc<Metrics>,
        reload: Box<dyn Fn(Condition) + Send + Sync>,
    ) -> Self {
        let (condition, panics) = (AtomicU8::new(0), AtomicU32::new(0));
        let (changed, texts) = (Notify::new(), Mutex::new(None));
        Self { condition, panics, panics_max, device_failures, metrics, changed, texts, reload }
    }

    pub(super) fn set(&self, condition: Condition) {
        self.condition.store(condition as u8, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

impl Watcher for Health {
    fn ran(&self, report: Report) {
        self.panics.store(0, Ordering::SeqCst);
        self.device_failures.store(0, Ordering::Relaxed);
        self.metrics.batch(report.items, report.cost, report.started.elapsed());
    }

    fn failed(&self, error: &engine::Error) {
        if matches!(error, engine::Error::Device { .. }) {
            self.device_failures.fetch_add(1, Ordering::Relaxed);
        }
        self.metrics.batch_failed();
    }

    // Said by the device's thread as a crash is, so that one that comes at once is not taken back by whoever loaded it.
    fn installed(&self) {
        self.set(Condition::Ready);
    }

    fn panicked(&self) {
        self.metrics.panicked();
        let panics = self.panics.fetch_add(1, Ordering::SeqCst) + 1;
        let condition = if panics >= self.panics_max { Condition::Broken } else { Condition::Reloading };
        self.set(condition);
        (self.reload)(condition);
    }

    fn stands(&self, figures: Figures) {
        *self.texts.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures);
    }
}
