//! Decides what each step of generation runs: requests, sampled tokens and the time go in, plans and the ends of requests come out. Pure:
//! it looks at no clock, takes no lock and runs nothing.
//!
//! # A step
//! 1. Sequences whose deadline passed are ended, waiting or not.
//! 2. Each running sequence that wants its next token gets it: one token of the step's budget each.
//! 3. Those that wait get a place, in the order of [`super::waiting`], while there is a place and there are blocks for what they
//!    have and for one block more of everyone. The first that does not fit holds back the others, so that it is not passed for ever, but for
//!    a more urgent one that makes others yield.
//! 4. Prompts are computed in chunks, within what is left of the budget. Half of it goes to who stands first, the other half to who
//!    has least to run in the highest priority, so that a short prompt does not wait for a long one; what one half leaves, the
//!    other has. When the prompt that arrived first of all got nothing in [`Limits::overtakes_max`] steps in a row, the other half is its
//!    own, so that none stands still for ever. A prompt whose next block is in another chunk of the same step waits for that once, and then shares it.
//!
//! A step has at most [`Limits::step_tokens`] tokens, which bounds how long a decode waits; of these at least
//! [`Limits::prefill_tokens_min`] are for prompts, however many decode.
//!
//! # Preemption
//! Who needs a block when none is left takes it from the sequence that stands last, if that is behind itself; else it
//! waits with what it has. The preempted one loses its blocks and waits at its place in the order of arrival, its generated tokens as
//! part of what is to be computed (much of it may still be cached). After [`Limits::preemptions_max`] times it stands before all
//! priorities. So whoever stands first always goes on, and since each request fits alone, each comes to its end.
//!
//! # Preemption for one that waits
//! The most urgent of those that wait does not wait for the end of one with a lower priority. Where it finds no place or too few blocks,
//! those that run with a lower priority lose theirs in its favour: the last first, which is the youngest of the lowest priority, and no more than
//! are needed; none when all together would not do. What is free and belongs to another, whose turn it is, stays that one's.
//!
//! Its bounds, for what is computed twice is lost: a place goes only to a higher priority, so at most nine times before a text comes to its end in
//! it. A text that lost its blocks [`Limits::preemptions_max`] times, for whatever reason, yields no more, and neither does one that has its
//! place because [`Limits::overtakes_max`] others were taken past it. So low priorities come to their end beside any number of
//! higher ones: an urgent text may wait for one of these.
//!
//! # A token that comes late
//! A token may not be known when its step is finished. Then it is [deferred](Scheduler::defer): its sequence keeps place and blocks, and no plan
//! has it until the token [comes](Scheduler::finish_late). All others go on. Where it is preempted before that, what it was to be chosen from is
//! computed again, and the one that is late is not awaited any more.

use std::collections::BTreeSet;
use std::time::Instant;

use models::generate::{Part, Plan, Sampled};

use super::blocks::{self, Blocks};
use super::request::{End, Ended, Refusal, Request, SequenceId, Stop};
use super::sequence::{PRIORITY_MAX, Sequence, Standing};
use super::waiting::Waiting;

/// What a scheduler may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in one step. It bounds the time between two tokens of a text, and sets how fast prompts are computed.
    pub step_tokens: usize,
    /// Tokens of each step that prompts may have, however many sequences decode.
    pub prefill_tokens_min: usize,
    /// Sequences that run at a time.
    pub sequences_max: usize,
    /// Requests that wait at a time.
    pub queue_max: usize,
    /// Tokens of one sequence, prompt and generated together.
    pub context_max: usize,
    /// So many in a row may be given a place past the one that arrived first, and in so many steps in a row may prompts be computed past
    /// the one that did.
    pub overtakes_max: u32,
    /// After so many preemptions a sequence stands before all others, and yields to none that waits.
    pub preemptions_max: u32,
    /// Bytes of one block, all layers together; for what refusals say.
    pub block_bytes: u64,
}

