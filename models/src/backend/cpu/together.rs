//! The threads of a pool on one batch. Tasks come in, results go out, and nobody falls asleep between two of them: a batch has dozens of
//! steps of less than a millisecond, each of which waits for the one before it, and a thread that sleeps takes longer to wake than it
//! would have waited. Never a choice of what a task is.

use super::scratch::lock;
use rayon::{ThreadPool, Yield};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often a thread without work looks for some before it offers its core to other processes, and then each time again.
const LOOKS: usize = 64;

/// How long a thread without work stays awake: longer than any step that ends as it should takes. If it is longer in coming, something
/// else has the cores, and it is better to leave them to it.
const AWAKE: Duration = Duration::from_millis(5);

/// Runs a batch on a thread of the pool, while the others stand by for its tasks.
pub(super) fn together<R: Send>(pool: &ThreadPool, batch: impl FnOnce() -> R + Send) -> R {
    pool.install(|| {
        let is_over = Over(Arc::default());
        if rayon::current_num_threads() > 1 {
            let (leader, is_over) = (rayon::current_thread_index(), is_over.0.clone());
            rayon::spawn_broadcast(move |context| {
                // The leader may come by here when it looks for tasks.
                if Some(context.index()) != leader {
                    help(|| !is_over.load(Ordering::Acquire));
                }
            });
        }
        batch()
    })
}

/// Says that a batch is over, however it ended.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs each task, on whichever threads of the pool have time; the calling thread of the pool is one of them.
///
/// # Errors
/// What one of the tasks failed with. All have ended.
pub(super) fn each<T: Send>(mut tasks: Vec<T>, run: impl Fn(T) -> Result<(), String> + Sync) -> Result<(), String> {
    if tasks.len() <= 1 {
        return tasks.pop().map_or(Ok(()), run);
    }
    let left = AtomicUsize::new(tasks.len());
    let failure = Mutex::new(None);
    let (run, count, failed) = (&run, &left, &failure);
    rayon::in_place_scope(|scope| {
        for task in tasks {
            scope.spawn(move |_| {
                let _done = Done(count);
                if let Err(detail) = run(task) {
                    lock(failed).get_or_insert(detail);
                }
            });
        }
        help(|| left.load(Ordering::Acquire) > 0);
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Counts a task as done, even one that panics.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Runs tasks of the pool for as long as that is asked for, or until none has come for too long: then the pool's own way of waiting,
/// which sleeps, takes over.
fn help(is_wanted: impl Fn() -> bool) {
    let (mut looks, mut since) = (0, Instant::now());
    while is_wanted() {
        match rayon::yield_now() {
            Some(Yield::Executed) => (looks, since) = (0, Instant::now()),
            Some(Yield::Idle) | None if looks < LOOKS => {
                looks += 1;
                std::hint::spin_loop();
            }
            Some(Yield::Idle) | None if since.elapsed() < AWAKE => std::thread::yield_now(),
            Some(Yield::Idle) | None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{each, together};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
    }

    #[test]
    fn every_task_runs_once_in_every_step() {
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            for steps in [1, 300] {
                let mut values = vec![0_u32; 23];
                together(&pool, || {
                    for _ in 0..steps {
                        each(values.iter_mut().collect(), |value| {
                            *value += 1;
                            Ok(())
                        })
                        .expect("no task fails");
                    }
                });
                assert_eq!(values, vec![steps; 23], "{threads} threads");
            }
        }
    }

    #[test]
    fn tasks_may_have_tasks() {
        let count = AtomicUsize::new(0);
        let inner = |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        together(&pool(3), || each((0..7).collect(), |n| each((0..n).collect(), inner))).expect("no task fails");
        assert_eq!(count.into_inner(), 21);
    }

    #[test]
    fn a_failure_is_told_when_all_have_ended() {
        let count = AtomicUsize::new(0);
        let result = together(&pool(2), || {
            each((0..9).collect(), |n| {
                count.fetch_add(1, Ordering::Relaxed);
                if n == 4 { Err(format!("task {n}")) } else { Ok(()) }
            })
        });
        assert_eq!((result, count.into_inner()), (Err("task 4".into()), 9));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = pool(2);
        let panics = || together(&pool, || each(vec![0, 1, 2], |n| if n == 1 { panic!("task 1") } else { Ok(()) }));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        together(&pool, || each(vec![(), ()], Ok)).expect("no task fails");
    }

    #[test]
    fn batches_of_several_callers_share_a_pool() {
        let pool = pool(2);
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let task = |_| {
                            count.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        };
                        together(&pool, || each((0..5).collect(), task)).expect("no task fails");
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 2000);
    }
}
