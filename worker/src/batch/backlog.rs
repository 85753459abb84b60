//! What waits for one device, and what came of it: jobs and outputs go in, batches and finished jobs come out. Pure: it
//! is told the time, takes no lock and wakes nobody.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use models::engine::{Item, Output};

use super::policy::{self, Limits, Next, Policy, Waiting};
use super::room::Room;

/// A job's number; later ones are larger.
pub type JobId = u64;

/// A loaded model's number on its device; a model that is loaded again gets another.
pub type LaneId = u64;

/// What is put in.
#[derive(Debug)]
pub struct Submission {
    /// One item per output that is wanted. Not empty.
    pub items: Vec<Item>,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
}

/// Items to run together.
#[derive(Debug)]
pub struct Batch {
    /// Which model.
    pub lane: LaneId,
    /// The items.
    pub items: Vec<Item>,
    /// Where each item comes from, in the same order: the job and its position there.
    pub origins: Vec<(JobId, usize)>,
    /// When it was put together.
    pub started: Instant,
    /// Whether it is one of several that run side by side.
    pub is_side: bool,
}

/// A job whose outputs are all there.
#[derive(Debug)]
pub struct Finished<R> {
    /// Whom to tell.
    pub reply: R,
    /// In the order of the job's items.
    pub outputs: Vec<Output>,
    /// From arrival to the start of its first batch.
    pub queued: Duration,
    /// From the start of its first batch to now.
    pub device: Duration,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Nothing can be run.
    Idle,
    /// Nothing should be run before then.
    WaitUntil(Instant),
    /// Run this.
    Run(Batch),
}

/// The jobs and lanes of one device. `R` is whom to tell of a job's end.
#[derive(Debug)]
pub struct Backlog<R> {
    policy: Policy,
    lanes: HashMap<LaneId, Lane>,
    jobs: BTreeMap<JobId, Job<R>>,
    next_id: JobId,
    overtakes: u32,
}

#[derive(Debug)]
struct Lane {
    room: Room,
    is_ready: bool,
}

#[derive(Debug)]
struct Job<R> {
    lane: LaneId,
    reply: R,
    /// Taken out as they are sent.
    items: Vec<Option<Item>>,
    costs: Vec<usize>,
    sent: usize,
    outputs: Vec<Option<Output>>,
    missing: usize,
    priority: u8,
    deadline: Option<Instant>,
    arrived: Instant,
    started: Option<Instant>,
    unserved_since: Instant,
}

impl<R> Backlog<R> {
    /// An empty one.
    pub fn new(policy: Policy) -> Self {
        Self { policy, lanes: HashMap::new(), jobs: BTreeMap::new(), next_id: 0, overtakes: 0 }
    }

    /// Opens a lane, or changes it. Jobs of a lane that is not ready wait.
    pub fn set_lane(&mut self, lane: LaneId, limits: Limits, is_ready: bool) {
        self.lanes.insert(lane, Lane { room: Room::new(limits), is_ready });
    }

