//! The link against a fake coordinator over real sockets: a grid's tasks go the worker's own road.

use std::path::Path;
use std::sync::Arc;

use super::{Handle, Links, Machine, Options};
use coordinator_client::api::Code;
use coordinator_client::fake::{Coordinator, Link};
use coordinator_client::wire::task::{ClassifyInput, EmbedInput, Text};
use coordinator_client::wire::{
    Ack, AckOutcome, Attempt, FailureClass, Frame, Heartbeat, Hello, Offer, Payload, Settings, TaskId, TaskInput,
    TaskKind, TaskOutput, Tensor,
};
use tokio_util::sync::CancellationToken;

/// A machine of fixed figures.
struct Bench;

impl Machine for Bench {
    fn profile(&self) -> serde_json::Value {
        serde_json::json!({"cores": 2})
    }

    fn temperature_c(&self) -> Option<f32> {
        Some(41.0)
    }

    fn utilisation(&self) -> f32 {
        0.25
    }

    fn health_score(&self) -> u8 {
        97
    }
}

struct Setup {
    worker: crate::Worker,
    handle: Handle,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

fn start(folder: &Path, coordinators: &[&Coordinator]) -> Setup {
    let mut options = crate::Options::default();
    options.cache.folder = folder.join("models");
    options.http.address = ([127, 0, 0, 1], 0).into();
    let worker = crate::build(options).unwrap();
    let links = Links::new(linked(folder, coordinators), worker.handle(), Arc::new(Bench)).unwrap();
    let handle = links.handle();
    let stop = CancellationToken::new();
    let running = tokio::spawn(links.run(stop.clone()));
    Setup { worker, handle, stop, running }
}

fn linked(folder: &Path, coordinators: &[&Coordinator]) -> Options {
    Options {
        coordinators: coordinators.iter().map(|coordinator| coordinator.url().to_string()).collect(),
        name: "bench".into(),
        data_folder: folder.join("data"),
        ..Options::default()
    }
}

impl Setup {
    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
        drop(self.worker);
    }
}

fn attempt(epoch: u64) -> Attempt {
    Attempt { task: TaskId(uuid::Uuid::from_u128(epoch.into())), epoch }
}

fn offer(epoch: u64, model: &str, input: TaskInput) -> Frame {
    Frame::Offer(Box::new(Offer {
        attempt: attempt(epoch),
        model: model.into(),
        input: Payload::Inline(input),
        deadline_in_ms: Some(60_000),
        priority: 5,
        trace_parent: None,
    }))
}

/// Images of the digits' model, all of one value.
fn images(values: &[f32]) -> TaskInput {
    let data: Vec<u8> = values.iter().flat_map(|value| [value.to_le_bytes(); 64]).flatten().collect();
    let shape = vec![values.len() as u64, 64];
    let tensor = Tensor { name: "pixels".into(), datatype: "FP32".into(), shape, data: data.into() };
    TaskInput::Classify(ClassifyInput { inputs: vec![], tensors: vec![tensor], top_n: Some(1), truncate: false })
}

async fn hello(coordinator: &mut Coordinator) -> (Link, Hello) {
    let mut link = coordinator.accept().await;
    let hello = link.welcome(Settings::default(), &[]).await;
    (link, hello)
}

/// Offers a task and reads how it ended, and acknowledges that.
async fn run(link: &mut Link, epoch: u64, model: &str, input: TaskInput) -> Frame {
    link.send(offer(epoch, model, input)).await;
    loop {
        let frame = link.recv_work().await.expect("the worker stays");
        if !matches!(frame, Frame::Accept(_)) {
            link.send(Frame::Ack(Ack { attempt: attempt(epoch), outcome: AckOutcome::Settled })).await;
            return frame;
        }
    }
}

