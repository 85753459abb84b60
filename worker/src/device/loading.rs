//! From verified files to an engine on a device's thread, and back: room is made first, then the model is loaded, then its
//! lane is opened. A model whose engine crashed is loaded again on the same lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Instant;

use models::engine::{self, Device, Info};
use models::load::TextNeed;
use models::manifest::Task;

use super::desk::Desk;
use super::ledger::Idle;
use super::placement::{self, Candidate};
use super::resident::{Condition, Does, Health, New, Resident};
use super::thread::{self, Command, words_of};
use super::{Inner, Seat, texts};
use crate::batch::backlog::LaneId;
use crate::batch::policy::Limits;
use crate::cache::CachedModel;
use crate::generate::writer::Writer;
use crate::generate::{self, Blocks, Scheduler};
use crate::{Error, config};

/// What a model needs of a device.
enum Need {
    /// One that answers requests: so many bytes.
    Answers(u64),
    /// One that writes text.
    Writes(TextNeed),
}

impl Need {
    /// Bytes without which it is not loaded.
    fn least_bytes(&self) -> u64 {
        match self {
            Need::Answers(bytes) => *bytes,
            Need::Writes(need) => texts::least_bytes(need),
        }
    }

    /// Bytes but for a KV cache.
    fn weights_bytes(&self) -> u64 {
        match self {
            Need::Answers(bytes) => *bytes,
            Need::Writes(need) => need.weights_bytes,
        }
    }
}

/// A model that was loaded and is on no thread yet.
struct Made {
    does: Does,
    info: Info,
    choice: String,
    runner: Runner,
}

/// What goes onto the device's thread, with its bounds.
enum Runner {
    Engine(Box<dyn models::Engine>, Limits),
    Writer(Box<Writer>, generate::Limits),
}

impl Runner {
    /// Its bounds in words.
    fn bounds(&self) -> String {
        match self {
            Runner::Engine(_, Limits { cost, sides, side_cost, .. }) => {
                format!("batches of {cost}, {sides} of {side_cost} side by side")
            }
            Runner::Writer(_, limits) => {
                let generate::Limits { step_tokens, sequences_max, context_max, .. } = limits;
                format!("{sequences_max} texts at once, steps of {step_tokens} tokens, a context of {context_max}")
            }
        }
    }
}

