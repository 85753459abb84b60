//! One link from hello to goodbye: frames come in and become words to the store and the scheduler; frames go out. It never
//! touches a socket (messages are bytes here) and never lets one node's frames touch another's.
//!
//! ```text
//! hello -> adopt what it still has -> welcome -> live: heartbeats renew, reports settle -> closed
//!                                                                closed -> grace -> release what it had
//! ```

use super::SaidOfItself;
use super::enrol::PROFILE_BYTES_MAX;
use super::link::{Link, Offered, Outbox};
use crate::grid::Grid;
use crate::options::millis;
use crate::store::{self, Node, NodeState, Want};
use crate::tasks::{from_wire, to_wire};
use bytes::Bytes;
use coordinator_client::wire::{
    Ack, Attempt, Bye, ByeReason, Cancel, DeclineReason, Frame, Heartbeat, Hello, ModelHeld, PROTOCOL, Ping, Progress,
    Settings, Welcome,
};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Reports of one link that are settled at one time. More than a node has slots, as a rule; a node that sends more
/// waits, and nobody else does.
const SETTLING_MAX: usize = 128;

/// Pings without a sign of life after which a link is dead.
const MISSED_MAX: u32 = 3;

/// How long a goodbye may take to be written.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Time between fresh session tokens, well below their life.
const TOKEN_EVERY: Duration = Duration::from_secs(300);

/// Time between stored signs of life of a connected node; presence itself is in memory.
const SEEN_EVERY: Duration = Duration::from_secs(60);

/// What comes from a node.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message.
    Message(Bytes),
    /// A sign of life of the transport's own.
    Alive,
    /// A message that can be no frame.
    Malformed(String),
}

/// Serves one link until it closes.
pub(crate) async fn serve<R, W>(grid: Arc<Grid>, node: Node, mut incoming: R, mut outgoing: W)
where
    R: Stream<Item = Incoming> + Unpin + Send,
    W: Sink<Bytes> + Unpin + Send + 'static,
{
    match greet(&grid, &node, &mut incoming).await {
        Err(bye) => say_goodbye(&mut outgoing, Some(bye)).await,
        Ok((link, outbox, welcome)) => {
            let writer = grid.tracker.spawn(write(link.clone(), welcome, outbox, outgoing));
            let session =
                Live { grid: grid.clone(), link: link.clone(), settling: Arc::new(Semaphore::new(SETTLING_MAX)) };
            let reason = session.run(&mut incoming).await;
            tracing::info!(node = link.node.short(), name = link.name, session = link.session, reason, "link closed");
            link.close(ByeReason::Other, reason);
            part(&grid, &link);
            // The writer ends by itself: the link is closed.
            let _ = writer.await;
        }
    }
}

fn bye(reason: ByeReason, detail: impl Into<String>) -> Bye {
    Bye { reason, detail: detail.into() }
}

/// Waits for the hello, takes the node in, and decides about what it still has.
async fn greet(
    grid: &Arc<Grid>,
    node: &Node,
    incoming: &mut (impl Stream<Item = Incoming> + Unpin),
) -> Result<(Arc<Link>, Outbox, Welcome), Bye> {
    let options = &grid.options.nodes;
    let hello = match tokio::time::timeout(options.hello_max, first_frame(grid, incoming)).await {
        Err(_) => return Err(bye(ByeReason::Silent, format!("no hello within {:?}", options.hello_max))),
        Ok(frame) => match frame? {
            Frame::Hello(hello) => *hello,
            Frame::Bye(_) => return Err(bye(ByeReason::Other, "goodbye")),
            frame => return Err(bye(ByeReason::Protocol, format!("{} came before hello", frame.tag()))),
        },
    };
    if hello.node != node.id {
        return Err(bye(ByeReason::Unauthorized, "hello names another node than the token"));
    }
    if !hello.protocols.contains(&PROTOCOL) {
        return Err(bye(ByeReason::Protocol, format!("protocol {PROTOCOL} is spoken here, not {:?}", hello.protocols)));
    }
    let now = grid.store.now_ms();
    let session = grid.presence.next_session(now);
    let is_draining = node.state == NodeState::Draining;
    let (link, outbox) = Link::new(&hello, session, node.public_key, is_draining, now);
    let link = Arc::new(link);
    grid.presence.announce(&hello.capabilities.models);
    // From here on an older connection of this node is closed, and whatever it had is decided on by `adopt`.
    if grid.presence.arrive(link.clone()).is_err() {
        return Err(bye(ByeReason::Other, format!("{} nodes are connected, no more are taken", options.links_max)));
    }
    match take_in(grid, &link, node, &hello).await {
        Ok(welcome) => Ok((link, outbox, welcome)),
        Err(error) => {
            part(grid, &link);
            tracing::error!(node = link.node.short(), %error, "a node could not be taken in");
            Err(bye(ByeReason::Other, "the store failed; try again"))
        }
    }
}

