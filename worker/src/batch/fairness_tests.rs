//! A request of one text behind a request of as many as there may be: how many batches go by before it is answered. The
//! engine is the fake, and time passes as batches are run.

use std::time::{Duration, Instant};

use models::Loaded;
use models::backend::fake;
use models::engine::{Item, Output};
use models::task::{Request, Text, limits};

use super::backlog::{Backlog, Finished, LaneId, Step, Submission};
use super::policy::{Limits, Policy};
use crate::config;

/// What comes: texts of so many words for the model of a lane, with a deadline of their own in so many seconds, or the one
/// that the worker gives.
#[derive(Clone, Copy)]
struct Asked {
    texts: usize,
    words: usize,
    lane: LaneId,
    priority: u8,
    deadline_s: Option<u64>,
}

const LARGE: Asked = Asked { texts: limits::INPUTS_MAX, words: 100, lane: 1, priority: 5, deadline_s: None };
const SMALL: Asked = Asked { texts: 1, words: 8, ..LARGE };

/// A worker's queue on a clock of its own.
struct World {
    model: Loaded,
    backlog: Backlog<&'static str>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let config::Batch { tokens_max_cpu, sequences_max, overtakes_max, wait, .. } = config::Batch::default();
        let mut backlog = Backlog::new(Policy { overtakes_max });
        for lane in [1, 2] {
            backlog.set_lane(
                lane,
                Limits { cost: tokens_max_cpu, items: sequences_max, wait, sides: 1, side_cost: tokens_max_cpu },
                true,
            );
        }
        Self { model: fake::loaded("m"), backlog, now: Instant::now() }
    }

    fn items(&self, asked: Asked) -> Vec<Item> {
        // The last word is the request's own, so that answers can be told apart.
        let words = format!("{} {}", "word ".repeat(asked.words - 1), asked.texts);
        let inputs = vec![Text::Words(words)];
        let request = Request::Embed { inputs, prompt: None, dimensions: None, normalize: None, truncate: false };
        let item = self.model.pipeline.prepare(request).unwrap().items.remove(0);
        vec![item; asked.texts]
    }

    fn come(&mut self, name: &'static str, asked: Asked) {
        let time_out = config::Admission::default().task_timeout;
        let deadline = Some(self.now + asked.deadline_s.map_or(time_out, Duration::from_secs));
        let submission = Submission { items: self.items(asked), priority: asked.priority, deadline };
        self.backlog.insert(self.now, asked.lane, submission, name).unwrap();
    }

    /// Runs one batch; returns who was answered.
    fn run(&mut self) -> Vec<Finished<&'static str>> {
        let Step::Run(batch) = self.backlog.next(self.now) else { panic!("idle although somebody waits") };
        self.now += Duration::from_millis(10);
        let outputs = self.model.engine.run(&batch.items).unwrap();
        let delivered = batch.origins.iter().zip(outputs);
        delivered.filter_map(|(&origin, output)| self.backlog.deliver(self.now, origin, output)).collect()
    }
}

/// The large request comes, `begun` of its batches are run, then the small one comes: it must be answered, and rightly, with
/// the first `batches` batches after that. The large one must be answered in the end.
fn check(large: Asked, begun: usize, small: Asked, batches: usize) {
    let mut world = World::new();
    world.come("large", large);
    for _ in 0..begun {
        assert!(world.run().is_empty());
    }
    world.come("small", small);
    let (items, mut answered) = (world.items(small), Vec::new());
    let want: Vec<Output> = world.model.engine.run(&items).unwrap();
    let mut count = 0;
    while answered.is_empty() {
        answered = world.run();
        count += 1;
    }
    assert_eq!((answered[0].reply, &answered[0].outputs), ("small", &want));
    assert!(count <= batches, "{count} batches, not {batches}, with {begun} before");
    for _ in 0..limits::INPUTS_MAX {
        answered.extend(world.run());
        if let Some(large) = answered.iter().find(|finished| finished.reply == "large") {
            assert_eq!(large.outputs.len(), limits::INPUTS_MAX);
            return;
        }
    }
    panic!("the large request is not answered");
}

/// What the policy promises whoever has one job before it.
fn bound() -> usize {
    (config::Batch::default().overtakes_max as usize + 1) * 2
}

#[test]
fn one_text_behind_two_thousand_goes_with_the_next_batch() {
    // The tokens of a batch are its bound, or the number of its texts.
    for words in [1, 4, 100, 500] {
        let large = Asked { words, ..LARGE };
        for begun in [0, 1, 3] {
            for words in [1, 8, 300, 511] {
                check(large, begun, Asked { words, ..SMALL }, 1);
            }
        }
    }
}

#[test]
fn a_deadline_does_not_keep_the_device_for_one_request() {
    let soon = Asked { deadline_s: Some(60), ..LARGE };
    check(soon, 1, SMALL, 1);
    check(soon, 1, Asked { lane: 2, deadline_s: Some(60), ..SMALL }, 1);
    // A text for another model that has more time lets those in a hurry go before it, as often as the policy says.
    check(soon, 1, Asked { lane: 2, ..SMALL }, bound());
}

#[test]
fn another_models_text_goes_first_once_the_large_request_was_served() {
    check(LARGE, 1, Asked { lane: 2, ..SMALL }, 1);
    // Before it was, the two go in their order.
    check(LARGE, 0, Asked { lane: 2, ..SMALL }, 2);
}

#[test]
fn a_lower_priority_waits_for_a_bounded_number_of_batches() {
    check(LARGE, 1, Asked { priority: 0, lane: 2, ..SMALL }, bound());
    check(LARGE, 1, Asked { priority: 0, words: 511, ..SMALL }, bound());
}

#[test]
fn many_of_one_text_each_do_not_keep_the_large_request_from_going_on() {
    // So many wait at every time that they alone would fill every batch.
    let small = Asked { words: 100, ..SMALL };
    let mut world = World::new();
    world.come("large", LARGE);
    let (mut waiting, mut batches, mut answered) = (0, 0, 0);
    loop {
        while waiting < 64 {
            world.come("small", small);
            waiting += 1;
        }
        let finished = world.run();
        batches += 1;
        if finished.iter().any(|finished| finished.reply == "large") {
            break;
        }
        waiting -= finished.len();
        answered += finished.len();
    }
    // It gets half of the batches' room, but for an item now and then, and the others get no less.
    let alone = limits::INPUTS_MAX.div_ceil(config::Batch::default().tokens_max_cpu / 101);
    assert!(batches * 10 <= alone * 22, "{batches} batches, {alone} alone");
    assert!(answered * 10 >= limits::INPUTS_MAX * 9, "{answered} others were answered");
}
