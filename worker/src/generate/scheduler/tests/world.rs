//! A scheduler with an engine of its own on a clock of its own. The engine keeps what it computed in numbered blocks, as a real one
//! does, and each of its tokens depends on all that it reads there: a wrong block, or one that was written to too soon, changes the text.
//! After every operation everything that can be checked from outside is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::generate::scheduler::*;

/// Sampled tokens below this end a text.
const STOPPING: u32 = 4;
/// A text whose first token is not below this has no end token.
pub(super) const ENDLESS: u32 = 1_000;
/// Sampled tokens are below this.
const VOCABULARY: u64 = 100;

/// Mixes two numbers into one.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mixed = (a.rotate_left(23) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// The token behind what was read.
fn sample(read: u64) -> u32 {
    (mix(read, 1) % VOCABULARY) as u32
}

/// Whether the token ends the text.
fn is_last(request: &Request, token: u32) -> bool {
    token < STOPPING && request.prompt[0] < ENDLESS
}

/// What the engine gives a text that is alone: the generated tokens, with those that it came with.
pub(super) fn alone(request: &Request) -> Vec<u32> {
    let mut read = 0;
    let mut run = |token: u32| read = mix(read, mix(read, mix(request.salt, u64::from(token))));
    request.prompt.iter().for_each(|token| run(*token));
    request.generated.iter().for_each(|token| run(*token));
    let mut text = request.generated.clone();
    while text.len() < request.new_tokens_max {
        let token = sample(read);
        text.push(token);
        if is_last(request, token) {
            break;
        }
        read = mix(read, mix(read, mix(request.salt, u64::from(token))));
    }
    text
}

/// What is known of a request that was admitted.
pub(super) struct Known {
    pub(super) request: Request,
    pub(super) text: Vec<u32>,
    pub(super) end: Option<Ended>,
    /// While it waits: so many may still be given a free place before it.
    patience: usize,
    /// How often it lost its place to a more urgent one that waited.
    displaced: u32,
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) known: BTreeMap<SequenceId, Known>,
    /// What the engine keeps, `[total, block_tokens]`.
    memory: Vec<u64>,
    /// The last plan, until it is finished or another one is made.
    plan: Plan,
    /// Tokens that were deferred, with what ends their text. At most one of each sequence, the last one.
    late: Vec<(Sampled, Option<Stop>)>,
}

/// A request as most tests want it.
pub(super) fn request(prompt: &[u32], new_tokens_max: usize) -> Request {
    Request { prompt: prompt.to_vec(), generated: vec![], new_tokens_max, priority: 5, deadline: None, salt: 0 }
}

/// Limits as most tests want them.
pub(super) const LIMITS: Limits = Limits {
    step_tokens: 16,
    prefill_tokens_min: 8,
    sequences_max: 8,
    queue_max: 1_000,
    context_max: 1_000,
    overtakes_max: 3,
    preemptions_max: 2,
    block_bytes: 1 << 20,
};

