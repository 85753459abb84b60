//! Which nodes are connected, and which models nodes were ever heard to have. Links come in and go, questions about them
//! are answered. Bounded, in memory; who a node is lies in the store.

use super::link::{Link, serves};
use coordinator_client::wire::{ByeReason, ModelHeld, NodeId, TaskKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// Announced models that are remembered.
const ANNOUNCED_MAX: usize = 65_536;

/// Who is here.
#[derive(Debug)]
pub(crate) struct Presence {
    links: RwLock<HashMap<NodeId, Arc<Link>>>,
    links_max: usize,
    last_session: AtomicU64,
    /// `name@version` and its task, of all nodes that ever connected: a task for a model whose only node is away for a
    /// moment waits instead of being refused.
    announced: Mutex<BTreeMap<String, TaskKind>>,
}

/// Too many nodes are connected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Presence {
    /// Nobody is here yet. Sessions are numbered from the clock, so that no number comes twice, even over restarts.
    pub(crate) fn new(links_max: usize, now_ms: i64) -> Self {
        Self {
            links: RwLock::default(),
            links_max,
            last_session: AtomicU64::new(u64::try_from(now_ms).unwrap_or(0)),
            announced: Mutex::default(),
        }
    }

    /// The next session's number.
    pub(crate) fn next_session(&self, now_ms: i64) -> u64 {
        let now = u64::try_from(now_ms).unwrap_or(0);
        let next = |last: u64| Some(now.max(last + 1));
        match self.last_session.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    /// A node is connected. An older connection of it is closed.
    pub(crate) fn arrive(&self, link: Arc<Link>) -> Result<(), Full> {
        let mut links = self.links.write().expect("nobody panics while it holds the lock");
        if links.len() >= self.links_max && !links.contains_key(&link.node) {
            return Err(Full);
        }
        if let Some(old) = links.insert(link.node.clone(), link) {
            old.close(ByeReason::Replaced, "a newer connection of this node took over");
        }
        Ok(())
    }

    /// A connection ended. Returns whether it was the node's current one.
    pub(crate) fn leave(&self, link: &Link) -> bool {
        let mut links = self.links.write().expect("nobody panics while it holds the lock");
        let is_current = links.get(&link.node).is_some_and(|current| current.session == link.session);
        if is_current {
            links.remove(&link.node);
        }
        is_current
    }

    /// A node's connection.
    pub(crate) fn get(&self, node: &NodeId) -> Option<Arc<Link>> {
        self.links.read().expect("nobody panics while it holds the lock").get(node).cloned()
    }

    /// A node's connection, if it still is this one.
    pub(crate) fn get_session(&self, node: &NodeId, session: u64) -> Option<Arc<Link>> {
        self.get(node).filter(|link| link.session == session)
    }

    /// Everyone, by session, so that lists are in a stable order.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        let links = self.links.read().expect("nobody panics while it holds the lock");
        let mut all: Vec<_> = links.values().cloned().collect();
        all.sort_unstable_by_key(|link| link.session);
        all
    }

    /// How many are here.
    pub(crate) fn len(&self) -> usize {
        self.links.read().expect("nobody panics while it holds the lock").len()
    }

    /// A node said that it has these models. Returns whether one was never heard of.
    pub(crate) fn announce(&self, models: &[ModelHeld]) -> bool {
        let mut announced = self.announced.lock().expect("nobody panics while it holds the lock");
        let mut is_news = false;
        for held in models.iter().filter(|held| held.id.contains('@')) {
            if announced.len() < ANNOUNCED_MAX || announced.contains_key(&held.id) {
                is_news |= announced.insert(held.id.clone(), held.task) != Some(held.task);
            }
        }
        is_news
    }

    /// The task of an announced `name@version`.
    pub(crate) fn announced(&self, id: &str) -> Option<TaskKind> {
        self.announced.lock().expect("nobody panics while it holds the lock").get(id).copied()
    }

    /// The version of a model to use when none is named: the newest that a connected node has and that serves the kind;
    /// else the newest that was ever announced.
    pub(crate) fn newest(&self, name: &str, kind: TaskKind) -> Option<String> {
        let announced = self.announced.lock().expect("nobody panics while it holds the lock");
        let of_name = |id: &String| id.rsplit_once('@').is_some_and(|(of, _)| of == name);
        let ids: Vec<(&String, &TaskKind)> = announced.iter().filter(|(id, _)| of_name(id)).collect();
        let links = self.all();
        let rank =
            |id: &str, task: TaskKind| (serves(task, kind), links.iter().any(|link| link.has(id)), version_key(id));
        ids.into_iter().max_by_key(|(id, task)| rank(id, **task)).map(|(id, _)| id.clone())
    }

    /// All announced models.
    pub(crate) fn all_announced(&self) -> Vec<(String, TaskKind)> {
        let announced = self.announced.lock().expect("nobody panics while it holds the lock");
        announced.iter().map(|(id, task)| (id.clone(), *task)).collect()
    }
}

/// A part of a version: numbers by value, words before numbers, so that `10` is newer than `9` and `1` than `rc`.
type Part = (u64, String);

fn version_key(id: &str) -> Vec<Part> {
    let version = id.rsplit_once('@').map_or(id, |(_, version)| version);
    let part = |part: &str| match part.parse::<u64>() {
        Ok(number) => (number.saturating_add(1), String::new()),
        Err(_) => (0, part.to_owned()),
    };
    version.split(['.', '-', '_']).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(models: &[(&str, TaskKind)]) -> Presence {
        let presence = Presence::new(4, 0);
        let held = |(id, task): &(&str, TaskKind)| ModelHeld {
            id: (*id).into(),
            task: *task,
            loaded: false,
            execution_class: None,
        };
        presence.announce(&models.iter().map(held).collect::<Vec<_>>());
        presence
    }

    #[test]
    fn the_newest_version_is_the_highest_number_that_serves_the_kind() {
        use TaskKind::{Classify, Embed, Infer, Rerank};
        let models = [("a@9", Embed), ("a@10", Embed), ("a@11", Rerank), ("b@1.2", Classify), ("b@1.10", Classify)];
        let presence = presence(&models);
        let check = |name, kind, want: Option<&str>| assert_eq!(presence.newest(name, kind).as_deref(), want, "{name}");
        check("a", Embed, Some("a@10"));
        check("a", Rerank, Some("a@11"));
        check("a", Infer, Some("a@11"));
        check("b", Classify, Some("b@1.10"));
        check("c", Embed, None);
        assert_eq!(presence.announced("a@9"), Some(Embed));
    }

    #[test]
    fn no_session_number_comes_twice() {
        let presence = Presence::new(4, 100);
        let numbers = [presence.next_session(100), presence.next_session(100), presence.next_session(99)];
        assert_eq!(numbers, [101, 102, 103]);
        assert_eq!(presence.next_session(1000), 1000);
    }
}
