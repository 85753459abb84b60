//! The choice against its oracle: which tokens are left, which one is taken, how often over many seeds; every instruction set alike; what is
//! refused.

use proptest::prelude::*;

use super::*;
use crate::launch::lanes::{Kernel, Lanes, Scalar};
use crate::testing::{Numbers, isas_aloud, normal};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// What is compared with the oracle.
#[derive(Debug, PartialEq)]
struct Found {
    token: u32,
    /// Of a choice that is not greedy.
    kept: Option<Vec<u32>>,
    /// Tokens of `top`; their log-probabilities have been compared.
    top: Vec<u32>,
}

fn run(isa: Isa, logits: &[f32], params: &Params<'_>, history: &History, draw: Draw) -> Result<Found, Error> {
    let (mut logits, mut scratch) = (logits.to_vec(), Scratch::new());
    let sampled = sample_on(isa, &mut logits, params, history, draw, &mut scratch)?;
    let (token, top) = (sampled.token, sampled.top.iter().map(|(token, _)| *token).collect());
    let kept = (!params.is_greedy()).then(|| {
        let Scratch { cells, counts, .. } = &mut scratch;
        let kept = truncate::kept(params, weights(), cells, counts);
        (0..logits.len() as u32).filter(|token| kept.has(cells[*token as usize], *token)).collect()
    });
    Ok(Found { token, kept, top })
}

/// Holds every instruction set against the oracle.
fn agree(what: &str, logits: &[f32], params: &Params<'_>, history: &History, draw: Draw) {
    let expected = cpu::sample(logits, params, history, draw);
    for isa in isas_aloud() {
        let found = run(isa, logits, params, history, draw);
        let what = || format!("{what}, {isa}, {} tokens, {params:?}, {draw:?}", logits.len());
        match (&expected, found) {
            (Ok(expected), Ok(found)) => {
                let kept = (!params.is_greedy()).then(|| expected.kept.clone());
                let top = expected.top.iter().map(|(token, _)| *token).collect();
                assert_eq!(found, Found { token: expected.token, kept, top }, "{}", what());
                logprobs_agree(isa, logits, params, history, draw, expected);
            }
            // As text: NaN is not what NaN is.
            (Err(expected), Err(found)) => assert_eq!(found.to_string(), expected.to_string(), "{}", what()),
            (expected, found) => panic!("{}: {found:?} where the oracle has {expected:?}", what()),
        }
    }
}

/// Log-probabilities are as exact as an f32 sum and, far from 0, as their own last place.
fn logprobs_agree(
    isa: Isa,
    logits: &[f32],
    params: &Params<'_>,
    history: &History,
    draw: Draw,
    expected: &cpu::Answer,
) {
    let (mut logits, mut scratch) = (logits.to_vec(), Scratch::new());
    let sampled = sample_on(isa, &mut logits, params, history, draw, &mut scratch).unwrap();
    let near = |a: f32, b: f32| a == b || (a - b).abs() <= 2e-6 + 2e-7 * b.abs();
    match (sampled.logprob, expected.logprob) {
        (Some(found), Some(expected)) => assert!(near(found, expected), "{found} and {expected}"),
        (found, expected) => assert_eq!(found, expected),
    }
    for (found, expected) in sampled.top.iter().zip(&expected.top) {
        assert!(near(found.1, expected.1), "{found:?} and {expected:?}");
    }
}

fn at(seed: u64) -> Draw {
    Draw { seed, position: 0 }
}

