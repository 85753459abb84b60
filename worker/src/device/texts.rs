//! What a model that writes text gets of a device: what it needs and what is free go in, bytes of its KV cache and the bounds of its
//! steps come out. Measured where that is what decides; never a caller's work.

use std::time::{Duration, Instant};

use models::engine::{self, Generator};
use models::generate::{Part, Plan};
use models::load::TextNeed;

use crate::config;
use crate::generate::Limits;

/// Tokens of one text that there must be room for, where the model takes so many: a question and a page.
const TOKENS_LEAST: usize = 1024;

/// Tokens of each step that prompts may have, however many texts go on: a hundred lines are read in a hundred steps.
const PREFILL_TOKENS_MIN: usize = 16;

/// A text that lost its blocks so often stands before all others.
const PREEMPTIONS_MAX: u32 = 3;

/// Tokens of a step at most: more make no device faster.
const STEP_TOKENS_MAX: usize = 4096;

/// Tokens that the first step is tried with, and a larger one where that took no time to speak of.
const TRIES: [usize; 2] = [32, 256];

/// What a first try may take for the larger one to be tried: it is part of every start.
const QUICK: Duration = Duration::from_millis(15);

/// Bytes of KV cache for so many tokens.
fn bytes_of(need: &TextNeed, tokens: usize) -> u64 {
    (tokens.div_ceil(need.block_tokens) as u64).saturating_mul(need.block_bytes)
}

/// Bytes without which the model is of no use: its weights, and a cache for one text.
pub(super) fn least_bytes(need: &TextNeed) -> u64 {
    need.weights_bytes.saturating_add(bytes_of(need, need.context.min(TOKENS_LEAST)))
}

/// Bytes of its KV cache, when so many are free beside its weights: as many as are set; else what all its texts could need at their
/// longest, but only half of what is free where that is more than one needs, for other models come, too.
pub(super) fn cache_bytes(need: &TextNeed, options: &config::Text, free: u64) -> u64 {
    let one = bytes_of(need, need.context.min(TOKENS_LEAST));
    let all = bytes_of(need, need.context).saturating_mul(options.sequences_max as u64);
    options.cache_bytes.unwrap_or_else(|| all.min(free / 2).max(one)).min(free)
}

/// The bounds of its steps. Tries the generator, which is nobody else's yet: how many tokens a step has at most is what it computes in
/// the time that a step may take.
///
/// # Errors
/// When it fails. Then it would fail callers, too.
pub(super) fn limits(
    generator: &mut dyn Generator,
    options: &config::Text,
    overtakes_max: u32,
) -> Result<Limits, engine::Error> {
    let info = generator.info().clone();
    let room = info.context.min(info.blocks * info.block_tokens);
    let mut tokens_each_second = 0.0;
    for tokens in TRIES {
        let tokens = tokens.min(room);
        let took = (0..2).map(|_| prefill(generator, tokens)).try_fold(Duration::MAX, |best, took| Ok(best.min(took?)));
        let took = took?;
        tokens_each_second = tokens as f64 / took.as_secs_f64().max(1e-9);
        if took > QUICK {
            break;
        }
    }
    let fit = (tokens_each_second * options.step.as_secs_f64()).min(STEP_TOKENS_MAX as f64) as usize;
    let sequences_max = options.sequences_max.max(1);
    Ok(Limits {
        step_tokens: fit.max(sequences_max + PREFILL_TOKENS_MIN),
        prefill_tokens_min: PREFILL_TOKENS_MIN,
        sequences_max,
        queue_max: options.queue_max.max(1),
        context_max: info.context,
        overtakes_max,
        preemptions_max: PREEMPTIONS_MAX,
        block_bytes: info.block_bytes,
    })
}

/// How long it takes to read so many tokens. They lie in blocks that nobody has yet.
fn prefill(generator: &mut dyn Generator, tokens: usize) -> Result<Duration, engine::Error> {
    // The last one of most vocabularies is an ordinary one; which it is changes nothing of the time.
    let ids = vec![(generator.info().vocabulary - 1) as u32; tokens];
    let blocks: Vec<u32> = (0..tokens.div_ceil(generator.info().block_tokens) as u32).collect();
    let mut plan = Plan::default();
    plan.push(Part { sequence: 0, tokens: &ids, position: 0, blocks: &blocks, is_sampled: true });
    let started = Instant::now();
    generator.step(&plan, &mut |_, _| {})?;
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::backend::fake_generator::FakeGenerator;

    const NEED: TextNeed = TextNeed { weights_bytes: 1000, block_bytes: 10, block_tokens: 16, context: 4096 };

    fn check(set: Option<u64>, free: u64, want: u64) {
        let options = config::Text { cache_bytes: set, sequences_max: 8, ..Default::default() };
        assert_eq!(cache_bytes(&NEED, &options, free), want, "{set:?} of {free}");
    }

    #[test]
    fn a_cache_has_room_for_one_text_and_leaves_some_for_other_models() {
        assert_eq!(least_bytes(&NEED), 1000 + 64 * 10);
        // Eight texts of 4,096 tokens are 20,480 bytes.
        check(None, 1_000_000, 20_480);
        check(None, 20_000, 10_000);
        check(None, 700, 640);
        check(Some(5_000), 1_000_000, 5_000);
        check(Some(5_000), 3_000, 3_000);
    }

    #[test]
    fn a_model_of_short_texts_needs_no_more_than_them() {
        let short = TextNeed { context: 100, ..NEED };
        assert_eq!(least_bytes(&short), 1000 + 7 * 10);
    }

    #[test]
    fn steps_are_bounded_by_what_the_generator_does_in_their_time() {
        let mut fake = FakeGenerator::new(50, 64, 16);
        let options = |step| config::Text { step, sequences_max: 4, ..Default::default() };
        let limits = |fake: &mut FakeGenerator, step| super::limits(fake, &options(step), 7).unwrap();
        assert_eq!(limits(&mut fake, Duration::ZERO).step_tokens, 4 + PREFILL_TOKENS_MIN);
        let most = limits(&mut fake, Duration::from_secs(1_000_000));
        assert_eq!((most.step_tokens, most.context_max), (STEP_TOKENS_MAX, 64 * 16));
        // Less room than a try would take.
        assert_eq!(limits(&mut FakeGenerator::new(50, 1, 16), Duration::ZERO).context_max, 16);
    }
}
