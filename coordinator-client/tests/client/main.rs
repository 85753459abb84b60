//! The client against a fake coordinator over real sockets on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

mod pieces;

use coordinator_client::api::Code;
use coordinator_client::client::{
    Access, AccessError, Failure, Handle, Host, Offered, Options, Outcome, Pieces, Service,
};
use coordinator_client::fake::{Coordinator, Link};
use coordinator_client::identity::{self, Identity};
use coordinator_client::session::Facts;
use coordinator_client::wire::node::{SessionToken, paths};
use coordinator_client::wire::task::{RerankInput, Score};
use coordinator_client::wire::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Scores as many documents as it is asked to, when it is let.
struct Worker {
    may_finish: Semaphore,
    started: AtomicUsize,
    dropped: Arc<AtomicUsize>,
    loaded: std::sync::Mutex<Vec<String>>,
    /// Where the pieces of the task that was started last go; the tests write them.
    pieces: std::sync::Mutex<Option<Pieces>>,
}

struct CountDrop(Arc<AtomicUsize>, bool);

impl Drop for CountDrop {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait::async_trait]
impl Host for Worker {
    fn facts(&self) -> Facts {
        let model = ModelHeld { id: "m@1".into(), task: TaskKind::Rerank, loaded: true, execution_class: None };
        let capabilities = Capabilities {
            kinds: vec![TaskKind::Rerank],
            models: vec![model],
            can_fetch: false,
            memory_bytes_free: 0,
            slots: 2,
        };
        Facts { capabilities, health_score: 100, ..Facts::default() }
    }

    fn profile(&self) -> serde_json::Value {
        serde_json::json!({"cores": 2})
    }

    async fn execute(&self, offered: Offered, _: &Access, pieces: &Pieces) -> Result<Outcome, Failure> {
        *self.pieces.lock().unwrap() = Some(pieces.clone());
        self.started.fetch_add(1, Ordering::SeqCst);
        let mut dropped = CountDrop(Arc::clone(&self.dropped), false);
        self.may_finish.acquire().await.unwrap().forget();
        dropped.1 = true;
        let TaskInput::Rerank(RerankInput { query, documents, .. }) = offered.input else { unreachable!() };
        match query.as_str() {
            "panic" => panic!("a fault of the worker's program"),
            "fail" => Err(Failure {
                class: FailureClass::Input,
                retryable: false,
                code: Code::TooLong,
                detail: "too long".into(),
            }),
            _ => Ok(Outcome {
                output: TaskOutput::Rerank { results: vec![Score { index: 0, score: 0.5 }; documents.len()] },
                usage: Usage { input_tokens: 3, ..Usage::default() },
                timings: Timings::default(),
                model: offered.model,
                model_digest: "d".into(),
                execution_class: "fake".into(),
                batch_size: 1,
            }),
        }
    }

    async fn load(&self, model: &str, _: &Access) -> Result<(), Failure> {
        self.loaded.lock().unwrap().push(model.into());
        Ok(())
    }

    async fn unload(&self, model: &str) -> Result<(), Failure> {
        self.loaded.lock().unwrap().retain(|held| held != model);
        Ok(())
    }

    fn draining(&self, _: &str) {}
}

/// A worker with its link, as one process has them.
struct Process {
    worker: Arc<Worker>,
    handle: Handle,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

struct Setup {
    coordinator: Coordinator,
    folder: tempfile::TempDir,
    identity: Arc<Identity>,
}

impl Setup {
    async fn new() -> Self {
        Self {
            coordinator: Coordinator::start().await,
            folder: tempfile::tempdir().unwrap(),
            identity: Arc::new(Identity::generate().unwrap()),
        }
    }

    fn start(&self) -> Process {
        self.start_with(|_| {})
    }

    fn start_with(&self, change: impl FnOnce(&mut Options)) -> Process {
        let worker = Arc::new(Worker {
            may_finish: Semaphore::new(0),
            started: AtomicUsize::new(0),
            dropped: Arc::default(),
            loaded: Default::default(),
            pieces: Default::default(),
        });
        let mut options = Options::new(vec![self.coordinator.url()], self.folder.path());
        options.reconnect_min = Duration::from_millis(5);
        options.reconnect_max = Duration::from_millis(20);
        change(&mut options);
        let (service, handle) = Service::new(options, Arc::clone(&self.identity), worker.clone()).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(service.run(stop.clone()));
        Process { worker, handle, stop, running }
    }