/// Each step alone, some together, and all of them.
fn every_step() -> Vec<Params<'static>> {
    let off = Params::default();
    let all = Params {
        bias: &[(0, 3.0), (0, -1.0)],
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.02,
        typical_p: 0.9,
        logprobs: Some(20),
        ..off
    };
    vec![
        off,
        Params { temperature: 0.0, logprobs: Some(5), ..off },
        Params { temperature: 0.3, ..off },
        Params { temperature: 2.0, logprobs: Some(0), ..off },
        Params { temperature: TEMPERATURE_MIN, ..off },
        Params { top_k: 1, ..off },
        Params { top_k: 2, ..off },
        Params { top_k: 40, ..off },
        Params { top_k: 1_000_000, ..off },
        Params { top_p: 0.0, ..off },
        Params { top_p: 0.5, ..off },
        Params { top_p: 0.95, ..off },
        Params { top_p: 0.999_999, ..off },
        Params { min_p: 0.05, ..off },
        Params { min_p: 1.0, ..off },
        Params { typical_p: 1e-6, ..off },
        Params { typical_p: 0.2, ..off },
        Params { typical_p: 0.95, ..off },
        Params { top_k: 30, top_p: 0.9, ..off },
        Params { top_k: 30, typical_p: 0.9, ..off },
        Params { top_p: 0.9, min_p: 0.1, typical_p: 0.5, ..off },
        Params { repetition_penalty: 1.3, ..off },
        Params { repetition_penalty: 0.7, temperature: 0.0, ..off },
        Params { presence_penalty: -2.0, frequency_penalty: 2.0, ..off },
        all,
        Params { temperature: 0.0, ..all },
    ]
}

#[test]
fn every_step_agrees_with_the_oracle_over_vocabularies_of_every_size() {
    for n in [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 1000, 4095, 4097, 32_000] {
        let mut history = History::new(&[0, n as u32 / 3]);
        [0, 0, n as u32 / 2, n as u32 - 1].into_iter().for_each(|token| history.push(token));
        // Near each other, and as far apart as a model's are.
        for spread in [0.3, 4.0] {
            let logits: Vec<f32> = normal(n as u64, n).iter().map(|x| spread * x - 2.0).collect();
            for params in every_step() {
                agree("normal", &logits, &params, &history, at(n as u64));
            }
        }
    }
}

#[test]
fn large_vocabularies_agree_with_the_oracle() {
    for (n, spread) in [(128_256, 3.0), (130_001, 1.0)] {
        let logits: Vec<f32> = normal(n as u64, n).iter().map(|x| spread * x).collect();
        let history = History::new(&[1, 2, 3]);
        for params in every_step().iter().step_by(5).chain(every_step().last()) {
            agree("large", &logits, params, &history, at(7));
        }
    }
}

#[test]
fn ties_are_cut_by_the_token_id() {
    let logits: Vec<f32> = (0..1000).map(|i| [0.0, -0.5, 1.0, -0.0][i % 4]).collect();
    for params in every_step() {
        agree("four values", &logits, &params, &History::default(), at(3));
        agree("one value", &[0.25; 777], &params, &History::default(), at(4));
    }
    let kept = |logits: &[f32], params: Params<'_>| {
        run(launch::isa(), logits, &params, &History::default(), at(1)).unwrap().kept.unwrap()
    };
    let off = Params::default();
    assert_eq!(kept(&[1.0; 100], Params { top_k: 3, ..off }), [0, 1, 2]);
    assert_eq!(kept(&[1.0; 100], Params { top_p: 0.045, ..off }), [0, 1, 2, 3, 4]);
    assert_eq!(kept(&[1.0; 100], Params { typical_p: 0.5, ..off }), (0..50).collect::<Vec<u32>>());
    assert_eq!(kept(&logits, Params { top_k: 251, ..off })[..3], [0, 2, 6]);
}

