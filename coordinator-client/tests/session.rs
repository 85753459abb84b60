//! The session in virtual time: single situations, and a whole grid's worth of random losses, reconnects, restarts
//! and doubled frames against a model of the coordinator.

use coordinator_client::api::Code;
use coordinator_client::session::{Action, Event, Facts, Introduction, Now, Session};
use coordinator_client::wire::task::EmbedInput;
use coordinator_client::wire::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const SLOTS: u32 = 3;

fn attempt(task: u64, epoch: u64) -> Attempt {
    Attempt { task: TaskId(uuid::Uuid::from_u128(task.into())), epoch }
}

fn introduction() -> Introduction {
    Introduction {
        node: NodeId("n".into()),
        session_epoch: 1,
        name: "w".into(),
        region: String::new(),
        agent: "test".into(),
        profile: serde_json::Value::Null,
    }
}

fn facts(slots: u32) -> Facts {
    let model = ModelHeld { id: "m@1".into(), task: TaskKind::Embed, loaded: true, execution_class: None };
    let kinds = vec![TaskKind::Embed];
    let capabilities = Capabilities { kinds, models: vec![model], can_fetch: false, memory_bytes_free: 0, slots };
    Facts { capabilities, ..Facts::default() }
}

fn offer(attempt: Attempt) -> Box<Offer> {
    let input = TaskInput::Embed(EmbedInput { inputs: vec![], dimensions: None, normalize: None, truncate: false });
    Box::new(Offer {
        attempt,
        model: "m@1".into(),
        input: Payload::Inline(input),
        deadline_in_ms: None,
        priority: 0,
        trace_parent: None,
    })
}

fn result(attempt: Attempt) -> Box<TaskResult> {
    Box::new(TaskResult {
        attempt,
        output: Payload::Inline(TaskOutput::Rerank { results: vec![] }),
        usage: Usage::default(),
        timings: Timings::default(),
        model: "m@1".into(),
        model_digest: String::new(),
        execution_class: String::new(),
        batch_size: 1,
        input_sha256: String::new(),
        output_sha256: String::new(),
        signature: vec![],
    })
}

fn failed(attempt: Attempt, class: FailureClass) -> Failed {
    Failed { attempt, class, retryable: class != FailureClass::Cancelled, code: Code::Internal, detail: String::new() }
}

fn welcome(refused: Vec<Attempt>) -> Frame {
    let settings = Settings::default();
    Frame::Welcome(Welcome { protocol: PROTOCOL, settings, server_time_ms: 0, adopted: vec![], refused })
}

fn ack(attempt: Attempt, outcome: AckOutcome) -> Frame {
    Frame::Ack(Ack { attempt, outcome })
}

fn at(seconds: u64) -> Now {
    Now { since_start: Duration::from_secs(seconds), unix_ms: seconds * 1000 }
}

/// A session that is welcome, at second 0.
fn live(slots: u32) -> Session {
    let mut session = Session::new(introduction(), facts(slots));
    session.handle(at(0), Event::Connected);
    session.handle(at(0), Event::Frame(welcome(vec![])));
    assert!(session.is_live());
    session
}

/// What an action is, in a word; heartbeats with their free slots.
fn word(action: &Action) -> String {
    match action {
        Action::Send(Frame::Heartbeat(h)) => format!("heartbeat {}/{} {}", h.slots_free, h.slots, h.running.len()),
        Action::Send(Frame::Decline(d)) => format!("decline {:?}", d.reason),
        Action::Send(Frame::Failed(f)) => format!("failed {:?}", f.class),
        Action::Send(frame) => frame.tag().into(),
        Action::Run(_) => "run".into(),
        Action::Stop(_) => "stop".into(),
        Action::Forget(_) => "forget".into(),
        Action::Close(bye) => format!("close {:?}", bye.reason),
        Action::Closed(bye) => format!("closed {:?}", bye.reason),
        other => format!("{other:?}"),
    }
}

/// Tells a live session one thing after the other and compares what it does, in words.
fn check(slots: u32, steps: &[(u64, Event, &str)]) {
    let mut session = live(slots);
    for (second, event, want) in steps {
        let words: Vec<String> = session.handle(at(*second), event.clone()).iter().map(word).collect();
        assert_eq!(words.join(", "), *want, "after {event:?} at {second} s");
    }
}

fn offered(task: u64, epoch: u64) -> Event {
    Event::Frame(Frame::Offer(offer(attempt(task, epoch))))
}

fn finished(task: u64, epoch: u64) -> Event {
    Event::Finished(result(attempt(task, epoch)))
}

fn acked(task: u64, epoch: u64) -> Event {
    Event::Frame(ack(attempt(task, epoch), AckOutcome::Settled))
}

#[test]
fn a_task_goes_from_offer_to_ack() {
    check(
        2,
        &[
            (1, offered(1, 1), "accept, run"),
            (5, Event::Tick, "heartbeat 1/2 1"),
            (6, finished(1, 1), "result"),
            (7, acked(1, 1), "forget"),
            (10, Event::Tick, "heartbeat 2/2 0"),
        ],
    );
}

#[test]
fn no_more_runs_than_there_are_slots() {
    check(
        1,
        &[
            (1, offered(1, 1), "accept, run"),
            (1, offered(2, 1), "decline NoSlot"),
            (2, finished(1, 1), "result"),
            (2, offered(2, 1), "accept, run"),
        ],
    );
}