async fn first_frame(grid: &Grid, incoming: &mut (impl Stream<Item = Incoming> + Unpin)) -> Result<Frame, Bye> {
    loop {
        let message = match incoming.next().await {
            None => return Err(bye(ByeReason::Other, "the node went before it said hello")),
            Some(Incoming::Malformed(reason)) => return Err(malformed(grid, reason)),
            Some(Incoming::Alive) => continue,
            Some(Incoming::Message(message)) => message,
        };
        match Frame::decode(&message) {
            Err(error) => return Err(malformed(grid, error.to_string())),
            Ok(Some(Frame::Ping(_) | Frame::Pong(_))) => {}
            Ok(None) => grid.metrics.frames_unknown.increment(1),
            Ok(Some(frame)) => return Ok(frame),
        }
    }
}

fn malformed(grid: &Grid, reason: String) -> Bye {
    grid.metrics.frames_malformed.increment(1);
    bye(ByeReason::Malformed, reason)
}

async fn take_in(grid: &Grid, link: &Link, node: &Node, hello: &Hello) -> Result<Welcome, store::Error> {
    let options = &grid.options.nodes;
    store_node(grid, node, &hello.name, &hello.region, said(hello)).await?;
    let running: Vec<store::Attempt> = hello.running.iter().copied().map(from_wire).collect();
    let adopted = grid.store.adopt(&link.node, link.session, &running, millis(options.lease)).await?;
    grid.taken_back(&adopted.requeued).await;
    let on_wire = |attempts: Vec<store::Attempt>| attempts.into_iter().map(to_wire).collect::<Vec<Attempt>>();
    let (adopted, refused) = (on_wire(adopted.adopted), on_wire(adopted.refused));
    link.adopt(&adopted);
    tracing::info!(
        node = link.node.short(),
        name = link.name,
        session = link.session,
        adopted = adopted.len(),
        "link open"
    );
    let server_time_ms = u64::try_from(grid.store.now_ms()).unwrap_or(0);
    Ok(Welcome { protocol: PROTOCOL, settings: settings(grid), server_time_ms, adopted, refused })
}

fn said(hello: &Hello) -> SaidOfItself {
    let hardware = hello.profile.clone();
    SaidOfItself { agent: hello.agent.clone(), models: hello.capabilities.models.clone(), hardware }
}

async fn store_node(
    grid: &Grid,
    node: &Node,
    name: &str,
    region: &str,
    said: SaidOfItself,
) -> Result<(), store::Error> {
    let mut profile = serde_json::to_string(&said).expect("what a node says is plain data");
    if profile.len() > PROFILE_BYTES_MAX {
        profile = serde_json::to_string(&SaidOfItself { hardware: serde_json::Value::Null, ..said })
            .expect("what a node says is plain data");
    }
    let short = |text: &str| text.chars().take(128).collect();
    let (name, region, seen_ms) = (short(name), short(region), grid.store.now_ms());
    grid.store.put_node(Node { name, region, profile, seen_ms, ..node.clone() }).await
}