#[test]
fn filters_agree_with_distributions_worked_out_by_hand() {
    // Probabilities ½, ¼, ⅛, ⅛.
    let logits = [0.5_f32, 0.25, 0.125, 0.125].map(f32::ln);
    let check = |params: Params<'_>, want: &[u32]| {
        assert_eq!(
            cpu::sample(&logits, &params, &History::default(), at(1)).unwrap().kept,
            want,
            "the oracle, {params:?}"
        );
        for isa in isas_aloud() {
            let found = run(isa, &logits, &params, &History::default(), at(1)).unwrap();
            assert_eq!(found.kept.as_deref(), Some(want), "{isa}, {params:?}");
        }
    };
    let off = Params::default();
    check(off, &[0, 1, 2, 3]);
    check(Params { top_k: 3, ..off }, &[0, 1, 2]);
    check(Params { top_p: 0.49, ..off }, &[0]);
    check(Params { top_p: 0.51, ..off }, &[0, 1]);
    check(Params { top_p: 0.8, ..off }, &[0, 1, 2]);
    check(Params { top_p: 0.9, ..off }, &[0, 1, 2, 3]);
    check(Params { min_p: 0.3, ..off }, &[0, 1]);
    check(Params { min_p: 0.2, ..off }, &[0, 1, 2, 3]);
    // Of the first two, which are ⅔ and ⅓ then.
    check(Params { top_k: 2, top_p: 0.6, ..off }, &[0]);
    check(Params { top_k: 2, top_p: 0.7, ..off }, &[0, 1]);
    // The entropy is 1.75 bits; the tokens' are 1, 2, 3 and 3: the second is the nearest, then the first.
    check(Params { typical_p: 0.2, ..off }, &[1]);
    check(Params { typical_p: 0.5, ..off }, &[0, 1]);
    check(Params { typical_p: 0.8, ..off }, &[0, 1, 2]);
    // At temperature ½ they are as 16, 4, 1, 1.
    check(Params { temperature: 0.5, top_p: 0.8, ..off }, &[0, 1]);
    check(Params { temperature: 0.5, top_p: 0.7, ..off }, &[0]);
}

#[test]
fn penalties_bias_and_mask_change_the_logits_as_they_say() {
    let check = |params: Params<'_>, history: &History, want: [f32; 4]| {
        let mut logits = [2.0, -2.0, 1.0, 0.5];
        let _ = sample(&mut logits, &params, history, at(1), &mut Scratch::new()).unwrap();
        assert_eq!(logits, want, "{params:?}");
    };
    let off = Params::default();
    // The prompt has 1 and 2, the text 0 and 1 twice.
    let mut history = History::new(&[1, 2, 2]);
    [1, 0, 1].into_iter().for_each(|token| history.push(token));
    check(off, &history, [2.0, -2.0, 1.0, 0.5]);
    check(Params { repetition_penalty: 2.0, ..off }, &history, [1.0, -4.0, 0.5, 0.5]);
    check(Params { presence_penalty: 0.5, ..off }, &history, [1.5, -2.5, 1.0, 0.5]);
    check(Params { frequency_penalty: 0.5, ..off }, &history, [1.5, -3.0, 1.0, 0.5]);
    check(
        Params { repetition_penalty: 2.0, presence_penalty: 1.0, frequency_penalty: 0.25, ..off },
        &history,
        [-0.25, -5.5, 0.5, 0.5],
    );
    check(Params { bias: &[(3, 100.0), (0, -1.0), (0, -1.0)], ..off }, &history, [0.0, -2.0, 1.0, 100.5]);
    // The bias is penalised as if the model had said it; what is forbidden stays so.
    check(Params { bias: &[(2, 1.0)], repetition_penalty: 2.0, ..off }, &history, [1.0, -4.0, 1.0, 0.5]);
    check(
        Params {
            allowed: Some(&[0b1110]),
            bias: &[(0, 100.0)],
            repetition_penalty: 2.0,
            presence_penalty: -2.0,
            ..off
        },
        &history,
        [-INF, -2.0, 0.5, 0.5],
    );
}

