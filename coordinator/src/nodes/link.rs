//! One connected node, as the rest of the coordinator sees it: what it said it can do and holds comes in from its frames;
//! how it fits a kind of work, and a way to send it frames, go out. Never waits, and never touches a socket.

use crate::schedule::policy::Fit;
use crate::store::Want;
use coordinator_client::wire::{
    Attempt, Bye, ByeReason, Capabilities, Frame, Heartbeat, Hello, ModelHeld, NodeId, TaskKind,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Control frames waiting to be sent; a peer that lets more pile up does not read.
pub(crate) const CONTROL_MAX: usize = 4_096;

/// Offers waiting to be sent. Each may hold a message's worth of input; a peer asks for slots, so few wait.
pub(crate) const OFFERS_MAX: usize = 1_024;

/// Models that one node may name; beyond, they are ignored and logged.
const MODELS_MAX: usize = 4_096;

/// Attempts whose reports were acknowledged lately, which a heartbeat may still name.
const ACKED_MAX: usize = 1_024;

/// A node's connection. Shared by those who send to it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) session: u64,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) agent: String,
    pub(crate) public_key: [u8; 32],
    pub(crate) connected_ms: i64,
    control: mpsc::Sender<Frame>,
    offers: mpsc::Sender<Frame>,
    closed: CancellationToken,
    farewell: Mutex<Option<Bye>>,
    state: Mutex<State>,
}

/// Where the frames for a link come out.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) control: mpsc::Receiver<Frame>,
    pub(crate) offers: mpsc::Receiver<Frame>,
}

#[derive(Debug, Default)]
struct State {
    kinds: Vec<TaskKind>,
    models: BTreeMap<String, ModelHeld>,
    can_fetch: bool,
    memory_bytes_free: u64,
    slots: u32,
    /// It refused an offer for want of a slot; its next heartbeat says more.
    full: bool,
    /// The node says so.
    draining: bool,
    /// The operator says so.
    put_aside: bool,
    held: HashMap<Attempt, Held>,
    acked: VecDeque<Attempt>,
    heartbeat: Option<Heartbeat>,
    heard_ms: i64,
    clock_ahead_ms: Option<i64>,
    renewed_ms: i64,
}

/// What an attempt was offered as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offered {
    pub(crate) kind: TaskKind,
    pub(crate) model: String,
    pub(crate) input_sha256: String,
    /// Tokens of the text at most, where it says so.
    pub(crate) tokens_max: Option<u32>,
}

#[derive(Debug)]
struct Held {
    /// Unknown for what the node brought along from an earlier connection.
    offered: Option<Offered>,
    /// Its report is being settled.
    reported: bool,
}

/// What is known of a connected node, for people and metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) kinds: Vec<TaskKind>,
    pub(crate) models: Vec<ModelHeld>,
    pub(crate) can_fetch: bool,
    pub(crate) memory_bytes_free: u64,
    pub(crate) slots: u32,
    pub(crate) slots_free: usize,
    pub(crate) draining: bool,
    pub(crate) holds: usize,
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) heard_ms: i64,
    pub(crate) clock_ahead_ms: Option<i64>,
}

impl Link {
    /// A link, and the other end of its outbox.
    pub(crate) fn new(
        hello: &Hello,
        session: u64,
        public_key: [u8; 32],
        is_draining: bool,
        now_ms: i64,
    ) -> (Self, Outbox) {
        let (control, control_out) = mpsc::channel(CONTROL_MAX);
        let (offers, offers_out) = mpsc::channel(OFFERS_MAX);
        let Capabilities { kinds, models, can_fetch, memory_bytes_free, slots } = hello.capabilities.clone();
        let state = State {
            kinds,
            models: by_id(models),
            can_fetch,
            memory_bytes_free,
            slots,
            put_aside: is_draining,
            heard_ms: now_ms,
            renewed_ms: now_ms,
            ..State::default()
        };
        let link = Self {
            node: hello.node.clone(),
            session,
            name: hello.name.clone(),
            region: hello.region.clone(),
            agent: hello.agent.clone(),
            public_key,
            connected_ms: now_ms,
            control,
            offers,
            closed: CancellationToken::new(),
            farewell: Mutex::default(),
            state: Mutex::new(state),
        };
        (link, Outbox { control: control_out, offers: offers_out })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while it holds the lock")
    }