#[tokio::test]
async fn a_grids_task_is_done_on_the_workers_own_road() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start().await;
    let setup = start(folder.path(), &[&coordinator]);
    let (mut link, hello) = hello(&mut coordinator).await;
    assert_eq!(&hello.node, setup.handle.node());
    assert_eq!(hello.profile, serde_json::json!({"cores": 2}));
    let digits = hello.capabilities.models.iter().find(|model| model.id == "digits@1").unwrap();
    assert_eq!(digits.task, TaskKind::Classify);
    assert!(hello.capabilities.slots > 0);
    match run(&mut link, 1, "digits@1", images(&[0.0, 8.0, 16.0])).await {
        Frame::Result(result) => {
            let Payload::Inline(TaskOutput::Classify { results }) = &result.output else { panic!("{result:?}") };
            assert_eq!(results.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
            assert_eq!(result.model, "digits@1");
            assert!(!result.execution_class.is_empty() && !result.model_digest.is_empty());
            assert!(result.timings.total_us > 0);
        }
        other => panic!("{other:?}"),
    }
    // The model is in memory now, and that is told without being asked for.
    loop {
        if let Some(Frame::Heartbeat(Heartbeat { models: Some(models), health_score, .. })) = link.recv().await {
            assert!(models.iter().any(|model| model.id == "digits@1" && model.execution_class.is_some()));
            assert_eq!(health_score, 97);
            break;
        }
    }
    setup.stop().await;
}

#[tokio::test]
async fn two_workers_are_not_linked_from_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start().await;
    let first = start(folder.path(), &[&coordinator]);
    let worker = first.worker.handle();
    let second = |coordinators: &[&Coordinator]| {
        Links::new(linked(folder.path(), coordinators), worker.clone(), Arc::new(Bench)).map(|_| ())
    };
    assert!(matches!(second(&[&coordinator]), Err(super::Error::InUse(_))));
    second(&[]).expect("a worker without a grid is nobody's node");
    first.stop().await;
    second(&[&coordinator]).expect("the folder is free again");
}

#[tokio::test]
async fn every_failure_says_who_was_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start().await;
    let setup = start(folder.path(), &[&coordinator]);
    let (mut link, _) = hello(&mut coordinator).await;
    let texts = || vec![Text::Words("a".into())];
    let embed = TaskInput::Embed(EmbedInput { inputs: texts(), ..EmbedInput::default() });
    let both = match images(&[1.0]) {
        TaskInput::Classify(input) => TaskInput::Classify(ClassifyInput { inputs: texts(), ..input }),
        other => other,
    };
    let cases = [
        (embed, FailureClass::Input, Code::WrongTask, false),
        (both, FailureClass::Input, Code::InvalidInput, false),
        (images(&[f32::NAN]), FailureClass::Input, Code::NotFinite, false),
    ];
    for (epoch, (input, class, code, retryable)) in (1..).zip(cases) {
        match run(&mut link, epoch, "digits@1", input).await {
            Frame::Failed(failed) => {
                assert_eq!((failed.class, failed.code, failed.retryable), (class, code, retryable), "{failed:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    setup.stop().await;
}

#[tokio::test]
async fn a_paused_worker_asks_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start().await;
    let setup = start(folder.path(), &[&coordinator]);
    let (mut link, _) = hello(&mut coordinator).await;
    let worker = setup.worker.handle();
    let slots = async |link: &mut Link| loop {
        if let Some(Frame::Heartbeat(heartbeat)) = link.recv().await {
            break heartbeat.slots;
        }
    };
    worker.pause().await.unwrap();
    assert_eq!(slots(&mut link).await, 0);
    worker.resume().unwrap();
    assert!(slots(&mut link).await > 0);
    setup.stop().await;
}

#[tokio::test]
async fn several_grids_share_the_workers_places() {
    let folder = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (Coordinator::start().await, Coordinator::start().await);
    let setup = start(folder.path(), &[&one, &other]);
    let capacity = setup.worker.handle().slots().capacity;
    let (mut links, mut slots) = (Vec::new(), 0);
    for coordinator in [&mut one, &mut other] {
        let (link, hello) = hello(coordinator).await;
        links.push(link);
        slots += hello.capabilities.slots as usize;
    }
    setup.handle.connected().await;
    assert!(slots > 0 && slots <= capacity);
    assert_eq!(setup.handle.status().len(), 2);
    setup.handle.drain().await;
    assert!(setup.handle.status().iter().all(|status| status.is_draining));
    setup.stop().await;
}