    async fn link(&mut self) -> Link {
        let mut link = self.coordinator.accept().await;
        link.welcome(Settings::default(), &[]).await;
        link
    }
}

impl Process {
    /// What kill -9 does: nothing more is said.
    async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

fn attempt(epoch: u64) -> Attempt {
    Attempt { task: TaskId(uuid::Uuid::from_u128(epoch.into())), epoch }
}

fn offer(epoch: u64, query: &str, documents: usize) -> Frame {
    let documents = vec!["a document".to_string(); documents];
    let input = TaskInput::Rerank(RerankInput { query: query.into(), documents, top_n: None, truncate: false });
    Frame::Offer(Box::new(Offer {
        attempt: attempt(epoch),
        model: "m@1".into(),
        input: Payload::Inline(input),
        deadline_in_ms: None,
        priority: 0,
        trace_parent: None,
    }))
}

fn ack(epoch: u64) -> Frame {
    Frame::Ack(Ack { attempt: attempt(epoch), outcome: AckOutcome::Settled })
}

async fn accepted(link: &mut Link, epoch: u64) {
    assert_eq!(link.recv_work().await, Some(Frame::Accept(Accept { attempt: attempt(epoch) })));
}

async fn result(link: &mut Link, epoch: u64) -> TaskResult {
    match link.recv_work().await {
        Some(Frame::Result(result)) if result.attempt == attempt(epoch) => *result,
        other => panic!("{other:?}"),
    }
}

async fn failed(link: &mut Link, epoch: u64) -> (FailureClass, Code, bool) {
    match link.recv_work().await {
        Some(Frame::Failed(failed)) if failed.attempt == attempt(epoch) => {
            (failed.class, failed.code, failed.retryable)
        }
        other => panic!("{other:?}"),
    }
}

fn spooled(setup: &Setup) -> usize {
    let folders = std::fs::read_dir(setup.folder.path().join("spool")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn a_task_is_run_and_its_result_is_signed() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    assert_eq!(&link.node, setup.identity.node());
    link.send(offer(1, "q", 3)).await;
    accepted(&mut link, 1).await;
    process.worker.may_finish.add_permits(1);
    let result = result(&mut link, 1).await;
    let Payload::Inline(TaskOutput::Rerank { results }) = &result.output else { panic!("{result:?}") };
    assert_eq!(results.len(), 3);
    let signed = result.signed_bytes(&link.node);
    identity::verify(&setup.identity.public_key(), &signed, &result.signature).unwrap();
    let other = TaskResult { execution_class: "better".into(), ..result }.signed_bytes(&link.node);
    assert_ne!(signed, other);
    assert_eq!(spooled(&setup), 1);
    link.send(ack(1)).await;
    process.handle.until(|status| status.unacknowledged == 0).await;
    process.stop().await;
    assert_eq!(link.recv_work().await, Some(bye(ByeReason::Shutdown, "the worker stops")));
}

fn bye(reason: ByeReason, detail: &str) -> Frame {
    Frame::Bye(Bye { reason, detail: detail.into() })
}

#[tokio::test]
async fn faults_are_told_apart() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    process.worker.may_finish.add_permits(9);
    let mut link = setup.link().await;
    for (epoch, query, want) in [
        (1, "fail", (FailureClass::Input, Code::TooLong, false)),
        (2, "panic", (FailureClass::Internal, Code::Internal, true)),
    ] {
        link.send(offer(epoch, query, 1)).await;
        accepted(&mut link, epoch).await;
        assert_eq!(failed(&mut link, epoch).await, want);
        link.send(ack(epoch)).await;
    }
    process.stop().await;
}

#[tokio::test]
async fn a_cancelled_task_is_dropped_and_reported() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    link.send(Frame::Cancel(Cancel { attempt: attempt(1), reason: "the caller left".into() })).await;
    assert_eq!(failed(&mut link, 1).await, (FailureClass::Cancelled, Code::Cancelled, false));
    assert_eq!(process.worker.started.load(Ordering::SeqCst), process.worker.dropped.load(Ordering::SeqCst));
    process.stop().await;
}

#[tokio::test]
async fn a_task_outlives_its_connection() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    link.cut();
    let mut link = setup.coordinator.accept().await;
    let hello = link.welcome(Settings::default(), &[]).await;
    assert_eq!(hello.running, [attempt(1)]);
    process.worker.may_finish.add_permits(1);
    result(&mut link, 1).await;
    // Not acknowledged, so it comes again.
    link.cut();
    let mut link = setup.coordinator.accept().await;
    let hello = link.welcome(Settings::default(), &[]).await;
    assert_eq!(hello.running, [attempt(1)]);
    result(&mut link, 1).await;
    link.send(ack(1)).await;
    process.handle.until(|status| status.unacknowledged == 0).await;
    assert_eq!(process.worker.started.load(Ordering::SeqCst), 1);
    process.stop().await;
}

