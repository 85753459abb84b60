//! The worker's side of a link as a state machine: what happened goes in with its time, what to do comes out. It
//! keeps attempts, reports and leases in order across reconnects. Never reads a clock, a socket or a disk.
//!
//! The driver's part of the contract: every [`Action::Run`] is followed by exactly one [`Event::Finished`] or
//! [`Event::Failed`] of that attempt, also after an [`Action::Stop`]; a result is spooled before it is told.

mod liveness;

pub use liveness::{Liveness, MISSED_MAX, Pulse};

use crate::api::Code;
use crate::wire::node::SessionToken;
use crate::wire::{
    Accept, Ack, Attempt, Bye, ByeReason, Capabilities, Decline, DeclineReason, Failed, FailureClass, Frame, Heartbeat,
    Hello, NodeId, Offer, PROTOCOL, Payload, Ping, Progress, Settings, TaskResult, Welcome,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Unacknowledged reports above which no offer is taken: the coordinator does not keep up, more work would be lost.
pub const REPORTS_MAX: usize = 256;

/// Settled attempts that are remembered, so that an offer that comes twice is not run twice.
const SETTLED_MAX: usize = 1_024;

/// How long a coordinator may take to answer a hello. As long as it may be silent.
const WELCOME_WITHIN: Duration = Duration::from_secs(20);

/// Who the worker is; the same for the life of the process.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The node's id.
    pub node: NodeId,
    /// Differs at every start of the process.
    pub session_epoch: u64,
    /// A name for people.
    pub name: String,
    /// Where it stands.
    pub region: String,
    /// Program and version.
    pub agent: String,
    /// Hardware.
    pub profile: serde_json::Value,
}

/// How the worker is and what it can do, now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// What it can do; `slots` is what it holds at once for this coordinator.
    pub capabilities: Capabilities,
    /// Jobs waiting inside the worker.
    pub queue: u32,
    /// Share of time that the busiest device worked, 0 to 1.
    pub utilisation: f32,
    /// The hottest device, in °C.
    pub temperature_c: Option<f32>,
    /// Its own view of its health, 0 to 100.
    pub health_score: u8,
}

/// The time, as the driver tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Since any fixed moment, never going back.
    pub since_start: Duration,
    /// Wall clock, milliseconds since 1970; only shown.
    pub unix_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The link is open.
    Connected,
    /// The link is gone, for whatever reason.
    Lost,
    /// A frame arrived.
    Frame(Frame),
    /// Time passed.
    Tick,
    /// The worker is otherwise than before.
    Facts(Facts),
    /// A result that a process before this one left in the spool.
    Recovered(Box<TaskResult>),
    /// A task is done; its result is spooled.
    Finished(Box<TaskResult>),
    /// A task was not done, or stopped.
    Failed(Failed),
    /// A task is on its way.
    Progress(Progress),
    /// Finish what runs, take nothing more.
    Drain,
    /// Stop what runs and give it back.
    GiveBack,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a frame.
    Send(Frame),
    /// Start a task.
    Run(Box<Offer>),
    /// Stop a task; its end is still to be told.
    Stop(Attempt),
    /// Remove a result from the spool.
    Forget(Attempt),
    /// Have a model ready.
    Load(String),
    /// Free a model's memory.
    Unload(String),
    /// Use this token from now on.
    Token(SessionToken),
    /// The coordinator wants this worker to drain.
    Drained(String),
    /// Say why, if that is still possible, and close the link.
    Close(Bye),
    /// The other side said why it closes; close the link.
    Closed(Bye),
}

/// What a running attempt's end is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It will be reported.
    Working,
    /// It was told to stop, and that will be reported.
    Cancelled,
    /// It was told to stop so that another node runs it, and that will be reported.
    GivenBack,
    /// It is no longer this worker's; nobody waits for its end.
    Abandoned,
}

#[derive(Debug, Clone)]
struct Report {
    frame: Frame,
    sent_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Offline,
    Greeting { since: Duration },
    Live,
}

