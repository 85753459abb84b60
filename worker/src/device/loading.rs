//! From verified files to an engine on a device's thread, and back: room is made first, then the model is loaded, then its
//! lane is opened. A model whose engine crashed is loaded again on the same lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Instant;

use models::Loaded;

use super::ledger::Idle;
use super::placement::{self, Candidate};
use super::resident::{Condition, Health, New, Resident};
use super::thread::{self, Command, words_of};
use super::{Inner, Seat};
use crate::Error;
use crate::batch::backlog::LaneId;
use crate::batch::policy::Limits;
use crate::cache::CachedModel;

impl Inner {
    /// Loads a model on the device that suits it.
    pub(super) async fn load(self: &Arc<Self>, cached: Arc<CachedModel>) -> Result<(), Error> {
        let id = cached.manifest.id();
        let need = models::load::memory_need_bytes(&cached.manifest, self.options.compute.backend);
        let choice = placement::place(&id, need, self.options.devices.force, &self.candidates())?;
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

    fn load_on(self: &Arc<Self>, cached: Arc<CachedModel>, need: u64, choice: placement::Choice) -> Result<(), Error> {
        let id = cached.manifest.id();
        let seat = &self.seats[choice.index];
        self.make_room(choice.index, &id, need)?;
        let lane = self.next_lane.fetch_add(1, Ordering::Relaxed);
        let ledger = || seat.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger().reserve(lane, &id, need);
        let started = Instant::now();
        let (loaded, limits) = self.load_files(&cached, seat).inspect_err(|_| ledger().release(lane))?;
        // What was reserved counts what batches need too, so it stays unless the weights alone are more.
        let memory_bytes = need.max(loaded.engine.info().weights_bytes);
        ledger().reserve(lane, &id, memory_bytes);

        let info = loaded.engine.info().clone();
        let health = Arc::new_cyclic(|health| self.health(choice.index, lane, &cached, health));
        if !self.install(seat, lane, &id, loaded.engine, &health) {
            ledger().release(lane);
            return Err(Error::Draining);
        }
        seat.queue.set_lane(lane, limits, true);
        let resident = Arc::new(Resident::new(New {
            cached,
            pipeline: loaded.pipeline,
            info,
            choice: loaded.choice,
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
            batch = limits.cost,
            sides = limits.sides,
            side = limits.side_cost,
            "loaded: {}; {}",
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

    /// Runs the loader, and finds out how large batches should be. A loader or an engine that panics is an error like another.
    fn load_files(&self, cached: &CachedModel, seat: &Seat) -> Result<(Loaded, Limits), Error> {
        let compute = &self.options.compute;
        let options = models::Options {
            backend: compute.backend,
            device: seat.device,
            threads: compute.threads,
            onnx_library: compute.onnx_library.clone(),
        };
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            let mut loaded = match &compute.loader {
                Some(loader) => loader(&cached.manifest, &cached.folder, &options),
                None => models::load(&cached.manifest, &cached.folder, &options),
            }?;
            let limits = self.limits(&mut *loaded.engine);
            Ok((loaded, limits))
        }));
        let model = cached.manifest.id();
        match attempt {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error)) => Err(Error::Load { model, device: seat.device, error: Arc::new(error) }),
            Err(panic) => {
                Err(Error::Internal(format!("loading {model} on {} crashed: {}", seat.device, words_of(&*panic))))
            }
        }
    }

    /// Unloads models that nobody uses, the least recently used first, until there is room.
    fn make_room(&self, seat_index: usize, id: &str, need: u64) -> Result<(), Error> {
        let seat = &self.seats[seat_index];
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
    }

    pub(super) async fn take_down_soon(self: &Arc<Self>, resident: Arc<Resident>, error: Error) {
        let inner = Arc::clone(self);
        let down = tokio::task::spawn_blocking(move || inner.take_down(&resident, &error));
        if down.await.is_err() {
            tracing::error!("unloading a model crashed");
        }
    }

    fn install(
        &self,
        seat: &Seat,
        lane: LaneId,
        model: &str,
        engine: Box<dyn models::Engine>,
        health: &Arc<Health>,
    ) -> bool {
        let (done, wait) = sync_channel(1);
        let watcher: Arc<Health> = Arc::clone(health);
        let engine = thread::Seat { engine, model: model.to_owned(), watcher };
        seat.queue.command(Command::Install(lane, engine, done)) && wait.recv().is_ok()
    }

    /// The health of a model, which has it loaded again when its engine crashed. Loading would keep the device from its
    /// other models, so it has a thread of its own.
    fn health(self: &Arc<Self>, seat: usize, lane: LaneId, cached: &Arc<CachedModel>, health: &Weak<Health>) -> Health {
        let inner = Arc::downgrade(self);
        let cached = Arc::clone(cached);
        let health = health.clone();
        let reload = move |condition: Condition| {
            let (Some(inner), Some(health)) = (inner.upgrade(), health.upgrade()) else { return };
            let cached = Arc::clone(&cached);
            let id = cached.manifest.id();
            let work = move || match condition {
                Condition::Reloading => inner.reload(seat, lane, &cached, &health),
                Condition::Ready | Condition::Broken => inner.give_up(seat, lane, &cached),
            };
            if std::thread::Builder::new().name(format!("reload-{id}")).spawn(work).is_err() {
                tracing::error!(model = id, "the system refuses a thread, so the model stays out of use");
            }
        };
        let failing = Arc::clone(&self.seats[seat].failing);
        let panics_max = self.options.devices.panics_max;
        Health::new(panics_max, failing, Arc::clone(&self.metrics), Box::new(reload))
    }

    fn reload(&self, seat_index: usize, lane: LaneId, cached: &CachedModel, health: &Arc<Health>) {
        let seat = &self.seats[seat_index];
        let id = cached.manifest.id();
        match self.load_files(cached, seat) {
            Ok((loaded, limits)) => {
                let is_wanted = || {
                    let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
                    residents.get(&id).is_some_and(|resident| resident.lane == lane)
                };
                if !is_wanted() || !self.install(seat, lane, &id, loaded.engine, health) {
                    return;
                }
                health.set(Condition::Ready);
                seat.queue.set_lane(lane, limits, true);
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