#[tokio::test]
async fn a_refused_task_is_dropped() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    process.handle.until(|status| status.running == 1).await;
    link.cut();
    let mut link = setup.coordinator.accept().await;
    link.welcome(Settings::default(), &[attempt(1)]).await;
    process.handle.until(|status| status.running == 0 && status.is_live).await;
    assert_eq!(process.handle.status().unacknowledged, 0);
    link.send(offer(2, "q", 1)).await;
    accepted(&mut link, 2).await;
    process.kill().await;
}

#[tokio::test]
async fn results_survive_the_process() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    process.worker.may_finish.add_permits(1);
    let first = result(&mut link, 1).await;
    process.kill().await;
    link.cut();

    let process = setup.start();
    let mut link = setup.coordinator.accept().await;
    let hello = link.welcome(Settings::default(), &[attempt(1)]).await;
    assert_eq!(hello.running, [attempt(1)]);
    assert_eq!(result(&mut link, 1).await, first);
    let outcome = AckOutcome::StaleAttempt;
    link.send(Frame::Ack(Ack { attempt: attempt(1), outcome })).await;
    process.handle.until(|status| status.is_live && status.unacknowledged == 0).await;
    process.stop().await;
    link.cut();

    let process = setup.start();
    let mut link = setup.coordinator.accept().await;
    assert_eq!(link.welcome(Settings::default(), &[]).await.running, []);
    process.stop().await;
}

#[tokio::test]
async fn a_challenge_for_another_origin_is_not_answered() {
    let setup = Setup::new().await;
    setup.coordinator.claim_origin("https://good.example");
    let process = setup.start();
    process.handle.until(|status| status.last_error.is_some()).await;
    let error = process.handle.status().last_error.unwrap();
    assert!(error.contains("https://good.example"), "{error}");
    assert_eq!(setup.coordinator.logins(), 0);
    process.stop().await;
}

#[tokio::test]
async fn a_coordinator_with_another_key_than_at_first_is_not_trusted() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let link = setup.link().await;
    process.stop().await;
    link.cut();
    setup.coordinator.change_key();
    let process = setup.start();
    process.handle.until(|status| status.last_error.is_some()).await;
    let error = process.handle.status().last_error.unwrap();
    assert!(error.contains("another key"), "{error}");
    assert!(matches!(process.handle.access().token().await, Err(AccessError::OtherKey { .. })));
    process.stop().await;
}

#[tokio::test]
async fn an_expired_token_leads_to_another_login() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let link = setup.link().await;
    assert_eq!(setup.coordinator.logins(), 1);
    setup.coordinator.expire_tokens(600_000);
    link.cut();
    let link = setup.link().await;
    assert_eq!(setup.coordinator.logins(), 2);
    link.cut();
    let _link = setup.link().await;
    assert_eq!(setup.coordinator.logins(), 2);
    process.stop().await;
}

#[tokio::test]
async fn a_token_that_comes_over_the_link_is_used() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    let token = SessionToken { token: "fresh".into(), expires_at_ms: 0, expires_in_ms: 600_000 };
    link.send(Frame::Settings(Settings { token: Some(token), ..Settings::default() })).await;
    link.send(Frame::Ping(Ping { nonce: 7 })).await;
    while link.recv().await != Some(Frame::Pong(Ping { nonce: 7 })) {}
    assert_eq!(process.handle.access().token().await.unwrap(), "fresh");
    process.stop().await;
}

