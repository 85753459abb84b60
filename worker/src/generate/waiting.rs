//! Sequences that wait for a place: who is next comes out. Pure.
//!
//! # The order
//! First those that were preempted as often as may be, then by priority; among equals who arrived first. A preempted one keeps the
//! number of its arrival, so it goes before all that came later. After `overtakes_max` in a row were taken past the one that arrived
//! first of all, that one is next. So with `n` before it, each is taken after at most `(overtakes_max + 1) · (n + 1)` others, whatever comes
//! later.

use std::collections::BTreeMap;

use super::request::SequenceId;
use super::sequence::{CLASSES, Sequence, Standing};

/// Those that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    classes: [BTreeMap<SequenceId, Sequence>; CLASSES],
    overtakes_max: u32,
    /// How many in a row were taken past the one that arrived first.
    overtakes: u32,
}

impl Waiting {
    pub(super) fn new(overtakes_max: u32) -> Self {
        Self { classes: Default::default(), overtakes_max, overtakes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.classes.iter().map(BTreeMap::len).sum()
    }

    pub(super) fn insert(&mut self, sequence: Sequence) {
        let Standing { class, id } = sequence.standing();
        self.classes[class].insert(id, sequence);
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.classes.iter_mut().find_map(|class| class.remove(&id))
    }

    /// Who is next.
    pub(super) fn next(&self) -> Option<Standing> {
        let mut first = self.firsts();
        if self.overtakes >= self.overtakes_max { self.oldest() } else { first.next() }
    }

    /// That one, to be looked at before it is taken.
    pub(super) fn get_mut(&mut self, standing: Standing) -> Option<&mut Sequence> {
        self.classes[standing.class].get_mut(&standing.id)
    }

    /// Takes one out to be run.
    pub(super) fn take(&mut self, standing: Standing) -> Option<Sequence> {
        let is_oldest = self.oldest() == Some(standing);
        let sequence = self.classes[standing.class].remove(&standing.id)?;
        self.overtakes = if is_oldest { 0 } else { self.overtakes + 1 };
        Some(sequence)
    }

    fn oldest(&self) -> Option<Standing> {
        self.firsts().min_by_key(|standing| standing.id)
    }

    /// The first of each class.
    fn firsts(&self) -> impl Iterator<Item = Standing> + '_ {
        let first = |(class, waiting): (usize, &BTreeMap<SequenceId, _>)| {
            waiting.keys().next().map(|&id| Standing { class, id })
        };
        self.classes.iter().enumerate().filter_map(first)
    }
}