    /// Stops a lane's batches until it is set again.
    pub fn hold_lane(&mut self, lane: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.is_ready = false;
        }
    }

    /// Halves what a batch of the lane may hold, after the device had no room; it grows again when that went well for a while. Returns
    /// false when it is one already.
    pub fn halve(&mut self, lane: LaneId, cost: usize, items: usize) -> bool {
        self.lanes.get_mut(&lane).is_some_and(|lane| lane.room.halve(cost, items))
    }

    /// Closes a lane. Returns whom to tell that their jobs will not be done.
    pub fn close_lane(&mut self, lane: LaneId) -> Vec<R> {
        self.lanes.remove(&lane);
        let of_lane = |job: &Job<R>| job.lane == lane;
        self.remove_where(of_lane)
    }

    /// Puts a job in, or gives the reply back when its lane is closed.
    pub fn insert(&mut self, now: Instant, lane: LaneId, submission: Submission, reply: R) -> Result<JobId, R> {
        if !self.lanes.contains_key(&lane) {
            return Err(reply);
        }
        let id = self.next_id;
        self.next_id += 1;
        let costs: Vec<usize> = submission.items.iter().map(Item::cost).collect();
        let missing = costs.len();
        let job = Job {
            lane,
            reply,
            items: submission.items.into_iter().map(Some).collect(),
            costs,
            sent: 0,
            outputs: vec![None; missing],
            missing,
            priority: submission.priority,
            deadline: submission.deadline,
            arrived: now,
            started: None,
            unserved_since: now,
        };
        self.jobs.insert(id, job);
        Ok(id)
    }

    /// Takes a job out, whatever has become of its items. Outputs that come later are dropped.
    pub fn remove(&mut self, id: JobId) -> Option<R> {
        self.jobs.remove(&id).map(|job| job.reply)
    }

    /// Takes out the jobs whose deadline passed. Returns whom to tell.
    pub fn expire(&mut self, now: Instant) -> Vec<R> {
        self.remove_where(|job| job.deadline.is_some_and(|deadline| deadline <= now))
    }

    /// Takes out all jobs.
    pub fn clear(&mut self) -> Vec<R> {
        self.remove_where(|_| true)
    }

    fn remove_where(&mut self, is_meant: impl Fn(&Job<R>) -> bool) -> Vec<R> {
        let ids: Vec<JobId> = self.jobs.iter().filter(|(_, job)| is_meant(job)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// What to do with a device that is free.
    pub fn next(&mut self, now: Instant) -> Step {
        self.next_of(now, None)
    }

    /// What to do with a side of a device whose other sides run batches of this lane: a small batch of it, unless it is another
    /// lane's turn.
    pub fn next_side(&mut self, now: Instant, lane: LaneId) -> Option<Batch> {
        match self.next_of(now, Some(lane)) {
            Step::Run(batch) => Some(batch),
            Step::Idle | Step::WaitUntil(_) => None,
        }
    }

    fn next_of(&mut self, now: Instant, side_of: Option<LaneId>) -> Step {
        let (ids, waiting) = self.waiting(side_of);
        let takes = match self.policy.next(now, self.overtakes, &waiting) {
            Next::Idle => return Step::Idle,
            Next::WaitUntil(until) => return Step::WaitUntil(until),
            Next::Send(takes) => takes,
        };
        let lane = waiting[takes[0].job].lane;
        if side_of.is_some_and(|side_of| side_of != lane) {
            return Step::Idle;
        }
        let is_side = side_of.is_some() || self.has_sides(lane);
        let oldest = policy::longest_unserved(&waiting);
        let serves_oldest = takes.iter().any(|take| Some(take.job) == oldest);
        let takes: Vec<(JobId, usize)> = takes.iter().map(|take| (ids[take.job], take.items)).collect();
        self.overtakes = if serves_oldest { 0 } else { self.overtakes + 1 };

        let mut batch = Batch { lane, items: Vec::new(), origins: Vec::new(), started: now, is_side };
        for (id, count) in takes {
            let job = self.jobs.get_mut(&id).expect("the waiting jobs were listed under the same borrow");
            for position in job.sent..job.sent + count {
                batch.items.push(job.items[position].take().expect("an item is sent once"));
                batch.origins.push((id, position));
            }
            job.sent += count;
            job.started.get_or_insert(now);
            job.unserved_since = now;
        }
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.room.count();
        }
        Step::Run(batch)
    }

    /// Whether a lane's batches run side by side now: where more waits than one batch may hold.
    fn has_sides(&self, lane: LaneId) -> bool {
        let Some(limits) = self.lanes.get(&lane).map(|lane| lane.room.limits()).filter(|limits| limits.sides > 1)
        else {
            return false;
        };
        let (mut cost, mut items) = (0_usize, 0);
        let waiting = self.jobs.values().filter(|job| job.lane == lane).flat_map(|job| &job.costs[job.sent..]);
        waiting.into_iter().any(|item| {
            (cost, items) = (cost.saturating_add(*item), items + 1);
            cost > limits.cost || items > limits.items
        })
    }

    /// The jobs that wait. What a batch may hold of a lane is what one of several side by side may, where they run so now.
    fn waiting(&self, side_of: Option<LaneId>) -> (Vec<JobId>, Vec<Waiting<'_>>) {
        let limits: HashMap<LaneId, Limits> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.is_ready)
            .map(|(&id, lane)| {
                let is_side = side_of == Some(id) || self.has_sides(id);
                (id, if is_side { lane.room.limits().of_side() } else { lane.room.limits() })
            })
            .collect();
        let of_job = |(&id, job): (&JobId, &'_ Job<R>)| {
            let limits = *limits.get(&job.lane)?;
            (job.sent < job.costs.len()).then_some((id, job.lane, limits))
        };
        self.jobs
            .iter()
            .filter_map(|(id, job)| {
                let (id, lane, limits) = of_job((id, job))?;
                let waiting = Waiting {
                    lane,
                    limits,
                    unserved_since: job.unserved_since,
                    priority: job.priority,
                    patience: job.deadline.map(|deadline| deadline.saturating_duration_since(job.arrived)),
                    is_begun: job.started.is_some(),
                    costs: &job.costs[job.sent..],
                };
                Some((id, waiting))
            })
            .unzip()
    }

    /// Takes an output in. Returns the job when it was its last.
    pub fn deliver(&mut self, now: Instant, (id, position): (JobId, usize), output: Output) -> Option<Finished<R>> {
        let job = self.jobs.get_mut(&id)?;
        // It was being served until now: whoever came meanwhile was unserved for longer.
        job.unserved_since = now;
        if job.outputs[position].replace(output).is_none() {
            job.missing -= 1;
        }
        if job.missing > 0 {
            return None;
        }
        let job = self.jobs.remove(&id)?;
        let started = job.started.unwrap_or(now);
        Some(Finished {
            reply: job.reply,
            outputs: job.outputs.into_iter().flatten().collect(),
            queued: started.saturating_duration_since(job.arrived),
            device: now.saturating_duration_since(started),
        })
    }

    /// The jobs that a batch's items belong to and that are still here, each once, in the batch's order.
    pub fn jobs_of(&self, origins: &[(JobId, usize)]) -> Vec<JobId> {
        let mut ids: Vec<JobId> = origins.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        ids.retain(|id| self.jobs.contains_key(id));
        ids
    }

    /// Whether a job is still wanted.
    pub fn is_wanted(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// Jobs that are not finished, and how many of their items are not sent.
    pub fn depth(&self) -> (usize, usize) {
        (self.jobs.len(), self.jobs.values().map(|job| job.costs.len() - job.sent).sum())
    }

    /// Jobs of one lane that are not finished.
    pub fn jobs_in(&self, lane: LaneId) -> usize {
        self.jobs.values().filter(|job| job.lane == lane).count()
    }
}

