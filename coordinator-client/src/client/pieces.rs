//! Pieces of texts on their way to the link: the worker's host puts them in as they are written, the link takes them out as fast as it
//! can. What waits is merged, never dropped and never reordered. What was sent is kept until the attempt ends: a new connection
//! is told everything again, from sequence 0, for nobody knows what the last one still carried.

use crate::wire::{Attempt, Piece, Progress};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Pieces are merged up to about this size: small beside what a message may hold, so that no heartbeat waits for long.
const MERGED_BYTES_MAX: usize = 256 << 10;

/// Where the pieces of one text go.
#[derive(Debug, Clone)]
pub struct Pieces {
    attempt: Attempt,
    queue: Arc<Queue>,
}

impl Pieces {
    /// The next piece. Does not wait: memory is bounded by the text itself. Of an attempt that has ended, nothing is kept.
    ///
    /// What a piece shows must be what its tokens and those before it show: whoever gets all pieces up to this one can
    /// continue the text from their tokens. What was held back to the end belongs to no token. A piece without tokens is
    /// therefore not sent: the result tells it.
    pub fn push(&self, piece: Piece) {
        if piece.tokens.is_empty() {
            return;
        }
        let mut inner = self.queue.lock();
        let Inner { texts, ready } = &mut *inner;
        let Some(text) = texts.get_mut(&self.attempt) else { return };
        if text.sent == text.pieces.len() {
            ready.push_back(self.attempt);
        }
        text.pieces.push(piece);
        drop(inner);
        self.queue.filled.notify_one();
    }
}

/// The pieces of all attempts of a link.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    texts: HashMap<Attempt, Text>,
    /// Those that have unsent pieces, the one that waits longest first.
    ready: VecDeque<Attempt>,
}

#[derive(Debug, Default)]
struct Text {
    pieces: Vec<Piece>,
    /// How many of them were sent.
    sent: usize,
    /// Of the next frame.
    sequence: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt begins.
    pub(super) fn begin(self: &Arc<Self>, attempt: Attempt) -> Pieces {
        self.lock().texts.insert(attempt, Text::default());
        Pieces { attempt, queue: Arc::clone(self) }
    }

    /// An attempt has ended.
    pub(super) fn end(&self, attempt: Attempt) {
        let mut inner = self.lock();
        inner.texts.remove(&attempt);
        inner.ready.retain(|other| *other != attempt);
    }

