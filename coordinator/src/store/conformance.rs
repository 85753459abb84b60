//! What every store must do, as one suite that each engine runs: scenarios with expected facts, and random commands whose
//! answers must be those of the in-memory store.

use super::*;
use coordinator_client::wire::TaskKind;
use proptest::prelude::*;
use std::future::Future;
use std::path::Path;

const T0: i64 = 1_000_000;
const LEASE_MS: i64 = 30_000;
const LIMITS: Limits = Limits { tasks_open_max: 6, retention_ms: 100_000, exclusion_ms: 10_000 };

/// A store under test with its clock.
struct Under {
    store: Arc<dyn Store>,
    now: Arc<AtomicI64>,
    _folder: tempfile::TempDir,
}

type Make = fn(&Path, Clock) -> Arc<dyn Store>;

fn memory(_: &Path, clock: Clock) -> Arc<dyn Store> {
    Arc::new(Memory::new(clock, LIMITS))
}

fn sqlite(folder: &Path, clock: Clock) -> Arc<dyn Store> {
    let options = SqliteOptions { path: folder.join("store.db"), limits: LIMITS, clock, readers: 1 };
    Arc::new(Sqlite::open(options).unwrap())
}

/// Every engine. A new one is one line here.
const ENGINES: &[(&str, Make)] = &[("memory", memory), ("sqlite", sqlite)];

fn under(make: Make) -> Under {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(T0));
    Under { store: make(folder.path(), Clock::Manual(now.clone())), now, _folder: folder }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn id(number: u8) -> TaskId {
    TaskId(uuid::Uuid::from_bytes([number; 16]))
}

fn node(name: &str) -> NodeId {
    NodeId(name.into())
}

fn task(number: u8) -> NewTask {
    NewTask {
        id: id(number),
        tenant: "default".into(),
        kind: TaskKind::Embed,
        model: "m@1".into(),
        input: vec![number],
        request_sha256: [number; 32],
        priority: 5,
        deadline_ms: None,
        idempotency_key: None,
        failures_max: 2,
    }
}

fn broken(fault: Fault, retryable: bool) -> Failure {
    Failure { fault, code: Code::Internal, detail: "broke".into(), retryable }
}

fn at(number: u8, epoch: u64) -> Attempt {
    Attempt { task: id(number), epoch }
}