#[test]
fn an_offer_that_comes_twice_runs_once() {
    check(
        2,
        &[
            (1, offered(1, 1), "accept, run"),
            (1, offered(1, 1), "accept"),
            (2, finished(1, 1), "result"),
            (2, offered(1, 1), "result"),
            (3, acked(1, 1), "forget"),
            (3, offered(1, 1), "decline Stale"),
            (3, offered(1, 2), "accept, run"),
            (3, offered(1, 1), "decline Stale"),
        ],
    );
}

#[test]
fn a_later_attempt_of_the_same_task_replaces_the_earlier_one() {
    check(
        2,
        &[
            (1, offered(1, 1), "accept, run"),
            (2, offered(1, 2), "stop, accept, run"),
            (3, Event::Failed(failed(attempt(1, 1), FailureClass::Cancelled)), ""),
            (4, finished(1, 2), "result"),
        ],
    );
}

#[test]
fn a_cancelled_attempt_is_reported_once_it_has_stopped() {
    let cancel = Event::Frame(Frame::Cancel(Cancel { attempt: attempt(1, 1), reason: String::new() }));
    check(
        2,
        &[
            (1, offered(1, 1), "accept, run"),
            (2, cancel.clone(), "stop"),
            (2, cancel.clone(), ""),
            (3, Event::Failed(failed(attempt(1, 1), FailureClass::Cancelled)), "failed Cancelled"),
            (4, acked(1, 1), ""),
            (5, cancel, ""),
        ],
    );
}

#[test]
fn a_result_that_is_not_acknowledged_is_sent_again() {
    check(
        2,
        &[
            (1, offered(1, 1), "accept, run"),
            (2, finished(1, 1), "result"),
            (11, Event::Tick, "ping, heartbeat 2/2 1"),
            (12, Event::Tick, "result"),
            (12, Event::Lost, ""),
            (13, Event::Connected, "hello"),
            (13, Event::Frame(welcome(vec![attempt(1, 1)])), "result"),
            (13, Event::Frame(ack(attempt(1, 1), AckOutcome::StaleAttempt)), "forget"),
        ],
    );
}

#[test]
fn a_lease_that_lapses_stops_the_work() {
    check(
        2,
        &[
            (10, offered(1, 1), "accept, run"),
            (12, Event::Lost, ""),
            (39, Event::Tick, ""),
            (40, Event::Tick, "stop"),
            (41, Event::Failed(failed(attempt(1, 1), FailureClass::Cancelled)), ""),
            (42, Event::Connected, "hello"),
            (42, Event::Frame(welcome(vec![])), ""),
        ],
    );
}

#[test]
fn a_silent_coordinator_is_given_up() {
    check(
        2,
        &[
            (5, Event::Tick, "ping, heartbeat 2/2 0"),
            (10, Event::Tick, "ping, heartbeat 2/2 0"),
            (15, Event::Tick, "ping, heartbeat 2/2 0"),
            (20, Event::Tick, "close Silent"),
            (20, Event::Lost, ""),
            (20, Event::Connected, "hello"),
            (39, Event::Tick, ""),
            (40, Event::Tick, "close Silent"),
        ],
    );
}

#[test]
fn what_does_not_suit_is_declined_with_its_reason() {
    let mut other_model = offer(attempt(1, 1));
    other_model.model = "other@1".into();
    let mut other_kind = offer(attempt(1, 1));
    other_kind.input = Payload::Inline(TaskInput::Infer(task::InferInput { inputs: vec![], outputs: vec![] }));
    check(
        2,
        &[
            (1, Event::Frame(Frame::Offer(other_model)), "decline ModelMissing"),
            (1, Event::Frame(Frame::Offer(other_kind)), "decline Unsupported"),
            (1, Event::Drain, "heartbeat 0/0 0"),
            (1, offered(1, 1), "decline Draining"),
        ],
    );
}

#[test]
fn changed_slots_and_models_are_told_at_once() {
    let mut more = facts(3);
    more.capabilities.models.clear();
    check(
        2,
        &[
            (1, Event::Facts(facts(2)), ""),
            (1, Event::Facts(Facts { utilisation: 0.5, ..facts(2) }), ""),
            (1, Event::Facts(facts(3)), "heartbeat 3/3 0"),
            (1, Event::Facts(more), "heartbeat 3/3 0"),
        ],
    );
}

#[test]
fn frames_out_of_place_close_the_link() {
    check(2, &[(1, Event::Frame(welcome(vec![])), "close Protocol")]);
    check(2, &[(1, Event::Frame(Frame::Accept(Accept { attempt: attempt(1, 1) })), "close Protocol")]);
    let bye = Bye { reason: ByeReason::Replaced, detail: String::new() };
    check(2, &[(1, Event::Frame(Frame::Bye(bye)), "closed Replaced")]);
    let mut session = Session::new(introduction(), facts(1));
    assert_eq!(session.handle(at(0), offered(1, 1)), []);
    session.handle(at(0), Event::Connected);
    assert_eq!(session.handle(at(0), offered(1, 1)).iter().map(word).collect::<Vec<_>>(), ["close Protocol"]);
}

#[test]
fn a_coordinator_cannot_make_a_worker_spin_or_fall_silent() {
    for ms in [0, u64::MAX] {
        let mut session = live(1);
        let settings = Settings { heartbeat_ms: ms, lease_ms: ms, resend_ms: ms, token: None };
        session.handle(at(1), Event::Frame(Frame::Settings(settings)));
        session.handle(at(1), offered(1, 1));
        session.handle(at(1), finished(1, 1));
        session.handle(at(6), Event::Tick);
        let next = session.next_tick();
        assert!(next > at(6).since_start && next <= at(67).since_start, "{next:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------

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
        let tasks = (0..TASKS).map(|id| (id, Task { state: State::Queued, epoch: 0, settled: 0, not_before: Duration::ZERO })).collect();
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
