//! A whole grid's worth of random losses, reconnects, restarts and doubled frames against a model of the coordinator.

use super::{SLOTS, ack, attempt, facts, failed, introduction, offer, result};
use coordinator_client::session::{Action, Event, Now, Session};
use coordinator_client::wire::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What happens next in a simulated grid.
#[derive(Debug, Clone)]
enum Step {
    /// Oldest frame towards the worker arrives; twice, sometimes.
    Down { twice: bool },
    /// Oldest frame towards the coordinator arrives; twice, sometimes.
    Up { twice: bool },
    /// The connection breaks, with everything on its way.
    Cut,
    /// A new connection.
    Connect,
    /// Time passes.
    Wait(u64),
    /// A running task ends well, or not.
    End { which: usize, well: bool },
    /// The coordinator's caller calls a task off: it will not be settled, and that is no loss.
    Cancel(u64),
    /// The worker's process dies and starts again with what its spool holds.
    Restart,
    /// The worker takes less, or more.
    Slots(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::bool::weighted(0.1).prop_map(|twice| Step::Down { twice }),
        8 => prop::bool::weighted(0.1).prop_map(|twice| Step::Up { twice }),
        1 => Just(Step::Cut),
        2 => Just(Step::Connect),
        3 => (100u64..12_000).prop_map(Step::Wait),
        5 => (0usize..8, prop::bool::weighted(0.8)).prop_map(|(which, well)| Step::End { which, well }),
        1 => (0u64..TASKS).prop_map(Step::Cancel),
        1 => Just(Step::Restart),
        1 => (0u32..=SLOTS).prop_map(Step::Slots),
    ]
}

const TASKS: u64 = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Leased { until: Duration },
    Settled,
    Cancelled,
}

struct Task {
    state: State,
    epoch: u64,
    settled: u32,
    /// After a decline it is not offered again at once.
    not_before: Duration,
}

/// A coordinator as small as can be: leases, epochs, fencing.
struct Model {
    tasks: BTreeMap<u64, Task>,
    welcomed: bool,
    slots: u32,
    offered: BTreeSet<Attempt>,
}

struct Grid {
    now: Duration,
    coordinator: Model,
    session: Session,
    spool: BTreeMap<Attempt, Box<TaskResult>>,
    /// What the worker's host runs, and whether it was told to stop.
    host: BTreeMap<Attempt, bool>,
    started: BTreeSet<Attempt>,
    connected: bool,
    up: VecDeque<Frame>,
    down: VecDeque<Frame>,
}

