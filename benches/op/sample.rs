//! Times the choice of the next token beside copying and sorting the vocabulary. Shapes come in, a table goes out.

#![forbid(unsafe_code)]

use std::hint::black_box;

use benches::op::{Bench, EXP_FLOPS, Work};
use kernels::sample::{Draw, History, Params, Scratch, cpu, sample};
use kernels::softmax::{self, softmax};
use kernels::testing::{Numbers, normal};

/// Tokens of the text before, for penalties: every 97th of the vocabulary, some twice.
const WRITTEN: usize = 600;

fn main() {
    let mut bench = Bench::start("sample");
    let off = Params::default();
    let steps = [
        ("greedy", Params { temperature: 0.0, ..off }),
        ("plain", off),
        ("top-k 40", Params { top_k: 40, ..off }),
        ("top-p 0.95", Params { top_p: 0.95, ..off }),
        (
            "all",
            Params {
                repetition_penalty: 1.1,
                presence_penalty: 0.2,
                frequency_penalty: 0.2,
                temperature: 0.8,
                top_k: 1000,
                top_p: 0.95,
                min_p: 0.001,
                typical_p: 0.98,
                logprobs: Some(5),
                ..off
            },
        ),
    ];
    // Vocabularies of Llama 2, Llama 3 and Gemma; logits as a model's are, and of a model that knows nothing, which leaves most tokens.
    for tokens in [32_000, 128_256, 262_144] {
        for (data, spread) in [("", 3.0), (", flat", 1.0)] {
            for (step, params) in &steps {
                shape(&mut bench, &format!("{tokens} {step}{data}"), tokens, spread, params);
            }
        }
    }
    bench.finish();
}

fn shape(bench: &mut Bench, shape: &str, tokens: usize, spread: f32, params: &Params<'_>) {
    let logits: Vec<f32> = normal(1, tokens).iter().map(|x| spread * x).collect();
    let mut history = History::new(&[0, 1, 2]);
    (0..WRITTEN).for_each(|i| history.push((97 * i % tokens) as u32));
    let work = Work {
        shape: shape.to_owned(),
        // A comparison each; with log-probabilities an exponential.
        flops: tokens as u64 * (1 + if params.logprobs.is_some() { EXP_FLOPS } else { 0 }),
        bytes: 4 * tokens as u64,
        working_set: 4 * tokens,
    };
    let draw = |position| Draw { seed: 5, position };
    let expected: Vec<u32> =
        (0..4).map(|at| cpu::sample(&logits, params, &history, draw(at)).expect("there is one").token).collect();
    let check = |who: &str, found: &[u32]| assert_eq!(found, expected, "{who}");

    // What a call does to the logits is undone where it is timed: a model writes new ones each time.
    let is_changed = params.repetition_penalty != 1.0;
    struct State {
        logits: Vec<f32>,
        scratch: Scratch,
        position: u64,
        tokens: Vec<u32>,
    }
    bench.time_ours(
        &work,
        || State { logits: logits.clone(), scratch: Scratch::new(), position: 0, tokens: vec![] },
        |state| {
            // The first call chooses four times, so that there is something to check.
            let draws = if state.position == 0 { 4 } else { 1 };
            for _ in 0..draws {
                if is_changed {
                    state.logits.copy_from_slice(&logits);
                }
                let at = draw(state.position);
                let sampled = sample(&mut state.logits, params, &history, at, &mut state.scratch);
                let token = sampled.expect("there is one").token;
                if state.tokens.len() < 4 {
                    state.tokens.push(token);
                }
                state.position += 1;
            }
        },
        |who, state| check(who, &state.tokens),
    );

    // The steps that Candle's LogitsProcessor has, as it does them: a softmax of a copy, all places sorted by it or parted, a draw
    // along the sums. Written here, for the crate that has it is no dependency; the softmax is ours.
    let mut numbers = Numbers::new(5);
    let rival = match (params.temperature == 0.0, params.top_k, params.top_p) {
        (true, ..) => {
            bench.time_rival(&work, "compare one by one", || first_largest(black_box(&logits)));
            return;
        }
        (_, 0, 1.0) => "copy, softmax, draw",
        (_, 0, _) => "copy, softmax, sort, draw",
        _ => "copy, softmax, select, sort, draw",
    };
    bench.time_rival(&work, rival, || copied_and_sorted(black_box(&logits), params, numbers.unit()));
}

/// The place of the largest.
fn first_largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best
}

/// Temperature, top-k and top-p with a copy of the row and its places sorted. No penalties and no other filter.
fn copied_and_sorted(logits: &[f32], params: &Params<'_>, unit: f32) -> usize {
    let mut p = logits.to_vec();
    let scaled = softmax::Params { scale: 1.0 / params.temperature, ..softmax::Params::whole(p.len()) };
    softmax(&mut p, &scaled).expect("it is one row");
    if params.top_k == 0 && params.top_p == 1.0 {
        return drawn(p.iter().copied().enumerate(), unit);
    }
    let mut places: Vec<usize> = (0..p.len()).collect();
    let by_probability = |a: &usize, b: &usize| p[*b].total_cmp(&p[*a]);
    if params.top_k > 0 && params.top_k < places.len() {
        places.select_nth_unstable_by(params.top_k, by_probability);
        places.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        places.sort_by(by_probability);
        let (mut sum, total) = (0.0, places.iter().map(|i| p[*i]).sum::<f32>());
        let enough = places.iter().position(|i| {
            sum += p[*i];
            sum >= params.top_p * total
        });
        places.truncate(enough.map_or(places.len(), |last| last + 1));
    }
    drawn(places.iter().map(|i| (*i, p[*i])), unit)
}

/// A place, drawn by its weight.
fn drawn(weights: impl Iterator<Item = (usize, f32)> + Clone, unit: f32) -> usize {
    let mut left = unit * weights.clone().map(|(_, weight)| weight).sum::<f32>();
    let mut last = 0;
    for (i, weight) in weights {
        last = i;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}