impl Inner {
    /// Loads a model on the device that suits it.
    pub(super) async fn load(self: &Arc<Self>, cached: Arc<CachedModel>) -> Result<(), Error> {
        let id = cached.manifest.id();
        let meant = self.options.devices.force.unwrap_or_else(|| self.likely_device());
        let mut need = self.count_need(&cached, meant).await?;
        let choice = placement::place(&id, need.least_bytes(), self.options.devices.force, &self.candidates())?;
        let device = self.seats[choice.index].device;
        if std::mem::discriminant(&device) != std::mem::discriminant(&meant) {
            need = self.count_need(&cached, device).await?;
        }
        let _one_at_a_time = self.seats[choice.index].loading.lock().await;
        if self.residents.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id) {
            return Ok(());
        }
        let inner = Arc::clone(self);
        let loading = tokio::task::spawn_blocking(move || inner.load_on(cached, need, choice));
        loading.await.unwrap_or_else(|_| Err(Error::Internal(format!("loading {id} crashed"))))
    }

    fn candidates(&self) -> Vec<Candidate> {
        let of_seat = |seat: &Seat| {
            let ledger = seat.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            Candidate { device: seat.device, capacity: ledger.capacity(), free: ledger.free() }
        };
        self.seats.iter().map(of_seat).collect()
    }

    /// The device that models come to as long as there is room.
    fn likely_device(&self) -> Device {
        let gpu = self.seats.iter().map(|seat| seat.device).find(|device| *device != Device::Cpu);
        gpu.unwrap_or(Device::Cpu)
    }

    async fn count_need(self: &Arc<Self>, cached: &Arc<CachedModel>, device: Device) -> Result<Need, Error> {
        let (inner, of) = (Arc::clone(self), Arc::clone(cached));
        let counted = tokio::task::spawn_blocking(move || inner.need(&of, device)).await;
        let crashed = || Error::Internal(format!("counting what {} needs crashed", cached.manifest.id()));
        counted.unwrap_or_else(|_| Err(crashed()))
    }

    /// What a model needs of a kind of device, before it is loaded.
    fn need(&self, cached: &CachedModel, device: Device) -> Result<Need, Error> {
        let (manifest, compute) = (&cached.manifest, &self.options.compute);
        if manifest.task != Task::Generate {
            return Ok(Need::Answers(models::load::memory_need_bytes(manifest, compute.backend, device)));
        }
        let need = models::load::text_need(manifest, &cached.folder, &self.load_options(device));
        let refuse = |error| Error::Load { model: manifest.id(), device, error: Arc::new(error) };
        need.map(Need::Writes).map_err(refuse)
    }

    fn load_options(&self, device: Device) -> models::Options {
        let config::Compute { backend, threads, onnx_library, .. } = &self.options.compute;
        let onnx_library = onnx_library.clone();
        models::Options { backend: *backend, device, threads: *threads, onnx_library, device_bytes_max: None }
    }

    /// What a model that has been reserved for may take of a GPU in all: its own, and what nobody has been promised.
    fn device_bytes_max(&self, cached: &CachedModel, seat: &Seat) -> Option<u64> {
        let own = models::load::memory_need_bytes(&cached.manifest, self.options.compute.backend, seat.device);
        let ledger = seat.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        (seat.device != Device::Cpu).then(|| own + ledger.free())
    }

    fn load_on(self: &Arc<Self>, cached: Arc<CachedModel>, need: Need, choice: placement::Choice) -> Result<(), Error> {
        let id = cached.manifest.id();
        let seat = &self.seats[choice.index];
        self.make_room(choice.index, &id, need.least_bytes())?;
        let before = self.measured_free(seat);
        let lane = self.next_lane.fetch_add(1, Ordering::Relaxed);
        let ledger = || seat.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let cache_bytes = match &need {
            Need::Answers(_) => 0,
            Need::Writes(need) => {
                texts::cache_bytes(need, &self.options.text, ledger().free().saturating_sub(need.weights_bytes))
            }
        };
        let need_bytes = need.least_bytes().max(need.weights_bytes() + cache_bytes);
        ledger().reserve(lane, &id, need_bytes);
        let started = Instant::now();
        let made = self.load_files(&cached, seat, cache_bytes).inspect_err(|_| ledger().release(lane))?;
        let Made { does, info, choice: because, runner } = made;
        // What was reserved counts what batches need too, so it stays unless the weights alone are more, or what was taken in fact.
        let taken = before.zip(self.measured_free(seat)).map_or(0, |(before, after)| before.saturating_sub(after));
        let memory_bytes = need_bytes.max(info.weights_bytes + cache_bytes).max(taken);
        ledger().reserve(lane, &id, memory_bytes);

        let health = Arc::new_cyclic(|health| self.health(choice.index, lane, &cached, cache_bytes, health));
        let bounds = runner.bounds();
        if !self.install(seat, lane, &id, runner, &health) {
            ledger().release(lane);
            return Err(Error::Draining);
        }
        let resident = Arc::new(Resident::new(New {
            cached,
            does,
            info,
            choice: because,
            placement: choice.reason,
            memory_bytes,
            loaded_in: started.elapsed(),
            seat: choice.index,
            lane,
            health,
        }));
        tracing::info!(
            model = id,
            device = %seat.device,
            provider = resident.info.provider,
            ms = resident.loaded_in.as_millis() as u64,
            "loaded: {}; {}; {bounds}",
            resident.placement,
            resident.choice
        );
        let mut residents = self.residents.write().unwrap_or_else(PoisonError::into_inner);
        if self.shut.load(Ordering::SeqCst) {
            drop(residents);
            self.take_down(&resident, &Error::Paused);
            return Err(Error::Paused);
        }
        residents.insert(id, resident);
        Ok(())
    }

    /// Runs the loader, and finds out how large batches or steps should be. A loader or an engine that panics is an error like another.
    fn load_files(&self, cached: &CachedModel, seat: &Seat, cache_bytes: u64) -> Result<Made, Error> {
        let attempt = catch_unwind(AssertUnwindSafe(|| match cached.manifest.task {
            Task::Generate => self.make_writer(cached, seat, cache_bytes),
            _ => self.make_engine(cached, seat),
        }));
        let model = cached.manifest.id();
        match attempt {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => Err(Error::Load { model, device: seat.device, error: Arc::new(error) }),
            Err(panic) => {
                Err(Error::Internal(format!("loading {model} on {} crashed: {}", seat.device, words_of(&*panic))))
            }
        }
    }

    fn make_engine(&self, cached: &CachedModel, seat: &Seat) -> Result<Made, models::Error> {
        let device_bytes_max = self.device_bytes_max(cached, seat);
        let options = models::Options { device_bytes_max, ..self.load_options(seat.device) };
        let models::Loaded { pipeline, mut engine, choice, .. } = match &self.options.compute.loader {
            Some(loader) => loader(&cached.manifest, &cached.folder, &options),
            None => models::load(&cached.manifest, &cached.folder, &options),
        }?;
        let limits = self.limits(&mut *engine);
        let info = engine.info().clone();
        Ok(Made { does: Does::Answer(pipeline), info, choice, runner: Runner::Engine(engine, limits) })
    }

    fn make_writer(&self, cached: &CachedModel, seat: &Seat, cache_bytes: u64) -> Result<Made, models::Error> {
        let options = self.load_options(seat.device);
        let loaded = models::load::load_text(&cached.manifest, &cached.folder, &options, cache_bytes)?;
        let models::load::LoadedText { language, mut generator, choice } = loaded;
        let info = generator.info().clone();
        let refuse = |detail| models::Error::Backend { backend: info.backend, model: cached.manifest.id(), detail };
        let limits = texts::limits(&mut *generator, &self.options.text, self.options.batch.overtakes_max);
        let limits = limits.map_err(|error| match error {
            engine::Error::OutOfMemory { device, detail } => {
                models::Error::OutOfMemory { device, model: cached.manifest.id(), detail }
            }
            error => refuse(format!("a first step failed: {error}")),
        })?;
        // What was tried lies in blocks that count as free.
        let blocks = Blocks::new(u32::try_from(info.blocks).unwrap_or(u32::MAX - 1), info.block_tokens);
        let scheduler = Scheduler::new(limits, blocks).map_err(|error| refuse(error.to_string()))?;
        let writer = Writer::new(scheduler, generator, Arc::clone(language.tokenizer()), self.pool.clone());
        let (does, info) = (Does::Write(language), info.as_info());
        Ok(Made { does, info, choice, runner: Runner::Writer(Box::new(writer), limits) })
    }

    /// Bytes of the device that are free in fact, where the device tells and none of our own batches takes some for a moment.
    fn measured_free(&self, seat: &Seat) -> Option<u64> {
        let free = (self.options.compute.free_memory.as_ref()?)(seat.device)?;
        (seat.queue.depth().0 == 0).then_some(free)
    }

    /// Tells the ledger what other programs have taken of the device.
    fn look_at_others(&self, seat: &Seat) {
        if let Some(free) = self.measured_free(seat) {
            seat.ledger.lock().unwrap_or_else(PoisonError::into_inner).observe(free);
        }
    }

    /// Unloads models that nobody uses, the least recently used first, until there is room.
    fn make_room(&self, seat_index: usize, id: &str, need: u64) -> Result<(), Error> {
        let seat = &self.seats[seat_index];
        self.look_at_others(seat);
        // A model may come into use between the plan and its eviction; then there is another plan.
        for _ in 0..8 {
            let idle: Vec<(Idle, String)> = {
                let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
                let can_go = |r: &&Arc<Resident>| r.seat == seat_index && r.uses() == 0 && !self.cache.is_pinned(&r.id);
                let idle = |r: &Arc<Resident>| (Idle { lane: r.lane, last_used: r.last_used() }, r.id.clone());
                residents.values().filter(can_go).map(idle).collect()
            };
            let plan = {
                let ledger = seat.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                let idle: Vec<Idle> = idle.iter().map(|(idle, _)| *idle).collect();
                ledger.plan(id, need, &idle)?
            };
            if plan.is_empty() {
                return Ok(());
            }
            for lane in plan {
                let victim = idle.iter().find(|(idle, _)| idle.lane == lane);
                let Some(victim) = victim.and_then(|(_, id)| self.remove_if_unused(id)) else { break };
                tracing::info!(model = victim.id, "unloaded to make room for {id}");
                self.take_down(&victim, &Error::Unloaded { model: victim.id.clone() });
            }
        }
        Err(Error::Unloaded { model: id.to_owned() })
    }

    fn remove_if_unused(&self, id: &str) -> Option<Arc<Resident>> {
        let mut residents = self.residents.write().unwrap_or_else(PoisonError::into_inner);
        if residents.get(id)?.uses() > 0 {
            return None;
        }
        residents.remove(id)
    }

    /// Closes a resident's lane and drops its engine. Blocks until the device's thread has done so.
    pub(super) fn take_down(&self, resident: &Resident, error: &Error) {
        let seat = &self.seats[resident.seat];
        seat.queue.close_lane(resident.lane, error);
        let (done, wait) = sync_channel(1);
        if seat.queue.command(Command::Remove(resident.lane, done)) {
            // An error means that the thread has ended, and its engines with it.
            let _ = wait.recv();
        }
        seat.ledger.lock().unwrap_or_else(PoisonError::into_inner).release(resident.lane);
        // What was not given back counts as another's from now on.
        self.look_at_others(seat);
    }

    pub(super) async fn take_down_soon(self: &Arc<Self>, resident: Arc<Resident>, error: Error) {
        let inner = Arc::clone(self);
        let down = tokio::task::spawn_blocking(move || inner.take_down(&resident, &error));
        if down.await.is_err() {
            tracing::error!("unloading a model crashed");
        }
    }

    /// Puts what was loaded on the device's thread, and opens its lane.
    fn install(&self, seat: &Seat, lane: LaneId, model: &str, runner: Runner, health: &Arc<Health>) -> bool {
        let (done, wait) = sync_channel(1);
        let (watcher, model) = (Arc::<Health>::clone(health), model.to_owned());
        match runner {
            Runner::Engine(engine, limits) => {
                let engine = thread::Seat { engine, model, watcher };
                let is_installed = seat.queue.command(Command::Install(lane, engine, done)) && wait.recv().is_ok();
                if is_installed {
                    seat.queue.set_lane(lane, limits, true);
                }
                is_installed
            }
            Runner::Writer(writer, _) => {
                let desk = Box::new(Desk { writer: *writer, model, watcher });
                seat.queue.command(Command::Furnish(lane, desk, done)) && wait.recv().is_ok()
            }
        }
    }

    /// The health of a model, which has it loaded again when its engine crashed. Loading would keep the device from its
    /// other models, so it has a thread of its own.
    fn health(
        self: &Arc<Self>,
        seat: usize,
        lane: LaneId,
        cached: &Arc<CachedModel>,
        cache_bytes: u64,
        health: &Weak<Health>,
    ) -> Health {
        let inner = Arc::downgrade(self);
        let cached = Arc::clone(cached);
        let health = health.clone();
        let reload = move |condition: Condition| {
            let (Some(inner), Some(health)) = (inner.upgrade(), health.upgrade()) else { return };
            let cached = Arc::clone(&cached);
            let id = cached.manifest.id();
            let work = move || match condition {
                Condition::Reloading => inner.reload(seat, lane, &cached, cache_bytes, &health),
                Condition::Ready | Condition::Broken => inner.give_up(seat, lane, &cached),
            };
            if std::thread::Builder::new().name(format!("reload-{id}")).spawn(work).is_err() {
                tracing::error!(model = id, "the system refuses a thread, so the model stays out of use");
            }
        };
        let failures = Arc::clone(&self.seats[seat].failures);
        let panics_max = self.options.devices.panics_max;
        Health::new(panics_max, failures, Arc::clone(&self.metrics), Box::new(reload))
    }

    fn reload(&self, seat_index: usize, lane: LaneId, cached: &CachedModel, cache_bytes: u64, health: &Arc<Health>) {
        let seat = &self.seats[seat_index];
        let id = cached.manifest.id();
        match self.load_files(cached, seat, cache_bytes) {
            Ok(made) => {
                let is_wanted = || {
                    let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
                    residents.get(&id).is_some_and(|resident| resident.lane == lane)
                };
                if !is_wanted() || !self.install(seat, lane, &id, made.runner, health) {
                    return;
                }
                if is_wanted() {
                    tracing::info!(model = id, "loaded again");
                    return;
                }
                // It was unloaded just now: its place must not be taken again.
                seat.queue.close_lane(lane, &Error::Unloaded { model: id });
                let (done, _) = sync_channel(1);
                seat.queue.command(Command::Remove(lane, done));
            }
            Err(error) => {
                tracing::error!(model = id, "could not be loaded again: {error}");
                health.set(Condition::Broken);
                self.give_up(seat_index, lane, cached);
            }
        }
    }

    /// Fails what waits for a model that is out of use. It stays listed, so that its owner sees it.
    fn give_up(&self, seat: usize, lane: LaneId, cached: &CachedModel) {
        let error = Error::Broken { model: cached.manifest.id(), times: self.options.devices.panics_max };
        self.seats[seat].queue.close_lane(lane, &error);
    }
}