impl Grid {
    fn new() -> Self {
        let tasks = (0..TASKS)
            .map(|id| (id, Task { state: State::Queued, epoch: 0, settled: 0, not_before: Duration::ZERO }))
            .collect();
        Self {
            now: Duration::ZERO,
            coordinator: Model { tasks, welcomed: false, slots: 0, offered: BTreeSet::new() },
            session: Session::new(introduction(), facts(SLOTS)),
            spool: BTreeMap::new(),
            host: BTreeMap::new(),
            started: BTreeSet::new(),
            connected: false,
            up: VecDeque::new(),
            down: VecDeque::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        let now = Now { since_start: self.now, unix_ms: 0 };
        for action in self.session.handle(now, event) {
            match action {
                Action::Send(frame) => {
                    if self.connected {
                        let bytes = frame.encode().unwrap();
                        self.up.push_back(Frame::decode(&bytes).unwrap().unwrap());
                    }
                }
                Action::Run(offer) => {
                    assert!(self.started.insert(offer.attempt), "{} is started twice", offer.attempt);
                    self.host.insert(offer.attempt, false);
                }
                Action::Stop(attempt) => {
                    let stopped = self.host.get_mut(&attempt).expect("only what runs is stopped");
                    assert!(!std::mem::replace(stopped, true), "{attempt} is stopped twice");
                }
                Action::Forget(attempt) => drop(self.spool.remove(&attempt)),
                Action::Close(_) | Action::Closed(_) => self.cut(),
                other => panic!("{other:?} was not asked for"),
            }
        }
        let working = self.host.values().filter(|stopped| !**stopped).count();
        assert!(working <= SLOTS as usize && self.host.len() <= SLOTS as usize, "more runs than there are slots");
        assert_eq!(self.session.running(), self.host.len());
    }

    fn cut(&mut self) {
        if !std::mem::take(&mut self.connected) {
            return;
        }
        self.up.clear();
        self.down.clear();
        self.coordinator.welcomed = false;
        self.coordinator.offered.clear();
        self.tell(Event::Lost);
    }

    fn restart(&mut self) {
        self.cut();
        self.host.clear();
        self.started.clear();
        self.session = Session::new(introduction(), facts(SLOTS));
        for result in self.spool.values().cloned().collect::<Vec<_>>() {
            self.tell(Event::Recovered(result));
        }
    }

    fn end(&mut self, which: usize, well: bool) {
        let Some((&attempt, &stopped)) = self.host.iter().nth(which % self.host.len().max(1)) else { return };
        self.host.remove(&attempt);
        // One that was told to stop may have been quicker.
        if well {
            self.spool.insert(attempt, result(attempt));
            self.tell(Event::Finished(result(attempt)));
        } else {
            let class = if stopped { FailureClass::Cancelled } else { FailureClass::Internal };
            self.tell(Event::Failed(failed(attempt, class)));
        }
    }

    fn send_down(&mut self, frame: Frame) {
        if self.connected {
            self.down.push_back(frame);
        }
    }

    /// The coordinator gets a frame.
    fn arrive(&mut self, frame: Frame) {
        let lease = self.now + Duration::from_millis(Settings::default().lease_ms);
        let id_of = |attempt: &Attempt| u64::try_from(attempt.task.0.as_u128()).unwrap();
        let tasks = &mut self.coordinator.tasks;
        let is_current = |tasks: &BTreeMap<u64, Task>, attempt: &Attempt| {
            let task = &tasks[&id_of(attempt)];
            task.epoch == attempt.epoch && matches!(task.state, State::Leased { .. })
        };
        match frame {
            Frame::Hello(hello) => {
                if self.coordinator.welcomed {
                    return; // doubled on its way
                }
                let (adopted, refused): (Vec<Attempt>, Vec<Attempt>) =
                    hello.running.iter().copied().partition(|attempt| is_current(tasks, attempt));
                for (id, task) in tasks.iter_mut().filter(|(_, task)| matches!(task.state, State::Leased { .. })) {
                    let held = adopted.contains(&attempt(*id, task.epoch));
                    task.state = if held { State::Leased { until: lease } } else { State::Queued };
                }
                self.coordinator.welcomed = true;
                self.coordinator.slots = hello.capabilities.slots;
                self.coordinator.offered = adopted.iter().copied().collect();
                let settings = Settings::default();
                let protocol = PROTOCOL;
                self.send_down(Frame::Welcome(Welcome { protocol, settings, server_time_ms: 0, adopted, refused }));
            }
            Frame::Heartbeat(heartbeat) => {
                for attempt in &heartbeat.running {
                    if is_current(tasks, attempt) {
                        tasks.get_mut(&id_of(attempt)).unwrap().state = State::Leased { until: lease };
                    }
                }
                self.coordinator.slots = heartbeat.slots;
            }
            Frame::Decline(decline) => {
                self.coordinator.offered.remove(&decline.attempt);
                if is_current(tasks, &decline.attempt) {
                    let task = tasks.get_mut(&id_of(&decline.attempt)).unwrap();
                    (task.state, task.not_before) = (State::Queued, self.now + Duration::from_secs(1));
                }
            }
            Frame::Result(result) => {
                let outcome = self.coordinator.settle(result.attempt, State::Settled);
                self.send_down(ack(result.attempt, outcome));
            }
            Frame::Failed(failed) => {
                let next = if failed.class == FailureClass::Cancelled { State::Cancelled } else { State::Queued };
                let outcome = self.coordinator.settle(failed.attempt, next);
                self.send_down(ack(failed.attempt, outcome));
            }
            Frame::Ping(ping) => self.send_down(Frame::Pong(ping)),
            Frame::Accept(_) | Frame::Pong(_) => {}
            other => panic!("a worker sends no {other:?}"),
        }
    }

    /// The coordinator's own doing: leases lapse, tasks are offered.
    fn dispatch(&mut self) {
        let now = self.now;
        for (id, task) in &mut self.coordinator.tasks {
            if matches!(task.state, State::Leased { until } if until <= now) {
                self.coordinator.offered.remove(&attempt(*id, task.epoch));
                task.state = State::Queued;
            }
        }
        if !self.coordinator.welcomed || !self.connected {
            return;
        }
        let Model { tasks, offered, slots, .. } = &mut self.coordinator;
        let mut offers = Vec::new();
        let waiting = |task: &Task| task.state == State::Queued && task.not_before <= now;
        for (id, task) in tasks.iter_mut().filter(|(_, task)| waiting(task)) {
            if offered.len() >= *slots as usize {
                break;
            }
            task.epoch += 1;
            task.state = State::Leased { until: now + Duration::from_secs(30) };
            offered.insert(attempt(*id, task.epoch));
            offers.push(Frame::Offer(offer(attempt(*id, task.epoch))));
        }
        offers.into_iter().for_each(|frame| self.send_down(frame));
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Down { twice } => {
                if let Some(frame) = self.down.pop_front() {
                    // A welcome that comes twice is out of place and closes the link: tried elsewhere.
                    if twice && !matches!(frame, Frame::Welcome(_)) {
                        self.tell(Event::Frame(frame.clone()));
                    }
                    self.tell(Event::Frame(frame));
                }
            }
            Step::Up { twice } => {
                if let Some(frame) = self.up.pop_front() {
                    if twice {
                        self.arrive(frame.clone());
                    }
                    self.arrive(frame);
                }
            }
            Step::Cut => self.cut(),
            Step::Connect => {
                if !self.connected {
                    self.connected = true;
                    self.tell(Event::Connected);
                }
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.tell(Event::Tick);
            }
            Step::End { which, well } => self.end(which, well),
            Step::Cancel(id) => {
                let task = &self.coordinator.tasks[&id];
                if matches!(task.state, State::Leased { .. }) {
                    let attempt = attempt(id, task.epoch);
                    self.send_down(Frame::Cancel(Cancel { attempt, reason: String::new() }));
                }
            }
            Step::Restart => self.restart(),
            Step::Slots(slots) => self.tell(Event::Facts(facts(slots))),
        }
        self.dispatch();
    }

