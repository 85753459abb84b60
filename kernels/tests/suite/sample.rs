//! Sampling's part of the suite: every step by itself and all together, vocabularies around whole groups, ties, flat and steep
//! distributions. A choice is the oracle's or it is wrong: there is no tolerance.

use super::Backend;
use kernels::sample::{Draw, Error, History, Params, Places, Rows, cpu};
use kernels::testing::normal;

/// Logits of a vocabulary: as they come, rounded so that many are the same, nearly all out of reach, all the same.
fn distributions(tokens: usize) -> Vec<Vec<f32>> {
    let all = |of: fn(f32) -> f32| normal(tokens as u64, tokens).into_iter().map(of).collect();
    vec![all(|x| 2.0 * x), all(|x| (3.0 * x).round() / 2.0), all(|x| 40.0 * x), all(|_| -1.5)]
}

/// What is asked, by the steps that are switched on.
fn requests() -> Vec<Params<'static>> {
    let off = Params::default();
    vec![
        off,
        Params { temperature: 0.3, ..off },
        Params { temperature: 2.0, ..off },
        Params { temperature: 0.0, ..off },
        Params { top_k: 1, ..off },
        Params { top_k: 5, ..off },
        Params { top_p: 0.0, ..off },
        Params { top_p: 0.5, temperature: 1.5, ..off },
        Params { top_p: 0.95, ..off },
        Params { min_p: 0.1, ..off },
        Params { min_p: 1.0, ..off },
        Params { typical_p: 0.3, temperature: 2.0, ..off },
        Params { typical_p: 0.95, ..off },
        Params { top_k: 40, top_p: 0.9, min_p: 0.02, typical_p: 0.8, temperature: 0.8, ..off },
        Params { repetition_penalty: 1.3, presence_penalty: 0.4, frequency_penalty: -0.7, ..off },
    ]
}

/// The oracle's token and state; a token that is no number is named, one that is not there is not.
fn expected(logits: &[f32], params: &Params<'_>, history: &History, draw: Draw) -> [f32; 2] {
    match cpu::sample(logits, params, history, draw) {
        Ok(answer) => [answer.token as f32, 0.0],
        Err(Error::Logit { token, .. }) => [token as f32, 1.0],
        Err(Error::NoToken { tokens }) => [tokens as f32, 2.0],
        Err(other) => panic!("{other}"),
    }
}

impl Backend {
    /// Numbers: rows, tokens, where each part of the array begins and ends, the array. Arrays: logits of all rows. Gives token and state of
    /// each: here the same row asked greedily, and then as asked, and as it would be without a mask.
    fn check_sample(&self, logits: &[f32], params: &Params<'_>, seen: &[(u32, u32)], draw: Draw) -> Option<()> {
        let prompt: Vec<u32> = seen.iter().map(|(token, _)| *token).collect();
        let mut history = History::new(&prompt);
        seen.iter().for_each(|(token, count)| (0..*count).for_each(|_| history.push(*token)));
        let asked = [Params { top_k: 1, ..*params }, *params, Params { allowed: None, ..*params }];
        let mut rows = Rows::new(logits.len());
        asked.iter().for_each(|params| rows.push(params, &history, draw).unwrap());
        let (words, places) = rows.words();
        let Places { requests, allowed, bias_tokens, biases, seen_tokens, seen_counts } = places;
        let parts = [requests, allowed, bias_tokens, biases, seen_tokens, seen_counts];
        let mut numbers = vec![asked.len(), logits.len()];
        numbers.extend(parts.iter().flat_map(|part| [part.start, part.end]));
        numbers.extend(words.iter().map(|word| *word as usize));
        let found = (self.run)("sample_f32", 0.0, &numbers, &[&logits.repeat(asked.len())])?;
        let wanted = asked.map(|params| expected(logits, &params, &history, draw)).concat();
        assert_eq!(found, wanted, "{} tokens, {params:?}, {draw:?}", logits.len());
        Some(())
    }

    /// Choices of every kind, each over every distribution, with vocabularies, lists and masks in turn.
    pub(crate) fn sample(&self) {
        let mut turn = 0;
        for (seed, params) in requests().iter().enumerate() {
            for which in 0..4 {
                let tokens = [1000, 63, 64, 65, 1][turn % 5];
                let (logits, last) = (distributions(tokens).swap_remove(which), tokens as u32 - 1);
                let draw =
                    Draw { seed: seed as u64 * 0x1_0000_0001 + which as u64, position: 0x7_0000_0000 + turn as u64 };
                // No token is seen twice.
                let seen = [(last / 2, 3), (last, 0), (0, 1)];
                let seen = if tokens > 2 { &seen[..] } else { &seen[..1] };
                let bias = [(last, 1.5), (0, -100.0), (last, 2.25)];
                let mask = vec![0x9249_2492; tokens.div_ceil(32)];
                let checked = match turn % 3 {
                    0 => self.check_sample(&logits, params, seen, draw),
                    1 => self.check_sample(&logits, &Params { bias: &bias, ..*params }, seen, draw),
                    _ => self.check_sample(&logits, &Params { allowed: Some(&mask), ..*params }, &[], draw),
                };
                let Some(()) = checked else { return };
                turn += 1;
            }
        }
    }

    /// Rows that hold what is no number, and rows of which nothing is allowed.
    pub(crate) fn sample_refused(&self) {
        let draw = Draw { seed: 1, position: 2 };
        for (at, value) in [(0, f32::NAN), (70, f32::INFINITY), (99, f32::NAN)] {
            let mut logits = normal(1, 100);
            logits[at] = value;
            logits[99] = value;
            let Some(()) = self.check_sample(&logits, &Params::default(), &[], draw) else { return };
        }
        let nothing = vec![0; 4];
        self.check_sample(&normal(1, 100), &Params { allowed: Some(&nothing), ..Params::default() }, &[], draw);
        // What is forbidden may be no number.
        let mut logits = normal(1, 100);
        logits[5] = f32::NAN;
        let mask = vec![!(1 << 5), u32::MAX, u32::MAX, u32::MAX];
        self.check_sample(&logits, &Params { allowed: Some(&mask), ..Params::default() }, &[], draw);
    }
}
