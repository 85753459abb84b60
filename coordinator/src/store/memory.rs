//! The store in memory: commands in, facts out, nothing kept when the process ends. It is the plainest statement of what
//! every store must do, and the oracle of the other engines' tests; also what tests of the layers above run on.

use super::*;
use coordinator_client::wire::TaskKind;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

/// See the module's head.
#[derive(Debug)]
pub struct Memory {
    clock: Clock,
    limits: Limits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next_seq: u64,
    /// By order of submission.
    tasks: BTreeMap<u64, Row>,
    by_id: HashMap<TaskId, u64>,
    by_key: HashMap<(String, String), u64>,
    nodes: BTreeMap<NodeId, Node>,
    /// By order of registration.
    models: Vec<Model>,
}

#[derive(Debug)]
struct Row {
    task: Task,
    session: u64,
    failures_max: u32,
    request_sha256: [u8; 32],
    idempotency_key: Option<String>,
    input: Vec<u8>,
    output: Option<Vec<u8>>,
    attempts: Vec<AttemptRecord>,
    excluded: Vec<(NodeId, i64)>,
}

impl Row {
    fn attempt(&self) -> Attempt {
        Attempt { task: self.task.id, epoch: self.task.epoch }
    }

    fn is_held_by(&self, attempt: Attempt, node: &NodeId) -> bool {
        self.task.state == State::Leased && self.task.epoch == attempt.epoch && self.task.node.as_ref() == Some(node)
    }

    fn holder(&self) -> Option<Holder> {
        let node = self.task.node.clone().filter(|_| self.task.state == State::Leased)?;
        Some(Holder { node, session: self.session, attempt: self.attempt() })
    }

    fn end_attempt(&mut self, now: i64, outcome: Outcome, failure: Option<Failure>) {
        if let Some(last) = self.attempts.last_mut().filter(|a| a.ended_ms.is_none()) {
            last.ended_ms = Some(now);
            last.outcome = Some(outcome);
            last.failure = failure;
        }
        self.task.lease_until_ms = None;
    }

    fn finish(&mut self, now: i64, state: State) {
        self.task.state = state;
        self.task.finished_ms = Some(now);
        self.task.lease_until_ms = None;
    }

    fn fail(&mut self, now: i64, outcome: Outcome, failure: Failure, delay_ms: i64, counts: bool) -> GivenBack {
        let (given_back, state, failures) = after_failure(&failure, self.task.failures, self.failures_max, counts);
        self.task.failures = failures;
        self.end_attempt(now, outcome, Some(failure.clone()));
        self.task.failure = Some(failure);
        self.task.state = state;
        if state.is_final() {
            self.finish(now, state);
        } else {
            self.task.not_before_ms = now + delay_ms;
        }
        given_back
    }
}

impl Memory {
    /// An empty store.
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, inner: Mutex::default() }
    }

    fn lock(&self) -> (i64, MutexGuard<'_, Inner>) {
        (self.clock.now_ms(), self.inner.lock().expect("no command panics while it holds the lock"))
    }
}

impl Inner {
    fn row(&mut self, id: TaskId) -> Option<&mut Row> {
        self.tasks.get_mut(self.by_id.get(&id)?)
    }

    fn held(&mut self, attempt: Attempt, node: &NodeId) -> Option<&mut Row> {
        self.row(attempt.task).filter(|row| row.is_held_by(attempt, node))
    }

