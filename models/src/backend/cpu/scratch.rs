//! Memory that threads keep.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The calling thread's. Threads of the pool have their own; nobody else comes here.
pub(super) fn mine<T>(of_threads: &[Mutex<T>]) -> MutexGuard<'_, T> {
    lock(&of_threads[rayon::current_thread_index().unwrap_or(0) % of_threads.len()])
}

/// Whatever became of the thread that had it before.
pub(super) fn lock<T>(memory: &Mutex<T>) -> MutexGuard<'_, T> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}