#[test]
fn a_forbidden_token_is_never_chosen_and_a_lone_one_always() {
    let n = 1000;
    let mut numbers = Numbers::new(5);
    for share in [0, 1, 8, 31, 32] {
        let mut allowed: Vec<u32> = vec![0; 32];
        (0..n).filter(|_| numbers.bits() % 32 < share).for_each(|i| allowed[i / 32] |= 1 << (i % 32));
        // Bits behind the vocabulary say nothing.
        allowed[31] |= !0 << 8;
        allowed[20] |= 1 << 7;
        let params = Params { allowed: Some(&allowed), logprobs: Some(20), ..Params::default() };
        for seed in 0..20 {
            let logits = normal(seed, n);
            agree("masked", &logits, &params, &History::default(), at(seed));
            let token = run(launch::isa(), &logits, &params, &History::default(), at(seed)).unwrap().token as usize;
            assert_eq!(allowed[token / 32] >> (token % 32) & 1, 1);
            assert!(share > 0 || token == 647);
        }
    }
    // What a forbidden token's logit is does not matter.
    let params = Params { allowed: Some(&[0b10]), ..Params::default() };
    for logit in [NAN, INF, f32::MAX] {
        agree("forbidden", &[logit, -3.0], &params, &History::default(), at(1));
    }
}

#[test]
fn extreme_logits_are_chosen_from_or_refused() {
    let check = |logits: &[f32], want: Result<u32, &str>| {
        for temperature in [0.0, TEMPERATURE_MIN, 0.7, 2.0] {
            let params = Params { temperature, top_p: 0.9, logprobs: Some(3), ..Params::default() };
            agree("extreme", logits, &params, &History::default(), at(1));
            match (run(launch::isa(), logits, &params, &History::default(), at(1)), want) {
                (Ok(found), Ok(token)) => assert_eq!(found.token, token, "{logits:?}"),
                (Err(refused), Err(why)) => assert!(refused.to_string().contains(why), "{refused}"),
                (found, want) => panic!("{found:?}, not {want:?}"),
            }
        }
    };
    check(&[-INF, -INF, 0.0, -INF], Ok(2));
    check(&[-f32::MAX, -INF], Ok(0));
    check(&[-INF, f32::MAX, 1e29, -f32::MAX], Ok(1));
    check(&[1e-40, -INF, -100.0], Ok(0));
    check(&[-INF; 100], Err("none of 100 tokens can be chosen"));
    let mut logits = vec![0.0; 5000];
    for (place, bad) in [(0, NAN), (63, INF), (4999, NAN), (4998, INF), (4100, NAN)] {
        logits[place] = bad;
        check(&logits, Err(&format!("the logit of token {place} is {bad}")));
        logits[place] = 0.0;
    }
}

#[test]
fn the_same_seed_and_position_give_the_same_token_on_every_instruction_set() {
    fn at_width(lanes: impl Lanes, logits: &[f32], draw: Draw) -> u32 {
        let best = simd::Best { logits }.run(lanes).unwrap().value;
        let mut cells = vec![0; logits.len().next_multiple_of(GROUP)];
        simd::Cells { logits, scale: 1024.0, best, cells: &mut cells }.run(lanes);
        let kept = truncate::kept(&Params::default(), weights(), &cells, &mut vec![]);
        simd::Choose { cells: &cells, kept, draw }.run(lanes)
    }
    let mut different = std::collections::HashSet::new();
    for seed in 0..500 {
        let logits = normal(seed % 7, 500 + seed as usize);
        let draw = Draw { seed: seed << 40 | 1, position: 1 << 33 | seed };
        let of = |isa| run(isa, &logits, &Params::default(), &History::default(), draw).unwrap().token;
        let token = of(Isa::Scalar);
        different.insert(token);
        for isa in isas_aloud() {
            assert_eq!(of(isa), token, "{isa}");
        }
        assert_eq!(at_width(Scalar::<8>, &logits, draw), token);
        assert_eq!(at_width(Scalar::<16>, &logits, draw), token);
        // A verifier's way: every token's noise, and the largest sum.
        let best = logits.iter().copied().fold(-INF, f32::max);
        let grid = |x: f32| f64::from((x * 1024.0).round_ties_even());
        let sum = |i: usize| gumbel(draw.seed, draw.position, i as u32) - (grid(best) - grid(logits[i])) / 1024.0;
        let winner = (0..logits.len()).max_by(|a, b| sum(*a).total_cmp(&sum(*b))).unwrap();
        assert_eq!(winner as u32, token);
    }
    assert!(different.len() > 200, "{} different tokens", different.len());
}