/// Positions of a batch's items, for running parts of it.
pub fn halves(range: Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [range.start..middle, middle..range.end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::engine::Tokens;
    use proptest::prelude::*;

    fn tokens(cost: usize) -> Item {
        Item::Tokens(Tokens { ids: vec![7; cost], type_ids: vec![] })
    }

    fn submission(costs: &[usize], priority: u8) -> Submission {
        Submission { items: costs.iter().map(|&cost| tokens(cost)).collect(), priority, deadline: None }
    }

    fn backlog(cost: usize, items: usize) -> Backlog<&'static str> {
        let mut backlog = Backlog::new(Policy { overtakes_max: 3 });
        backlog.set_lane(1, Limits { cost, items, wait: Duration::ZERO, sides: 1, side_cost: cost }, true);
        backlog
    }

    fn run<R>(backlog: &mut Backlog<R>, now: Instant) -> Option<Batch> {
        match backlog.next(now) {
            Step::Run(batch) => Some(batch),
            _ => None,
        }
    }

    fn output(value: usize) -> Output {
        Output::Vector(vec![value as f32])
    }

    #[test]
    fn outputs_go_back_to_their_jobs_in_the_items_order() {
        let now = Instant::now();
        let mut backlog = backlog(4, 8);
        backlog.insert(now, 1, submission(&[1, 1, 1, 1, 1], 5), "long").unwrap();
        backlog.insert(now, 1, submission(&[1], 5), "short").unwrap();
        let mut ended = Vec::new();
        while let Some(batch) = run(&mut backlog, now) {
            // The engine's answers may be taken in any order.
            for &origin in batch.origins.iter().rev() {
                ended.extend(backlog.deliver(now, origin, output(origin.1)).map(|f| (f.reply, f.outputs)));
            }
        }
        let outputs = |n: usize| (0..n).map(output).collect::<Vec<_>>();
        assert_eq!(ended, [("short", outputs(1)), ("long", outputs(5))]);
        assert_eq!(backlog.depth(), (0, 0));
    }

    #[test]
    fn a_removed_job_reaches_the_device_no_more_and_its_late_outputs_are_dropped() {
        let now = Instant::now();
        let mut backlog = backlog(1, 8);
        let id = backlog.insert(now, 1, submission(&[1, 1], 5), "gone").unwrap();
        let batch = run(&mut backlog, now).unwrap();
        assert_eq!(backlog.remove(id), Some("gone"));
        assert!(run(&mut backlog, now).is_none());
        assert!(backlog.deliver(now, batch.origins[0], output(0)).is_none());
    }

    #[test]
    fn deadlines_end_a_job_and_closed_lanes_end_all_of_theirs() {
        let now = Instant::now();
        let mut backlog = backlog(1, 8);
        let soon = Submission { deadline: Some(now + Duration::from_millis(5)), ..submission(&[1], 5) };
        backlog.insert(now, 1, soon, "soon").unwrap();
        backlog.insert(now, 1, submission(&[1], 5), "ever").unwrap();
        assert!(backlog.expire(now + Duration::from_millis(4)).is_empty());
        assert_eq!(backlog.expire(now + Duration::from_millis(5)), ["soon"]);
        assert_eq!(backlog.close_lane(1), ["ever"]);
        assert_eq!(backlog.insert(now, 1, submission(&[1], 5), "late"), Err("late"));
    }

    #[test]
    fn a_held_lane_keeps_its_jobs_and_lets_others_go() {
        let now = Instant::now();
        let mut backlog = backlog(10, 8);
        backlog.set_lane(2, Limits { cost: 10, items: 8, wait: Duration::ZERO, sides: 1, side_cost: 10 }, true);
        backlog.insert(now, 1, submission(&[1], 9), "held").unwrap();
        backlog.insert(now, 2, submission(&[1], 0), "free").unwrap();
        backlog.hold_lane(1);
        assert_eq!(run(&mut backlog, now).map(|b| b.lane), Some(2));
        assert!(run(&mut backlog, now).is_none());
        backlog.set_lane(1, Limits { cost: 10, items: 8, wait: Duration::ZERO, sides: 1, side_cost: 10 }, true);
        assert_eq!(run(&mut backlog, now).map(|b| b.lane), Some(1));
    }

    #[test]
    fn a_lane_without_room_gets_half_until_one_item_is_left() {
        let mut backlog = backlog(16, 8);
        assert!(backlog.halve(1, 16, 4));
        backlog.insert(Instant::now(), 1, submission(&[4, 4, 4, 4], 5), "job").unwrap();
        assert_eq!(run(&mut backlog, Instant::now()).map(|b| b.items.len()), Some(2));
        assert!(!backlog.halve(1, 8, 1));
    }

    #[test]
    fn more_than_one_batch_is_divided_among_the_sides() {
        let now = Instant::now();
        let mut backlog = Backlog::new(Policy { overtakes_max: 3 });
        for lane in [1, 2] {
            backlog.set_lane(lane, Limits { cost: 8, items: 8, wait: Duration::ZERO, sides: 2, side_cost: 4 }, true);
        }
        let found = |batch: Batch| (batch.lane, batch.items.len(), batch.is_side);
        backlog.insert(now, 1, submission(&[1; 8], 5), "fits").unwrap();
        assert_eq!(run(&mut backlog, now).map(found), Some((1, 8, false)));
        backlog.insert(now, 1, submission(&[1; 9], 5), "more").unwrap();
        assert_eq!(run(&mut backlog, now).map(found), Some((1, 4, true)));
        assert_eq!(backlog.next_side(now, 1).map(found), Some((1, 4, true)));
        // The last, although it is small, and then nothing.
        assert_eq!(backlog.next_side(now, 1).map(found), Some((1, 1, true)));
        assert!(backlog.next_side(now, 1).is_none());
        // Another lane's turn comes first, and is not lost.
        backlog.insert(now, 1, submission(&[1; 9], 5), "again").unwrap();
        backlog.insert(now, 2, submission(&[1; 9], 9), "urgent").unwrap();
        assert!(backlog.next_side(now, 1).is_none());
        assert_eq!(run(&mut backlog, now).map(found), Some((2, 4, true)));
    }

    /// What a test does to a backlog.
    #[derive(Debug, Clone)]
    enum Act {
        Arrive { lane: LaneId, priority: u8, costs: Vec<usize>, deadline: Option<u64> },
        Run,
        RunSide { lane: LaneId },
        Cancel(prop::sample::Index),
    }

    fn act() -> impl Strategy<Value = Act> {
        let costs = prop::collection::vec(1usize..14, 1..12);
        let deadline = prop::option::of(1u64..1000);
        prop_oneof![
            3 => (1u64..3, 0u8..10, costs, deadline)
                .prop_map(|(lane, priority, costs, deadline)| Act::Arrive { lane, priority, costs, deadline }),
            4 => Just(Act::Run),
            2 => (1u64..3).prop_map(|lane| Act::RunSide { lane }),
            1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        ]
    }

    /// What the model of the property test knows of a job.
    struct Known {
        lane: LaneId,
        costs: Vec<usize>,
        sent: usize,
        /// Batches that may still go past it before it must be in one, since it was last served.
        patience: usize,
    }

    const BUDGET: usize = 20;
    const ITEMS: usize = 6;
    const OVERTAKES: usize = 3;

    proptest! {
        /// Whatever comes and goes: every item of a job that stays is sent once and in its order, a batch holds one
        /// lane and keeps to the budget unless it is one item, and nobody waits longer than the policy says.
        #[test]
        fn batches_keep_every_promise_of_the_policy(sides in 1_usize..4, acts in prop::collection::vec(act(), 1..200)) {
            let start = Instant::now();
            let mut backlog = Backlog::new(Policy { overtakes_max: OVERTAKES as u32 });
            for lane in 1..3 {
                backlog.set_lane(lane, Limits { cost: BUDGET, items: ITEMS, wait: Duration::ZERO, sides, side_cost: BUDGET.div_ceil(sides) }, true);
            }
            let mut known: BTreeMap<JobId, Known> = BTreeMap::new();
            // After the acts, everything that is left is run.
            let acts = acts.into_iter().chain(std::iter::repeat_n(Act::Run, 5000));
            for (tick, act) in acts.enumerate() {
                let now = start + Duration::from_millis(tick as u64);
                match act {
                    Act::Arrive { lane, priority, costs, deadline } => {
                        let deadline = deadline.map(|ms| now + Duration::from_secs(3600) + Duration::from_millis(ms));
                        let job = Submission { deadline, ..submission(&costs, priority) };
                        let id = backlog.insert(now, lane, job, ()).unwrap();
                        let patience = (OVERTAKES + 1) * (known.len() + 1);
                        known.insert(id, Known { lane, costs, sent: 0, patience });
                    }
                    Act::Cancel(which) => {
                        if !known.is_empty() {
                            let id = *known.keys().nth(which.index(known.len())).unwrap();
                            prop_assert!(backlog.remove(id).is_some());
                            known.remove(&id);
                        }
                    }
                    Act::Run | Act::RunSide { .. } => {
                        let side_of = if let Act::RunSide { lane } = act { Some(lane) } else { None };
                        let batch = match side_of {
                            Some(lane) => backlog.next_side(now, lane),
                            None => run(&mut backlog, now),
                        };
                        let Some(batch) = batch else {
                            prop_assert!(known.is_empty() || side_of.is_some(), "idle although jobs wait");
                            continue;
                        };
                        prop_assert!(side_of.is_none_or(|lane| batch.lane == lane && batch.is_side));
                        prop_assert!(!batch.is_side || sides > 1 || side_of.is_some());
                        let part = if batch.is_side { sides } else { 1 };
                        let cost: usize = batch.items.iter().map(Item::cost).sum();
                        prop_assert!(cost <= BUDGET.div_ceil(part) || batch.items.len() == 1, "{cost}");
                        prop_assert!(!batch.items.is_empty() && batch.items.len() <= ITEMS.div_ceil(part));
                        prop_assert_eq!(batch.items.len(), batch.origins.len());
                        let waiting = known.len();
                        for (item, &(id, position)) in batch.items.iter().zip(&batch.origins) {
                            let job = known.get_mut(&id).expect("only jobs that are here are sent");
                            prop_assert_eq!(job.lane, batch.lane);
                            prop_assert_eq!(position, job.sent, "in order, none twice, none left out");
                            prop_assert_eq!(item.cost(), job.costs[position]);
                            job.sent += 1;
                        }
                        let served = backlog.jobs_of(&batch.origins);
                        for (&origin, _) in batch.origins.iter().zip(&batch.items) {
                            let finished = backlog.deliver(now, origin, output(0)).is_some();
                            let job = &known[&origin.0];
                            prop_assert_eq!(finished, origin.1 + 1 == job.costs.len());
                            if finished {
                                known.remove(&origin.0);
                            }
                        }
                        for (id, job) in &mut known {
                            if served.contains(id) {
                                job.patience = (OVERTAKES + 1) * (waiting + 1);
                            } else {
                                prop_assert!(job.patience > 0, "job {id} waits longer than the policy promises");
                                job.patience -= 1;
                            }
                        }
                    }
                }
            }
            prop_assert!(known.is_empty());
            prop_assert_eq!(backlog.depth(), (0, 0));
        }
    }
}