    /// Sends a control frame. A peer that does not read is cut off.
    pub(crate) fn send(&self, frame: Frame) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(frame) {
            self.close(ByeReason::Silent, "frames are not being read");
        }
    }

    /// Closes the link with a reason; the first reason counts.
    pub(crate) fn close(&self, reason: ByeReason, detail: impl Into<String>) {
        let mut farewell = self.farewell.lock().expect("nobody panics while it holds the lock");
        farewell.get_or_insert_with(|| Bye { reason, detail: detail.into() });
        self.closed.cancel();
    }

    /// Until it is closed from this side.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether it was closed from this side.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Why it was closed from this side.
    pub(crate) fn farewell(&self) -> Option<Bye> {
        self.farewell.lock().expect("nobody panics while it holds the lock").clone()
    }

    /// Offers an attempt that was claimed for this link. Returns whether it will be sent.
    pub(crate) fn offer(&self, attempt: Attempt, offered: Offered, frame: Frame) -> bool {
        let mut state = self.state();
        state.held.insert(attempt, Held { offered: Some(offered), reported: false });
        drop(state);
        let is_sent = self.offers.try_send(frame).is_ok();
        if !is_sent {
            self.close(ByeReason::Silent, "offers are not being read");
        }
        is_sent
    }

    /// Attempts of an earlier connection live on under this one.
    pub(crate) fn adopt(&self, attempts: &[Attempt]) {
        let mut state = self.state();
        state.held.extend(attempts.iter().map(|attempt| (*attempt, Held { offered: None, reported: false })));
    }

    /// A report came. Returns what the attempt was offered as, if it is known.
    pub(crate) fn reported(&self, attempt: Attempt) -> Option<Offered> {
        let held = self.state().held.get_mut(&attempt).map(|held| {
            held.reported = true;
            held.offered.clone()
        });
        held.flatten()
    }

    /// Whether it has an attempt and has not reported it.
    pub(crate) fn runs(&self, attempt: Attempt) -> bool {
        self.state().held.get(&attempt).is_some_and(|held| !held.reported)
    }

    /// A report was settled, an offer declined, or the attempt taken away.
    pub(crate) fn let_go(&self, attempt: Attempt) {
        let mut state = self.state();
        state.held.remove(&attempt);
        if state.acked.len() == ACKED_MAX {
            state.acked.pop_front();
        }
        state.acked.push_back(attempt);
    }

    /// A sign of life.
    pub(crate) fn hear(&self, now_ms: i64) {
        self.state().heard_ms = now_ms;
    }

    /// Takes in a heartbeat. Returns the models that are new or newly loaded, if it named any.
    pub(crate) fn heartbeat(&self, heartbeat: Heartbeat, now_ms: i64) -> Option<Vec<ModelHeld>> {
        let mut state = self.state();
        state.slots = heartbeat.slots;
        state.full = false;
        let its_time = i64::try_from(heartbeat.time_ms).ok().filter(|time| *time > 0);
        state.clock_ahead_ms = its_time.map(|time| time - now_ms);
        state.draining = heartbeat.draining;
        state.memory_bytes_free = heartbeat.memory_bytes_free;
        let models = heartbeat.models.clone();
        if let Some(models) = &models {
            state.models = by_id(models.clone());
        }
        state.heartbeat = Some(Heartbeat { models: None, ..heartbeat });
        models
    }

    /// Which of the attempts that a heartbeat names are to be renewed now: none when they were, `every_ms` ago or less.
    pub(crate) fn to_renew(&self, running: &[Attempt], now_ms: i64, every_ms: i64) -> Vec<Attempt> {
        let mut state = self.state();
        if now_ms - state.renewed_ms < every_ms {
            return vec![];
        }
        state.renewed_ms = now_ms;
        let is_open = |attempt: &&Attempt| {
            !state.acked.contains(attempt) && !state.held.get(attempt).is_some_and(|held| held.reported)
        };
        running.iter().filter(is_open).copied().collect()
    }

    /// It takes nothing more until its next heartbeat.
    pub(crate) fn is_full(&self) {
        self.state().full = true;
    }

    /// It finishes what it has and takes nothing more.
    pub(crate) fn drain(&self) {
        self.state().draining = true;
    }

    /// It turned out not to have a model.
    pub(crate) fn lacks(&self, model: &str) {
        let mut state = self.state();
        state.models.remove(model);
        state.can_fetch = false;
    }

    /// The operator wants it to take nothing more, or lets it work again.
    pub(crate) fn put_aside(&self, is_put_aside: bool) {
        self.state().put_aside = is_put_aside;
    }

    /// How many more tasks it takes.
    pub(crate) fn free(&self) -> usize {
        let state = self.state();
        if state.draining || state.put_aside || self.is_closed() {
            return 0;
        }
        state.free().min(self.offers.capacity())
    }

    /// How many attempts it holds.
    pub(crate) fn busy(&self) -> usize {
        self.state().held.len()
    }

    /// How it fits a kind and model. `registered_bytes` is the size of the model in the registry, if it is there.
    pub(crate) fn fit(&self, want: &Want, registered_bytes: Option<u64>) -> Fit {
        let state = self.state();
        if !state.kinds.contains(&want.kind) {
            return Fit::No;
        }
        match state.models.get(&want.model) {
            Some(held) if !serves(held.task, want.kind) => Fit::No,
            Some(held) if held.loaded => Fit::Loaded,
            Some(_) => Fit::Cached,
            None if state.can_fetch && registered_bytes.is_some_and(|bytes| bytes <= state.memory_bytes_free) => {
                Fit::Fetch
            }
            None => Fit::No,
        }
    }

    /// Whether it has a model, whatever kind of task it runs.
    pub(crate) fn has(&self, model: &str) -> bool {
        self.state().models.contains_key(model)
    }

    /// Whether it takes nothing more until it is told otherwise.
    pub(crate) fn is_draining(&self) -> bool {
        let state = self.state();
        state.draining || state.put_aside
    }

    /// For people and metrics.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            kinds: state.kinds.clone(),
            models: state.models.values().cloned().collect(),
            can_fetch: state.can_fetch,
            memory_bytes_free: state.memory_bytes_free,
            slots: state.slots,
            slots_free: state.free(),
            draining: state.draining || state.put_aside,
            holds: state.held.len(),
            heartbeat: state.heartbeat.clone(),
            heard_ms: state.heard_ms,
            clock_ahead_ms: state.clock_ahead_ms,
        }
    }
}

