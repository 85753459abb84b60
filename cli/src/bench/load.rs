//! Load on a server for one stage: requests go out when they are due (open loop), or when the one before is answered (closed
//! loop); a record of each comes back. Never waits for an answer before sending what is due.

use super::api::{Kind, Shape};
use super::client::{Client, Clock};
use super::process::{self, Used};
use super::prompts::Prompts;
use super::record::{Outcome, Record};
use super::schedule::Arrivals;
use serde::Serialize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the thread that keeps the schedule sleeps at most before it looks whether it is to stop.
const SLICE: Duration = Duration::from_millis(50);

/// Due requests that wait for being spawned. Spawning takes microseconds; should it not, the schedule waits here, and what waited
/// shows as lateness.
const DUE_MAX: usize = 1024;

/// A caller of a closed loop that was refused waits so long before it asks again, so that refusals do not take the time of the
/// machine that is measured.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    /// At random times, whether or not earlier ones are answered.
    Open {
        /// So many a second on average.
        per_second: f64,
        /// So many may be under way; what is due beyond is dropped and counted.
        in_flight_max: usize,
    },
    /// From so many callers, of whom each asks again when it has its answer.
    Closed {
        /// How many.
        callers: usize,
    },
}

/// One stage: one load for some time.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) load: Load,
    /// What is due in this time at the start is sent and not measured.
    pub(crate) warmup: Duration,
    /// How long is measured behind it. Requests that are under way at the end are waited for.
    pub(crate) duration: Option<Duration>,
    /// How many requests are measured at most.
    pub(crate) requests: Option<u64>,
    /// Fixes when requests of an open loop are due.
    pub(crate) seed: u64,
    /// The number of the first prompt, so that no stage asks what another has asked.
    pub(crate) first: u64,
}

impl Stage {
    fn ends(&self) -> Option<Duration> {
        self.duration.map(|duration| self.warmup + duration)
    }
}

/// What came of a stage.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    /// Every request, those of the warm-up too.
    pub(crate) records: Vec<Record>,
    /// What was measured of the stage's time.
    pub(crate) window: Range<Duration>,
    /// The most requests that were under way at one time.
    pub(crate) in_flight_peak: u64,
    /// What the server used in the window, where its process was named.
    pub(crate) server: Option<Metered>,
    /// What this program used.
    pub(crate) generator: Option<Metered>,
}

/// What a process used in some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Metered {
    /// How long it was watched.
    pub(crate) over: Duration,
    pub(crate) cpu: Duration,
    /// Since the process started.
    pub(crate) rss_peak_bytes: u64,
}

/// Counts that can be looked at while a stage runs.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) sent: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) dropped: AtomicU64,
    in_flight: AtomicU64,
    in_flight_peak: AtomicU64,
}

impl Live {
    /// How many are under way.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn begin(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_peak.fetch_max(now, Ordering::Relaxed);
    }

    fn end(&self, outcome: &Outcome) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match outcome {
            Outcome::Answered(_) => self.answered.fetch_add(1, Ordering::Relaxed),
            Outcome::Failed(_) => self.failed.fetch_add(1, Ordering::Relaxed),
            Outcome::Dropped | Outcome::Unfinished => 0,
        };
    }
}

/// Who asks what.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) client: Client,
    pub(crate) shape: Shape,
    pub(crate) prompts: Prompts,
}

impl Asker {
    /// The body of the request of this number, and how many texts it asks.
    fn request(&self, number: u64) -> (Vec<u8>, usize) {
        let ask = self.prompts.ask(number);
        (self.shape.body(&ask).to_string().into_bytes(), ask.prompts.len())
    }

    fn kind(&self) -> Kind {
        self.shape.kind
    }
}

/// Everything that a request needs.
#[derive(Clone)]
struct Running {
    asker: Arc<Asker>,
    clock: Clock,
    stop: CancellationToken,
    live: Arc<Live>,
}

