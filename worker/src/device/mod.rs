//! The devices and the models on them: a model's name goes in, a loaded model that may be used comes out. Decides by
//! [`placement`] and [`ledger`], computes on each device's [`thread`]. Never touches the network itself: the cache brings
//! what is missing.

pub mod choice;
pub mod desk;
pub mod ledger;
pub mod placement;
pub mod resident;
pub mod thread;

mod loading;
mod texts;
mod warm_up;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use models::engine::Device;
use tokio::sync::{mpsc, oneshot, watch};

use crate::batch::Queue;
use crate::batch::policy::{Limits, Policy};
use crate::generate::writer::{Ask, Event};
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::{Error, cache, config};
use desk::NotTaken;
use ledger::Ledger;
use resident::{Condition, Resident, Use};
use thread::Command;

/// All devices and what is loaded on them. Cheap to clone.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

struct Inner {
    options: Options,
    cache: cache::Handle,
    metrics: Arc<Metrics>,
    /// For what is computed beside the devices.
    pool: Pool,
    seats: Vec<Seat>,
    /// By `name@version`.
    residents: RwLock<HashMap<String, Arc<Resident>>>,
    /// Loads in progress, so that there is one however many ask.
    flights: Mutex<HashMap<String, Flight>>,
    /// Set while nothing may be loaded: paused, or shutting down.
    shut: AtomicBool,
    next_lane: AtomicU64,
}

/// What the devices are told once.
#[derive(Debug, Clone)]
pub struct Options {
    /// The devices and how they are used. The list is not empty.
    pub devices: config::Devices,
    /// How batches are put together.
    pub batch: config::Batch,
    /// How text is written.
    pub text: config::Text,
    /// How models are loaded.
    pub compute: config::Compute,
}

/// One device: its queue, its thread, its memory.
struct Seat {
    device: Device,
    queue: Queue<Command>,
    ledger: Mutex<Ledger>,
    /// Held while a model is loaded: loads on one device come one after the other, so that room that was made for one
    /// is not taken by another.
    loading: tokio::sync::Mutex<()>,
    /// Runs in a row that failed because of the device.
    failures: Arc<AtomicU32>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Flight = watch::Receiver<Option<Result<(), Error>>>;

/// A device as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Which.
    pub device: Device,
    /// Bytes that models may take.
    pub memory_bytes: u64,
    /// Bytes that models have taken.
    pub reserved_bytes: u64,
    /// Bytes that other programs have taken, or that a model did not give back.
    pub foreign_bytes: u64,
    /// Jobs that are not finished.
    pub jobs: usize,
    /// Their items that were not sent to the device.
    pub waiting_items: usize,
    /// Whether its last run failed because of the device.
    pub is_failing: bool,
    /// Whether so many runs in a row failed because of it that it is not coming back: after most of its errors a device is of no use to a
    /// process until that is started again.
    pub is_lost: bool,
}

/// One failure may be an input that broke a kernel, two bad luck.
const FAILURES_MAX: u32 = 3;

