//! What a call is asked to do. Numbers of a request come in; they go out checked, or refused with the range that they must be in.

use super::{CELLS_PER_UNIT, History};

/// OpenAI's largest temperature.
pub const TEMPERATURE_MAX: f32 = 2.0;

/// Below this a temperature is 0. At it the second of two logits needs to be only 2.6e-4 smaller to be out of reach.
pub const TEMPERATURE_MIN: f32 = 1e-5;

/// OpenAI's largest presence and frequency penalty; the smallest is its negative.
pub const PENALTY_MAX: f32 = 2.0;

/// OpenAI's largest logit bias; the smallest is its negative.
pub const BIAS_MAX: f32 = 100.0;

/// OpenAI's largest `top_logprobs`.
pub const LOGPROBS_MAX: usize = 20;

/// The largest vocabulary: sums of weights must stay below 2⁶⁴.
pub const TOKENS_MAX: usize = 1 << 24;

/// What [`super::sample`] is to do. [`Params::default`] switches every step off: a draw from the model's own distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params<'a> {
    /// The tokens that may be chosen: bit `i % 32` of word `i / 32` is 1 for token `i`. `[⌈v / 32⌉]`; bits behind the vocabulary are
    /// not looked at. `None` allows all.
    pub allowed: Option<&'a [u32]>,
    /// What is added to logits, from −100 to 100. A token that is named twice gets both.
    pub bias: &'a [(u32, f32)],
    /// Above 0; 1 is off, more makes repetition less likely. For tokens of the prompt and of the text.
    pub repetition_penalty: f32,
    /// From −2 to 2; 0 is off. For tokens of the text, once.
    pub presence_penalty: f32,
    /// From −2 to 2; 0 is off. For tokens of the text, as often as they are in it.
    pub frequency_penalty: f32,
    /// From 0, which is greedy, to 2; 1 is the model's own distribution.
    pub temperature: f32,
    /// How many of the likeliest tokens are left; 0 is off, 1 is greedy.
    pub top_k: usize,
    /// From 0, which leaves one token, to 1, which is off.
    pub top_p: f32,
    /// From 0, which is off, to 1. The least probability, in parts of the best token's.
    pub min_p: f32,
    /// Above 0, to 1, which is off.
    pub typical_p: f32,
    /// Log-probabilities of the chosen token and of so many of the likeliest, up to 20. `None` computes none.
    pub logprobs: Option<usize>,
}

impl Default for Params<'_> {
    fn default() -> Self {
        Self {
            allowed: None,
            bias: &[],
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            logprobs: None,
        }
    }
}

/// Why there is no token.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// A parameter is not in its range.
    #[error("sample: {name} is {value}; it must be {range}")]
    Range {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// Too many log-probabilities.
    #[error("sample: {0} log-probabilities are asked for; at most 20 of the likeliest tokens have theirs listed")]
    Logprobs(usize),
    /// There are no logits, or too many.
    #[error("sample: {0} logits; there must be one for each token of the vocabulary, from 1 to 16777216")]
    Tokens(usize),
    /// The mask of allowed tokens has the wrong length.
    #[error("sample: the mask of allowed tokens has {words} words of 32 bits; {tokens} tokens need {}", tokens.div_ceil(32))]
    Allowed {
        /// Its length.
        words: usize,
        /// The vocabulary.
        tokens: usize,
    },
    /// A token that the vocabulary has not.
    #[error("sample: {place} names token {token}; the vocabulary ends with {}", tokens - 1)]
    Token {
        /// Where it is.
        place: &'static str,
        /// Which one.
        token: u32,
        /// The vocabulary.
        tokens: usize,
    },
    /// A logit that says nothing.
    #[error(
        "sample: the logit of token {token} is {value}: the model's sums have left the range of numbers; there is no distribution to \
         choose from"
    )]
    Logit {
        /// Which token.
        token: u32,
        /// NaN or +∞.
        value: f32,
    },
    /// Nothing can be chosen.
    #[error(
        "sample: none of {tokens} tokens can be chosen: each is forbidden by the mask or has a logit of −∞; allow at least one that the \
         model can write"
    )]
    NoToken {
        /// The vocabulary.
        tokens: usize,
    },
}

impl Params<'_> {
    /// Whether the largest logit is taken as it is.
    pub fn is_greedy(&self) -> bool {
        self.temperature < TEMPERATURE_MIN || self.top_k == 1
    }

    /// Whether it matters what was written.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Checks the numbers alone, which need no logits: what a server does when a request comes in.
    ///
    /// # Errors
    /// [`Error::Range`] and [`Error::Logprobs`].
    pub fn check_ranges(&self) -> Result<(), Error> {
        let check = |name: &'static str, value: f32, is_good: bool, range: &'static str| {
            if is_good { Ok(()) } else { Err(Error::Range { name, value, range }) }
        };
        for (_, bias) in self.bias {
            check("a logit bias", *bias, bias.abs() <= BIAS_MAX, "from -100 to 100")?;
        }
        let theta = self.repetition_penalty;
        check("repetition_penalty", theta, theta > 0.0 && theta.is_finite(), "above 0; 1 is off")?;
        for (name, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            check(name, penalty, penalty.abs() <= PENALTY_MAX, "from -2 to 2; 0 is off")?;
        }
        let temperature = self.temperature;
        check("temperature", temperature, (0.0..=TEMPERATURE_MAX).contains(&temperature), "from 0 to 2; 1 is off")?;
        check("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "from 0 to 1; 1 is off")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1; 0 is off")?;
        let typical_p = self.typical_p;
        check("typical_p", typical_p, typical_p > 0.0 && typical_p <= 1.0, "above 0, to 1; 1 is off")?;
        match self.logprobs {
            Some(n) if n > LOGPROBS_MAX => Err(Error::Logprobs(n)),
            _ => Ok(()),
        }
    }

    /// Checks everything for a vocabulary of `tokens`.
    pub(super) fn check(&self, tokens: usize, history: &History) -> Result<(), Error> {
        if tokens == 0 || tokens > TOKENS_MAX {
            return Err(Error::Tokens(tokens));
        }
        self.check_ranges()?;
        match self.allowed {
            Some(allowed) if allowed.len() != tokens.div_ceil(32) => {
                return Err(Error::Allowed { words: allowed.len(), tokens });
            }
            _ => {}
        }
        if let Some((token, _)) = self.bias.iter().find(|(token, _)| *token as usize >= tokens) {
            return Err(Error::Token { place: "the logit bias", token: *token, tokens });
        }
        match history.largest() {
            Some(token) if token as usize >= tokens => Err(Error::Token { place: "the text so far", token, tokens }),
            _ => Ok(()),
        }
    }

    /// What logits are multiplied with to become cells.
    pub(super) fn scale(&self) -> f32 {
        CELLS_PER_UNIT as f32 / self.temperature
    }
}