    fn count(&mut self, node: &NodeId, counter: impl Fn(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(node) {
            counter(node);
        }
    }

    /// The leases that match are lost. Returns who held them, in the order of submission.
    fn lose(&mut self, now: i64, matches: impl Fn(&Row) -> bool) -> Vec<Holder> {
        let mut holders = Vec::new();
        for row in self.tasks.values_mut().filter(|row| row.task.state == State::Leased && matches(row)) {
            holders.extend(row.holder());
            row.fail(now, Outcome::Lost, lost(), 0, true);
        }
        for holder in &holders {
            self.count(&holder.node, |node| node.lost += 1);
        }
        holders
    }
}

#[async_trait::async_trait]
impl Store for Memory {
    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    async fn submit(&self, new: NewTask) -> Result<Submitted, Error> {
        let (now, mut inner) = self.lock();
        if let Some(key) = &new.idempotency_key
            && let Some(seq) = inner.by_key.get(&(new.tenant.clone(), key.clone()))
        {
            let row = &inner.tasks[seq];
            if row.request_sha256 != new.request_sha256 {
                return Err(Error::IdempotencyConflict { key: key.clone(), task: row.task.id });
            }
            return Ok(Submitted { id: row.task.id, existing: true });
        }
        if inner.by_id.contains_key(&new.id) {
            return Err(Error::Exists(new.id));
        }
        if inner.tasks.values().filter(|row| !row.task.state.is_final()).count() >= self.limits.tasks_open_max {
            return Err(Error::Full { max: self.limits.tasks_open_max });
        }
        inner.next_seq += 1;
        let seq = inner.next_seq;
        inner.by_id.insert(new.id, seq);
        if let Some(key) = &new.idempotency_key {
            inner.by_key.insert((new.tenant.clone(), key.clone()), seq);
        }
        let task = Task {
            id: new.id,
            tenant: new.tenant,
            kind: new.kind,
            model: new.model,
            priority: new.priority,
            state: State::Queued,
            epoch: 0,
            failures: 0,
            submitted_ms: now,
            not_before_ms: now,
            deadline_ms: new.deadline_ms,
            finished_ms: None,
            node: None,
            lease_until_ms: None,
            failure: None,
            facts: None,
        };
        let row = Row {
            task,
            session: 0,
            failures_max: new.failures_max,
            request_sha256: new.request_sha256,
            idempotency_key: new.idempotency_key,
            input: new.input,
            output: None,
            attempts: vec![],
            excluded: vec![],
        };
        inner.tasks.insert(seq, row);
        Ok(Submitted { id: new.id, existing: false })
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, Error> {
        let (now, mut inner) = self.lock();
        let can = |row: &Row| {
            let task = &row.task;
            task.state == State::Queued
                && task.not_before_ms <= now
                && task.deadline_ms.is_none_or(|deadline| deadline > now)
                && claim.wants.iter().any(|want| want.kind == task.kind && want.model == task.model)
                && !row.excluded.iter().any(|(node, until)| *node == claim.node && *until > now)
        };
        let mut rows: Vec<&mut Row> = inner.tasks.values_mut().filter(|row| can(row)).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.task.priority));
        rows.truncate(claim.max);
        let claimed = rows.into_iter().map(|row| {
            row.task.state = State::Leased;
            row.task.epoch += 1;
            row.task.node = Some(claim.node.clone());
            row.task.lease_until_ms = Some(now + claim.lease_ms);
            row.session = claim.session;
            row.attempts.push(AttemptRecord {
                epoch: row.task.epoch,
                node: claim.node.clone(),
                started_ms: now,
                ended_ms: None,
                outcome: None,
                failure: None,
            });
            Claimed {
                attempt: row.attempt(),
                kind: row.task.kind,
                model: row.task.model.clone(),
                input: row.input.clone(),
                priority: row.task.priority,
                deadline_ms: row.task.deadline_ms,
            }
        });
        Ok(claimed.collect())
    }

    async fn renew(
        &self,
        node: &NodeId,
        session: u64,
        running: &[Attempt],
        lease_ms: i64,
    ) -> Result<Vec<Attempt>, Error> {
        let (now, mut inner) = self.lock();
        let mut stale = Vec::new();
        for attempt in running {
            match inner.held(*attempt, node).filter(|row| row.session == session) {
                Some(row) => row.task.lease_until_ms = Some(now + lease_ms),
                None => stale.push(*attempt),
            }
        }
        Ok(stale)
    }

