//! Which tokens a sequence holds, and how often each was written. Tokens come in one by one; penalties read them. Never the order of
//! the tokens.

use std::collections::HashMap;

/// The tokens of a sequence, those of its prompt apart from those that were written after it. Kept with the sequence and told of each
/// token, so that no call counts a long text again.
#[derive(Clone, Debug, Default)]
pub struct History {
    seen: Vec<Seen>,
    places: HashMap<u32, usize>,
    largest: Option<u32>,
}

/// A token that a sequence holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) token: u32,
    /// How often it was written; 0 for one that only the prompt has.
    pub(super) written: u32,
}

impl History {
    /// A sequence that is its prompt so far.
    pub fn new(prompt: &[u32]) -> Self {
        let mut history = Self::default();
        prompt.iter().for_each(|token| {
            history.place(*token);
        });
        history
    }

    /// A token has been written.
    pub fn push(&mut self, token: u32) {
        let place = self.place(token);
        self.seen[place].written = self.seen[place].written.saturating_add(1);
    }

    /// Every token of the sequence, once.
    pub(super) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// The largest id.
    pub(super) fn largest(&self) -> Option<u32> {
        self.largest
    }

    fn place(&mut self, token: u32) -> usize {
        self.largest = self.largest.max(Some(token));
        *self.places.entry(token).or_insert_with(|| {
            self.seen.push(Seen { token, written: 0 });
            self.seen.len() - 1
        })
    }
}
