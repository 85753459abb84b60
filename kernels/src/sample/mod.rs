//! The next token, chosen from a row of logits. Logits, parameters and what was written so far come in; a token goes out, and
//! log-probabilities where they are asked for. Never here: a tokenizer, a grammar, a generator that remembers what it drew.
//!
//! The steps of a call, in this order. Each is off unless [`Params`] switches it on. `x_i` is the logit of token `i`:
//!
//! ```text
//! 1  allowed tokens         x_i = −∞ where bit i of the mask is 0
//! 2  logit bias             x_i = x_i + bias_i
//! 3  repetition penalty θ   x_i = x_i / θ if x_i > 0, else x_i · θ             for i in the prompt or in the text
//! 4  frequency f, presence  x_i = x_i − (f · count_i + presence)               for i in the text, count_i times
//! 5  log-probabilities      x_i − ln Σ_j e^(x_j)                               of these x, at temperature 1
//! 6  temperature T          c_i = round(max_j x_j · s) − round(x_i · s), s = 1024 / T; of c_i ≥ 26.25 · 1024 nothing is left
//! 7  top-k                  the first k tokens in the order of (c_i, i)
//! 8  top-p                  of these the fewest first ones whose weights are ≥ p of the sum of them all
//! 9  min-p                  of these the ones with w_i ≥ min_p
//! 10 typical-p              of these the fewest whose weights are ≥ typical_p of the sum, in the order of (|c_i − c̄|, c_i, i)
//! 11 choice                 the largest gumbel(seed, position, i) − c_i / 1024, of equals the smallest i
//! ```
//!
//! with the weights `w_i = e^(−c_i / 1024)`, which are probabilities up to a factor (the best token has 1), and `c̄` the mean of `c` by
//! these weights over the tokens that step 9 left: `(c_i − c̄) / 1024` is `−ln p_i` less the entropy. So each filter sees the
//! distribution that the one before it left, as if made to sum to 1 again. At least one token is left by each.
//!
//! A temperature of 0, like every one below [`TEMPERATURE_MIN`], and a `top_k` of 1 are greedy: the largest `x_i` itself, of equals the smallest
//! `i`, and steps 6 to 11 are left out.
//!
//! **The same everywhere.** Steps 1 to 4 and step 6 are single operations of IEEE 754 in f32, halves rounded to even; from there on `c_i` is a whole
//! number, the sums of steps 8 and 10 are whole numbers for every 128 cells, and the rest is f64 in a fixed order with functions of this
//! crate's own. The token is therefore the same on every instruction set, alone and in a batch. [`gumbel`] is public, so that a
//! verifier can compute the choice again. Rounding to 1024 steps per unit changes a probability by at most a factor of e^(1/1024). A
//! token 26.25 below the best could not be chosen by any noise, whose range is 26.004: leaving it out of the sums moves less
//! than 4e-12 of the best token's probability for each such token. Logits beyond ±1e30 count as ±1e30 in step 6.
//!
//! **Log-probabilities** are those that users of OpenAI's API expect, the model's own and comparable between requests: without temperature and
//! without the filters, so that a greedy choice has them too; bias, penalties and the mask are in them. They are sums in f32
//! and differ between instruction sets in their last digits.
//!
//! **Without sorting.** Whole numbers below 26 880 are counted, not compared: one pass makes them, one counts them, and a walk over the
//! counts finds every cut. Noise is drawn for 64 tokens at a time, in whole numbers; the two logarithms are taken only where a bound
//! says that the token can still win. A greedy choice is one pass that only reads. The code for GPUs does the same, a block of threads
//! for each row, and chooses the same token; log-probabilities it leaves to the CPU. [`Rows`] is what it reads.
//!
//! # Source
//! Top-k: Fan, Lewis, Dauphin: Hierarchical Neural Story Generation, 2018. Top-p: Holtzman, Buys, Du, Forbes, Choi: The Curious Case of Neural
//! Text Degeneration, 2019. Min-p: Nguyen and others: Turning Up the Heat, 2024. Typical-p: Meister, Pimentel, Wiher, Cotterell: Locally Typical
//! Sampling, 2022. Repetition penalty: Keskar and others: CTRL, 2019. Presence and frequency: OpenAI's API reference. The
//! Gumbel-max choice: Maddison, Tarlow, Minka: A* Sampling, 2014. The generator: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as
//! 1, 2, 3, 2011.

use std::sync::OnceLock;

use crate::launch::{self, Isa};

pub mod cpu;
mod history;
mod noise;
mod params;
mod prepare;
mod rows;
mod simd;
#[cfg(test)]
mod tests;
mod truncate;