impl Running {
    /// Sends one request and waits for its end, or for that of the run.
    async fn ask(&self, due: Duration, (body, inputs): (Vec<u8>, usize)) -> Record {
        self.live.begin();
        let sent = Some(self.clock.now());
        let outcome = tokio::select! {
            biased;
            () = self.stop.cancelled() => Outcome::Unfinished,
            answer = self.asker.client.ask(self.asker.kind(), body, inputs, self.clock) => match answer {
                Ok(answer) => Outcome::Answered(answer),
                Err(failure) => Outcome::Failed(failure),
            },
        };
        self.live.end(&outcome);
        Record { due, sent, outcome }
    }
}

/// Runs a stage. When `stop` is cancelled it sends nothing more, and what is under way counts as unfinished.
pub(crate) async fn run(
    stage: &Stage,
    asker: Arc<Asker>,
    server_pid: Option<u32>,
    stop: &CancellationToken,
    live: Arc<Live>,
) -> Taken {
    // A stop that comes when everything is answered must not spoil the stage; the child ends with it.
    let running = Running { asker, clock: Clock::start(), stop: stop.child_token(), live };
    let all_answered = CancellationToken::new();
    let meter = |pid: u32| tokio::spawn(metered(pid, stage.warmup, stage.ends(), running.clock, all_answered.clone()));
    let (server, generator) = (server_pid.map(meter), meter(std::process::id()));
    let records = match stage.load {
        Load::Open { per_second, in_flight_max } => open(stage, per_second, in_flight_max, &running).await,
        Load::Closed { callers } => closed(stage, callers, &running).await,
    };
    let interrupted_at = stop.is_cancelled().then(|| running.clock.now());
    all_answered.cancel();
    let window = window(stage, &records, interrupted_at);
    Taken {
        records,
        window,
        in_flight_peak: running.live.in_flight_peak.load(Ordering::Relaxed),
        server: match server {
            Some(server) => server.await.ok().flatten(),
            None => None,
        },
        generator: generator.await.ok().flatten(),
    }
}

/// What was measured: up to the stage's end by the clock, or where its requests ran out before, up to the last answer.
fn window(stage: &Stage, records: &[Record], interrupted_at: Option<Duration>) -> Range<Duration> {
    let measured = records.iter().filter(|record| record.due >= stage.warmup).count() as u64;
    let ran_out = stage.requests.is_some_and(|requests| measured >= requests);
    let last_answer = records.iter().filter_map(|record| match &record.outcome {
        Outcome::Answered(answer) => Some(answer.ended),
        _ => None,
    });
    let by_clock = stage.ends().unwrap_or(Duration::MAX);
    let end = match interrupted_at {
        Some(at) => at.min(by_clock),
        None if ran_out || by_clock == Duration::MAX => last_answer.max().unwrap_or(stage.warmup).min(by_clock),
        None => by_clock,
    };
    stage.warmup..end.max(stage.warmup)
}

async fn open(stage: &Stage, per_second: f64, in_flight_max: usize, running: &Running) -> Vec<Record> {
    let (sender, mut due) = mpsc::channel(DUE_MAX);
    // tokio's timers are as fine as a millisecond, which is more than some servers take: a thread of its own keeps the schedule.
    let (stage, pacer) = (stage.clone(), running.clone());
    let pacing = tokio::task::spawn_blocking(move || pace(&stage, per_second, &pacer, &sender));
    let permits = Arc::new(Semaphore::new(in_flight_max));
    let mut tasks = JoinSet::new();
    let mut records = Vec::new();
    loop {
        let (at, request) = tokio::select! {
            biased;
            () = running.stop.cancelled() => break,
            due = due.recv() => match due {
                Some(due) => due,
                None => break,
            },
            Some(done) = tasks.join_next() => {
                records.extend(done.ok());
                continue;
            }
        };
        match permits.clone().try_acquire_owned() {
            Ok(permit) => {
                let running = running.clone();
                tasks.spawn(async move {
                    let record = running.ask(at, request).await;
                    drop(permit);
                    record
                });
            }
            Err(_) => {
                running.live.dropped.fetch_add(1, Ordering::Relaxed);
                records.push(Record { due: at, sent: None, outcome: Outcome::Dropped });
            }
        }
    }
    drop(due);
    while let Some(done) = tasks.join_next().await {
        records.extend(done.ok());
    }
    drop(pacing.await);
    records
}