    async fn adopt(&self, node: &NodeId, session: u64, running: &[Attempt], lease_ms: i64) -> Result<Adopted, Error> {
        let (now, mut inner) = self.lock();
        let mut result = Adopted::default();
        for attempt in running {
            match inner.held(*attempt, node) {
                Some(row) => {
                    row.session = session;
                    row.task.lease_until_ms = Some(now + lease_ms);
                    result.adopted.push(*attempt);
                }
                None => result.refused.push(*attempt),
            }
        }
        let left = |row: &Row| row.task.node.as_ref() == Some(node) && !result.adopted.contains(&row.attempt());
        result.requeued = inner.lose(now, left).into_iter().map(|holder| holder.attempt.task).collect();
        Ok(result)
    }

    async fn release(&self, node: &NodeId, session: u64) -> Result<Vec<TaskId>, Error> {
        let (now, mut inner) = self.lock();
        let holders = inner.lose(now, |row| row.task.node.as_ref() == Some(node) && row.session == session);
        Ok(holders.into_iter().map(|holder| holder.attempt.task).collect())
    }

    async fn finish(
        &self,
        attempt: Attempt,
        node: &NodeId,
        output: Vec<u8>,
        facts: String,
    ) -> Result<Settlement, Error> {
        let (now, mut inner) = self.lock();
        let Some(row) = inner.row(attempt.task) else { return Ok(Settlement::Stale) };
        if !row.is_held_by(attempt, node) {
            let same = row.task.epoch == attempt.epoch && row.task.node.as_ref() == Some(node);
            let duplicate = row.task.state == State::Succeeded && same;
            return Ok(if duplicate { Settlement::Duplicate } else { Settlement::Stale });
        }
        row.end_attempt(now, Outcome::Settled, None);
        row.finish(now, State::Succeeded);
        row.output = Some(output);
        row.task.facts = Some(facts);
        inner.count(node, |node| node.settled += 1);
        Ok(Settlement::Settled)
    }

    async fn give_back(
        &self,
        attempt: Attempt,
        node: &NodeId,
        failure: Failure,
        delay_ms: i64,
        counts: bool,
    ) -> Result<GivenBack, Error> {
        let (now, mut inner) = self.lock();
        let passed_over_ms = super::passed_over_ms(&self.limits, delay_ms, counts);
        let fault = failure.fault;
        let Some(row) = inner.held(attempt, node) else { return Ok(GivenBack::Stale) };
        let given_back = row.fail(now, Outcome::GivenBack, failure, delay_ms, counts);
        row.excluded.retain(|(excluded, _)| excluded != node);
        row.excluded.push((node.clone(), now + passed_over_ms));
        if fault == Fault::Worker {
            inner.count(node, |node| node.faulted += 1);
        }
        Ok(given_back)
    }

    async fn cancel(&self, id: TaskId) -> Result<Option<Cancelled>, Error> {
        let (now, mut inner) = self.lock();
        let Some(row) = inner.row(id) else { return Ok(None) };
        let holder = row.holder();
        if !row.task.state.is_final() {
            row.end_attempt(now, Outcome::Cancelled, None);
            row.finish(now, State::Cancelled);
        }
        Ok(Some(Cancelled { state: row.task.state, holder }))
    }