    /// No more harm is done; everything has to come to its end.
    fn heal(&mut self) {
        self.tell(Event::Facts(facts(SLOTS)));
        for _ in 0..2_000 {
            self.take(&Step::Connect);
            while !self.down.is_empty() || !self.up.is_empty() {
                self.take(&Step::Down { twice: false });
                self.take(&Step::Up { twice: false });
            }
            self.take(&Step::End { which: 0, well: true });
            if self.is_settled() && self.session.unacknowledged() == 0 && self.host.is_empty() {
                return;
            }
            self.take(&Step::Wait(1_000));
        }
        panic!("the grid does not come to rest");
    }

    fn is_settled(&self) -> bool {
        self.coordinator.tasks.values().all(|task| matches!(task.state, State::Settled | State::Cancelled))
    }
}

impl Model {
    fn settle(&mut self, attempt: Attempt, next: State) -> AckOutcome {
        self.offered.remove(&attempt);
        let task = self.tasks.get_mut(&u64::try_from(attempt.task.0.as_u128()).unwrap()).unwrap();
        if task.epoch != attempt.epoch {
            return AckOutcome::StaleAttempt;
        }
        match task.state {
            State::Leased { .. } => {
                task.state = next;
                task.settled += u32::from(next == State::Settled);
                AckOutcome::Settled
            }
            State::Settled => AckOutcome::Duplicate,
            State::Queued | State::Cancelled => AckOutcome::StaleAttempt,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_task_ends_once_whatever_is_lost(steps in prop::collection::vec(step(), 0..250)) {
        let mut grid = Grid::new();
        steps.iter().for_each(|step| grid.take(step));
        grid.heal();
        for (id, task) in &grid.coordinator.tasks {
            let once = u32::from(task.state == State::Settled);
            prop_assert_eq!(task.settled, once, "task {} was settled {} times", id, task.settled);
        }
        prop_assert!(grid.spool.is_empty(), "results stay in the spool: {:?}", grid.spool.keys());
    }
}
