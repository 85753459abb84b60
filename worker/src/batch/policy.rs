//! Says what to send to a device that is free: what waits and the time go in, a decision comes out. Pure: it keeps
//! nothing, looks at no clock and touches no queue.
//!
//! # The order
//! The most urgent job leads: the higher priority, then the earlier deadline (none is last), then the longer unserved. A job that
//! was served and has more counts as if it had come then, with as much time to its deadline as it had at first: so those with the
//! same patience take turns. The lead's model is the batch's model, and other jobs of that model fill the rest in the same order.
//!
//! # Fairness
//! - The lead's first item goes in any case. Then, among jobs of one priority, those of which nothing was sent yet may take
//!   half of what is left of the batch, and those with more to send the other half; in each half everyone may first send one
//!   item, and then an equal share. What is left goes in order. So a job of one input rides along with one of two thousand,
//!   and many of one input do not keep that from going on.
//! - After [`Policy::overtakes_max`] batches in a row went past the job that is unserved the longest, it leads one. So with
//!   `n` jobs before it, each waits at most `(overtakes_max + 1) · (n + 1)` batches, whatever comes later.

use std::time::{Duration, Instant};

/// How much one batch of a model may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sum of the items' costs: tokens for encoders, rows for tensors. One item alone may exceed it.
    pub cost: usize,
    /// Number of items.
    pub items: usize,
    /// How long to wait for more when the batch is not full. Zero sends what waits as soon as the device is free.
    pub wait: Duration,
    /// Batches that the engine runs side by side while more waits than one may hold; 1 for none.
    pub sides: usize,
    /// The costs of each of those.
    pub side_cost: usize,
}

impl Limits {
    /// Of one of the batches side by side.
    pub fn of_side(self) -> Self {
        Self { cost: self.side_cost, items: self.items.div_ceil(self.sides).max(1), ..self }
    }
}

/// A job with items that are not sent yet.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// Which model. Jobs of one lane may share a batch.
    pub lane: u64,
    /// The lane's limits.
    pub limits: Limits,
    /// When its last batch ended, or when it arrived.
    pub unserved_since: Instant,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// From its arrival to its deadline.
    pub patience: Option<Duration>,
    /// Whether some of its items were sent.
    pub is_begun: bool,
    /// Costs of its items that are not sent yet, in their order. Not empty.
    pub costs: &'a [usize],
}

/// So many of a job's items, from its first that is not sent yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// Position in the list of waiting jobs.
    pub job: usize,
    /// How many of its items.
    pub items: usize,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing waits.
    Idle,
    /// The batch is not full and may still grow until then.
    WaitUntil(Instant),
    /// Send these, in this order, as one batch.
    Send(Vec<Take>),
}

/// The rules that hold across models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Batches in a row that may go past the job that is unserved the longest.
    pub overtakes_max: u32,
}