pub use history::History;
pub use noise::gumbel;
pub use params::{BIAS_MAX, Error, LOGPROBS_MAX, PENALTY_MAX, Params, TEMPERATURE_MAX, TEMPERATURE_MIN, TOKENS_MAX};
pub use rows::{Places, Rows};

use truncate::Weights;

/// Cells for a difference of 1 between scaled logits: the grid that they are rounded to.
pub const CELLS_PER_UNIT: usize = 1024;

/// How many cells below the best a token may be and take part: 26.25 units, more than the range of the noise, in whole strides of 128.
pub const CELLS: usize = 26_880;

/// Cells whose weights have a factor in common.
const STRIDE: usize = 128;

/// Tokens whose noise is drawn together, which is also what the cells of a row are padded to.
const GROUP: usize = 64;

/// Which draw this is. The same seed and position give the same noise for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The request's seed.
    pub seed: u64,
    /// The position of the token to be chosen in its sequence.
    pub position: u64,
}

/// A choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled<'a> {
    /// The token.
    pub token: u32,
    /// Its log-probability, natural, where [`Params::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens with their log-probabilities, the likeliest first, of equals the smallest id: as many as were asked for, or as
    /// are not forbidden.
    pub top: &'a [(u32, f32)],
}

/// Memory that calls use again: two bytes a token and 128 KiB. After the first call with a vocabulary nothing more is allocated.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The cell of each token, [`CELLS`] or more for one that takes no part, padded with such to whole groups.
    cells: Vec<u16>,
    /// How many tokens are in each cell.
    counts: Vec<u32>,
    top: Vec<(u32, f32)>,
}

impl Scratch {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Chooses the next token. `logits` are worked on in place: bias, penalties and the mask are in them afterwards, which makes them of no
/// use for a second call.
///
/// # Shapes
/// `logits`: `[v]`, one for each token of the vocabulary, f32; the others as in [`Params`] and [`History`].
///
/// # Errors
/// [`Error`]: a parameter is out of its range, or something names a token that the vocabulary has not, with nothing written then;
/// a logit of an allowed token is NaN or +∞; no allowed token has a logit above −∞.
pub fn sample<'a>(
    logits: &mut [f32],
    params: &Params<'_>,
    history: &History,
    draw: Draw,
    scratch: &'a mut Scratch,
) -> Result<Sampled<'a>, Error> {
    sample_on(launch::isa(), logits, params, history, draw, scratch)
}

/// [`sample`] on an instruction set of the caller's choice.
pub(crate) fn sample_on<'a>(
    isa: Isa,
    logits: &mut [f32],
    params: &Params<'_>,
    history: &History,
    draw: Draw,
    scratch: &'a mut Scratch,
) -> Result<Sampled<'a>, Error> {
    params.check(logits.len(), history)?;
    prepare::prepare(logits, params, history);
    let Some(best) = launch::lanes::run(isa, simd::Best { logits }) else {
        let (token, value) = prepare::unusable(logits).expect("there is one, or the largest would have been found");
        return Err(Error::Logit { token, value });
    };
    if best.value == f32::NEG_INFINITY {
        return Err(Error::NoToken { tokens: logits.len() });
    }
    let token = if params.is_greedy() {
        best.token
    } else {
        let scale = params.scale();
        scratch.cells.resize(logits.len().next_multiple_of(GROUP), CELLS as u16);
        launch::lanes::run(isa, simd::Cells { logits, scale, best: best.value, cells: &mut scratch.cells });
        let kept = truncate::kept(params, weights(), &scratch.cells, &mut scratch.counts);
        launch::lanes::run(isa, simd::Choose { cells: &scratch.cells, kept, draw })
    };
    scratch.top.clear();
    let mut logprob = None;
    if let Some(n) = params.logprobs {
        let total = launch::lanes::run(isa, simd::Total { logits, best: best.value });
        // In f64 up to the end: what is left of two large logits is small.
        let of = |x: f32| (f64::from(x) - f64::from(best.value) - noise::ln(total)) as f32;
        logprob = Some(of(logits[token as usize]));
        launch::lanes::run(isa, simd::Top { logits, n, top: &mut scratch.top });
        scratch.top.iter_mut().for_each(|(_, x)| *x = of(*x));
    }
    Ok(Sampled { token, logprob, top: &scratch.top })
}

/// The weights of the cells, computed once per process.
fn weights() -> &'static Weights {
    static WEIGHTS: OnceLock<Weights> = OnceLock::new();
    WEIGHTS.get_or_init(Weights::new)
}
