//! How many tokens a batch of a model should hold, and how many batches should run side by side: an engine that was just loaded
//! and a bound come in, numbers go out. Measured, not guessed: a batch should be as large as makes the device work at its full
//! rate, and no larger, for others wait meanwhile and the next batch is put together while one runs. Never a caller's work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use models::Engine;
use models::engine::{Item, Tokens};

/// How long may be spent on sizes: it is part of every start.
const TIME: Duration = Duration::from_millis(80);

/// The smallest batch that is tried.
const LEAST: usize = 64;

/// Tokens of a sequence that it is tried with: a sentence or two.
const LENGTH: usize = 64;

/// Runs of a size at most; the fastest counts, for whatever else the machine does only ever adds.
const RUNS: usize = 2;

/// What a batch may lose of the best rate.
const RATE_SHARE: f64 = 0.97;

/// What takes less is all overhead, so that a larger batch is always better.
const WORTH_MEASURING: Duration = Duration::from_millis(1);

/// What batches side by side may lose against one, when all do the same work: they wait for nobody, which is worth more as soon
/// as texts differ in length or something else runs on the machine.
const SIDES_SHARE: f64 = 0.9;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Tokens of a batch.
    pub(super) tokens: usize,
    /// Batches side by side.
    pub(super) sides: usize,
    /// Tokens of each of those.
    pub(super) side_tokens: usize,
}

/// Tries sizes up to `most`. An engine that fails while it is tried is not ours to judge: it gets `most`, and one batch at a time.
pub(super) fn measure(engine: &mut dyn Engine, most: usize) -> Found {
    let untold = Found { tokens: most, sides: 1, side_tokens: most };
    let length = engine.info().max_tokens.unwrap_or(LENGTH).clamp(1, LENGTH);
    let started = Instant::now();
    let mut sizes = Vec::new();
    let mut tokens = LEAST.min(most);
    loop {
        let items = sequences(tokens, length);
        let Some(fastest) = fastest(|run| started.elapsed() + run < TIME, || engine.run(&items).is_ok()) else {
            return untold;
        };
        sizes.push((tokens, fastest));
        // The next size takes twice as long, and is tried when there is time for one of its runs.
        if tokens == most || started.elapsed() + 2 * fastest > TIME {
            break;
        }
        tokens = (2 * tokens).min(most);
    }
    let tokens = choose(&sizes, most);
    let whole = sizes.iter().map(rate).fold(0.0, f64::max);
    let sides = engine.sides();
    let alone = Found { tokens, sides: 1, side_tokens: tokens };
    if sides == 1 {
        return alone;
    }
    let least = tokens.div_ceil(sides).max(LEAST).min(most);
    let mut tries = Vec::new();
    for side_tokens in [least, (2 * least).min(most)] {
        let items = sequences(side_tokens, length);
        let share = |took| rate(&(sides * side_tokens, took)) / whole;
        let Some(fastest) = fastest(|run| share(run) < RATE_SHARE, || run_sides(engine, &items)) else { return alone };
        tries.push((side_tokens, share(fastest)));
        if share(fastest) >= RATE_SHARE {
            break;
        }
    }
    choose_side(&tries).map_or(alone, |side_tokens| Found { tokens, sides, side_tokens })
}

/// Sequences of so many tokens together.
fn sequences(tokens: usize, length: usize) -> Vec<Item> {
    let lengths = (0..tokens).step_by(length).map(|first| length.min(tokens - first));
    lengths.map(|length| Item::Tokens(Tokens { ids: vec![0; length], type_ids: vec![] })).collect()
}

/// The shortest that `run` takes, which is tried again while `again` says so of what the last one took; nothing when it fails.
fn fastest(again: impl Fn(Duration) -> bool, mut run: impl FnMut() -> bool) -> Option<Duration> {
    let mut fastest = Duration::MAX;
    for _ in 0..RUNS {
        let started = Instant::now();
        if !run() {
            return None;
        }
        let took = started.elapsed();
        fastest = fastest.min(took);
        if !again(took) {
            break;
        }
    }
    Some(fastest)
}

/// Runs these on every side of the engine at once.
fn run_sides(engine: &mut dyn Engine, items: &[Item]) -> bool {
    let has_failed = AtomicBool::new(false);
    engine.run_sides(&|side| {
        if side(items).is_err() {
            has_failed.store(true, Ordering::Relaxed);
        }
    });
    !has_failed.into_inner()
}

/// Tokens a second.
fn rate((tokens, took): &(usize, Duration)) -> f64 {
    *tokens as f64 / took.as_secs_f64().max(1e-9)
}

/// The smallest size that is nearly as good as the best. `sizes` are tokens and what they took, rising.
fn choose(sizes: &[(usize, Duration)], most: usize) -> usize {
    if sizes.last().is_none_or(|(_, took)| *took < WORTH_MEASURING) {
        return most;
    }
    let best = sizes.iter().map(rate).fold(0.0, f64::max);
    sizes.iter().find(|size| rate(size) >= RATE_SHARE * best).map_or(most, |(tokens, _)| *tokens)
}

/// The tokens of batches side by side; nothing where one batch at a time is clearly faster. `tries` are tokens and the rate as a
/// share of one batch's.
fn choose_side(tries: &[(usize, f64)]) -> Option<usize> {
    let best = tries.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    best.filter(|(_, share)| *share >= SIDES_SHARE).map(|(tokens, _)| tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes with what they took in milliseconds.
    fn check(sizes: &[(usize, u64)], want: usize) {
        let sizes: Vec<_> = sizes.iter().map(|(tokens, ms)| (*tokens, Duration::from_millis(*ms))).collect();
        assert_eq!(choose(&sizes, 1000), want, "{sizes:?}");
    }

    #[test]
    fn the_smallest_size_at_the_full_rate_is_chosen() {
        check(&[(32, 10), (64, 11), (128, 20), (256, 39), (512, 78)], 128);
        check(&[(32, 10), (64, 20), (128, 40)], 32);
        check(&[(32, 10), (64, 11), (128, 12)], 128);
        check(&[(32, 10)], 32);
    }

    #[test]
    fn what_takes_no_time_gets_all_there_is() {
        check(&[(32, 0), (64, 0), (1000, 0)], 1000);
        check(&[], 1000);
    }

    #[test]
    fn batches_run_side_by_side_unless_that_is_clearly_slower() {
        assert_eq!(choose_side(&[(64, 1.1)]), Some(64));
        assert_eq!(choose_side(&[(64, 0.92), (128, 0.95)]), Some(128));
        assert_eq!(choose_side(&[(64, 0.93), (128, 0.5)]), Some(64));
        assert_eq!(choose_side(&[(64, 0.5), (128, 0.8)]), None);
        assert_eq!(choose_side(&[]), None);
    }

    #[test]
    fn an_engine_is_tried_with_what_it_takes() {
        let mut model = models::backend::fake::loaded_as(models::backend::fake::manifest("m"));
        assert_eq!(measure(&mut *model.engine, 10), Found { tokens: 10, sides: 1, side_tokens: 10 });
        let Found { tokens, sides, .. } = measure(&mut *model.engine, 4096);
        assert!((LEAST..=4096).contains(&tokens) && sides == 1, "{tokens} {sides}");
    }

    #[test]
    fn an_engine_that_fails_is_left_as_it_is() {
        let mut model =
            models::backend::fake::loaded_as(models::backend::fake::manifest_for("m", models::manifest::Task::Infer));
        assert_eq!(measure(&mut *model.engine, 512), Found { tokens: 512, sides: 1, side_tokens: 512 });
    }
}
