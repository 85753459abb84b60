//! Work on a value beside the step of a device: the value goes to the CPU pool and comes back. Whoever needs it before anybody has begun takes it
//! over, and where somebody has, waits. It is dropped at once when its owner is, unless it is being worked on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::pool::Pool;

/// A value that is here, or is worked on elsewhere.
pub(super) struct Beside<T> {
    here: Option<Box<T>>,
    errand: Arc<Errand<T>>,
    work: fn(&mut T),
}

/// The work panicked, and the value is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crashed;

struct Errand<T> {
    stage: Mutex<Stage<T>>,
    ended: Condvar,
}

/// How far the value has come that was sent.
enum Stage<T> {
    /// It is not here: with its owner, or at work.
    Away,
    /// Nobody has begun.
    Waits(Box<T>),
    /// It is worked on.
    Runs,
    /// It may be fetched.
    Done(Result<Box<T>, Crashed>),
}

impl<T> Errand<T> {
    fn stage(&self) -> MutexGuard<'_, Stage<T>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the value, if nobody has begun.
    fn begin(&self) -> Option<Box<T>> {
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Runs) {
            Stage::Waits(value) => Some(value),
            other => {
                *stage = other;
                None
            }
        }
    }
}

/// Works on a value. One over which the work panicked may panic again when it is dropped.
fn carry_out<T>(mut value: Box<T>, work: fn(&mut T)) -> Result<Box<T>, Crashed> {
    match catch_unwind(AssertUnwindSafe(|| work(&mut value))) {
        Ok(()) => Ok(value),
        Err(_) => {
            drop(catch_unwind(AssertUnwindSafe(|| drop(value))));
            Err(Crashed)
        }
    }
}

