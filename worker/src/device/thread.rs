//! The thread that owns a device: batches and commands go in from its queue, outputs go back into it. Engines live here
//! and nowhere else, so they need no locks. A failing batch is run again item by item, so that only the item at fault
//! fails; a panic fails its batch, takes the engine out of use and never ends the thread. Models that write text take turns with
//! batches: a batch, then a step of each.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use models::engine::{self, Engine, Item, Output, Side};

use super::desk::{Answer, Desk, NotTaken};
use crate::Error;
use crate::batch::backlog::{Batch, JobId, LaneId, halves};
use crate::batch::{Queue, Work};
use crate::generate::Figures;
use crate::generate::writer::{Ask, Failure};

/// What the thread is told to do beside batches. Each says when it is done on its channel.
#[derive(Debug)]
pub enum Command {
    /// Put an engine on a lane, in place of the one that is there.
    Install(LaneId, Seat, SyncSender<()>),
    /// Put one that writes text on a lane, in place of the one that is there.
    Furnish(LaneId, Box<Desk>, SyncSender<()>),
    /// Drop a lane's engine, and with it its memory.
    Remove(LaneId, SyncSender<()>),
    /// Write a text.
    Write(LaneId, Box<Ask>, Answer),
}

/// An engine with what the thread must know of it.
pub struct Seat {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// `name@version`.
    pub model: String,
    /// Told of what happens to it.
    pub watcher: Arc<dyn Watcher>,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("model", &self.model).finish_non_exhaustive()
    }
}

/// Is told what happens on the device. Called on its thread, so it must be quick.
pub trait Watcher: Send + Sync {
    /// A batch was answered.
    fn ran(&self, report: Report);
    /// A run failed with this error.
    fn failed(&self, error: &engine::Error);
    /// The engine is in its place, for the first time or again.
    fn installed(&self);
    /// The engine panicked. It is dropped and its lane is held.
    fn panicked(&self);
    /// How things stand with the texts of a model that writes.
    fn stands(&self, figures: Figures);
}

/// A batch that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Items in it.
    pub items: usize,
    /// Sum of their costs.
    pub cost: usize,
    /// When it started.
    pub started: Instant,
}

/// Runs until the queue is stopped.
pub fn run(queue: &Queue<Command>) {
    let (mut seats, mut desks) = (Seats::new(), Desks::new());
    loop {
        let is_writing = desks.values().any(|desk| desk.is_busy());
        match if is_writing { queue.take_now() } else { Some(queue.take()) } {
            Some(Work::Stop) => break,
            Some(Work::Command(command)) => {
                carry_out(&mut seats, &mut desks, command);
                continue;
            }
            Some(Work::Batch(batch)) => run_batch(queue, &mut seats, batch, if is_writing { 1 } else { IN_A_ROW }),
            None => {}
        }
        let crashed: Vec<LaneId> =
            desks.iter_mut().filter_map(|(lane, desk)| (desk.is_busy() && !desk.step()).then_some(*lane)).collect();
        crashed.iter().filter_map(|lane| desks.remove(lane)).for_each(|desk| desk.crash());
    }
    seats.into_values().for_each(drop_quietly);
    desks.into_values().for_each(|desk| desk.clear(&Failure::Unloaded));
}

type Seats = HashMap<LaneId, Seat>;
type Desks = HashMap<LaneId, Box<Desk>>;

fn run_batch(queue: &Queue<Command>, seats: &mut Seats, batch: Batch, in_a_row: usize) {
    let lane = batch.lane;
    let Some(seat) = seats.get_mut(&lane) else {
        // The lane is opened after its engine is installed and closed before it is removed.
        queue.fail(&batch.origins, &Error::Internal("a batch came for a model that is not there".into()));
        return;
    };
    let result = if batch.is_side {
        side_by_side(queue, seat, batch, in_a_row)
    } else {
        Run { queue, seat, batch: &batch }.all()
    };
    if let Err(Panicked) = result
        && let Some(seat) = seats.remove(&lane)
    {
        let watcher = Arc::clone(&seat.watcher);
        drop_quietly(seat);
        watcher.panicked();
    }
}

