//! The session in virtual time: single situations here, a whole grid's worth of harm in `grid`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

mod grid;

use coordinator_client::api::Code;
use coordinator_client::session::{Action, Event, Facts, Introduction, Now, Session};
use coordinator_client::wire::task::EmbedInput;
use coordinator_client::wire::*;
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
    let input = TaskInput::Embed(EmbedInput::default());
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

fn progressed(task: u64, epoch: u64) -> Event {
    let piece = Some(Piece { tokens: vec![1], ..Piece::default() });
    Event::Progress(Progress { attempt: attempt(task, epoch), sequence: 0, fraction: None, piece })
}

#[test]
fn progress_is_told_of_attempts_that_count_and_of_no_others() {
    let cancel = Event::Frame(Frame::Cancel(Cancel { attempt: attempt(1, 1), reason: String::new() }));
    check(
        2,
        &[
            (0, progressed(1, 1), ""),
            (0, offered(1, 1), "accept, run"),
            (0, progressed(1, 1), "progress"),
            (0, progressed(1, 2), ""),
            (1, Event::Lost, ""),
            (1, progressed(1, 1), ""),
            (1, Event::Connected, "hello"),
            (1, progressed(1, 1), ""),
            (1, Event::Frame(welcome(vec![])), ""),
            (1, progressed(1, 1), "progress"),
            (2, cancel, "stop"),
            (2, progressed(1, 1), ""),
        ],
    );
}
