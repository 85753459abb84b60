//! The door: a [`Permit`] for a task that may come in, or a refusal at once. Full is an answer. A permit is freed by
//! drop, so a caller who leaves cannot keep a place. Never queues, never waits but for [`Admission::empty`].

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::Error;

/// Whether tasks may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// They may.
    Open,
    /// The owner wants the machine for something else.
    Paused,
    /// The worker is on its way down; it does not open again.
    Draining,
}

/// Counts the tasks inside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    capacity: usize,
    inside: AtomicUsize,
    state: AtomicU8,
    refused: AtomicU64,
    emptied: Notify,
    pace: Mutex<Pace>,
}

/// How fast tasks have been leaving, as an exponential average of the time between two of them.
#[derive(Debug)]
struct Pace {
    left: Instant,
    between_s: f64,
}

impl Pace {
    /// Weight of the newest interval: about the last twenty tasks count.
    const WEIGHT: f64 = 0.05;

    fn leave(&mut self, now: Instant) {
        let between = now.saturating_duration_since(self.left).as_secs_f64();
        self.between_s += Self::WEIGHT * (between - self.between_s);
        self.left = now;
    }

    /// When half of those inside are likely to have left: then a retry is likely to find a place. A minute at most: a
    /// stuck queue may come free for other reasons.
    fn retry_after_s(&self, inside: usize) -> u64 {
        let seconds = self.between_s * inside as f64 / 2.0;
        (seconds.ceil() as u64).clamp(1, 60)
    }
}

/// The right to be inside. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Inner>);

impl Admission {
    /// A door for so many tasks at once.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            capacity,
            inside: AtomicUsize::new(0),
            state: AtomicU8::new(0),
            refused: AtomicU64::new(0),
            emptied: Notify::new(),
            pace: Mutex::new(Pace { left: Instant::now(), between_s: 0.0 }),
        }))
    }

    /// Lets a task in.
    ///
    /// # Errors
    /// At once, when all places are taken, or when the door is closed.
    pub fn enter(&self) -> Result<Permit, Error> {
        // Counted before the state is read: `close` and then `empty` cannot miss a task that saw the door open.
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        let refusal = match self.state() {
            State::Open if inside <= self.0.capacity => return Ok(Permit(Arc::clone(&self.0))),
            State::Open => {
                let pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
                let retry_after_s = pace.retry_after_s(self.0.capacity);
                Error::QueueFull { capacity: self.0.capacity, retry_after_s }
            }
            State::Paused => Error::Paused,
            State::Draining => Error::Draining,
        };
        self.0.leave();
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        Err(refusal)
    }

    /// Whether tasks may come in.
    pub fn state(&self) -> State {
        match self.0.state.load(Ordering::SeqCst) {
            0 => State::Open,
            1 => State::Paused,
            _ => State::Draining,
        }
    }

    /// Closes the door to newcomers. Returns false when it was draining already: then it stays so.
    pub fn set_paused(&self, paused: bool) -> bool {
        let change = |state| (state < 2).then_some(u8::from(paused));
        self.0.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).is_ok()
    }

    /// Closes the door for good.
    pub fn drain(&self) {
        self.0.state.store(2, Ordering::SeqCst);
    }

    /// Tasks inside.
    pub fn inside(&self) -> usize {
        self.0.inside.load(Ordering::SeqCst).min(self.0.capacity)
    }

    /// Tasks that may be inside at once.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Tasks that were refused so far.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Waits until nobody is inside, at most so long. Returns whether nobody is.
    pub async fn empty(&self, limit: Duration) -> bool {
        let all_left = async {
            loop {
                let emptied = self.0.emptied.notified();
                if self.0.inside.load(Ordering::SeqCst) == 0 {
                    return;
                }
                emptied.await;
            }
        };
        tokio::time::timeout(limit, all_left).await.is_ok()
    }
}

impl Inner {
    fn leave(&self) {
        if self.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.emptied.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.pace.lock().unwrap_or_else(PoisonError::into_inner).leave(Instant::now());
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_door_refuses_at_once_and_a_dropped_permit_frees_the_place() {
        let door = Admission::new(2);
        let first = door.enter().unwrap();
        let _second = door.enter().unwrap();
        for _ in 0..3 {
            assert!(matches!(door.enter(), Err(Error::QueueFull { capacity: 2, retry_after_s: 1.. })));
        }
        assert_eq!((door.inside(), door.refused()), (2, 3));
        drop(first);
        assert!(door.enter().is_ok());
    }

    #[test]
    fn a_paused_door_opens_again_and_a_draining_one_does_not() {
        let door = Admission::new(1);
        assert!(door.set_paused(true));
        assert!(matches!(door.enter(), Err(Error::Paused)));
        assert!(door.set_paused(false));
        assert!(door.enter().is_ok());
        door.drain();
        assert!(!door.set_paused(false));
        assert!(matches!(door.enter(), Err(Error::Draining)));
    }

    #[tokio::test]
    async fn empty_waits_for_the_last_to_leave_and_no_longer_than_it_may() {
        let door = Admission::new(2);
        let permit = door.enter().unwrap();
        assert!(!door.empty(Duration::from_millis(1)).await);
        let waiting = tokio::spawn({
            let door = door.clone();
            async move { door.empty(Duration::from_secs(60)).await }
        });
        drop(permit);
        assert!(waiting.await.unwrap());
    }

    #[test]
    fn the_time_to_come_back_follows_the_pace() {
        let start = Instant::now();
        let mut pace = Pace { left: start, between_s: 0.0 };
        for second in 1..=200 {
            pace.leave(start + Duration::from_secs(second));
        }
        assert_eq!(pace.retry_after_s(20), 10);
        assert_eq!(pace.retry_after_s(2), 1);
        assert_eq!(pace.retry_after_s(1000), 60);
    }
}
