//! Sequences that wait for a place: who is next comes out. Pure.
//!
//! # The order
//! First those that were preempted as often as may be, then by priority; among equals who arrived first. A preempted one keeps the
//! number of its arrival, so it goes before all that came later. After `overtakes_max` in a row were taken past the one that arrived
//! first of all, that one is next. So with `n` before it, each is taken after at most `(overtakes_max + 1) · (n + 1)` others, whatever comes
//! later. A place that a more urgent one is given at another's cost was not free, and counts for nothing here.

use std::collections::BTreeMap;

use super::request::SequenceId;
use super::sequence::{CLASSES, Sequence, Standing};

/// Those that wait.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
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

    /// The first of the highest priority, whosever turn it is. Those that were preempted as often as may be have no priority here: a place is kept for
    /// them as soon as one is free.
    pub(super) fn most_urgent(&self) -> Option<Standing> {
        self.firsts().find(|standing| standing.class > 0)
    }

    /// That one, to be looked at before it is taken.
    pub(super) fn get_mut(&mut self, standing: Standing) -> Option<&mut Sequence> {
        self.classes[standing.class].get_mut(&standing.id)
    }

    /// Takes one out to be run in a place that was free. One that was overtaken often enough to be taken before those that stand before it keeps
    /// that place.
    pub(super) fn take(&mut self, standing: Standing) -> Option<Sequence> {
        let (is_oldest, is_first) = (self.oldest() == Some(standing), self.firsts().next() == Some(standing));
        let mut sequence = self.classes[standing.class].remove(&standing.id)?;
        sequence.keeps_place = !is_first;
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