#[test]
fn the_same_scratch_serves_one_call_after_the_other() {
    let mut scratch = Scratch::new();
    for n in [1000, 10, 70_000, 64, 1] {
        for params in every_step() {
            let logits = normal(n as u64, n);
            let expected = cpu::sample(&logits, &params, &History::default(), at(9)).unwrap();
            let found = sample(&mut logits.clone(), &params, &History::default(), at(9), &mut scratch).unwrap();
            assert_eq!((found.token, found.top.len()), (expected.token, expected.top.len()), "{n}, {params:?}");
        }
    }
}

/// Draws with many seeds and gives χ² of the frequencies against the probabilities.
fn chi_squared(logits: &[f32], params: &Params<'_>, probabilities: &[f64], draws: u64) -> f64 {
    let mut counts = vec![0.0; logits.len()];
    let mut scratch = Scratch::new();
    for i in 0..draws {
        // Half of them different seeds, half different positions of one.
        let draw = if i % 2 == 0 { Draw { seed: i, position: 7 } } else { Draw { seed: 11, position: i } };
        let token = sample(&mut logits.to_vec(), params, &History::default(), draw, &mut scratch).unwrap().token;
        counts[token as usize] += 1.0;
    }
    let term = |(count, p): (&f64, &f64)| match p * draws as f64 {
        0.0 if *count > 0.0 => f64::INFINITY,
        0.0 => 0.0,
        expected => (count - expected).powi(2) / expected,
    };
    counts.iter().zip(probabilities).map(term).sum()
}

/// The softmax of some tokens, 0 for the others.
fn probabilities(logits: &[f32], temperature: f64, is_left: impl Fn(usize) -> bool) -> Vec<f64> {
    let weight = |i: usize| if is_left(i) { (f64::from(logits[i]) / temperature).exp() } else { 0.0 };
    let weights: Vec<f64> = (0..logits.len()).map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

#[test]
fn frequencies_over_seeds_are_the_distribution() {
    // With k values χ² has mean k − 1 and deviation √(2 (k − 1)); four deviations above would be one seed in ten thousand or so, and
    // the seeds are fixed. For a wrong distribution it grows with the draws.
    let most = |k: usize| (k - 1) as f64 + 4.0 * (2.0 * (k - 1) as f64).sqrt();
    let off = Params::default();
    let logits: Vec<f32> = normal(3, 150).iter().map(|x| 0.8 * x).collect();
    let found = chi_squared(&logits, &off, &probabilities(&logits, 1.0, |_| true), 100_000);
    assert!(found < most(150), "{found}");
    let found =
        chi_squared(&logits, &Params { temperature: 0.7, ..off }, &probabilities(&logits, 0.7, |_| true), 100_000);
    assert!(found < most(150), "{found}");
    // The test can fail: the same draws are not another distribution's.
    let wrong = chi_squared(&logits, &off, &probabilities(&logits, 0.9, |_| true), 100_000);
    assert!(wrong > 2.0 * most(150), "{wrong}");

    for params in [Params { top_k: 20, ..off }, Params { top_p: 0.7, ..off }, Params { typical_p: 0.6, ..off }] {
        let kept = cpu::sample(&logits, &params, &History::default(), at(0)).unwrap().kept;
        let expected = probabilities(&logits, 1.0, |i| kept.contains(&(i as u32)));
        let found = chi_squared(&logits, &params, &expected, 50_000);
        assert!(kept.len() > 10 && found < most(kept.len()), "{params:?}: {found} of {}", kept.len());
    }
}

#[test]
fn log_probabilities_are_those_before_temperature_and_filters() {
    let logits = [0.5_f32, 0.25, 0.125, 0.125].map(f32::ln);
    let mut scratch = Scratch::new();
    for temperature in [0.0, 0.5, 1.3] {
        let params = Params { temperature, top_k: 2, logprobs: Some(3), ..Params::default() };
        let sampled = sample(&mut logits.clone(), &params, &History::default(), at(5), &mut scratch).unwrap();
        let expected = [(0, logits[0]), (1, logits[1]), (2, logits[2])];
        for (found, expected) in sampled.top.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?} and {expected:?}");
        }
        assert_eq!(sampled.top.len(), 3);
        assert!((sampled.logprob.unwrap() - logits[sampled.token as usize]).abs() < 1e-6);
    }
}

