//! The texts that are being written for this process: frames come in from links, readers are woken, nodes are given what came
//! so far to go on from. A text is here from when a node is first offered it, or somebody first listens, until its task ends.

use super::relay::{Mark, Nonsense, Relay};
use coordinator_client::wire::text::{Piece, TokenLogprob, Written};
use coordinator_client::wire::{Attempt, TaskId, Usage};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// The texts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    open: Arc<Mutex<HashMap<TaskId, Arc<Text>>>>,
}

/// One text.
#[derive(Debug, Default)]
struct Text {
    state: Mutex<State>,
    /// Counts what is new.
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    relay: Relay,
    /// What the current attempt was offered: the SHA-256 of its input.
    offered: Option<(u64, String)>,
}

impl Text {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while it holds the lock")
    }
}

impl Texts {
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Text>>> {
        self.open.lock().expect("nobody panics while it holds the lock")
    }

    fn get(&self, id: TaskId) -> Option<Arc<Text>> {
        self.lock().get(&id).cloned()
    }

    fn open(&self, id: TaskId) -> Arc<Text> {
        self.lock().entry(id).or_default().clone()
    }

    /// Whether anything is kept of a task's text.
    pub(crate) fn has(&self, id: TaskId) -> bool {
        self.lock().contains_key(&id)
    }

    /// How many texts are kept.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// A task has ended: its text is kept by those who read it only.
    pub(crate) fn close(&self, id: TaskId) {
        self.lock().remove(&id);
    }

    /// A node is given a task. Returns the tokens behind which it is to go on.
    pub(crate) fn begin(&self, attempt: Attempt, tokens_max: Option<u32>) -> Vec<u32> {
        self.open(attempt.task).state().relay.begin(attempt.epoch, tokens_max)
    }

    /// What the node was offered.
    pub(crate) fn offered(&self, attempt: Attempt, input_sha256: String) {
        self.open(attempt.task).state().offered = Some((attempt.epoch, input_sha256));
    }

    /// What an attempt was offered, if it is the text's current one.
    pub(crate) fn input_sha256(&self, attempt: Attempt) -> Option<String> {
        let text = self.get(attempt.task)?;
        let state = text.state();
        state.offered.as_ref().filter(|(epoch, _)| *epoch == attempt.epoch).map(|(_, sha256)| sha256.clone())
    }

    /// A frame came over a connection of the node that has this attempt.
    pub(crate) fn hear(&self, attempt: Attempt, session: u64, sequence: u64, piece: Piece) -> Result<(), Nonsense> {
        let Some(text) = self.get(attempt.task) else { return Ok(()) };
        let is_new = text.state().relay.hear(attempt.epoch, session, sequence, piece)?;
        if is_new {
            text.news.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Refuses a result that is not what was told, and what no node can have written.
    pub(crate) fn check(
        &self,
        id: TaskId,
        written: &Written,
        usage: Usage,
        tokens_max: Option<u32>,
    ) -> Result<(), Nonsense> {
        match self.get(id) {
            Some(text) => text.state().relay.check(written, usage, tokens_max),
            None => Relay::default().check(written, usage, tokens_max),
        }
    }

    /// The log-probabilities of a whole text, from those of its last node.
    pub(crate) fn all_logprobs(&self, id: TaskId, own: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
        match self.get(id) {
            Some(text) => text.state().relay.all_logprobs(own),
            None => own,
        }
    }

    /// Reads a text from its beginning.
    pub(crate) fn read(&self, id: TaskId) -> Reader {
        let text = self.open(id);
        let news = text.news.subscribe();
        Reader { id, texts: self.clone(), text, news, mark: Mark::default() }
    }
}

/// Somebody who reads a text. However slow it is, nothing is kept for it beside the text itself.
#[derive(Debug)]
pub(crate) struct Reader {
    id: TaskId,
    texts: Texts,
    text: Arc<Text>,
    news: watch::Receiver<u64>,
    mark: Mark,
}

impl Reader {
    /// All that is there and was not read yet; may be empty.
    pub(crate) fn take(&mut self) -> Piece {
        self.news.mark_unchanged();
        self.text.state().relay.since(&mut self.mark)
    }

    /// Until there may be more.
    pub(crate) async fn more(&mut self) {
        // The sender lives as long as the text, which this reader holds.
        let _ = self.news.changed().await;
    }

    /// What a result has behind what was read.
    pub(crate) fn rest(&mut self, written: &Written) -> Piece {
        super::relay::rest(written, &mut self.mark)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut open = self.texts.lock();
        // Nobody but the map and this reader has it, and no node was given it.
        let is_idle = |text: &Arc<Text>| Arc::strong_count(text) == 2 && text.state().relay.is_idle();
        if open.get(&self.id).is_some_and(|text| Arc::ptr_eq(text, &self.text) && is_idle(text)) {
            open.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(tokens: &[u32], text: &str) -> Piece {
        Piece { tokens: tokens.to_vec(), text: text.into(), ..Piece::default() }
    }

    #[tokio::test]
    async fn readers_get_all_of_a_text_and_only_of_it() {
        let texts = Texts::default();
        let [one, two] = [TaskId::new(), TaskId::new()].map(|task| Attempt { task, epoch: 1 });
        let mut early = texts.read(one.task);
        for attempt in [one, two] {
            assert!(texts.begin(attempt, None).is_empty());
            texts.offered(attempt, "sha".into());
        }
        texts.hear(two, 1, 0, piece(&[9], "z")).unwrap();
        texts.hear(one, 1, 0, piece(&[1], "a")).unwrap();
        early.more().await;
        assert_eq!(early.take(), piece(&[1], "a"));
        texts.hear(one, 1, 1, piece(&[2], "b")).unwrap();
        texts.hear(one, 1, 2, piece(&[3], "c")).unwrap();
        early.more().await;
        assert_eq!(early.take(), piece(&[2, 3], "bc"), "what a slow reader has not taken is merged");
        let mut late = texts.read(one.task);
        assert_eq!(late.take(), piece(&[1, 2, 3], "abc"));
        assert_eq!(texts.input_sha256(one).as_deref(), Some("sha"));
        assert_eq!(texts.input_sha256(Attempt { epoch: 2, ..one }), None);
        texts.close(one.task);
        texts.hear(one, 1, 3, piece(&[4], "d")).unwrap();
        assert!(late.take().is_empty(), "a task that has ended tells nothing");
    }

    #[test]
    fn nothing_is_kept_of_what_nobody_writes() {
        let texts = Texts::default();
        let attempt = Attempt { task: TaskId::new(), epoch: 1 };
        let (first, second) = (texts.read(attempt.task), texts.read(attempt.task));
        drop(first);
        assert!(texts.has(attempt.task));
        drop(second);
        assert!(!texts.has(attempt.task));
        let reader = texts.read(attempt.task);
        texts.begin(attempt, None);
        texts.offered(attempt, String::new());
        drop(reader);
        assert!(texts.has(attempt.task), "a node writes it: another may have to go on");
        texts.close(attempt.task);
        assert_eq!(texts.len(), 0);
    }
}