/// The state of one link, across its connections.
#[derive(Debug)]
pub struct Session {
    introduction: Introduction,
    facts: Facts,
    settings: Settings,
    phase: Phase,
    draining: bool,
    running: BTreeMap<Attempt, Fate>,
    reports: BTreeMap<Attempt, Report>,
    settled: Recent,
    liveness: Liveness,
    heartbeat_at: Duration,
    /// The models have to be named in the next heartbeat.
    models_changed: bool,
    /// When the coordinator was last heard: leases were renewed not later than this.
    heard_at: Duration,
}

impl Session {
    /// A session that is not connected yet.
    pub fn new(introduction: Introduction, facts: Facts) -> Self {
        let settings = Settings::default();
        Self {
            introduction,
            facts,
            phase: Phase::Offline,
            draining: false,
            running: BTreeMap::new(),
            reports: BTreeMap::new(),
            settled: Recent::default(),
            liveness: Liveness::new(Duration::ZERO, heartbeat(&settings)),
            heartbeat_at: Duration::ZERO,
            models_changed: false,
            heard_at: Duration::ZERO,
            settings,
        }
    }

    /// Whether the coordinator has welcomed this connection.
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Whether it takes nothing more.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// How many attempts run, those that were told to stop included.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many reports wait for their ack.
    pub fn unacknowledged(&self) -> usize {
        self.reports.len()
    }

    /// When an [`Event::Tick`] is due.
    pub fn next_tick(&self) -> Duration {
        match self.phase {
            Phase::Offline => self.heard_at + self.lease(),
            Phase::Greeting { since } => since + WELCOME_WITHIN,
            Phase::Live => {
                let resend = self.reports.values().filter_map(|r| r.sent_at).min().map(|at| at + self.resend());
                let soonest = self.heartbeat_at.min(self.liveness.next_at());
                resend.map_or(soonest, |at| at.min(soonest))
            }
        }
    }