impl Devices {
    /// Starts one thread for each device.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(options: Options, cache: cache::Handle, metrics: Arc<Metrics>, pool: Pool) -> std::io::Result<Self> {
        let seat = |device: &config::DeviceOptions| {
            let queue = Queue::new(Policy { overtakes_max: options.batch.overtakes_max });
            let thread = std::thread::Builder::new().name(format!("device-{}", device.device)).spawn({
                let queue = queue.clone();
                move || thread::run(&queue)
            })?;
            Ok(Seat {
                device: device.device,
                queue,
                ledger: Mutex::new(Ledger::new(device.device, device.memory_bytes)),
                loading: tokio::sync::Mutex::new(()),
                failures: Arc::new(AtomicU32::new(0)),
                thread: Mutex::new(Some(thread)),
            })
        };
        let seats = options.devices.devices.iter().map(seat).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self(Arc::new(Inner {
            options,
            cache,
            metrics,
            pool,
            seats,
            residents: RwLock::default(),
            flights: Mutex::default(),
            shut: AtomicBool::new(false),
            next_lane: AtomicU64::new(1),
        })))
    }

    /// The loaded model of this name, ready to be used. Loads it where it is not loaded, once however many ask.
    ///
    /// # Errors
    /// When the model is not to be had, does not fit, or is out of use.
    pub async fn obtain(&self, model: &str) -> Result<Use, Error> {
        if let Some(resident) = self.0.cache.find(model).and_then(|id| self.0.resident(&id)) {
            return resident.check();
        }
        let cached = self.0.cache.get(model).await?;
        let id = cached.manifest.id();
        // Another load may push this one out again before it is used; a worker whose memory is that small says so.
        for _ in 0..3 {
            if let Some(resident) = self.0.resident(&id) {
                return resident.check();
            }
            self.load_once(&id, &cached).await?;
        }
        Err(Error::Unloaded { model: id })
    }

    async fn load_once(&self, id: &str, cached: &Arc<cache::CachedModel>) -> Result<(), Error> {
        let mut flight = {
            let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || self.begin(id.to_owned(), Arc::clone(cached));
            flights.entry(id.to_owned()).or_insert_with(begin).clone()
        };
        let result = flight.wait_for(Option::is_some).await;
        let result = result.map(|result| result.clone());
        result.ok().flatten().unwrap_or_else(|| Err(Error::Internal(format!("loading {id} was given up"))))
    }

    /// The load goes on when its callers leave: the next one will want the model too.
    fn begin(&self, id: String, cached: Arc<cache::CachedModel>) -> Flight {
        let (sender, receiver) = watch::channel(None);
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let result = inner.load(cached).await;
            inner.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Err(error) = &result {
                tracing::warn!(model = id, "not loaded: {error}");
            }
            sender.send_replace(Some(result));
        });
        receiver
    }

    /// Unloads a model: newcomers load it afresh, those who use it finish first, within the limit that is set.
    ///
    /// # Errors
    /// When it is not loaded.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        let id = self.0.cache.find(model).unwrap_or_else(|| model.to_owned());
        let removed = self.0.residents.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let resident = removed.ok_or_else(|| Error::NotLoaded { model: model.to_owned() })?;
        resident.unused(self.0.options.devices.unload_timeout).await;
        self.0.take_down_soon(resident, Error::Unloaded { model: id }).await;
        Ok(())
    }

    /// Unloads everything at once; waiting tasks fail with this error. Nothing is loaded until [`Devices::reopen`].
    pub async fn clear(&self, error: &Error) {
        self.0.shut.store(true, Ordering::SeqCst);
        let all = std::mem::take(&mut *self.0.residents.write().unwrap_or_else(PoisonError::into_inner));
        for resident in all.into_values() {
            self.0.take_down_soon(resident, error.clone()).await;
        }
    }

    /// Lets models be loaded again.
    pub fn reopen(&self) {
        self.0.shut.store(false, Ordering::SeqCst);
    }

    /// What is loaded, by name.
    pub fn residents(&self) -> Vec<Arc<Resident>> {
        let residents = self.0.residents.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = residents.values().cloned().collect();
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    }

    /// Models that are being loaded, by name.
    pub fn loading(&self) -> Vec<String> {
        let flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<String> = flights.keys().cloned().collect();
        list.sort();
        list
    }

    /// The devices as they are now.
    pub fn status(&self) -> Vec<DeviceStatus> {
        let of_seat = |seat: &Seat| {
            let ledger = seat.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let (jobs, waiting_items) = seat.queue.depth();
            let failures = seat.failures.load(Ordering::Relaxed);
            DeviceStatus {
                device: seat.device,
                memory_bytes: ledger.capacity(),
                reserved_bytes: ledger.reserved(),
                foreign_bytes: ledger.foreign(),
                jobs,
                waiting_items,
                is_failing: failures > 0,
                is_lost: failures >= FAILURES_MAX,
            }
        };
        self.0.seats.iter().map(of_seat).collect()
    }

    /// Puts a text on a resident's desk. What is written comes out of the channel; dropping that calls it off.
    ///
    /// # Errors
    /// When the model refuses it, or is gone.
    pub(crate) async fn write(&self, resident: &Resident, ask: Ask) -> Result<mpsc::Receiver<Event>, Error> {
        let mut ask = Box::new(ask);
        // What crashed is waited for, as often as it may crash.
        for _ in 0..=self.0.options.devices.panics_max {
            let (answer, answered) = oneshot::channel();
            self.queue_of(resident).command(Command::Write(resident.lane, ask, answer));
            ask = match answered.await {
                Ok(Ok(from)) => return Ok(from),
                Ok(Err(NotTaken::Refused(refused))) => {
                    return Err(Error::Refused { model: resident.id.clone(), refused });
                }
                Ok(Err(NotTaken::NoDesk(ask))) if resident.condition() != Condition::Ready => ask,
                Ok(Err(NotTaken::Crashed)) => return Err(Error::Panicked { model: resident.id.clone() }),
                // It was taken down, or the thread has ended.
                Ok(Err(NotTaken::NoDesk(_))) | Err(_) => break,
            };
            if resident.settled().await == Condition::Broken {
                return Err(Error::Broken { model: resident.id.clone(), times: resident.panics() });
            }
        }
        Err(Error::Unloaded { model: resident.id.clone() })
    }

    /// The queue of a resident's device.
    pub(crate) fn queue_of(&self, resident: &Resident) -> &Queue<Command> {
        &self.0.seats[resident.seat].queue
    }

    /// Ends the devices' threads; whatever waits fails with this error. Returns when they have ended.
    pub async fn stop(&self, error: &Error) {
        let inner = Arc::clone(&self.0);
        let error = error.clone();
        let joined = tokio::task::spawn_blocking(move || {
            inner.shut.store(true, Ordering::SeqCst);
            inner.residents.write().unwrap_or_else(PoisonError::into_inner).clear();
            for seat in &inner.seats {
                seat.queue.stop(&error);
            }
            for seat in &inner.seats {
                let thread = seat.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
                if thread.is_some_and(|thread| thread.join().is_err()) {
                    tracing::error!(device = %seat.device, "the device's thread crashed");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("stopping the devices crashed");
        }
    }
}

impl Inner {
    /// Taken under the lock that removing takes, so that nobody gets a model that is on its way out.
    fn resident(&self, id: &str) -> Option<Use> {
        let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
        residents.get(id).map(Use::of)
    }

    /// What a batch of a model that answers requests may hold. Tries the engine, which is nobody else's yet.
    fn limits(&self, engine: &mut dyn models::Engine) -> Limits {
        let batch = &self.options.batch;
        let info = engine.info();
        let limits = |cost, items| Limits { cost, items, wait: batch.wait, sides: 1, side_cost: cost };
        match info.vector_len {
            Some(_) => {
                let most = if info.device == Device::Cpu { batch.tokens_max_cpu } else { batch.tokens_max };
                if !batch.is_measured {
                    return limits(most, batch.sequences_max);
                }
                let warm_up::Found { tokens, sides, side_tokens } = warm_up::measure(engine, most);
                Limits { sides, side_cost: side_tokens, ..limits(tokens, batch.sequences_max) }
            }
            None if info.batches_rows => limits(batch.rows_max, batch.rows_max),
            // What cannot share a run gains nothing from a batch.
            None => limits(usize::MAX, 1),
        }
    }
}

impl Use {
    /// Itself, unless the model is out of use.
    fn check(self) -> Result<Use, Error> {
        match self.condition() {
            Condition::Broken => Err(Error::Broken { model: self.id.clone(), times: self.panics() }),
            Condition::Ready | Condition::Reloading => Ok(self),
        }
    }
}
