//! Random requests, steps, cancellations and failures, against what each request would get alone.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{LIMITS, World, mix};
use crate::generate::scheduler::*;

/// What a test does.
#[derive(Debug, Clone)]
enum Act {
    Submit(Ask),
    Step,
    /// A step during which one is called off.
    StepWithCancel(prop::sample::Index),
    /// A step that the engine does not finish.
    FailedStep,
    /// A step of which only every second token comes back.
    HalfStep,
    /// A step of which every second token comes later.
    LateStep,
    /// So many of those tokens come.
    Late(usize),
    Cancel(prop::sample::Index),
    Pass(u64),
}

/// A prompt is the first tokens of one of a few texts, and some of its own.
#[derive(Debug, Clone)]
struct Ask {
    text: u64,
    common: usize,
    own: Vec<u32>,
    new_tokens_max: usize,
    priority: u8,
    deadline_ms: Option<u64>,
    salt: u64,
}

impl Ask {
    fn request(&self, now: Instant) -> Request {
        let common = (0..self.common as u64).map(|at| (mix(self.text, at) % 3) as u32);
        Request {
            prompt: common.chain(self.own.iter().copied()).collect(),
            generated: vec![],
            new_tokens_max: self.new_tokens_max,
            priority: self.priority,
            deadline: self.deadline_ms.map(|ms| now + Duration::from_millis(ms)),
            salt: self.salt,
        }
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let own = prop::collection::vec(0u32..3, 1..6);
    (0u64..3, 0usize..20, own, 1usize..14, 0u8..10, prop::option::weighted(0.2, 1u64..60), 0u64..2).prop_map(
        |(text, common, own, new_tokens_max, priority, deadline_ms, salt)| Ask {
            text,
            common,
            own,
            new_tokens_max,
            priority,
            deadline_ms,
            salt,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        6 => ask().prop_map(Act::Submit),
        6 => Just(Act::Step),
        1 => which().prop_map(Act::StepWithCancel),
        1 => Just(Act::FailedStep),
        1 => Just(Act::HalfStep),
        2 => Just(Act::LateStep),
        2 => (1usize..4).prop_map(Act::Late),
        1 => which().prop_map(Act::Cancel),
        1 => (0u64..20).prop_map(Act::Pass),
    ]
}

prop_compose! {
    fn limits()(sequences_max in 1usize..6, prefill_tokens_min in 2usize..6, more in 0usize..12, overtakes_max in 0u32..4,
        preemptions_max in 0u32..4) -> Limits {
        let step_tokens = sequences_max + prefill_tokens_min + more;
        Limits { step_tokens, prefill_tokens_min, sequences_max, queue_max: 20, context_max: 36, overtakes_max, preemptions_max, ..LIMITS }
    }
}

/// One of those that are here, when any is.
fn any_alive(world: &World, which: prop::sample::Index) -> Option<SequenceId> {
    let alive: Vec<SequenceId> =
        world.known.iter().filter(|(_, known)| known.end.is_none()).map(|(id, _)| *id).collect();
    (!alive.is_empty()).then(|| alive[which.index(alive.len())])
}

fn carry_out(world: &mut World, act: Act) {
    match act {
        Act::Submit(ask) => drop(world.submit(ask.request(world.now))),
        Act::Step => drop(world.step()),
        Act::StepWithCancel(which) => {
            world.plan();
            let results = world.run();
            if let Some(id) = any_alive(world, which) {
                world.cancel(id);
            }
            world.pass(1);
            world.finish(results);
        }
        Act::FailedStep => {
            world.plan();
            // What it wrote before it failed is of no use, and harms nobody.
            drop(world.run());
        }
        Act::HalfStep => {
            world.plan();
            let (sampled, stops) = world.run();
            let half = |at: usize| at.is_multiple_of(2);
            let sampled = sampled.into_iter().enumerate().filter(|(at, _)| half(*at)).map(|(_, sampled)| sampled);
            world.pass(1);
            world.finish((sampled.collect(), stops));
        }
        Act::LateStep => {
            world.plan();
            let results = world.run();
            world.pass(1);
            world.finish_half_late(results);
        }
        Act::Late(count) => world.finish_late(count),
        Act::Cancel(which) => {
            if let Some(id) = any_alive(world, which) {
                world.cancel(id);
            }
        }
        Act::Pass(ms) => world.pass(ms),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes: blocks are conserved, no step exceeds its budget, nobody waits longer than is promised or for a
    /// lower priority, nobody loses its place too often, each request ends once, and its text is what the engine gives it alone. The world checks all this after every operation.
    #[test]
    fn every_promise_holds_whatever_comes(
        limits in limits(), total in 4u32..30, block_tokens in 1usize..5, collides: bool, acts in prop::collection::vec(act(), 1..150),
    ) {
        let new = if collides { Blocks::with_collisions } else { Blocks::new };
        let mut world = World::new(limits, new(total, block_tokens));
        for act in acts {
            carry_out(&mut world, act);
        }
        world.drain();
    }

    /// A text that is broken off anywhere and continued elsewhere from the tokens that were delivered is the same text.
    #[test]
    fn a_text_continued_elsewhere_is_the_same(ask in ask(), others in prop::collection::vec(ask(), 0..6), steps in 0usize..20) {
        let mut first = World::new(LIMITS, Blocks::new(64, 4));
        let request = Request { deadline: None, ..ask.request(first.now) };
        let id = first.submit(request.clone()).unwrap();
        for _ in 0..steps {
            first.step();
        }
        let generated = first.known[&id].text.clone();
        if first.known[&id].end.is_none() {
            let mut second = World::new(LIMITS, Blocks::new(32, 3));
            for other in others {
                drop(second.submit(other.request(second.now)));
            }
            second.submit(Request { generated, ..request }).unwrap();
            // The world compares with the text alone.
            second.drain();
        }
    }
}

/// Requests are called off while they wait, in the middle of a prompt, between two tokens, during a step, and preempted.
#[test]
fn ten_thousand_random_aborts_leave_nothing_behind() {
    // Short prompts and long texts: much is begun, and then there is not enough memory for all.
    let limits = Limits { step_tokens: 24, sequences_max: 12, queue_max: 40, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(28, 4));
    let mut state = 7;
    let mut random = |below: u64| {
        state = mix(state, 3);
        state % below
    };
    let (mut aborts, mut waiting, mut prompts, mut texts, mut in_flight, mut preempted) = (0, 0, 0, 0, 0, 0);
    while aborts < 10_000 {
        while world.scheduler.figures().waiting < 20 {
            let ask = Ask {
                text: random(3),
                common: random(12) as usize,
                own: vec![random(3) as u32; 1 + random(9) as usize],
                new_tokens_max: 10 + random(50) as usize,
                priority: random(10) as u8,
                deadline_ms: (random(8) == 0).then(|| 1 + random(40)),
                salt: random(2),
            };
            world.submit(ask.request(world.now)).unwrap();
        }
        world.plan();
        let results = world.run();
        for is_late in [false, true] {
            for _ in 0..random(2) {
                // A quarter of them have a place; of the others half came first, for they may have had one.
                let alive = match random(8) {
                    0 | 1 if !world.running().is_empty() => world.running(),
                    2..5 => world.waiting().into_iter().take(1).collect(),
                    _ => world.waiting().into_iter().collect(),
                };
                let id = alive[random(alive.len() as u64) as usize];
                match world.scheduler.running.iter().find(|sequence| sequence.id == id) {
                    None => waiting += 1,
                    Some(sequence) if sequence.left() > 1 => prompts += 1,
                    Some(_) => texts += 1,
                }
                in_flight += usize::from(!is_late);
                aborts += 1;
                world.cancel(id);
                let ended = world.known[&id].end.expect("it was here");
                assert_eq!(ended.end, End::Cancelled);
                preempted += usize::from(ended.preemptions > 0);
            }
            if !is_late {
                world.pass(1);
                world.finish(results.clone());
            }
        }
        // What ended is of no interest any more.
        world.known.retain(|_, known| known.end.is_none());
    }
    let phases = [waiting, prompts, texts, in_flight, preempted];
    assert!(phases.iter().all(|count| *count > 100), "not every phase was met: {phases:?}");
    assert!(world.scheduler.reused_tokens > 1_000);
    world.drain();
    let scheduler = &world.scheduler;
    assert_eq!(scheduler.figures().blocks.used, 0);
    // Nothing grows with what came and went.
    assert!(scheduler.finished.capacity() + scheduler.prompts.capacity() + scheduler.planned.capacity() < 200);
    assert!(scheduler.running.capacity() < 50 && scheduler.deadlines.is_empty() && scheduler.ended.capacity() < 200);
}