    /// Takes what happened and says what to do, in this order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Connected => self.on_connected(now, &mut out),
            Event::Lost => self.phase = Phase::Offline,
            Event::Frame(frame) => self.on_frame(now, frame, &mut out),
            Event::Tick => self.on_tick(now, &mut out),
            Event::Facts(facts) => self.on_facts(now, facts, &mut out),
            Event::Recovered(result) => self.report(now, result.attempt, Frame::Result(result), &mut out),
            Event::Finished(result) => self.on_finished(now, result, &mut out),
            Event::Failed(failed) => self.on_failed(now, failed, &mut out),
            Event::Progress(progress) => {
                if self.is_live() && self.running.get(&progress.attempt) == Some(&Fate::Working) {
                    out.push(Action::Send(Frame::Progress(progress)));
                }
            }
            Event::Drain => self.drain(now, &mut out),
            Event::GiveBack => {
                self.drain(now, &mut out);
                self.stop_where(|_| true, Fate::GivenBack, &mut out);
            }
        }
        out
    }

    fn on_connected(&mut self, now: Now, out: &mut Vec<Action>) {
        self.phase = Phase::Greeting { since: now.since_start };
        self.liveness = Liveness::new(now.since_start, heartbeat(&self.settings));
        self.models_changed = false;
        let Introduction { node, session_epoch, name, region, agent, profile } = self.introduction.clone();
        let capabilities = Capabilities { slots: self.slots(), ..self.facts.capabilities.clone() };
        let running = self.held();
        let hello = Hello {
            protocols: vec![PROTOCOL],
            node,
            session_epoch,
            name,
            region,
            agent,
            capabilities,
            profile,
            running,
        };
        out.push(Action::Send(Frame::Hello(Box::new(hello))));
    }

    fn on_frame(&mut self, now: Now, frame: Frame, out: &mut Vec<Action>) {
        self.liveness.heard(now.since_start);
        match (self.phase, frame) {
            (Phase::Offline, _) => {} // of a connection that is already given up
            (_, Frame::Ping(ping)) => out.push(Action::Send(Frame::Pong(ping))),
            (_, Frame::Pong(_)) => self.heard_at = now.since_start,
            (_, Frame::Bye(bye)) => out.push(Action::Closed(bye)),
            (Phase::Greeting { .. }, Frame::Welcome(welcome)) => self.on_welcome(now, welcome, out),
            (Phase::Greeting { .. }, frame) => {
                out.push(close(ByeReason::Protocol, format!("{} came before welcome", frame.tag())));
            }
            (Phase::Live, frame) => {
                self.heard_at = now.since_start;
                self.on_live_frame(now, frame, out);
            }
        }
    }

    fn on_live_frame(&mut self, now: Now, frame: Frame, out: &mut Vec<Action>) {
        match frame {
            Frame::Offer(offer) => self.on_offer(now, offer, out),
            Frame::Ack(ack) => self.on_ack(ack, out),
            Frame::Cancel(cancel) => {
                self.stop_where(|attempt| attempt == cancel.attempt, Fate::Cancelled, out);
            }
            Frame::Drain(drain) => {
                out.push(Action::Drained(drain.reason));
                self.drain(now, out);
            }
            Frame::LoadModel(model) => out.push(Action::Load(model.model)),
            Frame::UnloadModel(model) => out.push(Action::Unload(model.model)),
            Frame::Settings(settings) => self.set(settings, out),
            frame => out.push(close(ByeReason::Protocol, format!("a coordinator sends no {} here", frame.tag()))),
        }
    }

    fn on_welcome(&mut self, now: Now, welcome: Welcome, out: &mut Vec<Action>) {
        if welcome.protocol != PROTOCOL {
            out.push(close(ByeReason::Protocol, format!("protocol {} is not spoken here", welcome.protocol)));
            return;
        }
        self.set(welcome.settings, out);
        self.phase = Phase::Live;
        self.heard_at = now.since_start;
        self.liveness = Liveness::new(now.since_start, heartbeat(&self.settings));
        self.heartbeat_at = now.since_start + heartbeat(&self.settings);
        let refused: BTreeSet<Attempt> = welcome.refused.into_iter().collect();
        self.stop_where(|attempt| refused.contains(&attempt), Fate::Abandoned, out);
        for report in self.reports.values_mut() {
            report.sent_at = Some(now.since_start);
            out.push(Action::Send(report.frame.clone()));
        }
    }

    fn on_offer(&mut self, now: Now, offer: Box<Offer>, out: &mut Vec<Action>) {
        let attempt = offer.attempt;
        if let Some(report) = self.reports.get_mut(&attempt) {
            report.sent_at = Some(now.since_start);
            out.push(Action::Send(report.frame.clone()));
            return;
        }
        if self.running.get(&attempt) == Some(&Fate::Working) {
            out.push(Action::Send(Frame::Accept(Accept { attempt })));
            return;
        }
        if let Some((reason, detail)) = self.objection(&offer) {
            out.push(Action::Send(Frame::Decline(Decline { attempt, reason, detail })));
            return;
        }
        self.stop_where(|other| other.task == attempt.task, Fate::Abandoned, out);
        self.running.insert(attempt, Fate::Working);
        out.push(Action::Send(Frame::Accept(Accept { attempt })));
        out.push(Action::Run(offer));
    }

    /// Why an offer is not taken.
    fn objection(&self, offer: &Offer) -> Option<(DeclineReason, String)> {
        let Attempt { task, epoch } = offer.attempt;
        let Capabilities { kinds, models, can_fetch, .. } = &self.facts.capabilities;
        let later = |other: &Attempt| other.task == task && other.epoch >= epoch;
        if self.settled.contains(offer.attempt) || self.running.keys().chain(self.reports.keys()).any(later) {
            return Some((DeclineReason::Stale, "this attempt, or a later one, is already known here".into()));
        }
        if self.draining {
            return Some((DeclineReason::Draining, "this worker takes nothing more".into()));
        }
        if self.running.len() >= self.slots() as usize {
            return Some((
                DeclineReason::NoSlot,
                format!("{} of {} slots are taken", self.running.len(), self.slots()),
            ));
        }
        if self.reports.len() >= REPORTS_MAX {
            return Some((DeclineReason::NoSlot, format!("{} reports wait for their ack", self.reports.len())));
        }
        if let Payload::Inline(input) = &offer.input
            && !kinds.contains(&input.kind())
        {
            return Some((DeclineReason::Unsupported, format!("{} is not served here", input.kind().name())));
        }
        if !can_fetch && !models.iter().any(|held| held.id == offer.model) {
            return Some((DeclineReason::ModelMissing, format!("{} is not here and is not fetched", offer.model)));
        }
        None
    }

    fn on_ack(&mut self, Ack { attempt, .. }: Ack, out: &mut Vec<Action>) {
        self.stop_where(|running| running == attempt, Fate::Abandoned, out);
        if let Some(report) = self.reports.remove(&attempt) {
            self.settled.insert(attempt);
            if matches!(report.frame, Frame::Result(_)) {
                out.push(Action::Forget(attempt));
            }
        }
    }

    fn on_finished(&mut self, now: Now, result: Box<TaskResult>, out: &mut Vec<Action>) {
        let attempt = result.attempt;
        match self.running.remove(&attempt) {
            None | Some(Fate::Abandoned) => {
                self.settled.insert(attempt);
                out.push(Action::Forget(attempt));
            }
            Some(_) => self.report(now, attempt, Frame::Result(result), out),
        }
    }

    fn on_failed(&mut self, now: Now, mut failed: Failed, out: &mut Vec<Action>) {
        let attempt = failed.attempt;
        match self.running.remove(&attempt) {
            None | Some(Fate::Abandoned) => {
                self.settled.insert(attempt);
                return;
            }
            Some(Fate::GivenBack) => {
                let detail = "given back: the worker stops".into();
                let (class, code) = (FailureClass::Resource, Code::Unavailable);
                failed = Failed { attempt, class, retryable: true, code, detail };
            }
            Some(Fate::Working | Fate::Cancelled) => {}
        }
        self.report(now, attempt, Frame::Failed(failed), out);
    }

    /// Keeps a report until its ack, and sends it if there is somebody to send it to.
    fn report(&mut self, now: Now, attempt: Attempt, frame: Frame, out: &mut Vec<Action>) {
        let sent_at = self.is_live().then_some(now.since_start);
        if self.is_live() {
            out.push(Action::Send(frame.clone()));
        }
        self.reports.insert(attempt, Report { frame, sent_at });
    }

    fn on_tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let at = now.since_start;
        match self.phase {
            Phase::Offline => {
                if at >= self.heard_at + self.lease() {
                    // By now another node has it, or will get it: what is still running here helps nobody.
                    self.stop_where(|_| true, Fate::Abandoned, out);
                }
                return;
            }
            Phase::Greeting { since } => {
                if at >= since + WELCOME_WITHIN {
                    out.push(close(ByeReason::Silent, "no welcome came".into()));
                }
                return;
            }
            Phase::Live => {}
        }
        match self.liveness.tick(at) {
            Pulse::Fine => {}
            Pulse::Ask(nonce) => out.push(Action::Send(Frame::Ping(Ping { nonce }))),
            Pulse::Dead => {
                out.push(close(ByeReason::Silent, format!("{MISSED_MAX} pings were not answered")));
                return;
            }
        }
        if at >= self.heartbeat_at {
            self.beat(now, out);
        }
        let resend = self.resend();
        for report in self.reports.values_mut().filter(|r| r.sent_at.is_none_or(|sent| at >= sent + resend)) {
            report.sent_at = Some(at);
            out.push(Action::Send(report.frame.clone()));
        }
    }

    fn on_facts(&mut self, now: Now, facts: Facts, out: &mut Vec<Action>) {
        let slots_before = self.slots();
        let models_changed = facts.capabilities.models != self.facts.capabilities.models;
        self.facts = facts;
        self.models_changed |= models_changed;
        if self.is_live() && (models_changed || self.slots() != slots_before) {
            self.beat(now, out);
        }
    }

    fn drain(&mut self, now: Now, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.draining, true) && self.is_live() {
            self.beat(now, out);
        }
    }

    fn beat(&mut self, now: Now, out: &mut Vec<Action>) {
        self.heartbeat_at = now.since_start + heartbeat(&self.settings);
        let models_changed = std::mem::take(&mut self.models_changed);
        let Facts { capabilities, queue, utilisation, temperature_c, health_score } = &self.facts;
        out.push(Action::Send(Frame::Heartbeat(Heartbeat {
            slots: self.slots(),
            slots_free: self.slots().saturating_sub(u32::try_from(self.running.len()).unwrap_or(u32::MAX)),
            running: self.held(),
            queue: *queue,
            draining: self.draining,
            utilisation: *utilisation,
            memory_bytes_free: capabilities.memory_bytes_free,
            temperature_c: *temperature_c,
            health_score: *health_score,
            models: models_changed.then(|| capabilities.models.clone()),
            time_ms: now.unix_ms,
        })));
    }

    /// Tells attempts to stop and says what their end will be worth. A stop is told once; an attempt that nobody waits
    /// for stays so.
    fn stop_where(&mut self, which: impl Fn(Attempt) -> bool, becomes: Fate, out: &mut Vec<Action>) {
        for (attempt, fate) in self.running.iter_mut().filter(|(attempt, _)| which(**attempt)) {
            if *fate == Fate::Working {
                out.push(Action::Stop(*attempt));
            }
            if *fate == Fate::Working || becomes == Fate::Abandoned {
                *fate = becomes;
            }
        }
    }

    /// What a lease is wanted for: running and waited for, or reported and not acknowledged.
    fn held(&self) -> Vec<Attempt> {
        let running = self.running.iter().filter(|(_, fate)| **fate != Fate::Abandoned).map(|(attempt, _)| *attempt);
        running.chain(self.reports.keys().copied()).collect()
    }

    fn slots(&self) -> u32 {
        if self.draining { 0 } else { self.facts.capabilities.slots }
    }

    /// Takes over settings, within reason: a coordinator must not make a worker spin or fall silent.
    fn set(&mut self, settings: Settings, out: &mut Vec<Action>) {
        let Settings { heartbeat_ms, lease_ms, resend_ms, token } = settings;
        let heartbeat_ms = heartbeat_ms.clamp(50, 60_000);
        self.settings = Settings {
            heartbeat_ms,
            lease_ms: lease_ms.clamp(heartbeat_ms, 3_600_000),
            resend_ms: resend_ms.clamp(100, 600_000),
            token: None,
        };
        out.extend(token.map(Action::Token));
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.settings.lease_ms)
    }

    fn resend(&self) -> Duration {
        Duration::from_millis(self.settings.resend_ms)
    }
}

fn heartbeat(settings: &Settings) -> Duration {
    Duration::from_millis(settings.heartbeat_ms)
}

fn close(reason: ByeReason, detail: String) -> Action {
    Action::Close(Bye { reason, detail })
}

/// The last attempts that were settled.
#[derive(Debug, Default)]
struct Recent {
    known: BTreeSet<Attempt>,
    order: VecDeque<Attempt>,
}

impl Recent {
    fn insert(&mut self, attempt: Attempt) {
        if self.known.insert(attempt) {
            self.order.push_back(attempt);
        }
        if self.order.len() > SETTLED_MAX {
            let oldest = self.order.pop_front().expect("it is longer than its bound");
            self.known.remove(&oldest);
        }
    }

    fn contains(&self, attempt: Attempt) -> bool {
        self.known.contains(&attempt)
    }
}