/// Settings of every link.
pub(crate) fn settings(grid: &Grid) -> Settings {
    let options = &grid.options.nodes;
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Settings {
        heartbeat_ms: ms(options.heartbeat),
        lease_ms: ms(options.lease),
        resend_ms: ms(options.resend),
        token: None,
    }
}

/// The link is gone: what the node had waits a grace for it to come back, then waits again for anyone.
fn part(grid: &Arc<Grid>, link: &Arc<Link>) {
    let was_current = grid.presence.leave(link);
    grid.board.forget(link.session);
    if !was_current || grid.closing.is_cancelled() {
        return;
    }
    let (grid, link) = (grid.clone(), link.clone());
    grid.clone().tracker.spawn(async move {
        tokio::select! {
            biased;
            () = grid.closing.cancelled() => return,
            () = tokio::time::sleep(grid.options.nodes.grace) => {}
        }
        if grid.presence.get(&link.node).is_none() {
            release(&grid, &link).await;
        }
    });
}

/// Takes back what a link had.
pub(crate) async fn release(grid: &Grid, link: &Link) {
    match grid.store.release(&link.node, link.session).await {
        Ok(tasks) => grid.taken_back(&tasks).await,
        Err(error) => {
            tracing::error!(node = link.node.short(), %error, "a gone node's tasks wait until their leases are over");
        }
    }
}

/// Writes frames, control before work, until the link is closed; then says why.
async fn write<W: Sink<Bytes> + Unpin>(link: Arc<Link>, welcome: Welcome, mut outbox: Outbox, mut outgoing: W) {
    let mut next = Some(Frame::Welcome(welcome));
    loop {
        if let Some(frame) = next.take() {
            match frame.encode() {
                Err(error) => tracing::error!(%error, "a frame is too large and was not sent"),
                Ok(message) => {
                    let sent = tokio::select! {
                        biased;
                        () = link.closed() => break,
                        sent = outgoing.feed(message.into()) => sent.is_ok(),
                    };
                    if !sent {
                        break;
                    }
                }
            }
        }
        // Frames that wait together leave together.
        next = outbox.control.try_recv().ok().or_else(|| outbox.offers.try_recv().ok());
        if next.is_some() {
            continue;
        }
        let flushed = tokio::select! {
            biased;
            () = link.closed() => break,
            flushed = outgoing.flush() => flushed.is_ok(),
        };
        if !flushed {
            break;
        }
        next = tokio::select! {
            biased;
            () = link.closed() => break,
            frame = outbox.control.recv() => frame,
            frame = outbox.offers.recv() => frame,
        };
    }
    link.close(ByeReason::Other, "the connection broke");
    say_goodbye(&mut outgoing, link.farewell()).await;
}

async fn say_goodbye<W: Sink<Bytes> + Unpin>(outgoing: &mut W, farewell: Option<Bye>) {
    let goodbye = async {
        if let Some(Ok(message)) = farewell.map(|bye| Frame::Bye(bye).encode()) {
            let _ = outgoing.send(message.into()).await; // it may be gone already
        }
        let _ = outgoing.close().await;
    };
    let _ = tokio::time::timeout(GOODBYE_MAX, goodbye).await;
}

/// A link after its welcome.
struct Live {
    grid: Arc<Grid>,
    link: Arc<Link>,
    settling: Arc<Semaphore>,
}