impl State {
    /// Slots less what was offered and is neither declined nor reported.
    fn free(&self) -> usize {
        if self.full {
            return 0;
        }
        (self.slots as usize).saturating_sub(self.held.values().filter(|held| !held.reported).count())
    }
}

/// Whether a model for one task serves a kind of task: its own, plain tensors where it takes some, conversations where it writes text.
pub(crate) fn serves(model: TaskKind, kind: TaskKind) -> bool {
    match kind {
        TaskKind::Infer => model != TaskKind::Generate,
        TaskKind::Chat => model == TaskKind::Generate,
        kind => model == kind,
    }
}

fn by_id(models: Vec<ModelHeld>) -> BTreeMap<String, ModelHeld> {
    if models.len() > MODELS_MAX {
        tracing::warn!(models = models.len(), "a node names too many models; those beyond {MODELS_MAX} are ignored");
    }
    models.into_iter().take(MODELS_MAX).map(|held| (held.id.clone(), held)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::TaskId;

    fn link(slots: u32) -> (Link, Outbox) {
        let held = |id: &str, task, loaded| ModelHeld { id: id.into(), task, loaded, execution_class: None };
        let hello = Hello {
            protocols: vec![1],
            node: NodeId("n".into()),
            session_epoch: 1,
            name: "n".into(),
            region: String::new(),
            agent: "test".into(),
            capabilities: Capabilities {
                kinds: vec![TaskKind::Embed, TaskKind::Infer],
                models: vec![held("a@1", TaskKind::Embed, true), held("b@1", TaskKind::Embed, false)],
                can_fetch: true,
                memory_bytes_free: 100,
                slots,
            },
            profile: serde_json::Value::Null,
            running: vec![],
        };
        Link::new(&hello, 1, [0; 32], false, 0)
    }

    fn offer(link: &Link) -> Attempt {
        let attempt = Attempt { task: TaskId::new(), epoch: 1 };
        let offered =
            Offered { kind: TaskKind::Embed, model: "a@1".into(), input_sha256: String::new(), tokens_max: None };
        assert!(link.offer(attempt, offered, Frame::Drain(Default::default())));
        attempt
    }

    #[test]
    fn a_link_fits_what_it_said_it_can_do() {
        let (link, _outbox) = link(1);
        let check = |kind, model: &str, registered, fit| {
            assert_eq!(link.fit(&Want { kind, model: model.into() }, registered), fit, "{kind:?} {model}");
        };
        check(TaskKind::Embed, "a@1", None, Fit::Loaded);
        check(TaskKind::Embed, "b@1", None, Fit::Cached);
        check(TaskKind::Infer, "a@1", None, Fit::Loaded);
        check(TaskKind::Rerank, "a@1", None, Fit::No);
        check(TaskKind::Embed, "c@1", None, Fit::No);
        check(TaskKind::Embed, "c@1", Some(100), Fit::Fetch);
        check(TaskKind::Embed, "c@1", Some(101), Fit::No);
        link.lacks("b@1");
        check(TaskKind::Embed, "b@1", Some(1), Fit::No);
    }

    #[test]
    fn what_is_offered_and_not_yet_reported_takes_a_slot() {
        let (link, _outbox) = link(3);
        let (first, _second) = (offer(&link), offer(&link));
        assert_eq!(link.free(), 1);
        link.reported(first);
        assert_eq!(link.free(), 2, "a report frees its slot at once");
        link.let_go(first);
        assert_eq!(link.free(), 2);
        let heartbeat = |slots| {
            link.heartbeat(Heartbeat { slots, ..Heartbeat::default() }, 0);
            link.free()
        };
        assert_eq!(heartbeat(8), 7);
        assert_eq!(heartbeat(0), 0);
        link.is_full();
        assert_eq!(link.free(), 0);
        assert_eq!(heartbeat(3), 2, "a heartbeat says more than a refusal");
        link.put_aside(true);
        assert_eq!((link.free(), link.is_draining()), (0, true));
        assert_eq!(heartbeat(3), 0, "a heartbeat does not undo what the operator says");
        link.put_aside(false);
        assert_eq!(link.free(), 2);
    }

    #[test]
    fn leases_are_renewed_no_more_often_than_needed_and_not_of_what_is_reported() {
        let (link, _outbox) = link(4);
        let (first, second) = (offer(&link), offer(&link));
        link.reported(second);
        assert_eq!(link.to_renew(&[first, second], 4, 5), []);
        assert_eq!(link.to_renew(&[first, second], 5, 5), [first]);
        assert_eq!(link.to_renew(&[first], 9, 5), []);
        link.let_go(first);
        assert_eq!(link.to_renew(&[first, second], 10, 5), []);
    }

    #[test]
    fn a_peer_that_does_not_read_is_cut_off() {
        let (link, _outbox) = link(1);
        for _ in 0..CONTROL_MAX {
            link.send(Frame::Drain(Default::default()));
        }
        assert!(!link.is_closed());
        link.send(Frame::Drain(Default::default()));
        link.close(ByeReason::Shutdown, "");
        assert_eq!(link.farewell().map(|bye| bye.reason), Some(ByeReason::Silent), "the first reason counts");
    }
}