#[test]
fn what_is_out_of_range_is_refused_and_nothing_written() {
    let off = Params::default();
    let check = |params: Params<'_>, why: &str| {
        let mut logits = [1.0; 40];
        let mut history = History::new(&[39]);
        history.push(3);
        let answer = sample(&mut logits, &params, &history, at(1), &mut Scratch::new()).map(|_| ());
        let refused = answer.expect_err(why).to_string();
        assert!(refused.contains(why), "{refused}");
        assert_eq!(logits, [1.0; 40]);
        assert!(cpu::sample(&logits, &params, &history, at(1)).is_err());
    };
    for (temperature, said) in [(NAN, "NaN"), (-0.1, "-0.1"), (2.1, "2.1"), (INF, "inf")] {
        check(Params { temperature, ..off }, &format!("temperature is {said}; it must be from 0 to 2"));
    }
    for p in [NAN, -0.1, 1.1] {
        check(Params { top_p: p, ..off }, "top_p is");
        check(Params { min_p: p, ..off }, "min_p is");
        check(Params { typical_p: p, ..off }, "typical_p is");
    }
    check(Params { typical_p: 0.0, ..off }, "typical_p is 0; it must be above 0");
    for penalty in [NAN, -2.1, 2.1] {
        check(Params { presence_penalty: penalty, ..off }, "presence_penalty is");
        check(Params { frequency_penalty: penalty, ..off }, "frequency_penalty is");
    }
    for repetition_penalty in [NAN, 0.0, -1.0, INF] {
        check(Params { repetition_penalty, ..off }, "repetition_penalty is");
    }
    check(Params { bias: &[(3, 0.0), (4, 101.0)], ..off }, "a logit bias is 101; it must be from -100 to 100");
    check(Params { bias: &[(3, NAN)], ..off }, "a logit bias is NaN");
    check(Params { bias: &[(40, 1.0)], ..off }, "the logit bias names token 40; the vocabulary ends with 39");
    check(Params { allowed: Some(&[1]), ..off }, "has 1 words of 32 bits; 40 tokens need 2");
    check(Params { logprobs: Some(21), ..off }, "21 log-probabilities");
    let history = History::new(&[7]);
    let refused = sample(&mut [0.0; 7], &off, &history, at(1), &mut Scratch::new()).unwrap_err();
    assert_eq!(refused, Error::Token { place: "the text so far", token: 7, tokens: 7 });
    let refused = sample(&mut [], &off, &History::default(), at(1), &mut Scratch::new()).unwrap_err();
    assert_eq!(refused, Error::Tokens(0));

    let mut rows = Rows::new(7);
    assert_eq!(rows.push(&off, &history, at(1)), Err(Error::Token { place: "the text so far", token: 7, tokens: 7 }));
    assert!(rows.is_empty());
}