/// What to do after a frame.
enum Next {
    Go,
    Stop(&'static str),
}

impl Live {
    /// Until the link closes; returns why, for the log.
    async fn run(&self, incoming: &mut (impl Stream<Item = Incoming> + Unpin)) -> &'static str {
        let options = &self.grid.options.nodes;
        let mut ping = tokio::time::interval_at(Instant::now() + options.ping, options.ping);
        let mut token = tokio::time::interval_at(Instant::now() + TOKEN_EVERY, TOKEN_EVERY);
        let mut seen = tokio::time::interval_at(Instant::now() + SEEN_EVERY, SEEN_EVERY);
        let (mut missed, mut nonce) = (0, 0);
        self.grid.board.wake();
        loop {
            let message = tokio::select! {
                biased;
                () = self.grid.closing.cancelled() => {
                    self.link.close(ByeReason::Shutdown, "the coordinator stops");
                    return "the coordinator stops";
                }
                () = self.link.closed() => return "closed from this side",
                message = incoming.next() => message,
                _ = ping.tick() => {
                    if missed == MISSED_MAX {
                        self.link.close(ByeReason::Silent, format!("no sign of life for {:?}", options.ping * MISSED_MAX));
                        return "silent";
                    }
                    missed += 1;
                    nonce += 1;
                    self.link.send(Frame::Ping(Ping { nonce }));
                    continue;
                }
                _ = token.tick() => {
                    let token = self.grid.enrolment.tokens.issue(&self.link.node, self.grid.store.now_ms());
                    self.link.send(Frame::Settings(Settings { token: Some(token), ..settings(&self.grid) }));
                    continue;
                }
                _ = seen.tick() => {
                    self.remember(None).await;
                    continue;
                }
            };
            missed = 0;
            self.link.hear(self.grid.store.now_ms());
            match message {
                None => return "the node closed the connection",
                Some(Incoming::Alive) => {}
                Some(Incoming::Malformed(reason)) => return self.cut(malformed(&self.grid, reason)),
                Some(Incoming::Message(message)) => match Frame::decode(&message) {
                    Err(error) => return self.cut(malformed(&self.grid, error.to_string())),
                    Ok(None) => self.grid.metrics.frames_unknown.increment(1),
                    Ok(Some(frame)) => match self.on_frame(frame).await {
                        Next::Go => {}
                        Next::Stop(reason) => return reason,
                    },
                },
            }
        }
    }