impl Under {
    fn pass(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    async fn submit(&self, number: u8) {
        assert_eq!(self.store.submit(task(number)).await, Ok(Submitted { id: id(number), existing: false }));
    }

    async fn node(&self, name: &str) {
        let node = Node {
            id: node(name),
            tenant: "default".into(),
            public_key: [7; 32],
            name: name.into(),
            region: "r".into(),
            profile: "{}".into(),
            registered_ms: T0,
            seen_ms: T0,
            state: NodeState::Active,
            settled: 0,
            faulted: 0,
            lost: 0,
        };
        self.store.put_node(node).await.unwrap();
    }

    /// Claims and checks which attempts came.
    async fn claim(&self, name: &str, session: u64, max: usize, want: &[Attempt]) {
        let wants = vec![Want { kind: TaskKind::Embed, model: "m@1".into() }];
        let claim = Claim { node: node(name), session, wants, max, lease_ms: LEASE_MS };
        let claimed = self.store.claim(claim).await.unwrap();
        assert_eq!(claimed.iter().map(|c| c.attempt).collect::<Vec<_>>(), want);
        for claimed in claimed {
            assert_eq!(claimed.input, [claimed.attempt.task.0.as_bytes()[0]]);
        }
    }

    async fn finish(&self, name: &str, attempt: Attempt, want: Settlement) {
        let settled = self.store.finish(attempt, &node(name), vec![9], "{}".into()).await;
        assert_eq!(settled, Ok(want));
    }

    async fn give_back(&self, name: &str, attempt: Attempt, failure: Failure, counts: bool, want: GivenBack) {
        assert_eq!(self.store.give_back(attempt, &node(name), failure, 1_000, counts).await, Ok(want));
    }

    async fn state(&self, number: u8, want: State) {
        assert_eq!(self.store.task(id(number)).await.unwrap().map(|t| t.state), Some(want));
    }

    async fn outcomes(&self, number: u8, want: &[Option<Outcome>]) {
        let attempts = self.store.attempts(id(number)).await.unwrap();
        assert_eq!(attempts.iter().map(|a| a.outcome).collect::<Vec<_>>(), want);
    }
}

/// Runs a scenario on every engine.
fn on_every_engine<F: Future<Output = ()>>(scenario: impl Fn(Under) -> F) {
    for (name, make) in ENGINES {
        println!("engine {name}");
        block_on(scenario(under(*make)));
    }
}

#[test]
fn a_task_is_claimed_once_and_ends_once() {
    on_every_engine(|s| async move {
        s.node("a").await;
        s.submit(1).await;
        s.claim("a", 1, 10, &[at(1, 1)]).await;
        s.claim("b", 1, 10, &[]).await;
        s.finish("b", at(1, 1), Settlement::Stale).await;
        s.finish("a", at(1, 2), Settlement::Stale).await;
        s.finish("a", at(1, 1), Settlement::Settled).await;
        s.finish("a", at(1, 1), Settlement::Duplicate).await;
        s.state(1, State::Succeeded).await;
        assert_eq!(s.store.output(id(1)).await, Ok(Some(vec![9])));
        assert_eq!(s.store.input(id(1)).await, Ok(Some(vec![1])));
        s.outcomes(1, &[Some(Outcome::Settled)]).await;
        assert_eq!(s.store.node(&node("a")).await.unwrap().unwrap().settled, 1);
    });
}

#[test]
fn claims_follow_priority_then_age_and_capability() {
    on_every_engine(|s| async move {
        for (number, priority, model) in [(1, 5, "m@1"), (2, 9, "m@1"), (3, 9, "other@1"), (4, 9, "m@1"), (5, 0, "m@1")]
        {
            let task = NewTask { priority, model: model.into(), ..task(number) };
            s.store.submit(task).await.unwrap();
        }
        s.claim("a", 1, 2, &[at(2, 1), at(4, 1)]).await;
        s.claim("a", 1, 9, &[at(1, 1), at(5, 1)]).await;
        s.state(3, State::Queued).await;
        assert_eq!(
            s.store.depths().await.unwrap(),
            [Depth { kind: TaskKind::Embed, model: "other@1".into(), queued: 1, oldest_ms: T0 }]
        );
    });
}

#[test]
fn a_lease_that_is_not_renewed_is_lost_and_its_late_result_refused() {
    on_every_engine(|s| async move {
        s.submit(1).await;
        s.submit(2).await;
        s.claim("a", 1, 2, &[at(1, 1), at(2, 1)]).await;
        s.pass(LEASE_MS / 2);
        assert_eq!(s.store.renew(&node("a"), 1, &[at(1, 1), at(9, 1)], LEASE_MS).await, Ok(vec![at(9, 1)]));
        assert_eq!(s.store.renew(&node("a"), 2, &[at(1, 1)], LEASE_MS).await, Ok(vec![at(1, 1)]));
        s.pass(LEASE_MS / 2);
        let lost = Holder { node: node("a"), session: 1, attempt: at(2, 1) };
        assert_eq!(s.store.sweep().await, Ok(Swept { lost: vec![lost], ..Swept::default() }));
        s.finish("a", at(2, 1), Settlement::Stale).await;
        s.claim("b", 1, 9, &[at(2, 2)]).await;
        s.finish("a", at(2, 1), Settlement::Stale).await;
        s.finish("b", at(2, 2), Settlement::Settled).await;
        s.finish("a", at(1, 1), Settlement::Settled).await;
        s.outcomes(2, &[Some(Outcome::Lost), Some(Outcome::Settled)]).await;
    });
}

#[test]
fn a_closed_connection_loses_its_leases_and_no_others() {
    on_every_engine(|s| async move {
        s.submit(1).await;
        s.submit(2).await;
        s.claim("a", 1, 1, &[at(1, 1)]).await;
        s.claim("a", 2, 1, &[at(2, 1)]).await;
        assert_eq!(s.store.release(&node("a"), 1).await, Ok(vec![id(1)]));
        assert_eq!(s.store.release(&node("a"), 1).await, Ok(vec![]));
        s.state(1, State::Queued).await;
        s.state(2, State::Leased).await;
    });
}

#[test]
fn a_reconnect_keeps_what_still_runs() {
    on_every_engine(|s| async move {
        s.node("a").await;
        for number in 1..=3 {
            s.submit(number).await;
        }
        s.claim("a", 1, 2, &[at(1, 1), at(2, 1)]).await;
        s.claim("b", 1, 1, &[at(3, 1)]).await;
        let adopted = s.store.adopt(&node("a"), 2, &[at(2, 1), at(3, 1)], LEASE_MS).await.unwrap();
        assert_eq!(adopted, Adopted { adopted: vec![at(2, 1)], refused: vec![at(3, 1)], requeued: vec![id(1)] });
        assert_eq!(s.store.release(&node("a"), 1).await, Ok(vec![]));
        s.finish("a", at(2, 1), Settlement::Settled).await;
        assert_eq!(s.store.node(&node("a")).await.unwrap().unwrap().lost, 1);
    });
}

#[test]
fn a_task_that_fails_too_often_is_quarantined() {
    on_every_engine(|s| async move {
        s.node("a").await;
        s.submit(1).await;
        let failure = broken(Fault::Worker, true);
        s.claim("a", 1, 1, &[at(1, 1)]).await;
        s.give_back("a", at(1, 1), failure.clone(), false, GivenBack::Requeued).await;
        s.give_back("a", at(1, 1), failure.clone(), false, GivenBack::Stale).await;
        s.claim("b", 1, 1, &[]).await; // backs off
        s.pass(1_000);
        s.claim("a", 1, 1, &[]).await; // a is passed over for another moment
        s.pass(1_000);
        s.claim("a", 1, 1, &[at(1, 2)]).await;
        s.give_back("a", at(1, 2), failure.clone(), true, GivenBack::Requeued).await;
        s.pass(9_999);
        s.claim("a", 1, 1, &[]).await; // for long after a failure
        s.pass(1);
        s.claim("a", 1, 1, &[at(1, 3)]).await;
        s.give_back("a", at(1, 3), failure.clone(), true, GivenBack::Quarantined).await;
        s.claim("b", 1, 1, &[]).await;
        s.state(1, State::Quarantined).await;
        assert_eq!(s.store.task(id(1)).await.unwrap().unwrap().failure, Some(failure));
        assert_eq!(s.store.node(&node("a")).await.unwrap().unwrap().faulted, 3);
    });
}

#[test]
fn what_no_retry_mends_fails_at_once() {
    on_every_engine(|s| async move {
        s.submit(1).await;
        s.claim("a", 1, 1, &[at(1, 1)]).await;
        s.give_back("a", at(1, 1), broken(Fault::Caller, false), true, GivenBack::Failed).await;
        s.state(1, State::Failed).await;
    });
}

#[test]
fn a_cancel_ends_open_tasks_and_says_who_should_stop() {
    on_every_engine(|s| async move {
        assert_eq!(s.store.cancel(id(9)).await, Ok(None));
        s.submit(1).await;
        s.submit(2).await;
        s.claim("a", 4, 1, &[at(1, 1)]).await;
        let holder = Some(Holder { node: node("a"), session: 4, attempt: at(1, 1) });
        assert_eq!(s.store.cancel(id(1)).await, Ok(Some(Cancelled { state: State::Cancelled, holder })));
        assert_eq!(s.store.cancel(id(1)).await, Ok(Some(Cancelled { state: State::Cancelled, holder: None })));
        assert_eq!(s.store.cancel(id(2)).await, Ok(Some(Cancelled { state: State::Cancelled, holder: None })));
        s.finish("a", at(1, 1), Settlement::Stale).await;
        s.outcomes(1, &[Some(Outcome::Cancelled)]).await;
    });
}

#[test]
fn a_deadline_ends_a_task_wherever_it_is() {
    on_every_engine(|s| async move {
        for number in 1..=2 {
            let task = NewTask { deadline_ms: Some(T0 + 10), ..task(number) };
            s.store.submit(task).await.unwrap();
        }
        s.claim("a", 1, 1, &[at(1, 1)]).await;
        s.pass(10);
        s.claim("a", 1, 1, &[]).await;
        let swept = s.store.sweep().await.unwrap();
        assert_eq!(swept.expired, [id(1), id(2)]);
        assert_eq!(swept.expired_holders, [Holder { node: node("a"), session: 1, attempt: at(1, 1) }]);
        s.state(1, State::Expired).await;
        s.finish("a", at(1, 1), Settlement::Stale).await;
    });
}

#[test]
fn an_idempotency_key_makes_one_task() {
    on_every_engine(|s| async move {
        let first = NewTask { idempotency_key: Some("k".into()), ..task(1) };
        let again = NewTask { id: id(2), ..first.clone() };
        let other = NewTask { request_sha256: [3; 32], ..again.clone() };
        assert_eq!(s.store.submit(first).await, Ok(Submitted { id: id(1), existing: false }));
        assert_eq!(s.store.submit(again).await, Ok(Submitted { id: id(1), existing: true }));
        let conflict = Error::IdempotencyConflict { key: "k".into(), task: id(1) };
        assert_eq!(s.store.submit(other).await, Err(conflict));
        assert_eq!(s.store.submit(task(1)).await, Err(Error::Exists(id(1))));
    });
}

#[test]
fn open_tasks_are_bounded_and_finished_ones_forgotten() {
    on_every_engine(|s| async move {
        for number in 1..=6 {
            s.submit(number).await;
        }
        assert_eq!(s.store.submit(task(7)).await, Err(Error::Full { max: 6 }));
        s.store.cancel(id(1)).await.unwrap();
        s.submit(7).await;
        assert_eq!(s.store.counts().await, Ok([6, 0, 0, 0, 1, 0, 0]));
        s.pass(LIMITS.retention_ms);
        assert_eq!(s.store.sweep().await, Ok(Swept { forgotten: 1, ..Swept::default() }));
        assert_eq!(s.store.task(id(1)).await, Ok(None));
        assert_eq!(s.store.input(id(1)).await, Ok(None));
    });
}

#[test]
fn tasks_are_listed_newest_first_by_state_and_page() {
    on_every_engine(|s| async move {
        for number in 1..=4 {
            s.submit(number).await;
        }
        s.store.cancel(id(2)).await.unwrap();
        let list = async |state, before: Option<u8>, limit| {
            let filter = Filter { state, before: before.map(id), limit };
            let tasks = s.store.tasks(filter).await.unwrap();
            tasks.iter().map(|t| t.id.0.as_bytes()[0]).collect::<Vec<_>>()
        };
        assert_eq!(list(None, None, 2).await, [4, 3]);
        assert_eq!(list(None, Some(3), 9).await, [2, 1]);
        assert_eq!(list(Some(State::Queued), Some(4), 9).await, [3, 1]);
        assert_eq!(list(None, Some(9), 9).await, [0; 0]);
    });
}

#[test]
fn nodes_keep_their_counters_and_state_when_they_register_again() {
    on_every_engine(|s| async move {
        s.node("b").await;
        s.node("a").await;
        assert_eq!(s.store.set_node_state(&node("a"), NodeState::Banned).await, Ok(true));
        assert_eq!(s.store.set_node_state(&node("x"), NodeState::Banned).await, Ok(false));
        let mut again = s.store.node(&node("a")).await.unwrap().unwrap();
        again.name = "renamed".into();
        again.state = NodeState::Active;
        again.settled = 99;
        s.store.put_node(again).await.unwrap();
        let nodes = s.store.nodes().await.unwrap();
        assert_eq!(nodes.iter().map(|n| n.id.0.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((nodes[0].name.as_str(), nodes[0].state, nodes[0].settled), ("renamed", NodeState::Banned, 0));
    });
}

#[test]
fn a_model_version_never_changes() {
    on_every_engine(|s| async move {
        let model = |version: &str, digest: &str| Model {
            name: "m".into(),
            version: version.into(),
            manifest: "{}".into(),
            digest: digest.into(),
            registered_ms: T0,
        };
        assert_eq!(s.store.put_model(model("2", "x")).await, Ok(Put::Created));
        assert_eq!(s.store.put_model(model("1", "x")).await, Ok(Put::Created));
        assert_eq!(s.store.put_model(model("1", "x")).await, Ok(Put::Unchanged));
        assert_eq!(s.store.put_model(model("1", "y")).await, Ok(Put::Conflict));
        let version = async |wanted| s.store.model("m", wanted).await.unwrap().map(|m| m.version);
        assert_eq!(version(None).await.as_deref(), Some("1"));
        assert_eq!(version(Some("2")).await.as_deref(), Some("2"));
        assert_eq!(version(Some("3")).await, None);
        assert_eq!(s.store.remove_model("m", "1").await, Ok(true));
        assert_eq!(s.store.remove_model("m", "1").await, Ok(false));
        assert_eq!(s.store.models().await.unwrap().len(), 1);
    });
}

#[test]
fn the_file_keeps_everything_and_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(T0));
    let options =
        SqliteOptions { path: folder.path().join("store.db"), limits: LIMITS, clock: Clock::Manual(now), readers: 2 };
    block_on(async {
        let store = Sqlite::open(options.clone()).unwrap();
        store.submit(task(1)).await.unwrap();
        assert!(matches!(Sqlite::open(options.clone()), Err(Error::Engine(_))));
    });
    block_on(async {
        let store = Sqlite::open(options).unwrap();
        assert_eq!(store.task(id(1)).await.unwrap().map(|t| t.state), Some(State::Queued));
    });
}

/// A command of the random test. Small numbers, so that commands meet.
#[derive(Debug, Clone)]
enum Command {
    Submit { number: u8, priority: u8, key: Option<u8>, deadline_ms: Option<i64>, model: u8 },
    Claim { node: u8, session: u64, max: usize, both: bool },
    Renew { node: u8, session: u64, attempts: Vec<(u8, u64)> },
    Adopt { node: u8, session: u64, attempts: Vec<(u8, u64)> },
    Release { node: u8, session: u64 },
    Finish { node: u8, attempt: (u8, u64) },
    GiveBack { node: u8, attempt: (u8, u64), fault: Fault, retryable: bool, counts: bool },
    Cancel { number: u8 },
    Sweep,
    Pass { ms: i64 },
}

fn command() -> impl Strategy<Value = Command> {
    let (number, node, session) = (|| 1..8u8, || 1..4u8, || 1..3u64);
    let attempt = move || (number(), 1..5u64);
    let attempts = move || proptest::collection::vec(attempt(), 0..4);
    let fault = prop_oneof![Just(Fault::Worker), Just(Fault::Caller), Just(Fault::Model)];
    prop_oneof![
        4 => (number(), 0..3u8, proptest::option::of(1..3u8), proptest::option::of(T0..T0 + 200_000), 1..3u8)
            .prop_map(|(number, priority, key, deadline_ms, model)|
                Command::Submit { number, priority, key, deadline_ms, model }),
        6 => (node(), session(), 0..4usize, any::<bool>())
            .prop_map(|(node, session, max, both)| Command::Claim { node, session, max, both }),
        2 => (node(), session(), attempts()).prop_map(|(node, session, attempts)|
            Command::Renew { node, session, attempts }),
        2 => (node(), session(), attempts()).prop_map(|(node, session, attempts)|
            Command::Adopt { node, session, attempts }),
        1 => (node(), session()).prop_map(|(node, session)| Command::Release { node, session }),
        5 => (node(), attempt()).prop_map(|(node, attempt)| Command::Finish { node, attempt }),
        4 => (node(), attempt(), fault, any::<bool>(), any::<bool>())
            .prop_map(|(node, attempt, fault, retryable, counts)|
                Command::GiveBack { node, attempt, fault, retryable, counts }),
        1 => number().prop_map(|number| Command::Cancel { number }),
        2 => Just(Command::Sweep),
        3 => (0..60_000i64).prop_map(|ms| Command::Pass { ms }),
    ]
}

impl Under {
    /// Runs a command and tells everything that it answered.
    async fn run(&self, command: &Command) -> String {
        let name = |number: u8| node(&format!("node-{number}"));
        let all = |attempts: &[(u8, u64)]| attempts.iter().map(|(n, e)| at(*n, *e)).collect::<Vec<_>>();
        let store = &self.store;
        match command.clone() {
            Command::Submit { number, priority, key, deadline_ms, model } => {
                let task = NewTask {
                    priority,
                    deadline_ms,
                    model: format!("m@{model}"),
                    idempotency_key: key.map(|k| k.to_string()),
                    request_sha256: [number / 2; 32],
                    ..task(number)
                };
                format!("{:?}", store.submit(task).await)
            }
            Command::Claim { node, session, max, both } => {
                let want = |model: &str| Want { kind: TaskKind::Embed, model: model.into() };
                let wants = if both { vec![want("m@1"), want("m@2")] } else { vec![want("m@1"), want("m@1")] };
                let claim = Claim { node: name(node), session, wants, max, lease_ms: LEASE_MS };
                format!("{:?}", store.claim(claim).await)
            }
            Command::Renew { node, session, attempts } => {
                format!("{:?}", store.renew(&name(node), session, &all(&attempts), LEASE_MS).await)
            }
            Command::Adopt { node, session, attempts } => {
                format!("{:?}", store.adopt(&name(node), session, &all(&attempts), LEASE_MS).await)
            }
            Command::Release { node, session } => format!("{:?}", store.release(&name(node), session).await),
            Command::Finish { node, attempt: (number, epoch) } => {
                format!("{:?}", store.finish(at(number, epoch), &name(node), vec![node], "{}".into()).await)
            }
            Command::GiveBack { node, attempt: (number, epoch), fault, retryable, counts } => {
                let failure = broken(fault, retryable);
                format!("{:?}", store.give_back(at(number, epoch), &name(node), failure, 1_000, counts).await)
            }
            Command::Cancel { number } => format!("{:?}", store.cancel(id(number)).await),
            Command::Sweep => format!("{:?}", store.sweep().await),
            Command::Pass { ms } => {
                self.pass(ms);
                String::new()
            }
        }
    }