fn carry_out(seats: &mut Seats, desks: &mut Desks, command: Command) {
    let remove = |seats: &mut Seats, desks: &mut Desks, lane: &LaneId| {
        seats.remove(lane).into_iter().for_each(drop_quietly);
        desks.remove(lane).into_iter().for_each(|desk| desk.clear(&Failure::Unloaded));
    };
    let done = match command {
        Command::Install(lane, seat, done) => {
            remove(seats, desks, &lane);
            seat.watcher.installed();
            seats.insert(lane, seat);
            done
        }
        Command::Furnish(lane, desk, done) => {
            remove(seats, desks, &lane);
            desk.watcher.installed();
            desks.insert(lane, desk);
            done
        }
        Command::Remove(lane, done) => {
            remove(seats, desks, &lane);
            done
        }
        Command::Write(lane, ask, answer) => {
            let Some(desk) = desks.get_mut(&lane) else {
                return drop(answer.send(Err(NotTaken::NoDesk(ask))));
            };
            if let Err(answer) = desk.take(*ask, answer) {
                desks.remove(&lane).into_iter().for_each(|desk| desk.crash());
                drop(answer.send(Err(NotTaken::Crashed)));
            }
            return;
        }
    };
    // Whoever gave the command may have gone.
    let _ = done.try_send(());
}

/// An engine that panicked may panic again when it is dropped.
fn drop_quietly(seat: Seat) {
    let model = seat.model.clone();
    if catch_unwind(AssertUnwindSafe(move || drop(seat))).is_err() {
        tracing::error!(model, "the engine crashed while it was taken down; some of its memory may be lost");
    }
}

struct Panicked;

/// Batches that one side runs in a row at most, so that whoever else wants the engine's threads gets them soon.
const IN_A_ROW: usize = 16;