#[test]
fn every_row_has_its_part_of_what_a_device_reads() {
    let mut rows = Rows::new(40);
    let (mut history, plain) = (History::new(&[3]), History::new(&[1, 2]));
    history.push(9);
    let off = Params::default();
    rows.push(&Params { bias: &[(5, 1.5)], ..off }, &plain, Draw { seed: 1 << 40 | 7, position: 2 }).unwrap();
    rows.push(&Params { allowed: Some(&[6, 1]), presence_penalty: 1.0, ..off }, &history, at(1)).unwrap();
    rows.push(&Params { bias: &[(6, -2.0), (7, 3.0)], ..off }, &plain, at(1)).unwrap();
    let (words, places) = rows.words();
    assert_eq!(places.requests, 0..54);
    assert_eq!(words[..4], [7, 1 << 8, 2, 0]);
    assert_eq!(words[places.allowed], [0, 0, 6, 1, 0, 0], "only the second row has a mask");
    assert_eq!(words[places.bias_tokens], [5, 6, 7]);
    assert_eq!(words[places.biases], [1.5_f32, -2.0, 3.0].map(f32::to_bits));
    assert_eq!(words[places.seen_tokens], [3, 9], "only the second row has penalties");
    assert_eq!(words[places.seen_counts], [0, 1]);
    assert_eq!(words[18 + 13..18 + 18], [1, 1, 1, 0, 2]);
}

proptest! {
    #[test]
    fn any_call_agrees_with_the_oracle(
        n in 1_usize..600,
        seed: u64,
        position: u64,
        spread in prop::sample::select(vec![0.0_f32, 0.01, 1.0, 5.0, 30.0]),
        // Few different values: many ties.
        step in prop::sample::select(vec![0.0_f32, 0.25, 3.0]),
        forbidden in 0_u64..4,
        temperature in prop_oneof![Just(0.0_f32), 0.0_f32..2.0],
        top_k in prop_oneof![Just(0_usize), 0_usize..100],
        top_p in prop_oneof![Just(1.0_f32), 0.0_f32..=1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..=1.0],
        typical_p in prop_oneof![Just(1.0_f32), 0.001_f32..=1.0],
        penalties in (0.5_f32..2.0, -2.0_f32..2.0, -2.0_f32..2.0),
        text in prop::collection::vec(0_usize..600, 0..30),
        logprobs in prop::option::of(0_usize..=20),
    ) {
        let mut numbers = Numbers::new(seed);
        let mut logits: Vec<f32> = (0..n).map(|_| spread * numbers.normal()).collect();
        if step > 0.0 {
            logits.iter_mut().for_each(|x| *x = (*x / step).round() * step);
        }
        let words = n.div_ceil(32);
        let allowed: Vec<u32> = (0..words).map(|_| (0..forbidden).fold(!0, |word, _| word & numbers.bits() as u32)).collect();
        let bias = [(numbers.bits() as u32 % n as u32, 50.0 * numbers.unit() - 25.0)];
        let (prompt, written) = text.split_at(text.len() / 2);
        let mut history = History::new(&prompt.iter().map(|token| (token % n) as u32).collect::<Vec<u32>>());
        written.iter().for_each(|token| history.push((token % n) as u32));
        let (repetition_penalty, presence_penalty, frequency_penalty) = penalties;
        let params = Params {
            allowed: Some(&allowed), bias: &bias, repetition_penalty, presence_penalty, frequency_penalty,
            temperature, top_k, top_p, min_p, typical_p, logprobs,
        };
        agree("any", &logits, &params, &history, Draw { seed, position });

        // As a row between others that have more and less of everything.
        let draw = Draw { seed, position };
        let mut rows = Rows::new(n);
        rows.push(&Params::default(), &history, draw).unwrap();
        rows.push(&params, &history, draw).unwrap();
        rows.push(&Params { presence_penalty: 1.0, allowed: None, ..params }, &History::new(&[0]), draw).unwrap();
        let wanted = sample(&mut logits.clone(), &params, &history, draw, &mut Scratch::new()).map(|sampled| sampled.token);
        let found = rows.choose(1, &mut logits, &mut Scratch::new());
        prop_assert_eq!(found.map_err(|error| error.to_string()), wanted.map_err(|error| error.to_string()));
    }
}