/// Hands over each request at the moment it is due. Blocks.
fn pace(stage: &Stage, per_second: f64, running: &Running, sender: &mpsc::Sender<(Duration, (Vec<u8>, usize))>) {
    let mut measured = 0;
    for (number, due) in (stage.first..).zip(Arrivals::new(per_second, stage.seed)) {
        if stage.ends().is_some_and(|ends| due >= ends) {
            // The stage lasts to its end, also when nothing is due any more.
            wait_until(stage.ends().unwrap_or(due), running);
            return;
        }
        if due >= stage.warmup {
            measured += 1;
            if stage.requests.is_some_and(|requests| measured > requests) {
                return;
            }
        }
        // Made before it is due, so that making it delays nothing.
        let request = running.asker.request(number);
        wait_until(due, running);
        if running.stop.is_cancelled() || sender.blocking_send((due, request)).is_err() {
            return;
        }
    }
}

/// Sleeps until then, or until the run is to stop.
fn wait_until(due: Duration, running: &Running) {
    loop {
        let left = due.saturating_sub(running.clock.now());
        if left.is_zero() || running.stop.is_cancelled() {
            return;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

async fn closed(stage: &Stage, callers: usize, running: &Running) -> Vec<Record> {
    let next = Arc::new(AtomicU64::new(stage.first));
    let measured = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (running, next, measured) = (running.clone(), next.clone(), measured.clone());
        let stage = stage.clone();
        tasks.spawn(async move {
            let mut records = Vec::new();
            loop {
                let request = running.asker.request(next.fetch_add(1, Ordering::Relaxed));
                let due = running.clock.now();
                if running.stop.is_cancelled() || stage.ends().is_some_and(|ends| due >= ends) {
                    return records;
                }
                let is_measured = due >= stage.warmup;
                if is_measured
                    && let Some(requests) = stage.requests
                    && measured.fetch_add(1, Ordering::Relaxed) >= requests
                {
                    return records;
                }
                let record = running.ask(due, request).await;
                let has_failed = matches!(record.outcome, Outcome::Failed(_));
                records.push(record);
                if has_failed {
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        });
    }
    let mut records = Vec::new();
    while let Some(done) = tasks.join_next().await {
        records.extend(done.unwrap_or_default());
    }
    records
}

/// Watches a process from `from` on, to `to` or until everything is answered.
async fn metered(
    pid: u32,
    from: Duration,
    to: Option<Duration>,
    clock: Clock,
    all_answered: CancellationToken,
) -> Option<Metered> {
    let until = |at: Duration| tokio::time::sleep_until(clock.at(at).into());
    let read = || tokio::task::spawn_blocking(move || (clock.now(), process::used(pid)));
    tokio::select! {
        biased;
        () = all_answered.cancelled() => return None,
        () = until(from) => {}
    }
    let (began, before) = read().await.ok()?;
    tokio::select! {
        biased;
        () = all_answered.cancelled() => {}
        () = async { match to {
            Some(to) => until(to).await,
            None => std::future::pending().await,
        } } => {}
    }
    let (ended, after) = read().await.ok()?;
    let (Used { cpu: before, .. }, after) = (before?, after?);
    Some(Metered {
        over: ended.saturating_sub(began),
        cpu: after.cpu.saturating_sub(before),
        rss_peak_bytes: after.rss_peak_bytes,
    })
}
