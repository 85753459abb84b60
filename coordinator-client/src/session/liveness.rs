//! Whether the other side of a link still answers: told the time and what was heard, says when to ask and when to
//! give up. Never sends.

use std::time::Duration;

/// Unanswered pings after which a link is dead.
pub const MISSED_MAX: u32 = 3;

/// Watches one link, from either side.
#[derive(Debug, Clone)]
pub struct Liveness {
    interval: Duration,
    next_at: Duration,
    missed: u32,
    nonce: u64,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing.
    Fine,
    /// Send a ping with this nonce.
    Ask(u64),
    /// Close the link.
    Dead,
}

impl Liveness {
    /// Starts watching. A silence of `interval` leads to a ping, [`MISSED_MAX`] more of them to the end.
    pub fn new(now: Duration, interval: Duration) -> Self {
        Self { interval, next_at: now + interval, missed: 0, nonce: 0 }
    }

    /// Something arrived, whatever it was.
    pub fn heard(&mut self, now: Duration) {
        self.missed = 0;
        self.next_at = now + self.interval;
    }

    /// What to do at this time.
    pub fn tick(&mut self, now: Duration) -> Pulse {
        if now < self.next_at {
            return Pulse::Fine;
        }
        if self.missed == MISSED_MAX {
            return Pulse::Dead;
        }
        self.missed += 1;
        self.nonce += 1;
        self.next_at = now + self.interval;
        Pulse::Ask(self.nonce)
    }

    /// When [`Liveness::tick`] next has something to say.
    pub fn next_at(&self) -> Duration {
        self.next_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(heard_s: &[u64], asks_s: &[u64], dead_s: Option<u64>) {
        let mut liveness = Liveness::new(Duration::ZERO, Duration::from_secs(5));
        let (mut asks, mut dead) = (Vec::new(), None);
        for second in 0..60 {
            let now = Duration::from_secs(second);
            if heard_s.contains(&second) {
                liveness.heard(now);
            }
            match liveness.tick(now) {
                Pulse::Fine => {}
                Pulse::Ask(_) => asks.push(second),
                Pulse::Dead => {
                    dead = Some(second);
                    break;
                }
            }
        }
        assert_eq!((asks.as_slice(), dead), (asks_s, dead_s), "heard at {heard_s:?}");
    }

    #[test]
    fn three_missed_answers_are_the_end() {
        check(&[], &[5, 10, 15], Some(20));
        check(&[12], &[5, 10, 17, 22, 27], Some(32));
        check(&[4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56], &[], None);
    }
}