    async fn sweep(&self) -> Result<Swept, Error> {
        let (now, mut inner) = self.lock();
        let mut swept = Swept::default();
        let late = |row: &Row| !row.task.state.is_final() && row.task.deadline_ms.is_some_and(|at| at <= now);
        for row in inner.tasks.values_mut().filter(|row| late(row)) {
            swept.expired.push(row.task.id);
            swept.expired_holders.extend(row.holder());
            row.end_attempt(now, Outcome::Expired, None);
            row.finish(now, State::Expired);
        }
        swept.lost = inner.lose(now, |row| row.task.lease_until_ms.is_some_and(|until| until <= now));
        let old = now - self.limits.retention_ms;
        let gone = |row: &Row| row.task.finished_ms.is_some_and(|finished| finished <= old);
        let forgotten: Vec<u64> = inner.tasks.iter().filter(|(_, row)| gone(row)).map(|(seq, _)| *seq).collect();
        swept.forgotten = forgotten.len();
        for seq in forgotten {
            let row = inner.tasks.remove(&seq).expect("found above");
            inner.by_id.remove(&row.task.id);
            if let Some(key) = row.idempotency_key {
                inner.by_key.remove(&(row.task.tenant, key));
            }
        }
        Ok(swept)
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, Error> {
        Ok(self.lock().1.row(id).map(|row| row.task.clone()))
    }

    async fn input(&self, id: TaskId) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.lock().1.row(id).map(|row| row.input.clone()))
    }

    async fn output(&self, id: TaskId) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.lock().1.row(id).and_then(|row| row.output.clone()))
    }

    async fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRecord>, Error> {
        Ok(self.lock().1.row(id).map(|row| row.attempts.clone()).unwrap_or_default())
    }

    async fn tasks(&self, filter: Filter) -> Result<Vec<Task>, Error> {
        let (_, inner) = self.lock();
        let before = match filter.before {
            None => u64::MAX,
            Some(id) => inner.by_id.get(&id).copied().unwrap_or(0),
        };
        let rows = inner.tasks.range(..before).rev().map(|(_, row)| &row.task);
        let wanted = rows.filter(|task| filter.state.is_none_or(|state| task.state == state));
        Ok(wanted.take(filter.limit).cloned().collect())
    }

    async fn counts(&self) -> Result<[u64; 7], Error> {
        let (_, inner) = self.lock();
        let count = |state: &State| inner.tasks.values().filter(|row| row.task.state == *state).count() as u64;
        Ok(std::array::from_fn(|index| count(&State::ALL[index])))
    }

    async fn depths(&self) -> Result<Vec<Depth>, Error> {
        let (_, inner) = self.lock();
        let mut depths: BTreeMap<(TaskKind, String), Depth> = BTreeMap::new();
        for task in inner.tasks.values().map(|row| &row.task).filter(|task| task.state == State::Queued) {
            let (kind, model, oldest_ms) = (task.kind, task.model.clone(), task.submitted_ms);
            let depth = depths.entry((kind, model.clone())).or_insert(Depth { kind, model, queued: 0, oldest_ms });
            depth.queued += 1;
        }
        Ok(depths.into_values().collect())
    }

    async fn put_node(&self, node: Node) -> Result<(), Error> {
        let (_, mut inner) = self.lock();
        match inner.nodes.get_mut(&node.id) {
            Some(known) => {
                known.name = node.name;
                known.region = node.region;
                known.profile = node.profile;
                known.seen_ms = node.seen_ms;
            }
            None => {
                inner.nodes.insert(node.id.clone(), node);
            }
        }
        Ok(())
    }

    async fn node(&self, id: &NodeId) -> Result<Option<Node>, Error> {
        Ok(self.lock().1.nodes.get(id).cloned())
    }

    async fn nodes(&self) -> Result<Vec<Node>, Error> {
        Ok(self.lock().1.nodes.values().cloned().collect())
    }

    async fn set_node_state(&self, id: &NodeId, state: NodeState) -> Result<bool, Error> {
        let (_, mut inner) = self.lock();
        let known = inner.nodes.get_mut(id);
        let found = known.is_some();
        if let Some(node) = known {
            node.state = state;
        }
        Ok(found)
    }

    async fn put_model(&self, model: Model) -> Result<Put, Error> {
        let (_, mut inner) = self.lock();
        let same = |known: &&Model| known.name == model.name && known.version == model.version;
        if let Some(known) = inner.models.iter().find(same) {
            return Ok(if known.digest == model.digest { Put::Unchanged } else { Put::Conflict });
        }
        inner.models.push(model);
        Ok(Put::Created)
    }

    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, Error> {
        let (_, inner) = self.lock();
        let matches = |m: &&Model| m.name == name && version.is_none_or(|version| m.version == version);
        Ok(inner.models.iter().rev().find(matches).cloned())
    }

    async fn models(&self) -> Result<Vec<Model>, Error> {
        let (_, inner) = self.lock();
        let mut models: Vec<Model> = inner.models.iter().rev().cloned().collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    async fn remove_model(&self, name: &str, version: &str) -> Result<bool, Error> {
        let (_, mut inner) = self.lock();
        let before = inner.models.len();
        inner.models.retain(|model| model.name != name || model.version != version);
        Ok(inner.models.len() < before)
    }
}
