//! Who waits for which task in this process: state changes and results come in from whoever causes them, and go to those
//! who watch. Keeps nothing about tasks that nobody watches, but texts as far as they are written; what is missed is in the store.

use super::texts::Texts;
use crate::store::State;
use coordinator_client::wire::{TaskId, TaskOutput, Usage};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// The latest news of a task.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// None since the watch began.
    Nothing,
    /// It is in another state.
    State(State),
    /// It has succeeded, with this result.
    Done(Arc<Done>),
}

/// A result, as it came from the node.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) output: TaskOutput,
    pub(crate) usage: Usage,
}

/// The watchers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    pub(crate) texts: Texts,
    watched: Arc<Mutex<HashMap<TaskId, watch::Sender<News>>>>,
    max: usize,
}

impl Hub {
    /// At most `max` tasks are watched at one time.
    pub(crate) fn new(max: usize) -> Self {
        Self { texts: Texts::default(), watched: Arc::default(), max }
    }

    /// Watches a task, or `None` when too many are watched.
    pub(crate) fn watch(&self, id: TaskId) -> Option<Watch> {
        let mut watched = self.watched.lock().expect("nobody panics while it holds the lock");
        if watched.len() >= self.max && !watched.contains_key(&id) {
            return None;
        }
        let sender = watched.entry(id).or_insert_with(|| watch::channel(News::Nothing).0);
        let mut receiver = sender.subscribe();
        // What came before this watch is old news, which the store tells better.
        receiver.mark_unchanged();
        Some(Watch { id, receiver: Some(receiver), hub: self.clone() })
    }

    /// Whether anybody watches a task.
    pub(crate) fn is_watched(&self, id: TaskId) -> bool {
        self.watched.lock().expect("nobody panics while it holds the lock").contains_key(&id)
    }

    /// Whether anybody should be told of a task's end.
    pub(crate) fn cares(&self, id: TaskId) -> bool {
        self.is_watched(id) || self.texts.has(id)
    }

    /// Tells those who watch a task. Its text goes with its end.
    pub(crate) fn tell(&self, id: TaskId, news: News) {
        let is_end = match &news {
            News::Nothing => false,
            News::State(state) => state.is_final(),
            News::Done(_) => true,
        };
        if is_end {
            self.texts.close(id);
        }
        if let Some(sender) = self.watched.lock().expect("nobody panics while it holds the lock").get(&id) {
            sender.send_replace(news);
        }
    }

    /// How many tasks are watched.
    pub(crate) fn len(&self) -> usize {
        self.watched.lock().expect("nobody panics while it holds the lock").len()
    }
}

/// One watcher; forgets itself when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    id: TaskId,
    receiver: Option<watch::Receiver<News>>,
    hub: Hub,
}

impl Watch {
    /// The next news. Of several since the last call, the last.
    pub(crate) async fn next(&mut self) -> News {
        let receiver = self.receiver.as_mut().expect("taken only when dropped");
        if receiver.changed().await.is_err() {
            // The sender lives as long as a watch of this task does.
            std::future::pending::<()>().await;
        }
        receiver.borrow_and_update().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.hub.watched.lock().expect("nobody panics while it holds the lock");
        self.receiver = None;
        if watched.get(&self.id).is_some_and(|sender| sender.receiver_count() == 0) {
            watched.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchers_get_the_latest_news_and_are_forgotten() {
        let hub = Hub::new(1);
        let (id, other) = (TaskId::new(), TaskId::new());
        hub.tell(id, News::State(State::Leased));
        assert_eq!(hub.len(), 0, "nobody watches, nothing is kept");
        let mut first = hub.watch(id).unwrap();
        let mut second = hub.watch(id).unwrap();
        assert!(hub.watch(other).is_none(), "the bound holds");
        hub.tell(id, News::State(State::Leased));
        hub.tell(id, News::State(State::Queued));
        for watch in [&mut first, &mut second] {
            assert!(matches!(watch.next().await, News::State(State::Queued)));
        }
        drop(first);
        assert!(hub.is_watched(id));
        drop(second);
        assert_eq!(hub.len(), 0);
        assert!(hub.watch(other).is_some());
    }
}
