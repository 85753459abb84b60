//! The loop of a link's [`Service`]: what happens goes to the session, what the session says is done. Told to stop by
//! a token; then gives work back, waits shortly for acks, says goodbye.

use super::access::{Access, Error as AccessError};
use super::host::{Failure, Host, Offered, Outcome};
use super::pieces::{Pieces, Queue};
use super::socket::{Incoming, Socket};
use super::{Command, Options, Service, Status};
use crate::api::Code;
use crate::session::{Action, Event, Now, Session};
use crate::spool::Spool;
use crate::wire::{
    Attempt, Bye, ByeReason, Failed, FailureClass, Frame, Offer, Packed, Payload, TaskOutput, TaskResult, digest,
};
use futures_util::FutureExt;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The longest time between two looks at the worker's facts, so that a changed number of slots is known soon.
const FACTS_EVERY: Duration = Duration::from_millis(500);

/// The shortest time between two ticks, so that nothing overdue makes the loop spin.
const TICK_MIN: Duration = Duration::from_millis(10);

/// Models that are loaded or unloaded at once on the coordinator's word; more are refused.
const CHORES_MAX: usize = 8;

/// How a task ended.
enum End {
    Finished(Box<TaskResult>),
    Failed(Failed),
}

/// The connection, or the way to one.
enum Link {
    Waiting(tokio::time::Instant),
    Dialling(Pin<Box<dyn Future<Output = Result<Socket, AccessError>> + Send>>),
    Open(Socket),
}

enum Happened {
    Dial,
    Dialled(Result<Socket, AccessError>),
    Came(Incoming),
}

impl Link {
    /// The next thing that happens to it; that a piece may be sent only where they are given. Loses nothing when dropped.
    async fn next(&mut self, pieces: Option<&Queue>) -> Happened {
        match self {
            Link::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Happened::Dial
            }
            Link::Dialling(dialling) => Happened::Dialled(dialling.await),
            Link::Open(socket) => Happened::Came(socket.next(pieces).await),
        }
    }
}

impl Service {
    /// Runs the link until `stop`. Then running tasks are given back, and what is not acknowledged in time stays in
    /// the spool.
    pub async fn run(self, stop: CancellationToken) {
        let Self { options, host, access, spool, recovered, session, mut commands, status } = self;
        let mut driver = Driver {
            link: Link::Waiting(tokio::time::Instant::now()),
            started: Instant::now(),
            tasks: JoinSet::new(),
            stops: HashMap::new(),
            pieces: Arc::default(),
            chores: JoinSet::new(),
            failures: 0,
            options,
            host,
            access,
            spool,
            session,
            status,
        };
        for result in recovered {
            driver.tell(Event::Recovered(Box::new(result))).await;
        }
        let mut stop_by = None;
        let mut ticked_at = driver.started;
        loop {
            driver.show();
            if stop_by.is_some() && driver.is_finished() {
                break;
            }
            let tick_at = driver.next_tick(ticked_at);
            let pieces = driver.session.is_live().then_some(&*driver.pieces);
            // Ticks come before work: a busy link must not miss a heartbeat.
            tokio::select! {
                biased;
                () = stop.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(tokio::time::Instant::now() + driver.options.stop_within);
                    driver.tell(Event::GiveBack).await;
                }
                () = tokio::time::sleep_until(stop_by.unwrap_or(tick_at)), if stop_by.is_some() => break,
                () = tokio::time::sleep_until(tick_at) => {
                    ticked_at = Instant::now();
                    let facts = driver.host.facts();
                    driver.tell(Event::Facts(facts)).await;
                    driver.tell(Event::Tick).await;
                }
                Some(command) = commands.recv() => match command {
                    Command::Drain => driver.tell(Event::Drain).await,
                },
                Some(ended) = driver.tasks.join_next(), if !driver.tasks.is_empty() => {
                    if let Ok(end) = ended {
                        driver.on_end(end).await;
                    }
                }
                Some(_) = driver.chores.join_next(), if !driver.chores.is_empty() => {}
                happened = driver.link.next(pieces) => driver.on_link(happened).await,
            }
        }
        driver.close(Some(Bye { reason: ByeReason::Shutdown, detail: "the worker stops".into() })).await;
        driver.show();
    }
}

struct Driver {
    options: Options,
    host: Arc<dyn Host>,
    access: Access,
    spool: Arc<Spool>,
    session: Session,
    status: watch::Sender<Status>,
    link: Link,
    started: Instant,
    tasks: JoinSet<End>,
    stops: HashMap<Attempt, CancellationToken>,
    pieces: Arc<Queue>,
    chores: JoinSet<()>,
    /// Connections that failed since the last one that came up.
    failures: u32,
}

