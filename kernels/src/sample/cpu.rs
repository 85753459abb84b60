//! The oracle: every step as the head of [`super`] says it, with sorts and in f64. What `sample` takes comes in and goes out. Never
//! fast.

use super::{Draw, Error, History, Params, gumbel};

/// What [`sample`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The token.
    pub token: u32,
    /// The tokens that the filters left, in rising order; a greedy choice leaves its own.
    pub kept: Vec<u32>,
    /// As in [`super::Sampled`].
    pub logprob: Option<f32>,
    /// As in [`super::Sampled`].
    pub top: Vec<(u32, f32)>,
}

/// A token that may be chosen.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    /// Steps of the grid below the best.
    cell: f64,
    /// `e^(−cell / 1024)`
    weight: f64,
}

/// What [`super::sample`] does, one step after the other. `logits` stay as they are.
///
/// # Shapes
/// As [`super::sample`].
///
/// # Errors
/// As [`super::sample`].
pub fn sample(logits: &[f32], params: &Params<'_>, history: &History, draw: Draw) -> Result<Answer, Error> {
    params.check(logits.len(), history)?;
    let x: Vec<f32> = logits.iter().enumerate().map(|(i, x)| prepared(*x, i, params, history)).collect();
    if let Some(i) = x.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(Error::Logit { token: i as u32, value: x[i] });
    }
    // Those that can be chosen, by their logits.
    let mut order: Vec<u32> = (0..x.len() as u32).filter(|i| x[*i as usize] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| x[*b as usize].partial_cmp(&x[*a as usize]).expect("none is NaN").then(a.cmp(b)));
    let Some(&best) = order.first() else { return Err(Error::NoToken { tokens: x.len() }) };

    let largest = f64::from(x[best as usize]);
    let total: f64 = order.iter().map(|i| (f64::from(x[*i as usize]) - largest).exp()).sum();
    let logprob = |i: u32| (f64::from(x[i as usize]) - largest - total.ln()) as f32;

    let mut kept = vec![best];
    let mut token = best;
    if !params.is_greedy() {
        let scale = 1024.0 / params.temperature;
        let on_grid = |i: u32| f64::from((x[i as usize].clamp(-1e30, 1e30) * scale).round_ties_even());
        let candidates = order.iter().map(|i| {
            let cell = on_grid(best) - on_grid(*i);
            Candidate { token: *i, cell, weight: (-cell / 1024.0).exp() }
        });
        let left = filtered(candidates.filter(|candidate| candidate.cell < 26.25 * 1024.0).collect(), params);
        let score = |one: &Candidate| gumbel(draw.seed, draw.position, one.token) - one.cell / 1024.0;
        kept = left.iter().map(|one| one.token).collect();
        kept.sort();
        let winner = left.iter().max_by(|a, b| score(a).total_cmp(&score(b)).then(b.token.cmp(&a.token)));
        token = winner.expect("each filter leaves at least one").token;
    }
    Ok(Answer {
        token,
        kept,
        logprob: params.logprobs.map(|_| logprob(token)),
        top: order.iter().take(params.logprobs.unwrap_or(0)).map(|i| (*i, logprob(*i))).collect(),
    })
}

/// Steps 1 to 4 for token `i`.
fn prepared(mut x: f32, i: usize, params: &Params<'_>, history: &History) -> f32 {
    if params.allowed.is_some_and(|allowed| allowed[i / 32] >> (i % 32) & 1 == 0) {
        return f32::NEG_INFINITY;
    }
    for (_, bias) in params.bias.iter().filter(|(token, _)| *token as usize == i) {
        x += bias;
    }
    if let Some(seen) = history.seen().iter().find(|seen| seen.token as usize == i) {
        x = if x > 0.0 { x / params.repetition_penalty } else { x * params.repetition_penalty };
        if seen.written > 0 {
            x -= params.frequency_penalty * seen.written as f32 + params.presence_penalty;
        }
    }
    x
}

/// Steps 7 to 10.
fn filtered(mut left: Vec<Candidate>, params: &Params<'_>) -> Vec<Candidate> {
    // Not `total_cmp`, for which the −0 of a logit −0 comes first.
    let by_cell = |a: &Candidate, b: &Candidate| a.cell.partial_cmp(&b.cell).expect("a cell is a number");
    let by_likelihood = |a: &Candidate, b: &Candidate| by_cell(a, b).then(a.token.cmp(&b.token));
    left.sort_by(by_likelihood);
    if params.top_k > 0 {
        left.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        first_with_mass(&mut left, params.top_p);
    }
    if params.min_p > 0.0 {
        left.retain(|one| one.weight >= f64::from(params.min_p));
    }
    if params.typical_p < 1.0 {
        let total: f64 = left.iter().map(|one| one.weight).sum();
        let surprise = |one: &Candidate| -(one.weight / total).ln();
        let entropy: f64 = left.iter().map(|one| one.weight / total * surprise(one)).sum();
        let distance = |one: &Candidate| (surprise(one) - entropy).abs();
        left.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(by_likelihood(a, b)));
        first_with_mass(&mut left, params.typical_p);
    }
    left
}

/// The fewest first ones whose weights are `p` of all.
fn first_with_mass(left: &mut Vec<Candidate>, p: f32) {
    let wanted = f64::from(p) * left.iter().map(|one| one.weight).sum::<f64>();
    let mut mass = 0.0;
    let enough = left.iter().position(|one| {
        mass += one.weight;
        mass >= wanted
    });
    left.truncate(enough.map_or(left.len(), |last| last + 1));
}