    fn cut(&self, bye: Bye) -> &'static str {
        let Bye { reason, detail } = bye;
        tracing::warn!(node = self.link.node.short(), detail, "a link is cut");
        self.link.close(reason, detail);
        "cut"
    }

    async fn on_frame(&self, frame: Frame) -> Next {
        match frame {
            Frame::Heartbeat(heartbeat) => self.on_heartbeat(heartbeat).await,
            Frame::Accept(_) | Frame::Pong(_) => {}
            Frame::Progress(progress) => self.on_progress(progress).await,
            Frame::Ping(ping) => self.link.send(Frame::Pong(ping)),
            Frame::Decline(decline) => {
                let offered = self.link.reported(decline.attempt);
                match decline.reason {
                    DeclineReason::NoSlot => self.link.is_full(),
                    DeclineReason::Draining => self.link.drain(),
                    DeclineReason::ModelMissing => {
                        if let Some(offered) = &offered {
                            self.link.lacks(&offered.model);
                        }
                    }
                    DeclineReason::NoMemory | DeclineReason::Unsupported => {
                        if let Some(Offered { kind, model, .. }) = &offered {
                            let want = Want { kind: *kind, model: model.clone() };
                            self.grid.board.bar(self.link.session, want);
                        }
                    }
                    DeclineReason::Stale => {}
                }
                self.report(decline.attempt, move |this| async move {
                    if let Some(offered) = &offered {
                        this.grid.board.fetch_ended(&offered.model, this.link.session);
                    }
                    this.grid.declined(&this.link, offered, decline).await;
                    None
                })
                .await;
            }
            Frame::Result(result) => {
                let offered = self.link.reported(result.attempt);
                self.report(
                    result.attempt,
                    move |this| async move { this.grid.settle(&this.link, offered, *result).await },
                )
                .await;
            }
            Frame::Failed(failed) => {
                let offered = self.link.reported(failed.attempt);
                self.report(failed.attempt, move |this| async move {
                    if let Some(offered) = &offered {
                        this.grid.board.fetch_ended(&offered.model, this.link.session);
                    }
                    this.grid.failed(&this.link, offered, failed).await
                })
                .await;
            }
            Frame::Bye(bye) => {
                tracing::info!(node = self.link.node.short(), ?bye.reason, detail = bye.detail, "a node says goodbye");
                return Next::Stop("the node said goodbye");
            }
            frame => {
                return Next::Stop(self.cut(bye(ByeReason::Protocol, format!("a worker sends no {}", frame.tag()))));
            }
        }
        Next::Go
    }

    /// A piece of a text. Of attempts that are not the link's own, and of tasks that are no texts, nothing is heard.
    async fn on_progress(&self, Progress { attempt, sequence, fraction: _, piece }: Progress) {
        let Some(piece) = piece.filter(|_| self.link.runs(attempt)) else { return };
        if let Err(nonsense) = self.grid.hub.texts.hear(attempt, self.link.session, sequence, piece) {
            let offered = self.link.reported(attempt);
            self.report(attempt, move |this| async move {
                this.grid.refuse_text(&this.link, offered, attempt, nonsense).await;
                None
            })
            .await;
        }
    }

    /// Settles a report beside the link's other frames, and acknowledges it.
    async fn report<F, Fut>(&self, attempt: Attempt, settle: F)
    where
        F: FnOnce(Live) -> Fut,
        Fut: Future<Output = Option<coordinator_client::wire::AckOutcome>> + Send + 'static,
    {
        let permit = tokio::select! {
            biased;
            () = self.link.closed() => return,
            permit = self.settling.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        self.grid.board.wake(); // its slot is free
        let link = self.link.clone();
        let settled = settle(Live { grid: self.grid.clone(), link: link.clone(), settling: self.settling.clone() });
        self.grid.tracker.spawn(async move {
            let outcome = settled.await;
            link.let_go(attempt);
            if let Some(outcome) = outcome {
                link.send(Frame::Ack(Ack { attempt, outcome }));
            }
            drop(permit);
        });
    }

    async fn on_heartbeat(&self, heartbeat: Heartbeat) {
        let (grid, link) = (&self.grid, &self.link);
        let now = grid.store.now_ms();
        // Heartbeats also come when slots change; leases need not be written that often.
        let every = millis(grid.options.nodes.heartbeat.min(grid.options.nodes.lease / 6)) * 9 / 10;
        let running = link.to_renew(&heartbeat.running, now, every);
        if let Some(models) = link.heartbeat(heartbeat, now) {
            for held in &models {
                grid.board.fetch_ended(&held.id, link.session);
            }
            if grid.presence.announce(&models) {
                self.remember(Some(models)).await;
            }
        }
        grid.board.wake();
        if !running.is_empty() {
            let (grid, link) = (grid.clone(), link.clone());
            self.grid.tracker.spawn(async move { renew(&grid, &link, &running).await });
        }
    }

    /// Stores a sign of life, and the models when they are others.
    async fn remember(&self, models: Option<Vec<ModelHeld>>) {
        let (grid, link) = (&self.grid, &self.link);
        let Ok(Some(node)) = grid.store.node(&link.node).await else { return };
        let mut said: SaidOfItself = serde_json::from_str(&node.profile).unwrap_or_default();
        if let Some(models) = models {
            said.models = models;
        }
        if let Err(error) = store_node(grid, &node, &node.name, &node.region, said).await {
            tracing::warn!(node = link.node.short(), %error, "a node's sign of life was not stored");
        }
    }
}

/// Prolongs leases, and tells the node to stop what is no longer its.
pub(crate) async fn renew(grid: &Grid, link: &Link, running: &[Attempt]) {
    let attempts: Vec<store::Attempt> = running.iter().copied().map(from_wire).collect();
    match grid.store.renew(&link.node, link.session, &attempts, millis(grid.options.nodes.lease)).await {
        Err(error) => {
            tracing::error!(node = link.node.short(), %error, "leases were not renewed; the next heartbeat tries again")
        }
        Ok(stale) => {
            for attempt in stale.into_iter().map(to_wire) {
                link.let_go(attempt);
                let reason = "the attempt is no longer this node's".into();
                link.send(Frame::Cancel(Cancel { attempt, reason }));
            }
        }
    }
}