impl Driver {
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { since_start: self.started.elapsed(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
    }

    fn next_tick(&self, ticked_at: Instant) -> tokio::time::Instant {
        let due = (self.started + self.session.next_tick()).saturating_duration_since(ticked_at);
        (ticked_at + due.clamp(TICK_MIN, FACTS_EVERY)).into()
    }

    /// Whether nothing is left to wait for when the worker stops.
    fn is_finished(&self) -> bool {
        self.session.running() == 0 && (self.session.unacknowledged() == 0 || !self.session.is_live())
    }

    fn show(&self) {
        self.status.send_if_modified(|status| {
            let now = Status {
                address: self.access.url().to_string(),
                is_live: self.session.is_live(),
                is_draining: self.session.is_draining(),
                running: self.session.running(),
                unacknowledged: self.session.unacknowledged(),
                ..status.clone()
            };
            let changed = *status != now;
            *status = now;
            changed
        });
    }

    fn count(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    async fn tell(&mut self, event: Event) {
        let now = self.now();
        for action in self.session.handle(now, event) {
            self.act(action).await;
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Send(frame) => {
                if let Link::Open(socket) = &self.link
                    && !socket.send(&frame)
                {
                    tracing::warn!(coordinator = %self.access.url(), "the link takes nothing more and is given up");
                    self.lose("the link took nothing more").await;
                }
            }
            Action::Run(offer) => self.start(*offer),
            Action::Stop(attempt) => {
                if let Some(stop) = self.stops.get(&attempt) {
                    stop.cancel();
                }
            }
            Action::Forget(attempt) => {
                let spool = Arc::clone(&self.spool);
                // Waited for, so that a worker that stops now does not find it again.
                if let Err(error) = tokio::task::spawn_blocking(move || spool.remove(attempt)).await {
                    tracing::error!(%attempt, %error, "the spool failed");
                }
            }
            Action::Load(model) => {
                let (host, access) = (Arc::clone(&self.host), self.access.clone());
                let name = model.clone();
                self.chore(model, async move { host.load(&name, &access).await });
            }
            Action::Unload(model) => {
                let host = Arc::clone(&self.host);
                let name = model.clone();
                self.chore(model, async move { host.unload(&name).await });
            }
            Action::Token(token) => self.access.set_token(&token).await,
            Action::Drained(reason) => self.host.draining(&reason),
            Action::Close(bye) => {
                tracing::warn!(coordinator = %self.access.url(), reason = ?bye.reason, bye.detail, "closing the link");
                self.count(|status| status.last_error = Some(bye.detail.clone()));
                self.close(Some(bye)).await;
            }
            Action::Closed(bye) => {
                tracing::info!(coordinator = %self.access.url(), reason = ?bye.reason, bye.detail, "the coordinator closes");
                match bye.reason {
                    ByeReason::Unauthorized => self.access.forget_token().await,
                    // Coming back at once would only repeat it.
                    ByeReason::Replaced | ByeReason::Banned | ByeReason::Protocol => self.failures = u32::MAX,
                    _ => {}
                }
                self.count(|status| status.last_error = Some(format!("{:?}: {}", bye.reason, bye.detail)));
                self.close(None).await;
            }
        }
    }

    fn start(&mut self, offer: Offer) {
        let stop = CancellationToken::new();
        self.stops.insert(offer.attempt, stop.clone());
        let (host, access, spool) = (Arc::clone(&self.host), self.access.clone(), Arc::clone(&self.spool));
        let inline_bytes_max = self.options.inline_bytes_max;
        let pieces = self.pieces.begin(offer.attempt);
        self.tasks.spawn(async move {
            let attempt = offer.attempt;
            let work = AssertUnwindSafe(perform(offer, &*host, &access, &pieces, inline_bytes_max)).catch_unwind();
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => Err(failure(FailureClass::Cancelled, Code::Cancelled, "cancelled")),
                ended = work => ended.unwrap_or_else(|_| {
                    Err(failure(FailureClass::Internal, Code::Internal, "the worker's program failed; see its log"))
                }),
            };
            match result {
                Ok(result) => End::Finished(keep(spool, result).await),
                Err(Failure { class, retryable, code, detail }) => {
                    End::Failed(Failed { attempt, class, retryable, code, detail })
                }
            }
        });
    }

    async fn on_end(&mut self, end: End) {
        match end {
            End::Finished(result) => {
                self.stops.remove(&result.attempt);
                self.pieces.end(result.attempt);
                self.count(|status| status.finished += 1);
                self.tell(Event::Finished(result)).await;
            }
            End::Failed(failed) => {
                self.stops.remove(&failed.attempt);
                self.pieces.end(failed.attempt);
                self.count(|status| status.failed += 1);
                self.tell(Event::Failed(failed)).await;
            }
        }
    }

    fn chore(&mut self, model: String, work: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        if self.chores.len() >= CHORES_MAX {
            tracing::warn!(model, "too many models are loaded and unloaded at once; this one is left");
            return;
        }
        self.chores.spawn(async move {
            if let Err(e) = work.await {
                tracing::warn!(model, error = %e, "the coordinator's wish could not be met");
            }
        });
    }

    async fn on_link(&mut self, happened: Happened) {
        match happened {
            Happened::Dial => {
                let access = self.access.clone();
                self.link = Link::Dialling(Box::pin(async move { Socket::connect(&access).await }));
            }
            Happened::Dialled(Ok(socket)) => {
                tracing::info!(coordinator = %self.access.url(), "connected");
                self.link = Link::Open(socket);
                self.tell(Event::Connected).await;
            }
            Happened::Dialled(Err(error)) => {
                tracing::warn!(coordinator = %self.access.url(), %error, "no connection");
                self.count(|status| status.last_error = Some(error.to_string()));
                self.access.rotate();
                self.wait();
            }
            Happened::Came(Incoming::Frame(frame)) => {
                let was_live = self.session.is_live();
                self.tell(Event::Frame(frame)).await;
                if self.session.is_live() && !was_live {
                    self.failures = 0;
                    self.pieces.restart();
                    self.count(|status| {
                        status.connections += 1;
                        status.last_error = None;
                    });
                }
            }
            Happened::Came(Incoming::Piece) => {
                if let Some(progress) = self.pieces.take() {
                    self.tell(Event::Progress(progress)).await;
                }
            }
            Happened::Came(Incoming::Unknown) => self.count(|status| status.unknown_frames += 1),
            Happened::Came(Incoming::Malformed(detail)) => {
                self.act(Action::Close(Bye { reason: ByeReason::Malformed, detail })).await;
            }
            Happened::Came(Incoming::End(reason)) => self.lose(&reason).await,
        }
    }

    /// The connection broke.
    async fn lose(&mut self, reason: &str) {
        if matches!(self.link, Link::Open(_)) {
            tracing::info!(coordinator = %self.access.url(), reason, "the link is lost");
            self.count(|status| status.last_error = Some(reason.into()));
            self.close(None).await;
        }
    }

    /// Closes the connection, if there is one, and waits for the next try.
    async fn close(&mut self, bye: Option<Bye>) {
        let before = std::mem::replace(&mut self.link, Link::Waiting(tokio::time::Instant::now()));
        if let Link::Open(socket) = before {
            if let Some(bye) = bye {
                socket.send(&Frame::Bye(bye));
            }
            socket.close().await;
        }
        let now = self.now();
        let actions = self.session.handle(now, Event::Lost);
        debug_assert!(actions.is_empty(), "losing a link asks for nothing");
        self.wait();
    }

    /// Full jitter: the first try comes soon, because work may still be saved; a coordinator that is down is not
    /// met by all its workers at once.
    fn wait(&mut self) {
        let Options { reconnect_min, reconnect_max, .. } = self.options;
        let longest = reconnect_min.saturating_mul(1 << self.failures.min(16)).min(reconnect_max);
        let shortest = if self.failures == 0 { Duration::ZERO } else { reconnect_min.min(longest) };
        self.failures = self.failures.saturating_add(1);
        let wait = rand::random_range(shortest..=longest);
        self.link = Link::Waiting(tokio::time::Instant::now() + wait);
    }
}

/// A task from its offer to a signed result.
async fn perform(
    offer: Offer,
    host: &dyn Host,
    access: &Access,
    pieces: &Pieces,
    inline_bytes_max: usize,
) -> Result<TaskResult, Failure> {
    let Offer { attempt, model, input, deadline_in_ms, priority, trace_parent } = offer;
    let deadline = deadline_in_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let (input, input_sha256) = match input {
        Payload::Inline(input) => {
            let sha256 = digest::sha256_hex(&digest::encode(&input));
            (input, sha256)
        }
        Payload::Blob(blob) => (access.get_payload(&blob).await.map_err(unfetched)?, blob.sha256),
    };
    let offered = Offered { attempt, model, input, deadline, priority, trace_parent };
    let Outcome { output, usage, timings, model, model_digest, execution_class, batch_size } =
        host.execute(offered, access, pieces).await?;
    let Packed { payload: output, sha256: output_sha256, blob } =
        Payload::<TaskOutput>::pack_above(output, inline_bytes_max);
    if let Some(bytes) = blob {
        access.put_payload(&output_sha256, bytes).await.map_err(unfetched)?;
    }
    let mut result = TaskResult {
        attempt,
        output,
        usage,
        timings,
        model,
        model_digest,
        execution_class,
        batch_size,
        input_sha256,
        output_sha256,
        signature: Vec::new(),
    };
    let identity = access.identity();
    result.signature = identity.sign(&result.signed_bytes(identity.node())).into();
    Ok(result)
}

/// Spools a result. One that cannot be spooled is sent all the same: its lease protects the task.
async fn keep(spool: Arc<Spool>, result: TaskResult) -> Box<TaskResult> {
    let attempt = result.attempt;
    let result = Arc::new(result);
    let kept = Arc::clone(&result);
    match tokio::task::spawn_blocking(move || spool.put(&kept)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%attempt, %error, "a result could not be spooled"),
        Err(error) => tracing::error!(%attempt, %error, "the spool failed"),
    }
    Box::new(Arc::unwrap_or_clone(result))
}

fn failure(class: FailureClass, code: Code, detail: &str) -> Failure {
    Failure { class, retryable: class == FailureClass::Internal, code, detail: detail.into() }
}

/// A payload that did not come through is the network's fault or the coordinator's: the task is given back.
fn unfetched(error: AccessError) -> Failure {
    Failure { class: FailureClass::Resource, retryable: true, code: Code::SourceFailed, detail: error.to_string() }
}