#[tokio::test]
async fn large_payloads_go_as_blobs() {
    let mut setup = Setup::new().await;
    let process = setup.start_with(|options| options.inline_bytes_max = 100);
    process.worker.may_finish.add_permits(9);
    let mut link = setup.link().await;
    let input = TaskInput::Rerank(RerankInput {
        query: "q".into(),
        documents: vec!["x".into(); 50],
        top_n: None,
        truncate: false,
    });
    let Packed { payload, blob, sha256 } = Payload::pack_above(input, 10);
    let send = |epoch| {
        let Frame::Offer(mut offer) = offer(epoch, "q", 0) else { unreachable!() };
        offer.input = payload.clone();
        Frame::Offer(offer)
    };
    link.send(send(1)).await;
    accepted(&mut link, 1).await;
    assert_eq!(failed(&mut link, 1).await, (FailureClass::Resource, Code::SourceFailed, true), "it is not there yet");
    setup.coordinator.put(&paths::payload(&sha256), blob.unwrap());
    link.send(send(2)).await;
    accepted(&mut link, 2).await;
    let result = result(&mut link, 2).await;
    assert_eq!(result.input_sha256, sha256);
    let Payload::Blob(BlobRef { sha256, bytes }) = result.output else { panic!("{:?}", result.output) };
    assert_eq!(sha256, result.output_sha256);
    let blob = setup.coordinator.get(&paths::payload(&sha256)).unwrap();
    assert_eq!(blob.len() as u64, bytes);
    let TaskOutput::Rerank { results } = rmp_serde::from_slice(&blob).unwrap() else { panic!() };
    assert_eq!(results.len(), 50);
    process.stop().await;
}

#[tokio::test]
async fn a_malformed_message_closes_the_link_with_a_reason_and_the_worker_comes_back() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    for bytes in [vec![0xff; 9], b"\x82\xa1t\xa4ping\xa1d\x80".to_vec()] {
        let mut link = setup.link().await;
        link.send_bytes(b"\x82\xa1t\xa5later\xa1d\x80".to_vec()).await;
        link.send_bytes(bytes).await;
        match link.recv_work().await {
            Some(Frame::Bye(bye)) => assert_eq!(bye.reason, ByeReason::Malformed),
            other => panic!("{other:?}"),
        }
        assert_eq!(link.recv().await, None);
    }
    assert_eq!(process.handle.status().unknown_frames, 2);
    process.stop().await;
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let mut setup = Setup::new().await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let process = setup.start_with(|options| options.addresses.insert(0, nobody.parse().unwrap()));
    let _link = setup.link().await;
    process.handle.until(|status| status.is_live).await;
    assert_eq!(process.handle.status().address, setup.coordinator.url().to_string());
    process.stop().await;
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has_and_takes_nothing_more() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    let handle = process.handle.clone();
    let drained = tokio::spawn(async move { handle.drain().await });
    loop {
        match link.recv().await {
            Some(Frame::Heartbeat(heartbeat)) if heartbeat.draining => {
                assert_eq!((heartbeat.slots, heartbeat.slots_free, heartbeat.running), (0, 0, vec![attempt(1)]));
                break;
            }
            Some(Frame::Heartbeat(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    link.send(offer(2, "q", 1)).await;
    match link.recv_work().await {
        Some(Frame::Decline(decline)) => assert_eq!(decline.reason, DeclineReason::Draining),
        other => panic!("{other:?}"),
    }
    process.worker.may_finish.add_permits(1);
    result(&mut link, 1).await;
    link.send(ack(1)).await;
    drained.await.unwrap();
    process.stop().await;
}

#[tokio::test]
async fn a_stopping_worker_gives_its_work_back() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    process.handle.until(|status| status.running == 1).await;
    process.stop.cancel();
    assert_eq!(failed(&mut link, 1).await, (FailureClass::Resource, Code::Unavailable, true));
    link.send(ack(1)).await;
    assert_eq!(link.recv_work().await, Some(bye(ByeReason::Shutdown, "the worker stops")));
    process.running.await.unwrap();
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_on_the_coordinators_word() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    let model = |model: &str| ModelRef { model: model.into() };
    let has = async |want: &[&str]| {
        while *process.worker.loaded.lock().unwrap() != want {
            tokio::task::yield_now().await;
        }
    };
    link.send(Frame::LoadModel(model("a@1"))).await;
    has(&["a@1"]).await;
    link.send(Frame::UnloadModel(model("a@1"))).await;
    has(&[]).await;
    process.stop().await;
}