    /// A new connection is up: it has been told nothing.
    pub(super) fn restart(&self) {
        let mut inner = self.lock();
        let Inner { texts, ready } = &mut *inner;
        ready.clear();
        for (attempt, text) in texts {
            (text.sent, text.sequence) = (0, 0);
            if !text.pieces.is_empty() {
                ready.push_back(*attempt);
            }
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// Until there is something to take.
    pub(super) async fn ready(&self) {
        loop {
            let filled = self.filled.notified();
            if !self.lock().ready.is_empty() {
                return;
            }
            filled.await;
        }
    }

    /// What is to be sent next: texts take turns, and all that waits of one goes at once, within reason.
    pub(super) fn take(&self) -> Option<Progress> {
        let mut inner = self.lock();
        let Inner { texts, ready } = &mut *inner;
        let attempt = ready.pop_front()?;
        let text = texts.get_mut(&attempt).expect("only attempts that run are ready");
        let mut unsent = text.pieces[text.sent..].iter();
        let mut piece = unsent.next().expect("only texts with unsent pieces are ready").clone();
        let mut bytes = size(&piece);
        text.sent += 1;
        for next in unsent {
            bytes += size(next);
            if bytes > MERGED_BYTES_MAX {
                break;
            }
            piece.append(next.clone());
            text.sent += 1;
        }
        if text.sent < text.pieces.len() {
            ready.push_back(attempt);
        }
        let sequence = text.sequence;
        text.sequence += 1;
        Some(Progress { attempt, sequence, fraction: None, piece: Some(piece) })
    }
}

/// About how many bytes a piece takes in a frame.
fn size(Piece { tokens, text, tool_calls, logprobs }: &Piece) -> usize {
    let calls: usize = tool_calls.iter().map(|call| 32 + call.name.len() + call.arguments.len()).sum();
    let likelihoods = logprobs.iter().flat_map(|token| std::iter::once(token).chain(&token.top));
    let likelihoods: usize = likelihoods.map(|token| 40 + token.text.len()).sum();
    5 * tokens.len() + text.len() + calls + likelihoods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TaskId;

    fn attempt(epoch: u64) -> Attempt {
        Attempt { task: TaskId(uuid::Uuid::from_u128(epoch.into())), epoch }
    }

    fn piece(token: u32, text: &str) -> Piece {
        Piece { tokens: vec![token], text: text.into(), ..Piece::default() }
    }

    /// Takes everything; each is the attempt's number, the sequence, the tokens and the text.
    fn drain(queue: &Queue) -> Vec<(u64, u64, Vec<u32>, String)> {
        let progress = std::iter::from_fn(|| queue.take());
        let told = progress.map(|Progress { attempt, sequence, piece, .. }| {
            let Piece { tokens, text, .. } = piece.unwrap();
            (attempt.epoch, sequence, tokens, text)
        });
        told.collect()
    }

    #[test]
    fn what_waits_is_merged_in_order_and_texts_take_turns() {
        let queue = Arc::new(Queue::default());
        let (one, two) = (queue.begin(attempt(1)), queue.begin(attempt(2)));
        one.push(piece(1, "a"));
        two.push(piece(9, "z"));
        one.push(piece(2, ""));
        one.push(piece(3, "c"));
        one.push(Piece { tokens: vec![], ..piece(0, "held back to the end") });
        assert_eq!(drain(&queue), [(1, 0, vec![1, 2, 3], "ac".into()), (2, 0, vec![9], "z".into())]);
        one.push(piece(4, "d"));
        assert_eq!(drain(&queue), [(1, 1, vec![4], "d".into())]);
    }

    #[test]
    fn a_large_heap_goes_in_several_frames_cut_between_pieces() {
        let queue = Arc::new(Queue::default());
        let (one, two) = (queue.begin(attempt(1)), queue.begin(attempt(2)));
        let half = "x".repeat(MERGED_BYTES_MAX / 2 - 10);
        (0..5).for_each(|token| one.push(piece(token, &half)));
        two.push(piece(9, &"z".repeat(MERGED_BYTES_MAX + 1)));
        let tokens: Vec<_> =
            drain(&queue).into_iter().map(|(epoch, sequence, tokens, _)| (epoch, sequence, tokens)).collect();
        assert_eq!(tokens, [(1, 0, vec![0, 1]), (2, 0, vec![9]), (1, 1, vec![2, 3]), (1, 2, vec![4])]);
    }

    #[test]
    fn a_new_connection_is_told_everything_again() {
        let queue = Arc::new(Queue::default());
        let (one, two) = (queue.begin(attempt(1)), queue.begin(attempt(2)));
        one.push(piece(1, "a"));
        drain(&queue);
        one.push(piece(2, "b"));
        queue.restart();
        assert_eq!(drain(&queue), [(1, 0, vec![1, 2], "ab".into())]);
        queue.end(attempt(1));
        one.push(piece(3, "c"));
        two.push(piece(9, "z"));
        queue.end(attempt(2));
        queue.restart();
        assert_eq!(drain(&queue), [], "an attempt that has ended tells nothing");
    }

    #[tokio::test]
    async fn readiness_is_told_once_there_is_something() {
        let queue = Arc::new(Queue::default());
        let one = queue.begin(attempt(1));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), queue.ready());
        assert!(waits.await.is_err());
        one.push(piece(1, "a"));
        queue.ready().await;
        drain(&queue);
        queue.restart();
        queue.ready().await;
    }
}
