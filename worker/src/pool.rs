//! The CPU pool: closures go in, their values come out; tokenising, post-processing and the JSON of big bodies run here
//! and not on the async threads. Bounded: who finds it full waits. Work of a caller who left is not begun.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use crate::Error;

type Work = Box<dyn FnOnce() + Send>;

/// A fixed number of threads. Cheap to clone; the threads end when the last clone is gone.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Done before all other work.
    first: VecDeque<Work>,
    work: VecDeque<Work>,
    closed: bool,
}

/// Closures that may wait per thread. More would only hide that the pool is the bottleneck: waiting outside is as good.
const WAITING_PER_THREAD: usize = 64;

impl Pool {
    /// A pool of so many threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new() });
        // Made first: when a thread is refused, dropping the handle ends those already there.
        let pool = Self(Arc::new(Handle {
            shared: Arc::clone(&shared),
            room: Arc::new(Semaphore::new(threads * WAITING_PER_THREAD)),
        }));
        for index in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Runs a closure on the pool. Dropping the future before it began means that it never does.
    ///
    /// # Errors
    /// When the closure panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let room = Arc::clone(&self.0.room).acquire_owned().await;
        let room = room.expect("the semaphore is never closed");
        let (sender, receiver) = oneshot::channel();
        self.0.shared.push(
            |queue| &mut queue.work,
            Box::new(move || {
                let _room = room;
                if sender.is_closed() {
                    return;
                }
                if let Ok(value) = catch_unwind(AssertUnwindSafe(work)) {
                    // A caller who left meanwhile is not an error.
                    let _ = sender.send(value);
                }
            }),
        );
        receiver.await.map_err(|_| Error::Internal("a CPU task crashed".into()))
    }

    /// Runs a closure before all others that wait, those that came so before it excepted: for what a device waits for, which must be short. It
    /// never waits for room: whoever sends has a bound on what it sends. A panic ends the closure only.
    pub fn run_first(&self, work: impl FnOnce() + Send + 'static) {
        let contained = move || drop(catch_unwind(AssertUnwindSafe(work)));
        self.0.shared.push(|queue| &mut queue.first, Box::new(contained));
    }
}

impl Shared {
    fn push(&self, to: impl FnOnce(&mut Queue) -> &mut VecDeque<Work>, work: Work) {
        to(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner)).push_back(work);
        self.wake.notify_one();
    }

    fn work(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let work = loop {
                let first = queue.first.pop_front();
                if let Some(work) = first.or_else(|| queue.work.pop_front()) {
                    break work;
                }
                if queue.closed {
                    return;
                }
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            work();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[tokio::test]
    async fn values_come_back_and_a_panic_is_an_error_that_leaves_the_pool_working() {
        let pool = Pool::new(1).unwrap();
        assert_eq!(pool.run(|| 6 * 7).await.unwrap(), 42);
        let crashed = pool.run(|| panic!("expected by this test")).await;
        assert!(matches!(crashed, Err::<(), _>(Error::Internal(_))));
        assert_eq!(pool.run(|| 6 * 7).await.unwrap(), 42);
    }

    #[tokio::test]
    async fn work_of_a_caller_who_left_is_not_begun() {
        let pool = Pool::new(1).unwrap();
        let (go, gate) = sync_channel::<()>(1);
        let (tell, told) = sync_channel::<&str>(4);
        let blocker = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || gate.recv()).await }
        });
        tokio::task::yield_now().await;
        let left = {
            let tell = tell.clone();
            let mut call = Box::pin(pool.run(move || tell.send("left")));
            // Polled once, so that it waits in the queue; then its caller goes.
            assert!(futures_util::poll!(&mut call).is_pending());
            call
        };
        drop(left);
        go.send(()).unwrap();
        blocker.await.unwrap().unwrap().unwrap();
        pool.run(move || tell.send("stayed")).await.unwrap().unwrap();
        assert_eq!(told.recv(), Ok("stayed"));
    }

    #[tokio::test]
    async fn what_a_device_waits_for_comes_before_all_that_waits_and_may_panic() {
        let pool = Pool::new(1).unwrap();
        let (go, gate) = sync_channel::<()>(1);
        let (tell, told) = sync_channel::<&str>(4);
        let blocker = pool.clone();
        let blocker = tokio::spawn(async move { blocker.run(move || gate.recv()).await });
        tokio::task::yield_now().await;
        let say = |word| {
            let tell = tell.clone();
            move || tell.send(word).unwrap()
        };
        let mut waits = Box::pin(pool.run(say("waited")));
        assert!(futures_util::poll!(&mut waits).is_pending());
        pool.run_first(|| panic!("expected by this test"));
        pool.run_first(say("first"));
        pool.run_first(say("second"));
        go.send(()).unwrap();
        blocker.await.unwrap().unwrap().unwrap();
        waits.await.unwrap();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["first", "second", "waited"]);
    }
}
