//! What several rows are asked, as one array of words that the code for GPUs reads: requests come in one by one, checked, and lie there as
//! cuda.cu has them. Never a logit, never a device.

use super::{Draw, Error, History, Params, Scratch, sample};
use std::ops::Range;

/// Words of a request, as `Request` of cuda.cu has them.
const REQUEST: usize = 18;

/// Requests of rows `[rows]` for a vocabulary, to be copied to a device as they are.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    tokens: usize,
    requests: Vec<u32>,
    /// `[rows, ⌈tokens / 32⌉]` where any row has a mask, else nothing.
    allowed: Vec<u32>,
    bias_tokens: Vec<u32>,
    /// Bits of f32.
    biases: Vec<u32>,
    seen_tokens: Vec<u32>,
    seen_counts: Vec<u32>,
}

/// Where the arrays lie that the code for GPUs is given, in words from the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `[rows]`, of 18 words each.
    pub requests: Range<usize>,
    /// `[rows, ⌈tokens / 32⌉]`; empty where no row has a mask.
    pub allowed: Range<usize>,
    /// Those of all rows, one after the other.
    pub bias_tokens: Range<usize>,
    /// f32, one for each of `bias_tokens`.
    pub biases: Range<usize>,
    /// Those of all rows, one after the other.
    pub seen_tokens: Range<usize>,
    /// How often each of `seen_tokens` was written.
    pub seen_counts: Range<usize>,
}

impl Rows {
    /// None yet, for a vocabulary of so many tokens.
    pub fn new(tokens: usize) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// The vocabulary.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.requests.len() / REQUEST
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Adds what the next row is asked. Log-probabilities are not computed on a device.
    ///
    /// # Errors
    /// As [`sample`]'s, before it looks at logits; nothing is added then.
    pub fn push(&mut self, params: &Params<'_>, history: &History, draw: Draw) -> Result<(), Error> {
        params.check(self.tokens, history)?;
        let bias = self.bias_tokens.len();
        self.bias_tokens.extend(params.bias.iter().map(|(token, _)| token));
        self.biases.extend(params.bias.iter().map(|(_, bias)| bias.to_bits()));
        let seen = self.seen_tokens.len();
        if params.has_penalties() {
            self.seen_tokens.extend(history.seen().iter().map(|seen| seen.token));
            self.seen_counts.extend(history.seen().iter().map(|seen| seen.written));
        }
        if let Some(mask) = params.allowed {
            // Rows before it that have none have a place in the array all the same.
            self.allowed.resize(self.len() * self.mask(), 0);
            self.allowed.extend(mask);
        }
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        self.requests.extend(halves(draw.seed).into_iter().chain(halves(draw.position)));
        let Params { temperature, repetition_penalty, presence_penalty, frequency_penalty, .. } = *params;
        let of = [temperature, repetition_penalty, presence_penalty, frequency_penalty];
        self.requests.extend(of.into_iter().chain([params.top_p, params.min_p, params.typical_p]).map(f32::to_bits));
        // No vocabulary is as large as what does not fit.
        self.requests.push(u32::try_from(params.top_k).unwrap_or(u32::MAX));
        self.requests.extend([u32::from(params.is_greedy()), u32::from(params.allowed.is_some())]);
        let ends = [bias, self.bias_tokens.len(), seen, self.seen_tokens.len()];
        self.requests.extend(ends.map(|end| end as u32));
        // The device's struct ends at a whole 64 bits, for it has some.
        debug_assert!(self.requests.len().is_multiple_of(REQUEST));
        Ok(())
    }

    /// Everything, in one array, and where its parts lie.
    pub fn words(&self) -> (Vec<u32>, Places) {
        let mut words = vec![];
        let mut put = |part: &[u32]| {
            let begin = words.len();
            words.extend_from_slice(part);
            begin..words.len()
        };
        let requests = put(&self.requests);
        let mut allowed = put(&self.allowed);
        if !self.allowed.is_empty() {
            let missing = self.len() * self.mask() - self.allowed.len();
            allowed.end += put(&vec![0; missing]).len();
        }
        let places = Places {
            requests,
            allowed,
            bias_tokens: put(&self.bias_tokens),
            biases: put(&self.biases),
            seen_tokens: put(&self.seen_tokens),
            seen_counts: put(&self.seen_counts),
        };
        (words, places)
    }

    /// Chooses a row's token on the CPU, by what is in the array: what stands in for a device in tests does that.
    ///
    /// # Errors
    /// As [`sample`]'s.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn choose(&self, row: usize, logits: &mut [f32], scratch: &mut Scratch) -> Result<u32, Error> {
        let request = &self.requests[row * REQUEST..(row + 1) * REQUEST];
        let long = |at: usize| u64::from(request[at]) | u64::from(request[at + 1]) << 32;
        let real = |at: usize| f32::from_bits(request[at]);
        let part = |at: usize| request[at] as usize..request[at + 1] as usize;
        let bias: Vec<(u32, f32)> =
            part(14).map(|at| (self.bias_tokens[at], f32::from_bits(self.biases[at]))).collect();
        let mask = row * self.mask()..(row + 1) * self.mask();
        let params = Params {
            allowed: (request[13] != 0).then(|| &self.allowed[mask]),
            bias: &bias,
            temperature: real(4),
            repetition_penalty: real(5),
            presence_penalty: real(6),
            frequency_penalty: real(7),
            top_p: real(8),
            min_p: real(9),
            typical_p: real(10),
            top_k: if request[12] != 0 { 1 } else { request[11] as usize },
            logprobs: None,
        };
        let mut history = History::new(&self.seen_tokens[part(16)]);
        for at in part(16) {
            (0..self.seen_counts[at]).for_each(|_| history.push(self.seen_tokens[at]));
        }
        let draw = Draw { seed: long(0), position: long(2) };
        Ok(sample(logits, &params, &history, draw, scratch)?.token)
    }

    fn mask(&self) -> usize {
        self.tokens.div_ceil(32)
    }
}
