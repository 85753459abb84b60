//! Times the scheduler of text generation: one step of 64 sequences while 1,000 requests wait, making its plan and taking in what came of
//! it, with an engine that answers at once. Nothing comes in but the machine; a table goes out. Never here: a model.
//!
//! `cargo bench -p benches --bench scheduler`, with `-- decode` for the works of that name.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use benches::machine;
use models::generate::Sampled;
use worker::generate::{Blocks, Limits, Request, Scheduler};

/// Sequences that run.
const SEQUENCES: usize = 64;
/// Requests that wait.
const WAITING: usize = 1_000;
/// Tokens in a block: a common size on GPUs. Larger ones are less to do.
const BLOCK_TOKENS: usize = 16;
/// Steps that are timed of each work.
const STEPS: usize = 5_000;
/// New tokens of a sequence that does not end while it is timed: the steps until the last one has its prompt, and those that count.
const ENDLESS: usize = 10_000;

/// What the sequences are like.
struct Work {
    name: &'static str,
    /// Tokens that all prompts begin with.
    common: usize,
    /// Tokens of each prompt behind these.
    own: usize,
    /// New tokens of each, about.
    new_tokens: usize,
    /// Whether there is memory for a third of what is wanted, so that sequences are preempted, instead of twice as much.
    is_tight: bool,
}

const WORKS: &[Work] = &[
    Work { name: "decode, prompts of 256", common: 0, own: 256, new_tokens: ENDLESS, is_tight: false },
    Work { name: "decode, prompts of 2048", common: 0, own: 2_048, new_tokens: ENDLESS, is_tight: false },
    Work { name: "decode, prompts of 8192", common: 0, own: 8_192, new_tokens: ENDLESS, is_tight: false },
    Work { name: "come and go, 256 own", common: 0, own: 256, new_tokens: 64, is_tight: false },
    Work { name: "come and go, 1024 common, 64 own", common: 1_024, own: 64, new_tokens: 64, is_tight: false },
    Work { name: "come and go, 64 own, little memory", common: 0, own: 64, new_tokens: 1_024, is_tight: true },
];

struct World {
    work: &'static Work,
    scheduler: Scheduler,
    now: Instant,
    prompts: u32,
    sampled: Vec<Sampled>,
}

impl World {
    /// All places are taken, and all others wait.
    fn new(work: &'static Work) -> Self {
        let limits = Limits {
            step_tokens: 512,
            prefill_tokens_min: 128,
            sequences_max: SEQUENCES,
            queue_max: WAITING + SEQUENCES,
            context_max: 1 << 20,
            overtakes_max: 8,
            preemptions_max: 3,
            block_bytes: 1 << 20,
        };
        let tokens = work.common + work.own + work.new_tokens;
        let blocks = SEQUENCES * tokens / BLOCK_TOKENS;
        let blocks = if work.is_tight { blocks / 3 } else { 2 * blocks };
        let scheduler =
            Scheduler::new(limits, Blocks::new(blocks as u32, BLOCK_TOKENS)).expect("the limits fit each other");
        let mut world = Self { work, scheduler, now: Instant::now(), prompts: 0, sampled: Vec::new() };
        world.fill();
        // Until all have their prompts, or as many come as go.
        for _ in 0..SEQUENCES * tokens.min(ENDLESS) / limits.step_tokens {
            if world.sampled.len() == SEQUENCES {
                break;
            }
            world.step();
            world.fill();
        }
        world
    }

    /// As many wait as should.
    fn fill(&mut self) {
        while self.scheduler.figures().waiting < WAITING {
            self.prompts += 1;
            let own = (0..self.work.own as u32).map(|at| self.prompts.wrapping_mul(0x9e37_79b9) ^ at);
            // Those that begin together do not end together.
            let new_tokens = self.work.new_tokens;
            let new_tokens_max =
                if new_tokens == ENDLESS { ENDLESS } else { new_tokens / 2 + self.prompts as usize * 37 % new_tokens };
            let request = Request {
                prompt: (0..self.work.common as u32).chain(own).collect(),
                generated: vec![],
                new_tokens_max,
                priority: (self.prompts % 10) as u8,
                deadline: Some(self.now + Duration::from_secs(3_600)),
                salt: 0,
            };
            self.scheduler.submit(self.now, request).expect("there is room for the request");
        }
    }

    /// How long a plan took, and taking in what came of it.
    fn step(&mut self) -> Duration {
        let start = Instant::now();
        let plan = self.scheduler.next(self.now);
        let planned = start.elapsed();
        let sampled = plan.parts().filter(|part| part.is_sampled);
        self.sampled.clear();
        self.sampled.extend(sampled.map(|part| Sampled { sequence: part.sequence, token: 7 }));
        let start = Instant::now();
        self.scheduler.finish_step(self.now, &self.sampled, &[]);
        self.scheduler.drain_ended().for_each(drop);
        planned + start.elapsed()
    }
}

fn main() {
    let is_timed = std::env::args().any(|argument| argument == "--bench");
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut lines = Vec::new();
    // When nothing is timed, one small work is enough to see that every call works.
    let works = if is_timed { WORKS } else { &WORKS[3..4] };
    for work in works.iter().filter(|work| work.name.contains(&filter)) {
        let mut world = World::new(work);
        let before = world.scheduler.figures();
        let mut took: Vec<Duration> = Vec::new();
        while took.len() < if is_timed { STEPS } else { 50 } {
            took.push(world.step());
            world.fill();
        }
        let figures = world.scheduler.figures();
        assert!(figures.running > SEQUENCES / 4 && figures.waiting >= WAITING, "{figures:?}");
        took.sort_unstable();
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        lines.push(format!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
            work.name,
            at(0.5),
            at(0.9),
            at(0.99),
            (figures.computed_tokens - before.computed_tokens) as f64 / took.len() as f64,
            figures.preemptions - before.preemptions,
        ));
    }
    if is_timed {
        #[expect(clippy::print_stdout, reason = "the table is what a bench is run for")]
        {
            println!(
                "\n## scheduler\n\n{}. {SEQUENCES} sequences, {WAITING} waiting, {STEPS} steps, blocks of {BLOCK_TOKENS}; times in µs.\n\n\
                 | work | median | 90 % | 99 % | tokens a step | preemptions |\n|---|--:|--:|--:|--:|--:|\n{}",
                machine::processor(),
                lines.join("\n")
            );
        }
    }
}
