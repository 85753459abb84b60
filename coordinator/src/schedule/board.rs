//! What the scheduler keeps in mind between two decisions: how much waits, who asked in vain, who is fetching what. Only
//! hints: the store decides what is claimed, and a resync from the store mends whatever was missed.

use super::policy::Waiting;
use crate::store::{Depth, Want};
use coordinator_client::wire::NodeId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::Notify;

/// Tasks that come back later and are remembered to the moment; of more than these, the poll takes care.
const LATER_MAX: usize = 16_384;

/// Kinds and models that are told apart here; what waits for more is found by the poll, when others are done.
const LINES_MAX: usize = 4_096;

/// The board. All methods are quick.
#[derive(Debug, Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    wake: Notify,
}

/// Who fetches a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetching {
    pub(crate) node: NodeId,
    pub(crate) session: u64,
    pub(crate) since: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    lines: BTreeMap<(coordinator_client::wire::TaskKind, String), usize>,
    /// Added since the store was last asked; counted on top of its answer, for which they may have come too late.
    added: Option<Vec<Want>>,
    resync: bool,
    barred: HashMap<Want, HashSet<u64>>,
    claiming: HashSet<u64>,
    fetching: HashMap<String, Fetching>,
    later: BinaryHeap<Reverse<(Instant, coordinator_client::wire::TaskKind, String)>>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while it holds the lock")
    }

    /// A task waits.
    pub(crate) fn add(&self, want: Want) {
        self.lock().add(want, 1);
        self.wake.notify_one();
    }

    /// A task will wait from then on.
    pub(crate) fn add_later(&self, want: Want, at: Instant) {
        let mut inner = self.lock();
        if inner.later.len() < LATER_MAX {
            inner.later.push(Reverse((at, want.kind, want.model)));
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Slots or models of a link changed.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Tasks may wait that nobody named.
    pub(crate) fn wake_and_resync(&self) {
        self.lock().resync = true;
        self.wake.notify_one();
    }

    /// Until somebody calls one of the above.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Whether the store has to be asked; it then has to be told the answer by [`Board::resynced`].
    pub(crate) fn starts_resync(&self) -> bool {
        let mut inner = self.lock();
        if !std::mem::take(&mut inner.resync) {
            return false;
        }
        inner.added = Some(vec![]);
        true
    }

    /// What the store said. `None` when it failed: the next poll asks again.
    pub(crate) fn resynced(&self, depths: Option<Vec<Depth>>) {
        let mut inner = self.lock();
        let added = inner.added.take().unwrap_or_default();
        let Some(depths) = depths else { return };
        inner.lines.clear();
        inner.barred.clear();
        for depth in depths {
            let want = Want { kind: depth.kind, model: depth.model };
            inner.add(want, usize::try_from(depth.queued).unwrap_or(usize::MAX));
        }
        for want in added {
            inner.add(want, 1);
        }
    }

    /// Takes in tasks whose time has come. Returns when the next one's comes.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let mut inner = self.lock();
        while let Some(Reverse((at, ..))) = inner.later.peek() {
            if *at > now {
                return Some(*at);
            }
            let Reverse((_, kind, model)) = inner.later.pop().expect("peeked above");
            inner.add(Want { kind, model }, 1);
        }
        None
    }

    /// What waits. Fetches that began before `stale` count no more.
    pub(crate) fn waiting(&self, stale: Option<Instant>) -> Vec<Waiting> {
        let mut inner = self.lock();
        inner.fetching.retain(|_, fetching| stale.is_none_or(|stale| fetching.since >= stale));
        let line = |((kind, model), count): (&(_, String), &usize)| Waiting {
            want: Want { kind: *kind, model: model.clone() },
            count: *count,
            fetching: inner.fetching.contains_key(model),
        };
        inner.lines.iter().filter(|(_, count)| **count > 0).map(line).collect()
    }

    /// Whether a link found nothing of this for itself since something changed.
    pub(crate) fn is_barred(&self, session: u64, want: &Want) -> bool {
        self.lock().barred.get(want).is_some_and(|sessions| sessions.contains(&session))
    }

    /// A link is not to be asked for this until something changes.
    pub(crate) fn bar(&self, session: u64, want: Want) {
        self.lock().bar(session, want);
    }

    /// Whether a claim of this link is under way.
    pub(crate) fn is_claiming(&self, session: u64) -> bool {
        self.lock().claiming.contains(&session)
    }

    /// A claim begins.
    pub(crate) fn claim_begins(&self, session: u64) {
        self.lock().claiming.insert(session);
    }

    /// A claim ended with so many tasks per kind and model. When there were fewer than `max`, nothing is left that this
    /// link could take.
    pub(crate) fn claim_ended(&self, session: u64, wants: Vec<Want>, max: usize, claimed: &[Want]) {
        let mut inner = self.lock();
        inner.claiming.remove(&session);
        for want in claimed {
            if let Some(count) = inner.lines.get_mut(&(want.kind, want.model.clone())) {
                *count = count.saturating_sub(1);
            }
        }
        if claimed.len() < max {
            for want in wants {
                inner.bar(session, want);
            }
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// A link begins to fetch a model.
    pub(crate) fn fetch_begins(&self, model: String, fetching: Fetching) {
        self.lock().fetching.insert(model, fetching);
    }

    /// A link has the model, or failed to get it.
    pub(crate) fn fetch_ended(&self, model: &str, session: u64) {
        let mut inner = self.lock();
        if inner.fetching.get(model).is_some_and(|fetching| fetching.session == session) {
            inner.fetching.remove(model);
        }
    }

    /// Who fetches a model.
    pub(crate) fn fetching(&self, model: &str) -> Option<Fetching> {
        self.lock().fetching.get(model).cloned()
    }

    /// A link is gone.
    pub(crate) fn forget(&self, session: u64) {
        let mut inner = self.lock();
        for sessions in inner.barred.values_mut() {
            sessions.remove(&session);
        }
        inner.fetching.retain(|_, fetching| fetching.session != session);
        drop(inner);
        self.wake.notify_one();
    }
}

impl Inner {
    fn add(&mut self, want: Want, count: usize) {
        if let Some(added) = &mut self.added {
            added.push(want.clone());
        }
        self.barred.remove(&want);
        let key = (want.kind, want.model);
        if self.lines.len() < LINES_MAX || self.lines.contains_key(&key) {
            let line = self.lines.entry(key).or_default();
            *line = line.saturating_add(count);
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.retain(|_, count| *count > 0);
        }
    }

    fn bar(&mut self, session: u64, want: Want) {
        self.barred.entry(want).or_default().insert(session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::TaskKind;
    use std::time::Duration;

    fn want(model: &str) -> Want {
        Want { kind: TaskKind::Embed, model: model.into() }
    }

    fn counts(board: &Board) -> Vec<(String, usize)> {
        board.waiting(None).into_iter().map(|line| (line.want.model, line.count)).collect()
    }

    #[test]
    fn what_comes_while_the_store_is_asked_is_not_forgotten() {
        let board = Board::default();
        board.add(want("a"));
        assert!(!board.starts_resync());
        board.wake_and_resync();
        assert!(board.starts_resync());
        board.add(want("b"));
        let depth = Depth { kind: TaskKind::Embed, model: "a".into(), queued: 3, oldest_ms: 0 };
        board.resynced(Some(vec![depth]));
        assert_eq!(counts(&board), [("a".into(), 3), ("b".into(), 1)]);
        board.wake_and_resync();
        assert!(board.starts_resync());
        board.resynced(None);
        assert_eq!(counts(&board), [("a".into(), 3), ("b".into(), 1)], "a store that fails changes nothing");
    }

    #[test]
    fn who_claims_in_vain_is_barred_until_more_comes() {
        let board = Board::default();
        board.add(want("a"));
        board.claim_begins(7);
        assert!(board.is_claiming(7));
        board.claim_ended(7, vec![want("a")], 2, &[want("a")]);
        assert!(!board.is_claiming(7) && board.is_barred(7, &want("a")) && counts(&board).is_empty());
        board.add(want("b"));
        assert!(board.is_barred(7, &want("a")));
        board.add(want("a"));
        assert!(!board.is_barred(7, &want("a")));
    }

    #[test]
    fn tasks_come_back_when_their_time_has_come() {
        let (board, now) = (Board::default(), Instant::now());
        let soon = now + Duration::from_secs(5);
        board.add_later(want("a"), soon);
        assert_eq!(board.due(now), Some(soon));
        assert!(counts(&board).is_empty());
        assert_eq!(board.due(soon), None);
        assert_eq!(counts(&board), [("a".into(), 1)]);
    }

    #[test]
    fn a_fetch_ends_with_its_link_with_its_success_or_with_its_time() {
        let (board, now) = (Board::default(), Instant::now());
        let fetching = |session| Fetching { node: NodeId("n".into()), session, since: now };
        board.fetch_begins("a".into(), fetching(1));
        board.fetch_ended("a", 2);
        assert!(board.fetching("a").is_some(), "another link's word changes nothing");
        board.fetch_ended("a", 1);
        assert!(board.fetching("a").is_none());
        board.fetch_begins("a".into(), fetching(1));
        board.forget(1);
        assert!(board.fetching("a").is_none());
        board.fetch_begins("a".into(), fetching(1));
        board.waiting(Some(now + Duration::from_secs(1)));
        assert!(board.fetching("a").is_none());
    }
}