/// Limits that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Something is too small.
    #[error("{name} must be at least {least}")]
    Least {
        /// Which limit.
        name: &'static str,
        /// What it must be at least.
        least: usize,
    },
    /// Decodes could use up the whole step.
    #[error(
        "a step of {step_tokens} tokens is too small for {sequences_max} sequences and {prefill_tokens_min} tokens of prompts; make it \
         at least {} or run fewer sequences", sequences_max.saturating_add(*prefill_tokens_min)
    )]
    Step {
        /// As set.
        step_tokens: usize,
        /// As set.
        sequences_max: usize,
        /// As set.
        prefill_tokens_min: usize,
    },
}

/// How much there is of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sequences that have a place.
    pub running: usize,
    /// Sequences that have none, preempted ones included.
    pub waiting: usize,
    /// Blocks.
    pub blocks: blocks::Figures,
    /// Sequences that lost their blocks to others, since the beginning.
    pub preemptions: u64,
    /// Tokens that were not computed because the cache had them, since the beginning.
    pub reused_tokens: u64,
    /// Tokens that were computed, since the beginning.
    pub computed_tokens: u64,
}

/// The sequences of one model on one device.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    waiting: Waiting,
    /// By their standing.
    running: Vec<Sequence>,
    deadlines: BTreeSet<(Instant, SequenceId)>,
    ended: Vec<Ended>,
    /// In so many steps in a row the prompt that arrived first got nothing.
    passed: u32,
    plan: Plan,
    /// Where each part of the plan was among the running.
    planned: Vec<usize>,
    /// Kept for its memory: who has a prompt to run, as (class, tokens to run, id).
    prompts: Vec<(usize, usize, SequenceId)>,
    /// Kept for its memory: who is at its end after a step.
    finished: Vec<(SequenceId, End)>,
    next_id: SequenceId,
    preemptions: u64,
    reused_tokens: u64,
    computed_tokens: u64,
}

