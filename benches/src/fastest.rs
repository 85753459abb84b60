//! Times a call by its fastest batch. Calls come in, the seconds of one go out. Never an average: other programs on the
//! machine only ever add to a time, so that the shortest is nearest to what the code takes.

use std::time::{Duration, Instant};

/// A batch of calls takes about this long: a thousand times what reading the clock takes, and short enough to often run
/// undisturbed on a busy machine.
const BATCH: Duration = Duration::from_micros(50);

/// A million calls in one batch are enough for anything that takes time at all.
const BATCH_LOG2_MAX: u32 = 20;

/// The fastest batch so far.
#[derive(Debug, Default)]
pub struct Fastest {
    /// The calls of the largest batches so far, and the seconds of a call in the fastest of them.
    best: Option<(u64, f64)>,
    /// The calls in a batch: doubled until one takes as long as [`BATCH`].
    batch_log2: u32,
}

impl Fastest {
    /// Makes so many calls and gives the time that they took together.
    pub fn run(&mut self, calls: u64, mut call: impl FnMut()) -> Duration {
        let mut total = Duration::ZERO;
        let mut left = calls;
        while left > 0 {
            let batch = left.min(1 << self.batch_log2);
            let start = Instant::now();
            (0..batch).for_each(|_| call());
            let elapsed = start.elapsed();
            self.note(batch, elapsed);
            total += elapsed;
            left -= batch;
        }
        total
    }

    /// Makes one full batch of calls.
    pub fn run_batch(&mut self, call: impl FnMut()) -> Duration {
        self.run(1 << self.batch_log2, call)
    }

    /// The seconds of one call in the fastest batch, or `None` when there was none.
    pub fn seconds(&self) -> Option<f64> {
        self.best.map(|(_, seconds)| seconds)
    }

    fn note(&mut self, calls: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64() / calls as f64;
        // A longer batch is timed better than any shorter one.
        self.best = match self.best {
            Some((most, _)) if calls < most => self.best,
            Some((most, least)) if calls == most => Some((most, least.min(seconds))),
            _ => Some((calls, seconds)),
        };
        if calls == 1 << self.batch_log2 && elapsed < BATCH && self.batch_log2 < BATCH_LOG2_MAX {
            self.batch_log2 += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_until_they_are_long_enough_and_the_shortest_counts() {
        let mut fastest = Fastest::default();
        assert_eq!(fastest.seconds(), None);
        fastest.note(1, BATCH / 4);
        fastest.note(2, BATCH / 2);
        fastest.note(4, 4 * BATCH);
        fastest.note(4, 2 * BATCH);
        fastest.note(4, 3 * BATCH);
        assert_eq!(fastest.seconds(), Some((2 * BATCH).as_secs_f64() / 4.0));
        fastest.note(1, BATCH / 100);
        assert_eq!(fastest.seconds(), Some((2 * BATCH).as_secs_f64() / 4.0), "part of a batch does not count");
    }

    #[test]
    fn every_call_is_made_and_their_time_is_given() {
        let mut calls = 0;
        let mut fastest = Fastest::default();
        let total = fastest.run(1000, || calls += 1);
        assert_eq!(calls, 1000);
        assert!(total > Duration::ZERO && fastest.seconds().is_some());
    }
}
