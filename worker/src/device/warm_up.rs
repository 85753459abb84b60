//! How many tokens a batch of a model should hold: an engine that was just loaded and a bound come in, a number goes out.
//! Measured, not guessed: a batch should be as large as makes the device work at its full rate, and no larger, for others wait
//! meanwhile and the next batch is put together while one runs. Never a caller's work.

use std::time::{Duration, Instant};

use models::Engine;
use models::engine::{Item, Tokens};

/// How long all of it may take: it is part of every start.
const TIME: Duration = Duration::from_millis(200);

/// The smallest batch that is tried.
const LEAST: usize = 64;

/// Tokens of a sequence that it is tried with: a sentence or two.
const LENGTH: usize = 64;

/// Runs of a size; the fastest counts, for whatever else the machine does only ever adds.
const RUNS: usize = 2;

/// What a batch may lose of the best rate.
const RATE_SHARE: f64 = 0.97;

/// What takes less is all overhead, so that a larger batch is always better.
const WORTH_MEASURING: Duration = Duration::from_millis(1);

/// The tokens of a batch, at most `most`. An engine that fails while it is tried is not ours to judge: it gets `most`.
pub(super) fn batch_tokens(engine: &mut dyn Engine, most: usize) -> usize {
    let length = engine.info().max_tokens.unwrap_or(LENGTH).clamp(1, LENGTH);
    let started = Instant::now();
    let mut sizes: Vec<(usize, Duration)> = Vec::new();
    let mut tokens = LEAST.min(most);
    loop {
        let mut left = tokens;
        let mut items = Vec::new();
        while left > 0 {
            let ids = vec![0; left.min(length)];
            left -= ids.len();
            items.push(Item::Tokens(Tokens { ids, type_ids: vec![] }));
        }
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            let run = Instant::now();
            if engine.run(&items).is_err() {
                return most;
            }
            fastest = fastest.min(run.elapsed());
            if started.elapsed() > TIME {
                break;
            }
        }
        sizes.push((tokens, fastest));
        // The next size takes twice as long, and is tried when there is time for one of its runs.
        if tokens == most || started.elapsed() + 2 * fastest > TIME {
            return choose(&sizes, most);
        }
        tokens = (2 * tokens).min(most);
    }
}

/// The smallest size that is nearly as good as the best. `sizes` are tokens and what they took, rising.
fn choose(sizes: &[(usize, Duration)], most: usize) -> usize {
    if sizes.last().is_none_or(|(_, took)| *took < WORTH_MEASURING) {
        return most;
    }
    let rate = |(tokens, took): &(usize, Duration)| *tokens as f64 / took.as_secs_f64().max(1e-9);
    let best = sizes.iter().map(rate).fold(0.0, f64::max);
    sizes.iter().find(|size| rate(size) >= RATE_SHARE * best).map_or(most, |(tokens, _)| *tokens)
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
    fn an_engine_is_tried_with_what_it_takes() {
        let mut model = models::backend::fake::loaded_as(models::backend::fake::manifest("m"));
        assert_eq!(batch_tokens(&mut *model.engine, 10), 10);
        assert_eq!(batch_tokens(&mut *model.engine, 4096), 4096);
    }
}