impl Policy {
    /// What to send now. `overtakes` is how many batches in a row held nothing of the job that is unserved the longest.
    pub fn next(&self, now: Instant, overtakes: u32, waiting: &[Waiting<'_>]) -> Next {
        let mut order: Vec<usize> = (0..waiting.len()).collect();
        order.sort_by_key(|&job| urgency(&waiting[job]));
        let forced = longest_unserved(waiting).filter(|_| overtakes >= self.overtakes_max);
        let mut wake: Option<Instant> = None;
        let mut lanes_seen = Vec::new();
        for lead in forced.into_iter().chain(order.iter().copied()) {
            let lane = waiting[lead].lane;
            if lanes_seen.contains(&lane) {
                continue;
            }
            lanes_seen.push(lane);
            let limits = waiting[lead].limits;
            let same: Vec<usize> = order.iter().copied().filter(|&job| waiting[job].lane == lane).collect();
            let ripe = same.iter().map(|&job| waiting[job].unserved_since).min().map_or(now, |t| t + limits.wait);
            let batch = fill(limits, lead, &same, waiting);
            if ripe <= now || batch.is_full {
                return Next::Send(batch.takes);
            }
            wake = Some(wake.map_or(ripe, |other| other.min(ripe)));
        }
        wake.map_or(Next::Idle, Next::WaitUntil)
    }
}

/// The job that is unserved the longest; the first of equals.
pub fn longest_unserved(waiting: &[Waiting<'_>]) -> Option<usize> {
    (0..waiting.len()).min_by_key(|&job| waiting[job].unserved_since)
}

/// Smaller is more urgent. A patience that the clock cannot tell is none.
fn urgency(job: &Waiting<'_>) -> (u8, bool, Option<Instant>, Instant, bool) {
    let deadline = job.patience.and_then(|patience| job.unserved_since.checked_add(patience));
    (u8::MAX - job.priority, deadline.is_none(), deadline, job.unserved_since, job.is_begun)
}

struct Batch {
    takes: Vec<Take>,
    is_full: bool,
}

/// Fills one batch from jobs of one lane, in their order. The lead's first item goes in any case, whatever it costs:
/// else one that exceeds the budget would wait for ever.
fn fill(limits: Limits, lead: usize, order: &[usize], waiting: &[Waiting<'_>]) -> Batch {
    let mut room = Room { cost: limits.cost, items: limits.items.max(1) };
    let mut takes: Vec<Take> = order.iter().map(|&job| Take { job, items: usize::from(job == lead) }).collect();
    room.cost = room.cost.saturating_sub(waiting[lead].costs[0]);
    room.items -= 1;

    let mut from = 0;
    while from < takes.len() {
        let priority = waiting[takes[from].job].priority;
        let count = takes[from..].iter().take_while(|take| waiting[take.job].priority == priority).count();
        room.fill(&mut takes[from..from + count], waiting);
        from += count;
    }
    let all = takes.iter().all(|take| take.items == waiting[take.job].costs.len());
    takes.retain(|take| take.items > 0);
    Batch { takes, is_full: !all || room.cost == 0 || room.items == 0 }
}

#[derive(Clone, Copy)]
struct Room {
    cost: usize,
    items: usize,
}

/// No bound but the room's own.
const ALL: Room = Room { cost: usize::MAX, items: usize::MAX };

impl Room {
    /// Gives room to jobs of one priority: a half to each of the two kinds, in each one item and then a share to everyone, and
    /// what is left in order.
    fn fill(&mut self, equals: &mut [Take], waiting: &[Waiting<'_>]) {
        let begun = equals.iter().filter(|take| waiting[take.job].is_begun).count();
        let half = self.part(if begun == 0 || begun == equals.len() { 1 } else { 2 });
        for (is_begun, count) in [(false, equals.len() - begun), (true, begun)] {
            let mut half = half;
            let is_kind = |take: &&mut Take| waiting[take.job].is_begun == is_begun;
            for take in equals.iter_mut().filter(is_kind).filter(|take| take.items == 0) {
                self.give(take, waiting[take.job].costs, &mut half, Room { items: 1, ..ALL });
            }
            let share = half.part(count.max(1));
            for take in equals.iter_mut().filter(is_kind) {
                self.give(take, waiting[take.job].costs, &mut half, share);
            }
        }
        for take in equals {
            self.give(take, waiting[take.job].costs, &mut { ALL }, ALL);
        }
    }

    /// One of so many equal parts.
    fn part(self, count: usize) -> Room {
        Room { cost: self.cost / count, items: self.items.div_ceil(count) }
    }

    /// Gives a job what fits of the room, of a part that it has with others, and of its share.
    fn give(&mut self, take: &mut Take, costs: &[usize], part: &mut Room, mut share: Room) {
        while let Some(&cost) = costs.get(take.items) {
            if [&*self, &*part, &share].into_iter().any(|room| room.items == 0 || cost > room.cost) {
                return;
            }
            take.items += 1;
            for room in [&mut *self, &mut *part, &mut share] {
                room.cost -= cost;
                room.items -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job in a test: milliseconds since it is unserved, costs, and what differs from the usual.
    #[derive(Clone, Copy)]
    struct Job(u64, &'static [usize], u64, u8, Option<u64>, bool);

    fn job(at: u64, costs: &'static [usize]) -> Job {
        Job(at, costs, 0, 5, None, false)
    }

    fn decide(limits: Limits, now: u64, overtakes: u32, jobs: &[Job]) -> (Instant, Next) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let waiting: Vec<_> = jobs
            .iter()
            .map(|&Job(since, costs, lane, priority, deadline, is_begun)| Waiting {
                lane,
                limits,
                unserved_since: at(since),
                priority,
                patience: deadline.map(|deadline| Duration::from_millis(deadline - since)),
                is_begun,
                costs,
            })
            .collect();
        (start, Policy { overtakes_max: 3 }.next(at(now), overtakes, &waiting))
    }

    fn check(cost: usize, overtakes: u32, jobs: &[Job], want: &[(usize, usize)]) {
        let limits = Limits { cost, items: 8, wait: Duration::ZERO, sides: 1, side_cost: cost };
        let want = match want {
            [] => Next::Idle,
            takes => Next::Send(takes.iter().map(|&(job, items)| Take { job, items }).collect()),
        };
        assert_eq!(decide(limits, 100, overtakes, jobs).1, want);
    }

    #[test]
    fn what_waits_is_sent_as_far_as_the_budget_goes() {
        check(10, 0, &[], &[]);
        check(10, 0, &[job(0, &[4]), job(1, &[4])], &[(0, 1), (1, 1)]);
        check(10, 0, &[job(0, &[4]), job(1, &[4]), job(2, &[4])], &[(0, 1), (1, 1)]);
        check(10, 0, &[job(0, &[4, 4, 4])], &[(0, 2)]);
        check(100, 0, &[job(0, &[1; 20])], &[(0, 8)]);
    }

    #[test]
    fn an_item_larger_than_the_budget_goes_alone() {
        check(10, 0, &[job(0, &[11, 1]), job(1, &[1])], &[(0, 1)]);
        check(10, 0, &[job(1, &[11]), job(0, &[1])], &[(1, 1)]);
    }

    #[test]
    fn what_does_not_fit_lets_the_smaller_ones_behind_it_go() {
        check(10, 0, &[job(0, &[6]), job(1, &[6]), job(2, &[3])], &[(0, 1), (2, 1)]);
    }

    #[test]
    fn priority_goes_first_then_deadline_then_who_waits_longest() {
        let low = Job(0, &[10], 0, 1, None, false);
        let plain = Job(1, &[10], 0, 5, None, false);
        let late = Job(2, &[10], 0, 5, Some(900), false);
        let soon = Job(3, &[10], 0, 5, Some(500), false);
        let high = Job(4, &[10], 0, 9, None, false);
        check(10, 0, &[low, plain, late, soon, high], &[(4, 1)]);
        check(10, 0, &[low, plain, late, soon], &[(3, 1)]);
        check(10, 0, &[low, plain, late], &[(2, 1)]);
        check(10, 0, &[low, plain, job(0, &[10])], &[(2, 1)]);
        check(10, 0, &[low], &[(0, 1)]);
    }

    #[test]
    fn who_was_served_and_has_more_counts_as_if_it_had_come_then() {
        // With as much patience, they take turns, also across models.
        let begun = |since| Job(since, &[10], 0, 5, Some(since + 1000), true);
        check(10, 0, &[begun(2), Job(1, &[10], 7, 5, Some(1001), false)], &[(1, 1)]);
        check(10, 0, &[begun(2), Job(3, &[10], 7, 5, Some(1003), false)], &[(0, 1)]);
        check(10, 0, &[begun(2), Job(2, &[10], 7, 5, Some(1002), false)], &[(1, 1)]);
        check(10, 0, &[begun(2), begun(1)], &[(1, 1)]);
        check(10, 0, &[Job(2, &[10], 0, 5, None, true), Job(1, &[10], 0, 5, None, false)], &[(1, 1)]);
        // Who is in a hurry stays so.
        check(10, 0, &[Job(2, &[10], 0, 5, Some(52), true), Job(1, &[10], 0, 5, Some(1001), false)], &[(0, 1)]);
    }

    #[test]
    fn those_who_were_served_and_those_who_were_not_have_half_a_batch_each() {
        // Many of one input, and one of many: neither keeps the other out.
        let large = Job(9, &[1; 20], 0, 5, None, true);
        let small = |since| Job(since, &[1], 0, 5, None, false);
        let all: Vec<Job> = std::iter::once(large).chain((0..9).map(small)).collect();
        check(8, 0, &all, &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (0, 3)]);
        // What one kind leaves, the other may take.
        check(8, 0, &all[..3], &[(1, 1), (2, 1), (0, 6)]);
        check(8, 0, &all[1..], &[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)]);
    }

    #[test]
    fn who_was_overtaken_often_enough_leads_whatever_its_priority() {
        let low = Job(0, &[10], 0, 0, None, false);
        check(10, 2, &[low, Job(1, &[10], 0, 9, None, false)], &[(1, 1)]);
        check(10, 3, &[low, Job(1, &[10], 0, 9, None, false)], &[(0, 1)]);
    }

    #[test]
    fn a_small_job_rides_along_with_a_large_one() {
        check(8, 0, &[job(0, &[1; 8]), job(1, &[1, 1])], &[(0, 6), (1, 2)]);
        check(4, 0, &[job(0, &[1; 8]), job(1, &[1]), job(2, &[1]), job(3, &[1])], &[(0, 1), (1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn everyone_sends_one_item_before_anyone_sends_its_share() {
        // Eight items fill a batch: those of the first job would be all.
        check(100, 0, &[job(0, &[1; 20]), job(1, &[1])], &[(0, 7), (1, 1)]);
        // A first item that is more than a share.
        check(10, 0, &[job(0, &[3; 20]), job(1, &[7])], &[(0, 1), (1, 1)]);
        check(20, 0, &[job(0, &[1; 20]), job(1, &[9, 9])], &[(0, 7), (1, 1)]);
    }

    #[test]
    fn a_batch_holds_one_model_that_of_the_most_urgent() {
        let other = Job(1, &[1], 7, 5, None, false);
        check(10, 0, &[job(0, &[1]), other, job(2, &[1])], &[(0, 1), (2, 1)]);
        check(10, 0, &[job(2, &[1]), other, job(3, &[1])], &[(1, 1)]);
    }

    #[test]
    fn with_a_wait_a_batch_that_is_not_full_may_grow_until_then() {
        let limits = Limits { cost: 10, items: 8, wait: Duration::from_millis(5), sides: 1, side_cost: 10 };
        let wait = |now, jobs: &[Job]| match decide(limits, now, 0, jobs) {
            (start, Next::WaitUntil(until)) => Some((until - start).as_millis()),
            _ => None,
        };
        assert_eq!(wait(2, &[job(0, &[4])]), Some(5));
        assert_eq!(wait(5, &[job(0, &[4])]), None);
        assert_eq!(wait(2, &[job(0, &[4]), job(1, &[6])]), None);
        assert_eq!(wait(2, &[job(1, &[4]), Job(0, &[4], 7, 5, None, false)]), Some(5));
    }
}