impl World {
    pub(super) fn new(limits: Limits, blocks: Blocks) -> Self {
        let memory = vec![0; blocks.figures().total * blocks.block_tokens()];
        let now = Instant::now();
        Self {
            scheduler: Scheduler::new(limits, blocks).unwrap(),
            now,
            start: now,
            known: BTreeMap::new(),
            memory,
            plan: Plan::default(),
            late: vec![],
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    pub(super) fn submit(&mut self, request: Request) -> Result<SequenceId, Refusal> {
        let admitted = self.scheduler.submit(self.now, request.clone());
        if let Ok(id) = admitted {
            let text = request.generated.clone();
            assert!(self.known.insert(id, Known { request, text, end: None, patience: 0, displaced: 0 }).is_none());
            self.set_patience(&[id]);
        }
        self.check();
        admitted
    }

    pub(super) fn cancel(&mut self, id: SequenceId) {
        let is_here = self.known.get(&id).is_some_and(|known| known.end.is_none());
        assert_eq!(self.scheduler.cancel(self.now, id), is_here);
        self.check();
        assert!(self.known.get(&id).is_none_or(|known| known.end.is_some()));
    }

    /// Makes a plan, and checks it.
    pub(super) fn plan(&mut self) -> &Plan {
        let (waiting, running) = (self.waiting(), self.running());
        let (before, preemptions) = (self.scheduler.clone(), self.scheduler.preemptions);
        self.plan = self.scheduler.next(self.now).clone();
        self.check();
        assert!(
            self.scheduler.next_deadline().is_none_or(|deadline| deadline > self.now),
            "a deadline was passed over"
        );
        let late = self
            .known
            .values()
            .find(|known| known.end.is_none() && known.request.deadline.is_some_and(|deadline| deadline <= self.now));
        assert!(late.is_none(), "a late one goes on");

        let begun: Vec<SequenceId> = self.running().into_iter().filter(|id| waiting.contains(id)).collect();
        let preempted: Vec<SequenceId> = self.waiting().into_iter().filter(|id| running.contains(id)).collect();
        assert_eq!(self.scheduler.preemptions - preemptions, preempted.len() as u64);
        self.check_displaced(&begun, &preempted);
        self.check_urgent(before, &begun, &preempted);
        // A place that another one lost was not free.
        let taken = begun.len().saturating_sub(preempted.len());
        for id in self.waiting() {
            let known = self.known.get_mut(&id).unwrap();
            assert!(preempted.contains(&id) || known.patience > taken, "{id} waits longer than is promised");
            known.patience -= taken.min(known.patience);
        }
        self.set_patience(&preempted);
        let first = running.into_iter().find(|id| self.known[id].end.is_none());
        let is_spared = first.is_none_or(|id| !preempted.contains(&id));
        assert!(is_spared || !begun.is_empty(), "the first is never preempted for one that runs");
        self.check_plan(!preempted.is_empty());
        &self.plan
    }

    /// Who lost its place while others were given one lost it to a more urgent one, and not too often.
    fn check_displaced(&mut self, begun: &[SequenceId], preempted: &[SequenceId]) {
        let priority = |id: &SequenceId| self.known[id].request.priority;
        let Some(most) = begun.iter().map(priority).max() else { return };
        assert!(preempted.iter().all(|id| priority(id) < most), "{preempted:?} lost their places to {begun:?}");
        for id in preempted {
            let known = self.known.get_mut(id).unwrap();
            known.displaced += 1;
            assert!(known.displaced <= self.scheduler.limits.preemptions_max, "{id} never gets on");
        }
    }

    /// Whoever is next and waits all the same would find no room either if all that yield to it had been called off before the plan.
    fn check_urgent(&self, mut before: Scheduler, begun: &[SequenceId], preempted: &[SequenceId]) {
        let waiting = &self.scheduler.waiting;
        let Some(next) = waiting.next().filter(|next| waiting.most_urgent() == Some(*next)) else { return };
        let preemptions_max = before.limits.preemptions_max;
        let yields = |sequence: &&Sequence| sequence.yields_to(next.class, preemptions_max);
        let yielding: Vec<SequenceId> =
            self.scheduler.running.iter().filter(yields).map(|sequence| sequence.id).collect();
        // Where blocks were short for those that run, nobody was given a place.
        let was_short = begun.is_empty() && !preempted.is_empty();
        if was_short || yielding.is_empty() {
            return;
        }
        yielding.iter().for_each(|id| assert!(begun.contains(id) || before.cancel(self.now, *id)));
        before.next(self.now);
        let would_begin = before.running.iter().any(|sequence| sequence.id == next.id);
        assert!(!would_begin, "{next:?} waits for {yielding:?}");
    }

    /// Those that came to wait may be overtaken anew, and those that came after them once more.
    fn set_patience(&mut self, came: &[SequenceId]) {
        let turn = self.scheduler.limits.overtakes_max as usize + 1;
        let waiting: Vec<SequenceId> = self.waiting().into_iter().collect();
        for (older, id) in waiting.iter().enumerate() {
            let known = self.known.get_mut(id).unwrap();
            if came.contains(id) {
                known.patience = turn * (older + 1);
            } else {
                known.patience += turn * came.iter().filter(|other| *other < id).count();
            }
        }
    }

    fn check_plan(&self, has_preempted: bool) {
        let (plan, limits, blocks) = (&self.plan, self.scheduler.limits, &self.scheduler.blocks);
        assert!(plan.tokens().len() <= limits.step_tokens && plan.len() <= limits.sequences_max);
        let running = &self.scheduler.running;
        let awaits = running.iter().any(Sequence::is_awaiting);
        assert!(!plan.is_empty() || running.is_empty() || awaits, "who is there is served");
        assert!(
            !self.scheduler.running.is_empty() || self.waiting().is_empty(),
            "who waits is begun when there is room"
        );
        if let Some(first) = self.scheduler.running.first() {
            assert!(first.granted > 0 || first.is_awaiting(), "the first goes on in every step");
        }
        let mut written = BTreeSet::new();
        for (at, part) in plan.parts().enumerate() {
            let end = part.position + part.tokens.len();
            assert_eq!(part.blocks.len(), blocks.needed(end));
            assert_eq!(part.is_sampled && part.tokens.len() == 1, at < plan.decodes(), "decodes come first");
            for block in &part.blocks[part.position / blocks.block_tokens()..] {
                assert_eq!(blocks.state(*block), (1, false), "only one's own block is written to");
                assert!(written.insert(*block));
            }
            let known = &self.known[&part.sequence];
            let text: Vec<u32> = known.request.prompt.iter().chain(&known.text).copied().collect();
            assert_eq!(part.tokens, &text[part.position..end]);
            assert_eq!(part.is_sampled, end == text.len());
        }
        // Nobody is left out while there is room.
        let budget = limits.step_tokens - plan.tokens().len();
        for sequence in &self.scheduler.running {
            let is_short = blocks.room(&sequence.table) <= sequence.computed + sequence.granted;
            let waits = sequence.deferred_at == Some(sequence.computed);
            let is_served = sequence.granted == sequence.left();
            assert!(is_served || budget == 0 || is_short || waits || has_preempted, "{sequence:?} is left out");
        }
    }

    /// Runs the plan, and returns the tokens that it gave with those that end their text.
    pub(super) fn run(&mut self) -> (Vec<Sampled>, Vec<(SequenceId, Stop)>) {
        let block_tokens = self.scheduler.blocks.block_tokens();
        let (mut sampled, mut stops) = (Vec::new(), Vec::new());
        for part in self.plan.parts() {
            let place = |position: usize| {
                part.blocks[position / block_tokens] as usize * block_tokens + position % block_tokens
            };
            let request = &self.known[&part.sequence].request;
            let mut read = (0..part.position).fold(0, |read, position| mix(read, self.memory[place(position)]));
            for (position, token) in (part.position..).zip(part.tokens) {
                let value = mix(read, mix(request.salt, u64::from(*token)));
                self.memory[place(position)] = value;
                read = mix(read, value);
            }
            if part.is_sampled {
                let token = sample(read);
                sampled.push(Sampled { sequence: part.sequence, token });
                if is_last(request, token) {
                    stops.push((part.sequence, Stop::Token));
                }
            }
        }
        (sampled, stops)
    }

    /// Hands over what a step gave.
    pub(super) fn finish(&mut self, (sampled, stops): (Vec<Sampled>, Vec<(SequenceId, Stop)>)) {
        for answer in &sampled {
            let known = self.known.get_mut(&answer.sequence).unwrap();
            if known.end.is_none() {
                known.text.push(answer.token);
            }
        }
        self.scheduler.finish_step(self.now, &sampled, &stops);
        self.plan.clear();
        self.check();
    }

    /// Hands over what a step gave, but for every second token, which comes later.
    pub(super) fn finish_half_late(&mut self, (sampled, stops): (Vec<Sampled>, Vec<(SequenceId, Stop)>)) {
        let (mut now, mut is_late) = (vec![], false);
        for answer in sampled {
            let id = answer.sequence;
            if is_late {
                let stop = stops.iter().find(|(stopped, _)| *stopped == id).map(|(_, stop)| *stop);
                self.late.retain(|(late, _)| late.sequence != id);
                self.late.push((answer, stop));
                self.scheduler.defer(id);
            } else {
                now.push(answer);
            }
            is_late = !is_late;
        }
        self.finish((now, stops));
    }

    /// So many tokens that were deferred come, the first ones first. Those that are not awaited any more are passed over.
    pub(super) fn finish_late(&mut self, count: usize) {
        for (answer, stop) in self.late.drain(..count.min(self.late.len())).collect::<Vec<_>>() {
            if self.scheduler.awaits(answer.sequence) {
                self.known.get_mut(&answer.sequence).unwrap().text.push(answer.token);
            }
            self.scheduler.finish_late(self.now, answer, stop);
            self.check();
        }
    }

    /// A whole step of one millisecond. Returns what was run, as (sequence, position, tokens).
    pub(super) fn step(&mut self) -> Vec<(SequenceId, usize, usize)> {
        let ran = self.plan().parts().map(|part| (part.sequence, part.position, part.tokens.len())).collect();
        let results = self.run();
        self.pass(1);
        self.finish(results);
        ran
    }

    /// Steps until nothing is left. Returns how many it took.
    pub(super) fn drain(&mut self) -> usize {
        let mut steps = 0;
        while self.known.values().any(|known| known.end.is_none()) {
            steps += 1;
            assert!(steps < 100_000, "it never ends");
            self.finish_late(usize::MAX);
            self.step();
        }
        let figures = self.scheduler.figures();
        assert_eq!((figures.running, figures.waiting, figures.blocks.used), (0, 0, 0));
        assert!(self.scheduler.next(self.now).is_empty() && self.scheduler.next_deadline().is_none());
        steps
    }

    pub(super) fn running(&self) -> Vec<SequenceId> {
        self.scheduler.running.iter().map(|sequence| sequence.id).collect()
    }

    /// In the order of arrival.
    pub(super) fn waiting(&self) -> BTreeSet<SequenceId> {
        let running = self.running();
        let alive = self.known.iter().filter(|(_, known)| known.end.is_none()).map(|(id, _)| *id);
        alive.filter(|id| !running.contains(id)).collect()
    }

    /// Takes in who ended, and checks everything that must hold at any time.
    fn check(&mut self) {
        let ended: Vec<Ended> = self.scheduler.drain_ended().collect();
        for ended in ended {
            let known = self.known.get_mut(&ended.id).expect("only who was admitted ends");
            assert!(known.end.replace(ended).is_none(), "{} ended twice", ended.id);
            let whole = alone(&known.request);
            let is_right = match ended.end {
                End::Stopped(_) => {
                    known.text == whole && whole.last().is_some_and(|last| is_last(&known.request, *last))
                }
                End::Length => known.text == whole && whole.len() == known.request.new_tokens_max,
                End::Cancelled => whole.starts_with(&known.text),
                End::Deadline => {
                    whole.starts_with(&known.text)
                        && known.request.deadline.is_some_and(|deadline| deadline <= self.now)
                }
            };
            assert!(is_right, "{ended:?}: {:?}, alone {whole:?}", known.text);
            assert_eq!(ended.new_tokens, known.text.len() - known.request.generated.len());
        }
        let scheduler = &self.scheduler;
        scheduler.blocks.assert_whole(scheduler.running.iter().map(|sequence| &sequence.table));
        assert!(scheduler.running.is_sorted_by_key(Sequence::standing));
        let figures = scheduler.figures();
        assert_eq!(figures.waiting, self.waiting().len());
        let alive = self.known.values().filter(|known| known.end.is_none());
        assert_eq!(scheduler.deadlines.len(), alive.filter(|known| known.request.deadline.is_some()).count());
    }
}
