//! How much a lane's batches may hold at the moment: what was set comes in, less after the device had no room, and more again after a
//! while. Pure: it counts batches and knows no clock.

use super::policy::Limits;

/// Batches after which more is tried again: what took the room may have gone. Each time that it has not, twice as many, so that few
/// batches are lost to trying …
const PATIENCE_FIRST: u32 = 16;
/// … up to so many, which are some seconds to some minutes of work.
const PATIENCE_MAX: u32 = 4096;

/// A lane's limits.
#[derive(Debug)]
pub(super) struct Room {
    limits: Limits,
    /// What was set.
    wanted: Limits,
    /// Batches since the limits changed last, and how many of them it takes before more is tried.
    batches: u32,
    patience: u32,
}

impl Room {
    /// All that was set.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, wanted: limits, batches: 0, patience: PATIENCE_FIRST / 2 }
    }

    /// What a batch may hold now.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Halves it to less than what did not fit. Returns false when that was one item.
    pub(super) fn halve(&mut self, cost: usize, items: usize) -> bool {
        if items <= 1 {
            return false;
        }
        let half = (cost / 2).max(1);
        self.limits.cost = self.limits.cost.min(half);
        self.limits.side_cost = self.limits.side_cost.min(half);
        self.limits.items = self.limits.items.min(items / 2);
        // The parts of one batch may fail one after the other, which is one lesson and not many.
        if self.batches > 0 || self.patience < PATIENCE_FIRST {
            self.patience = (2 * self.patience).min(PATIENCE_MAX);
        }
        self.batches = 0;
        true
    }

    /// Counts a batch, and lets the next ones be larger when it is time.
    pub(super) fn count(&mut self) {
        if self.limits == self.wanted {
            return;
        }
        self.batches += 1;
        if self.batches < self.patience {
            return;
        }
        self.batches = 0;
        let more = |now: usize, wanted: usize| now.saturating_mul(2).min(wanted);
        self.limits.cost = more(self.limits.cost, self.wanted.cost);
        self.limits.side_cost = more(self.limits.side_cost, self.wanted.side_cost);
        self.limits.items = more(self.limits.items, self.wanted.items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn room(cost: usize, items: usize) -> Room {
        Room::new(Limits { cost, items, wait: Duration::ZERO, sides: 1, side_cost: cost })
    }

    /// Batches that go well until the limits change.
    fn batches_until_more(room: &mut Room) -> u32 {
        let before = room.limits();
        (1..)
            .find(|_| {
                room.count();
                room.limits() != before
            })
            .unwrap()
    }

    #[test]
    fn more_is_tried_again_and_later_each_time_that_it_fails() {
        let mut room = room(16, 8);
        for patience in [16, 32, 64] {
            assert!(room.halve(16, 4));
            assert_eq!((room.limits().cost, room.limits().items), (8, 2));
            assert_eq!(batches_until_more(&mut room), patience);
            assert_eq!((room.limits().cost, room.limits().items), (16, 4));
            // It went well for a batch before it failed again.
            room.count();
        }
    }

    #[test]
    fn the_parts_of_one_batch_teach_one_lesson() {
        let mut room = room(64, 64);
        for items in [16, 8, 4, 2] {
            assert!(room.halve(items * 4, items));
        }
        assert_eq!((room.limits().cost, room.limits().items), (4, 1));
        assert_eq!(batches_until_more(&mut room), 16);
    }

    #[test]
    fn never_more_than_was_set_and_never_less_than_an_item() {
        let mut room = room(10, 3);
        assert!(!room.halve(10, 1));
        room.halve(10, 2);
        for _ in 0..200 {
            room.count();
        }
        assert_eq!((room.limits().cost, room.limits().items), (10, 3));
        let fresh = room.limits();
        room.count();
        assert_eq!(room.limits(), fresh);
    }
}