    /// Everything that the store knows.
    async fn dump(&self) -> String {
        let store = &self.store;
        let mut dump = String::new();
        for task in store.tasks(Filter { limit: 100, ..Filter::default() }).await.unwrap() {
            let (attempts, output) = (store.attempts(task.id).await.unwrap(), store.output(task.id).await.unwrap());
            dump += &format!("{task:?}\n  {attempts:?}\n  {output:?}\n");
        }
        dump += &format!("{:?}\n{:?}\n", store.counts().await, store.depths().await);
        dump + &format!("{:?}", store.nodes().await)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_engine_answers_as_the_one_in_memory(commands in proptest::collection::vec(command(), 1..60)) {
        block_on(async {
            let oracle = under(memory);
            let tested: Vec<Under> = ENGINES.iter().map(|(_, make)| under(*make)).collect();
            for store in tested.iter().chain([&oracle]) {
                store.node("node-1").await;
            }
            for (step, command) in commands.iter().enumerate() {
                let want = oracle.run(command).await;
                for (store, (name, _)) in tested.iter().zip(ENGINES) {
                    assert_eq!(store.run(command).await, want, "{name}, step {step}: {command:?}");
                }
            }
            let want = oracle.dump().await;
            for (store, (name, _)) in tested.iter().zip(ENGINES) {
                assert_eq!(store.dump().await, want, "{name}");
            }
        });
    }

    /// No sequence of commands settles a task twice, and a final state stays.
    #[test]
    fn a_task_is_settled_at_most_once(commands in proptest::collection::vec(command(), 1..80)) {
        block_on(async {
            let store = under(memory);
            let mut settled = std::collections::HashSet::new();
            let mut ended = std::collections::HashMap::new();
            for command in &commands {
                let answer = store.run(command).await;
                if let Command::Finish { attempt: (number, _), .. } = command
                    && answer == "Ok(Settled)"
                {
                    let task = store.store.task(id(*number)).await.unwrap().unwrap();
                    // A number names another task once the first is forgotten.
                    assert!(settled.insert((task.id, task.submitted_ms)), "settled twice: {task:?}");
                }
                for task in store.store.tasks(Filter { limit: 100, ..Filter::default() }).await.unwrap() {
                    if task.state.is_final() {
                        let first = *ended.entry((task.id, task.submitted_ms)).or_insert(task.state);
                        assert_eq!(first, task.state, "{}", task.id);
                    }
                }
            }
        });
    }
}
