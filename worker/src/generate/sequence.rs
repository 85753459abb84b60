//! One text as the scheduler keeps it: its tokens, how far they are computed, and where it stands among the others.

use std::time::Instant;

use super::blocks::Table;
use super::request::{End, Ended, Request, SequenceId, Stop};

/// Priorities are 0 to 9.
pub(super) const PRIORITY_MAX: u8 = 9;

/// One for each priority, and before them one for those that were preempted as often as may be.
pub(super) const CLASSES: usize = PRIORITY_MAX as usize + 2;

/// Where a sequence stands: the smaller goes first and is preempted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Standing {
    /// 0 for those that were preempted as often as may be, then 1 for priority 9, to 10 for priority 0.
    pub(super) class: usize,
    /// Earlier arrivals are smaller.
    pub(super) id: SequenceId,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    class: usize,
    /// The prompt, and what was generated.
    pub(super) tokens: Vec<u32>,
    prompt_tokens: usize,
    /// How many of the tokens there were at its arrival.
    given: usize,
    /// So many tokens it has at its end.
    pub(super) length_max: usize,
    pub(super) deadline: Option<Instant>,
    arrived: Instant,
    begun: Option<Instant>,
    first_token: Option<Instant>,
    /// Keys and values of so many of the first tokens are in its blocks.
    pub(super) computed: usize,
    /// So many more are in the plan.
    pub(super) granted: usize,
    /// It waited at this position for a block that another one computes. It does so once.
    pub(super) deferred_at: Option<usize>,
    /// It was given its place past more urgent ones, because these had been given theirs past it.
    pub(super) keeps_place: bool,
    cached_tokens: usize,
    preemptions: u32,
    pub(super) table: Table,
}

impl Sequence {
    pub(super) fn new(now: Instant, id: SequenceId, request: Request) -> Self {
        let Request { prompt: mut tokens, generated, new_tokens_max, priority, deadline, salt } = request;
        let prompt_tokens = tokens.len();
        tokens.extend_from_slice(&generated);
        Self {
            id,
            class: 1 + usize::from(PRIORITY_MAX - priority),
            given: tokens.len(),
            tokens,
            prompt_tokens,
            length_max: prompt_tokens + new_tokens_max,
            deadline,
            arrived: now,
            begun: None,
            first_token: None,
            computed: 0,
            granted: 0,
            deferred_at: None,
            keeps_place: false,
            cached_tokens: 0,
            preemptions: 0,
            table: Table::new(salt),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        Standing { class: self.class, id: self.id }
    }

    /// Tokens to run before the next one can be sampled. At least one, but for who awaits a token.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether all its tokens have run, and the next one is still to come.
    pub(super) fn is_awaiting(&self) -> bool {
        self.left() == 0
    }

    /// Tokens whose keys and values it has at its end: of the last one there are none.
    pub(super) fn computed_max(&self) -> usize {
        self.length_max - 1
    }

    /// It has a place from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun.get_or_insert(now);
    }

    /// It is computed as far as that, because the cache was. Returns how many tokens that saves.
    pub(super) fn reuse(&mut self, computed: usize) -> usize {
        let saved = computed - self.computed;
        self.computed = computed;
        // What it finds again of its own after a preemption was not saved.
        if self.preemptions == 0 {
            self.cached_tokens += saved;
        }
        saved
    }

    /// Whether it gives its place to one that waits in this class of priority.
    pub(super) fn yields_to(&self, class: usize, preemptions_max: u32) -> bool {
        self.class > class && self.preemptions < preemptions_max && !self.keeps_place
    }

    /// Its blocks are gone. From the time that this has happened `preemptions_max` times it goes before all that it has not happened to as often.
    pub(super) fn note_preemption(&mut self, preemptions_max: u32) {
        (self.computed, self.granted, self.deferred_at, self.keeps_place) = (0, 0, None, false);
        self.preemptions += 1;
        if self.preemptions >= preemptions_max {
            self.class = 0;
        }
    }

    /// It has one more token. Returns why that is its last one, if it is.
    pub(super) fn push(&mut self, now: Instant, token: u32, stop: Option<Stop>) -> Option<End> {
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        let is_full = self.tokens.len() == self.length_max;
        stop.map(End::Stopped).or(is_full.then_some(End::Length))
    }

    pub(super) fn ended(&self, now: Instant, end: End) -> Ended {
        let since_arrival = |at: Instant| at.saturating_duration_since(self.arrived);
        Ended {
            id: self.id,
            end,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            new_tokens: self.tokens.len() - self.given,
            preemptions: self.preemptions,
            queued: self.begun.map(since_arrival),
            first_token: self.first_token.map(since_arrival),
            total: since_arrival(now),
        }
    }
}