impl Scheduler {
    /// One with nothing to do.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn new(limits: Limits, blocks: Blocks) -> Result<Self, LimitsError> {
        let Limits { step_tokens, prefill_tokens_min, sequences_max, queue_max, context_max, .. } = limits;
        for (name, value, least) in [
            // One for who stands first, and one for the others.
            ("prefill_tokens_min", prefill_tokens_min, 2),
            ("sequences_max", sequences_max, 1),
            ("queue_max", queue_max, 1),
            ("context_max", context_max, 1),
        ] {
            if value < least {
                return Err(LimitsError::Least { name, least });
            }
        }
        if step_tokens < sequences_max.saturating_add(prefill_tokens_min) {
            return Err(LimitsError::Step { step_tokens, sequences_max, prefill_tokens_min });
        }
        Ok(Self {
            limits,
            blocks,
            waiting: Waiting::new(limits.overtakes_max),
            running: Vec::new(),
            deadlines: BTreeSet::new(),
            ended: Vec::new(),
            passed: 0,
            plan: Plan::default(),
            planned: Vec::new(),
            prompts: Vec::new(),
            finished: Vec::new(),
            next_id: 0,
            preemptions: 0,
            reused_tokens: 0,
            computed_tokens: 0,
        })
    }

    /// Lets a request wait for its place.
    ///
    /// # Errors
    /// At once, when it cannot be or the queue is full.
    pub fn submit(&mut self, now: Instant, request: Request) -> Result<SequenceId, Refusal> {
        self.check(now, &request)?;
        let id = self.next_id;
        self.next_id += 1;
        if let Some(deadline) = request.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.waiting.insert(Sequence::new(now, id, request));
        Ok(id)
    }

    fn check(&self, now: Instant, request: &Request) -> Result<(), Refusal> {
        let Request { prompt, generated, new_tokens_max, priority, deadline, .. } = request;
        let (prompt, generated, new_tokens_max) = (prompt.len(), generated.len(), *new_tokens_max);
        if prompt == 0 {
            return Err(Refusal::Empty);
        }
        if generated >= new_tokens_max {
            return Err(Refusal::Complete { generated, new_tokens_max });
        }
        if *priority > PRIORITY_MAX {
            return Err(Refusal::Priority(*priority));
        }
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= now) {
            return Err(Refusal::Late { by: now - deadline });
        }
        let tokens = prompt.saturating_add(new_tokens_max);
        let context_max = self.limits.context_max;
        if tokens > context_max {
            return Err(Refusal::Context { prompt, new_tokens_max, context_max });
        }
        // The last token is given out and not run.
        let needed_blocks = self.blocks.needed(tokens - 1);
        let total_blocks = self.blocks.figures().total;
        if needed_blocks > total_blocks {
            let (free_blocks, block_bytes) = (self.blocks.available(), self.limits.block_bytes);
            return Err(Refusal::Memory { tokens, needed_blocks, free_blocks, total_blocks, block_bytes });
        }
        let waiting = self.waiting.len();
        if waiting >= self.limits.queue_max {
            return Err(Refusal::QueueFull { waiting });
        }
        Ok(())
    }

    /// Calls a request off. Its blocks are free at once, also while a step runs: nobody gets them before the next plan. Returns false
    /// when it is not here (any more).
    pub fn cancel(&mut self, now: Instant, id: SequenceId) -> bool {
        self.end(now, id, End::Cancelled)
    }

    /// The requests that ended since this was last asked.
    pub fn drain_ended(&mut self) -> impl Iterator<Item = Ended> + '_ {
        self.ended.drain(..)
    }

    /// When to ask for a plan again although nothing comes: the next deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How much there is of what.
    pub fn figures(&self) -> Figures {
        Figures {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks: self.blocks.figures(),
            preemptions: self.preemptions,
            reused_tokens: self.reused_tokens,
            computed_tokens: self.computed_tokens,
        }
    }

    /// What to run now; nothing when nothing is there. Tell what came of it with [`finish_step`](Self::finish_step). A plan that
    /// was not carried out is dropped by asking for another. When the engine has lost its cache, this is of no use any more: make another.
    pub fn next(&mut self, now: Instant) -> &Plan {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.end(now, id, End::Deadline);
        }
        for sequence in &mut self.running {
            sequence.granted = 0;
        }
        let preemptions = self.preemptions;
        self.grant_decodes();
        if self.preemptions == preemptions {
            self.admit(now);
        }
        self.grant_prompts();
        self.write_plan();
        &self.plan
    }

    /// The last plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes in what came of the last plan: a token of each part that wanted one, and which of them end their text and why. Part by
    /// part in the plan's order is fastest. A part whose token is missing counts as not run; tokens of sequences that
    /// are not here any more are dropped.
    pub fn finish_step(&mut self, now: Instant, sampled: &[Sampled], stops: &[(SequenceId, Stop)]) {
        let Self { plan, planned, running, blocks, finished, .. } = self;
        let mut next = 0;
        for (part, &at) in plan.parts().zip(&*planned) {
            let id = part.sequence;
            let answer = match sampled.get(next) {
                _ if !part.is_sampled => None,
                Some(answer) if answer.sequence == id => {
                    next += 1;
                    Some(answer)
                }
                _ => sampled.iter().find(|answer| answer.sequence == id),
            };
            // Whoever was cancelled meanwhile has left its place to the next.
            let is_there = running.get(at).is_some_and(|sequence| sequence.id == id);
            let at = if is_there { Some(at) } else { running.iter().position(|sequence| sequence.id == id) };
            let Some(sequence) = at.map(|at| &mut running[at]) else { continue };
            let granted = std::mem::take(&mut sequence.granted);
            if granted == 0 || (part.is_sampled && answer.is_none()) {
                continue;
            }
            sequence.computed += granted;
            self.computed_tokens += granted as u64;
            blocks.seal(&mut sequence.table, &sequence.tokens, sequence.computed);
            let Some(answer) = answer else { continue };
            let stop = stops.iter().find(|(stopped, _)| *stopped == id).map(|(_, stop)| *stop);
            finished.extend(sequence.push(now, answer.token, stop).map(|end| (id, end)));
        }
        for at in 0..self.finished.len() {
            let (id, end) = self.finished[at];
            self.end(now, id, end);
        }
        self.finished.clear();
    }

    /// The token that a part of the last plan wants comes later: its tokens have run, and it is in no plan until then. To be said before the step is
    /// finished. One that is not here any more is passed over.
    pub fn defer(&mut self, id: SequenceId) {
        let Self { running, blocks, computed_tokens, .. } = self;
        let Some(sequence) = running.iter_mut().find(|sequence| sequence.id == id) else { return };
        *computed_tokens += sequence.granted as u64;
        sequence.computed += std::mem::take(&mut sequence.granted);
        blocks.seal(&mut sequence.table, &sequence.tokens, sequence.computed);
    }

    /// Whether the token of this sequence that was deferred is still awaited.
    pub fn awaits(&self, id: SequenceId) -> bool {
        self.running.iter().any(|sequence| sequence.id == id && sequence.is_awaiting())
    }

    /// Takes in a token that was deferred, and why it ends its text, if it does. One that is not awaited is dropped.
    pub fn finish_late(&mut self, now: Instant, sampled: Sampled, stop: Option<Stop>) {
        let Sampled { sequence: id, token } = sampled;
        let is_it = |sequence: &&mut Sequence| sequence.id == id && sequence.is_awaiting();
        let Some(sequence) = self.running.iter_mut().find(is_it) else { return };
        if let Some(end) = sequence.push(now, token, stop) {
            self.end(now, id, end);
        }
    }

    fn end(&mut self, now: Instant, id: SequenceId, end: End) -> bool {
        let sequence = match self.running.iter().position(|sequence| sequence.id == id) {
            Some(at) => Some(self.running.remove(at)),
            None => self.waiting.remove(id),
        };
        let Some(mut sequence) = sequence else { return false };
        self.blocks.release(&mut sequence.table);
        if let Some(deadline) = sequence.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.ended.push(sequence.ended(now, end));
        true
    }

    fn grant_decodes(&mut self) {
        let mut at = 0;
        // Only those behind are preempted meanwhile.
        while at < self.running.len() {
            if self.running[at].left() == 1 && self.make_room(at) {
                self.running[at].granted = 1;
            }
            at += 1;
        }
    }

    /// Gives places to those that wait: what is free in their order, and then what those of a lower priority have.
    fn admit(&mut self, now: Instant) {
        while self.running.len() < self.limits.sequences_max
            && let Some(standing) = self.waiting.next()
            && self.has_room(standing, 0, |_| false)
        {
            let sequence = self.waiting.take(standing).expect("who is next is waiting");
            self.begin(now, sequence);
        }
        while let Some(standing) = self.waiting.most_urgent()
            && self.displace(standing)
        {
            let sequence = self.waiting.remove(standing.id).expect("who is most urgent is waiting");
            self.begin(now, sequence);
        }
    }

    fn begin(&mut self, now: Instant, mut sequence: Sequence) {
        self.reused_tokens += adopt(&mut self.blocks, &mut sequence) as u64;
        sequence.begin(now);
        let at = self.running.partition_point(|other| other.standing() < sequence.standing());
        self.running.insert(at, sequence);
    }

    /// Makes a place for one that waits: those that yield to it lose theirs, the last first, until there is enough. Nobody does when
    /// that would not be enough, and then this returns false.
    fn displace(&mut self, standing: Standing) -> bool {
        let preemptions_max = self.limits.preemptions_max;
        let yields = |sequence: &Sequence| sequence.yields_to(standing.class, preemptions_max);
        let held = |sequence: &Sequence| sequence.table.blocks().len() + owed(&self.blocks, sequence);
        // What they hold and want, as if they shared no blocks: never too little, and quickly known.
        let most = self.running.iter().filter(|sequence| yields(sequence)).map(held).reduce(|most, held| most + held);
        let Some(most) = most else { return false };
        // What is free is for who is next, and that may be another one, whose turn it is.
        let reserved = match self.waiting.next() {
            Some(next) if next != standing => self.spare().min(self.wants(next)).max(0),
            _ => 0,
        };
        if !self.has_room(standing, reserved - most as isize, |_| false) || !self.has_room(standing, reserved, yields) {
            return false;
        }
        while let Some(last) = self.running.iter().rposition(yields) {
            self.preempt(last);
            if self.has_room(standing, reserved, |_| false) {
                break;
            }
        }
        true
    }

    /// Blocks that are left over when each that runs has what it will want; less than nothing when there are too few.
    fn spare(&self) -> isize {
        let owed = self.running.iter().map(|sequence| owed(&self.blocks, sequence)).sum::<usize>();
        self.blocks.available() as isize - owed as isize
    }

    /// Blocks that one that waits will want, shared or not.
    fn wants(&mut self, standing: Standing) -> isize {
        let one = self.waiting.get_mut(standing).expect("it waits");
        owed(&self.blocks, one) as isize
    }

    /// Whether so many blocks would be left over if one that waits had a place as well, and those that `yield_theirs` had none.
    fn has_room(&mut self, standing: Standing, reserved: isize, yield_theirs: impl Fn(&Sequence) -> bool) -> bool {
        let Self { running, waiting, blocks, .. } = self;
        let one = waiting.get_mut(standing).expect("it waits");
        let stays = running.iter().filter(|sequence| !yield_theirs(sequence));
        let wanted = stays.map(|sequence| owed(blocks, sequence)).sum::<usize>() + owed(blocks, one);
        let left = blocks.available() as isize - wanted as isize;
        if left >= reserved {
            return true;
        }
        let released = running.iter().filter(|sequence| yield_theirs(sequence)).map(|sequence| &sequence.table);
        let (more, prefix) = blocks.if_released(released, &mut one.table, &one.tokens);
        // What is cached is no more available once it is held.
        left + (more + prefix.blocks - prefix.cached) as isize >= reserved
    }

    /// Divides what is left of the budget among those that have no token yet.
    fn grant_prompts(&mut self) {
        let mut budget = self.limits.step_tokens;
        let mut prompts = std::mem::take(&mut self.prompts);
        prompts.clear();
        for sequence in &self.running {
            budget -= sequence.granted;
            if sequence.granted == 0 && !sequence.is_awaiting() {
                let Standing { class, id } = sequence.standing();
                prompts.push((class, sequence.left(), id));
            }
        }
        if let Some((first, others)) = prompts.split_first_mut() {
            let standing = |&(class, _, id): &(usize, usize, SequenceId)| Standing { class, id };
            let first = standing(first);
            let oldest = others.iter().map(standing).chain([first]).min_by_key(|standing| standing.id).unwrap_or(first);
            budget -= self.grant(first, budget.div_ceil(2), true);
            if self.passed >= self.limits.overtakes_max {
                budget -= self.grant(oldest, budget, false);
            }
            others.sort_unstable();
            for other in &*others {
                if budget == 0 {
                    break;
                }
                budget -= self.grant(standing(other), budget, false);
            }
            self.grant(first, budget, true);
            let at = self.running.binary_search_by_key(&oldest, Sequence::standing);
            let is_served = at.is_ok_and(|at| self.running[at].granted > 0);
            self.passed = if is_served { 0 } else { self.passed.saturating_add(1) };
        }
        self.prompts = prompts;
    }

    /// Gives a sequence more tokens of the step, as far as there are blocks. Returns how many.
    fn grant(&mut self, standing: Standing, allowance: usize, is_first: bool) -> usize {
        // It may have been preempted for one before it.
        let Ok(at) = self.running.binary_search_by_key(&standing, Sequence::standing) else { return 0 };
        if self.running[at].granted == 0 && !self.is_ready(at, is_first) {
            return 0;
        }
        let sequence = &self.running[at];
        let before = sequence.granted;
        let wanted = sequence.left().min(before + allowance);
        if self.blocks.room(&sequence.table) <= sequence.computed + before && !(before == 0 && self.make_room(at)) {
            return 0;
        }
        let sequence = &mut self.running[at];
        sequence.granted = wanted.min(self.blocks.room(&sequence.table) - sequence.computed);
        let has_grown = self.blocks.grow(&mut sequence.table, sequence.computed + sequence.granted);
        debug_assert!(has_grown, "it was granted what there is room for");
        sequence.granted - before
    }

    /// Shares what others have computed meanwhile. False when it is better to wait for what they compute in this step.
    fn is_ready(&mut self, at: usize, is_first: bool) -> bool {
        let sequence = &mut self.running[at];
        self.reused_tokens += adopt(&mut self.blocks, sequence) as u64;
        let must_run = is_first || sequence.deferred_at == Some(sequence.computed);
        let waits = !must_run && self.is_being_computed(at);
        if waits {
            let sequence = &mut self.running[at];
            sequence.deferred_at = Some(sequence.computed);
        }
        !waits
    }

    /// Whether a sequence's next block is computed to its end by another one in this step.
    fn is_being_computed(&self, at: usize) -> bool {
        let sequence = &self.running[at];
        let sealed = sequence.table.sealed();
        let (start, end) = (sealed * self.blocks.block_tokens(), (sealed + 1) * self.blocks.block_tokens());
        if sequence.computed != start || end >= sequence.tokens.len() {
            return false;
        }
        self.running.iter().any(|other| {
            (other.computed..other.computed + other.granted).contains(&(end - 1))
                && other.table.agrees(&sequence.table, sealed)
                && other.tokens[start..end] == sequence.tokens[start..end]
        })
    }

    /// Makes room for one more token of a sequence. Takes blocks from those that stand behind it when none is left.
    fn make_room(&mut self, at: usize) -> bool {
        loop {
            let sequence = &mut self.running[at];
            if self.blocks.grow(&mut sequence.table, sequence.computed + 1) {
                return true;
            }
            let holds_any = |sequence: &Sequence| !sequence.table.blocks().is_empty();
            let Some(last) = self.running[at + 1..].iter().rposition(holds_any) else { return false };
            self.preempt(at + 1 + last);
        }
    }

    /// One that runs loses its blocks, and waits.
    fn preempt(&mut self, at: usize) {
        let mut victim = self.running.remove(at);
        self.blocks.release(&mut victim.table);
        victim.note_preemption(self.limits.preemptions_max);
        self.preemptions += 1;
        self.waiting.insert(victim);
    }

    fn write_plan(&mut self) {
        self.plan.clear();
        self.planned.clear();
        for decodes in [true, false] {
            for (at, sequence) in self.running.iter().enumerate().filter(|(_, sequence)| sequence.granted > 0) {
                let (start, end) = (sequence.computed, sequence.computed + sequence.granted);
                let is_sampled = end == sequence.tokens.len();
                if decodes != (is_sampled && sequence.granted == 1) {
                    continue;
                }
                self.plan.push(Part {
                    sequence: sequence.id,
                    tokens: &sequence.tokens[start..end],
                    position: start,
                    blocks: &sequence.table.blocks()[..self.blocks.needed(end)],
                    is_sampled,
                });
                self.planned.push(at);
            }
        }
    }
}

/// Shares what the cache has of a sequence's next blocks. Returns how many tokens it need not compute.
fn adopt(blocks: &mut Blocks, sequence: &mut Sequence) -> usize {
    if blocks.adopt(&mut sequence.table, &sequence.tokens, sequence.computed) == 0 {
        return 0;
    }
    sequence.reuse(sequence.table.sealed() * blocks.block_tokens())
}

/// Blocks that a sequence will want for its tokens and for as many new ones as a block has, beyond those that it holds.
fn owed(blocks: &Blocks, sequence: &Sequence) -> usize {
    let tokens = (sequence.tokens.len() + blocks.block_tokens()).min(sequence.computed_max());
    blocks.needed(tokens).saturating_sub(sequence.table.blocks().len())
}

#[cfg(test)]
mod tests;