/// Runs this batch and more of its lane, on all sides of the engine, until one of them finds no more. A batch that fails there
/// is run again after that, and alone.
fn side_by_side(queue: &Queue<Command>, seat: &mut Seat, first: Batch, in_a_row: usize) -> Result<(), Panicked> {
    let (lane, watcher, backend) = (first.lane, Arc::clone(&seat.watcher), seat.engine.info().backend);
    let (first, failed, is_over) = (Mutex::new(Some(first)), Mutex::new(vec![]), AtomicBool::new(false));
    let of = |first: &Mutex<Option<Batch>>| first.lock().unwrap_or_else(PoisonError::into_inner).take();
    seat.engine.run_sides(&|side| {
        for _ in 0..in_a_row {
            let Some(batch) = of(&first).or_else(|| queue.take_side(lane)) else { break };
            let started = Instant::now();
            let Attempt::Outputs(outputs) = attempt(side, backend, &batch.items) else {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
                break;
            };
            answer(queue, &*watcher, &batch.items, &batch.origins, started, outputs);
            if is_over.load(Ordering::Relaxed) {
                return;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let mut left = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    left.extend(of(&first));
    let mut left = left.into_iter();
    let result = left.by_ref().try_for_each(|batch| Run { queue, seat, batch: &batch }.all());
    for batch in left {
        queue.fail(&batch.origins, &Error::Panicked { model: seat.model.clone() });
    }
    result
}

/// Tells of a batch that went well, and hands its outputs back.
fn answer(
    queue: &Queue<Command>,
    watcher: &dyn Watcher,
    items: &[Item],
    origins: &[(JobId, usize)],
    started: Instant,
    outputs: Vec<Output>,
) {
    let cost = items.iter().map(Item::cost).sum();
    watcher.ran(Report { items: items.len(), cost, started });
    queue.deliver(origins.iter().copied().zip(outputs));
}

/// A batch on its way through an engine.
struct Run<'a> {
    queue: &'a Queue<Command>,
    seat: &'a mut Seat,
    batch: &'a Batch,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), Panicked> {
        self.range(0..self.batch.items.len())
    }

    /// Runs part of the batch, in smaller parts where it fails.
    fn range(&mut self, range: Range<usize>) -> Result<(), Panicked> {
        let started = Instant::now();
        let items = &self.batch.items[range.clone()];
        let engine = &mut *self.seat.engine;
        let backend = engine.info().backend;
        let error = match attempt(&mut |items| engine.run(items), backend, items) {
            Attempt::Outputs(outputs) => {
                answer(self.queue, &*self.seat.watcher, items, &self.batch.origins[range], started, outputs);
                return Ok(());
            }
            Attempt::Failed(error) => error,
            Attempt::Panicked(words) => {
                tracing::error!(model = self.seat.model, items = items.len(), "the engine crashed: {words}");
                // Held first: nothing may be sent to a lane whose engine is going.
                self.queue.hold_lane(self.batch.lane);
                let rest = &self.batch.origins[range.start..];
                self.queue.fail(rest, &Error::Panicked { model: self.seat.model.clone() });
                return Err(Panicked);
            }
        };
        self.seat.watcher.failed(&error);
        tracing::warn!(model = self.seat.model, items = range.len(), "a batch failed: {error}");
        match error {
            engine::Error::OutOfMemory { .. } if range.len() > 1 => {
                let cost = items.iter().map(Item::cost).sum();
                self.queue.halve(self.batch.lane, cost, range.len());
                halves(range).into_iter().try_for_each(|half| self.wanted(half))
            }
            engine::Error::Input(_) | engine::Error::Backend { .. } if range.len() > 1 => {
                range.into_iter().try_for_each(|index| self.wanted(index..index + 1))
            }
            error => {
                let error = Error::Engine { model: self.seat.model.clone(), error };
                self.queue.fail(&self.batch.origins[range], &error);
                Ok(())
            }
        }
    }

    /// The same, unless nobody waits for it any more.
    fn wanted(&mut self, range: Range<usize>) -> Result<(), Panicked> {
        if self.batch.origins[range.clone()].iter().any(|&(job, _)| self.queue.is_wanted(job)) {
            return self.range(range);
        }
        Ok(())
    }
}

enum Attempt {
    Outputs(Vec<Output>),
    Failed(engine::Error),
    Panicked(String),
}

fn attempt(run: Side<'_>, backend: &'static str, items: &[Item]) -> Attempt {
    match catch_unwind(AssertUnwindSafe(|| run(items))) {
        Ok(Ok(outputs)) if outputs.len() == items.len() => Attempt::Outputs(outputs),
        Ok(Ok(outputs)) => Attempt::Failed(engine::Error::Backend {
            backend,
            detail: format!("{} outputs came for {} items", outputs.len(), items.len()),
        }),
        Ok(Err(error)) => Attempt::Failed(error),
        Err(panic) => Attempt::Panicked(words_of(&*panic)),
    }
}

/// What a panic says.
pub fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::backlog::Submission;
    use crate::batch::policy::{Limits, Policy};
    use models::engine::{Device, Info, Tokens};
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    /// Answers with the first id; 13 fails its batch, 666 panics, more than `room` items do not fit.
    struct Marked {
        info: Info,
        room: usize,
        sides: usize,
    }

    impl Engine for Marked {
        fn info(&self) -> &Info {
            &self.info
        }

        fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, engine::Error> {
            self.answer(items)
        }

        fn sides(&self) -> usize {
            self.sides
        }

        fn run_sides(&mut self, work: &(dyn Fn(Side<'_>) + Sync)) {
            std::thread::scope(|scope| {
                for _ in 0..self.sides {
                    scope.spawn(|| work(&mut |items| self.answer(items)));
                }
            });
        }
    }

    impl Marked {
        fn answer(&self, items: &[Item]) -> Result<Vec<Output>, engine::Error> {
            if items.len() > self.room {
                return Err(engine::Error::OutOfMemory { device: Device::Cpu, detail: "full".into() });
            }
            let ids: Vec<u32> =
                items.iter().map(|item| if let Item::Tokens(t) = item { t.ids[0] } else { 0 }).collect();
            assert!(!ids.contains(&666), "expected by this test");
            if ids.contains(&13) {
                return Err(engine::Error::Backend { backend: "marked", detail: "13".into() });
            }
            Ok(ids.iter().map(|id| Output::Vector(vec![*id as f32])).collect())
        }
    }

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Watcher for Seen {
        fn ran(&self, report: Report) {
            self.0.lock().unwrap().push(format!("ran {}", report.items));
        }

        fn failed(&self, _: &engine::Error) {
            self.0.lock().unwrap().push("failed".into());
        }

        fn installed(&self) {}

        fn panicked(&self) {
            self.0.lock().unwrap().push("panicked".into());
        }

        fn stands(&self, _: Figures) {}
    }

    /// Gives the ids as one job each, runs them in batches of this limit, and gives what came of each and what was seen.
    fn run_all(room: usize, cost: usize, sides: usize, ids: &[u32]) -> (Vec<Option<f32>>, Vec<String>) {
        let info = Info {
            backend: "marked",
            provider: "test".into(),
            library: None,
            device: Device::Cpu,
            execution_class: "test".into(),
            weights_bytes: 0,
            inputs: vec![],
            outputs: vec![],
            vector_len: Some(1),
            max_tokens: None,
            batches_rows: false,
        };
        let queue = Queue::new(Policy { overtakes_max: 8 });
        let watcher = Arc::new(Seen::default());
        let (done, wait) = sync_channel(1);
        let engine = Box::new(Marked { info, room, sides });
        let seat = Seat { engine, model: "m@1".into(), watcher: Arc::<Seen>::clone(&watcher) };
        queue.command(Command::Install(1, seat, done));
        queue.set_lane(1, Limits { cost, items: 100, wait: Duration::ZERO, sides, side_cost: cost / sides }, true);
        let submit = |&id: &u32| {
            let items = vec![Item::Tokens(Tokens { ids: vec![id], type_ids: vec![] })];
            queue.submit(1, Submission { items, priority: 5, deadline: None }).unwrap()
        };
        let tickets: Vec<_> = ids.iter().map(submit).collect();
        let thread = std::thread::spawn({
            let queue = queue.clone();
            move || run(&queue)
        });
        wait.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let of = |ran: crate::batch::Ran| match &ran.outputs[..] {
            [Output::Vector(values)] => values[0],
            other => panic!("{other:?}"),
        };
        let got: Vec<_> = tickets.into_iter().map(|t| runtime.block_on(t.outputs()).ok().map(of)).collect();
        queue.stop(&Error::Draining);
        thread.join().unwrap();
        (got, watcher.0.lock().unwrap().clone())
    }

    /// All as one batch.
    fn check(room: usize, ids: &[u32], want: &[Option<f32>], seen: &[&str]) {
        let (got, saw) = run_all(room, 100, 1, ids);
        assert_eq!(got, want);
        assert_eq!(saw, seen);
    }

    #[test]
    fn batches_side_by_side_are_answered_each_to_its_own() {
        let ids: Vec<u32> = (100..400).collect();
        let (got, saw) = run_all(9, 8, 2, &ids);
        assert_eq!(got, ids.iter().map(|id| Some(*id as f32)).collect::<Vec<_>>());
        // 300 in batches of four, but for the last ones, which fit one batch.
        assert!(saw.iter().filter(|saw| **saw == "ran 4").count() >= 70, "{saw:?}");
    }

    #[test]
    fn what_fails_on_one_side_fails_alone() {
        let mut ids: Vec<u32> = (100..200).collect();
        ids[31] = 13;
        let want: Vec<_> = ids.iter().map(|id| (*id != 13).then_some(*id as f32)).collect();
        let (got, saw) = run_all(9, 8, 2, &ids);
        assert_eq!(got, want);
        assert_eq!(saw.iter().filter(|saw| **saw == "failed").count(), 2, "its batch, and then it alone: {saw:?}");
        // Sides that have no room, which one alone has not either.
        assert_eq!(run_all(2, 8, 2, &ids).0, want);
    }

    #[test]
    fn a_panic_on_one_side_takes_the_engine_out_of_use() {
        // The last of the batches that run: the others of both sides are answered before or after it.
        let mut ids: Vec<u32> = (100..112).collect();
        ids[11] = 666;
        let (got, saw) = run_all(9, 8, 2, &ids);
        assert_eq!(got[..8], ids[..8].iter().map(|id| Some(*id as f32)).collect::<Vec<_>>());
        assert_eq!(got[8..], [None; 4]);
        assert_eq!(saw.iter().filter(|saw| **saw == "panicked").count(), 1, "{saw:?}");
    }

    #[test]
    fn a_batch_is_answered_as_one() {
        check(9, &[1, 2, 3], &[Some(1.0), Some(2.0), Some(3.0)], &["ran 3"]);
    }

    #[test]
    fn of_a_failing_batch_only_the_item_at_fault_fails() {
        let seen = ["failed", "ran 1", "failed", "ran 1"];
        check(9, &[1, 13, 3], &[Some(1.0), None, Some(3.0)], &seen);
    }

    #[test]
    fn a_batch_without_room_is_halved_until_it_fits() {
        let all = [Some(1.0), Some(2.0), Some(3.0), Some(4.0)];
        check(2, &[1, 2, 3, 4], &all, &["failed", "ran 2", "ran 2"]);
        check(0, &[1], &[None], &["failed"]);
    }

    #[test]
    fn a_panic_fails_its_batch_and_not_the_thread() {
        check(9, &[1, 666], &[None, None], &["panicked"]);
    }
}