impl<T: Send + 'static> Beside<T> {
    /// A value that is here, with what is to be done to it when it is sent.
    pub(super) fn new(value: T, work: fn(&mut T)) -> Self {
        let errand = Errand { stage: Mutex::new(Stage::Away), ended: Condvar::new() };
        Self { here: Some(Box::new(value)), errand: Arc::new(errand), work }
    }

    /// Sends the value to be worked on. One that is not here goes on as it is.
    pub(super) fn send(&mut self, pool: &Pool) {
        let Some(value) = self.here.take() else { return };
        *self.errand.stage() = Stage::Waits(value);
        let (errand, work) = (Arc::clone(&self.errand), self.work);
        pool.run_first(move || {
            let Some(value) = errand.begin() else { return };
            let done = carry_out(value, work);
            *errand.stage() = Stage::Done(done);
            errand.ended.notify_all();
        });
    }

    /// The value, where it is here or has come back.
    ///
    /// # Errors
    /// [`Crashed`], then and ever after.
    pub(super) fn get(&mut self) -> Result<Option<&mut T>, Crashed> {
        if self.here.is_none() {
            let mut stage = self.errand.stage();
            match std::mem::replace(&mut *stage, Stage::Away) {
                Stage::Done(Ok(value)) => self.here = Some(value),
                Stage::Done(Err(Crashed)) => {
                    *stage = Stage::Done(Err(Crashed));
                    return Err(Crashed);
                }
                other => *stage = other,
            }
        }
        Ok(self.here.as_deref_mut())
    }

    /// Sees to it that the value is back: does the work that nobody has begun, or waits for who has.
    pub(super) fn wait(&mut self) {
        if let Some(value) = self.errand.begin() {
            let done = carry_out(value, self.work);
            *self.errand.stage() = Stage::Done(done);
        }
        let is_at_work = |stage: &mut Stage<T>| matches!(stage, Stage::Runs);
        let ended = self.errand.ended.wait_while(self.errand.stage(), is_at_work);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        drop(self.errand.begin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// Counts how often it is worked on, and waits for a word when it is told to.
    struct Value {
        worked: usize,
        gate: Option<(SyncSender<()>, Receiver<()>)>,
        crashes: bool,
        dropped: Arc<AtomicUsize>,
    }

    impl Drop for Value {
        fn drop(&mut self) {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn work(value: &mut Value) {
        value.worked += 1;
        if let Some((begun, go)) = value.gate.take() {
            begun.send(()).unwrap();
            go.recv().ok();
        }
        assert!(!value.crashes, "expected by this test");
    }

    fn value() -> (Value, Arc<AtomicUsize>) {
        let dropped = Arc::<AtomicUsize>::default();
        (Value { worked: 0, gate: None, crashes: false, dropped: Arc::clone(&dropped) }, dropped)
    }

    /// A pool of one thread, and what keeps it from doing anything until it is dropped.
    fn busy_pool() -> (Pool, SyncSender<()>) {
        let pool = Pool::new(1).unwrap();
        let (release, gate) = sync_channel::<()>(0);
        let begun = Arc::new(Barrier::new(2));
        pool.run_first({
            let begun = Arc::clone(&begun);
            move || {
                begun.wait();
                gate.recv().ok();
            }
        });
        begun.wait();
        (pool, release)
    }

    fn worked(beside: &mut Beside<Value>) -> Option<usize> {
        beside.get().unwrap().map(|value| value.worked)
    }

    #[test]
    fn what_is_sent_comes_back_worked_on_once_whoever_does_it() {
        let mut beside = Beside::new(value().0, work);
        assert_eq!(worked(&mut beside), Some(0), "it has not been sent");
        let pool = Pool::new(1).unwrap();
        for round in 1..100 {
            beside.send(&pool);
            beside.send(&pool);
            beside.wait();
            assert_eq!(worked(&mut beside), Some(round));
        }
        let (pool, release) = busy_pool();
        beside.send(&pool);
        assert_eq!(worked(&mut beside), None, "nobody has begun");
        beside.wait();
        assert_eq!(worked(&mut beside), Some(100), "taken over");
        beside.send(&pool);
        drop(release);
        beside.wait();
        assert_eq!(worked(&mut beside), Some(101));
    }

    #[test]
    fn what_is_being_worked_on_is_waited_for() {
        let ((begun, has_begun), (release, go)) = (sync_channel(1), sync_channel(1));
        let (mut value, _) = value();
        value.gate = Some((begun, go));
        let (mut beside, pool) = (Beside::new(value, work), Pool::new(1).unwrap());
        beside.send(&pool);
        has_begun.recv().unwrap();
        assert_eq!(worked(&mut beside), None);
        let releasing = std::thread::spawn(move || release.send(()).unwrap());
        beside.wait();
        assert_eq!(worked(&mut beside), Some(1));
        releasing.join().unwrap();
    }

    #[test]
    fn a_crash_is_told_and_harms_nobody_else() {
        let pool = Pool::new(1).unwrap();
        let crashing = || {
            let (mut value, _) = value();
            value.crashes = true;
            Beside::new(value, work)
        };
        let (mut on_pool, mut here) = (crashing(), crashing());
        on_pool.send(&pool);
        on_pool.wait();
        assert_eq!(on_pool.get().err(), Some(Crashed));
        assert_eq!(on_pool.get().err(), Some(Crashed), "ever after");
        on_pool.send(&pool);
        on_pool.wait();
        let (busy, _release) = busy_pool();
        here.send(&busy);
        here.wait();
        assert_eq!(here.get().err(), Some(Crashed));
        let mut sound = Beside::new(value().0, work);
        sound.send(&pool);
        sound.wait();
        assert_eq!(worked(&mut sound), Some(1));
    }

    #[test]
    fn who_leaves_has_its_value_dropped_at_once_and_no_work_done_on_it() {
        let (pool, release) = busy_pool();
        let (value, dropped) = value();
        let mut beside = Beside::new(value, work);
        beside.send(&pool);
        drop(beside);
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        drop(release);
    }
}
