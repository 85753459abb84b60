//! How a text's tokens are chosen: what a request asks is kept beside the tokens that the text has so far, and each row of logits
//! becomes one more. What the steps are and in which order says [`kernels::sample`].

use kernels::sample::{self, Draw, History, Params, Rows};

pub use kernels::sample::{BIAS_MAX, Error, LOGPROBS_MAX, PENALTY_MAX, Scratch, TEMPERATURE_MAX};

/// What a request asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// From 0, which is greedy, to 2; 1 is the model's own distribution.
    pub temperature: f32,
    /// How many of the likeliest tokens are left; 0 is off.
    pub top_k: usize,
    /// The share of probability that is left; 1 is off.
    pub top_p: f32,
    /// The least probability, in parts of the likeliest token's; 0 is off.
    pub min_p: f32,
    /// The share that is left of the most typical tokens; 1 is off.
    pub typical_p: f32,
    /// For tokens of prompt and text; 1 is off.
    pub repetition_penalty: f32,
    /// For tokens of the text, once; 0 is off.
    pub presence_penalty: f32,
    /// For tokens of the text, as often as they are in it; 0 is off.
    pub frequency_penalty: f32,
    /// What is added to logits of tokens, from −100 to 100.
    pub bias: Vec<(u32, f32)>,
    /// Log-probabilities of the chosen token and so many of the likeliest.
    pub logprobs: Option<usize>,
    /// The same seed gives the same text, whoever else writes.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        let Params { temperature, top_k, top_p, min_p, typical_p, .. } = Params::default();
        Self {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty: Params::default().repetition_penalty,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: vec![],
            logprobs: None,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses what is out of its range.
    ///
    /// # Errors
    /// Names what, and the range.
    pub fn check(&self) -> Result<(), Error> {
        self.params().check_ranges()
    }

    fn params(&self) -> Params<'_> {
        Params {
            // It is another for each position.
            allowed: None,
            bias: &self.bias,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            logprobs: self.logprobs,
        }
    }
}

/// A text's sampling, and the tokens that it has.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    history: History,
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its log-probability, natural, where they were asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens with theirs, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Sampler {
    /// Behind a prompt and what was generated already.
    pub fn new(sampling: Sampling, prompt: &[u32], generated: &[u32]) -> Self {
        let mut history = History::new(prompt);
        generated.iter().for_each(|token| history.push(*token));
        Self { sampling, history }
    }

    /// The token at this position of its sequence, of those that are allowed: bit `i % 32` of word `i / 32` is 1 for token `i`; `None`
    /// allows all.
    ///
    /// # Shapes
    /// `logits`: `[vocabulary]`, of no use afterwards. `allowed`: `[⌈vocabulary / 32⌉]`.
    ///
    /// # Errors
    /// When no token can be chosen.
    pub fn choose(
        &mut self,
        logits: &mut [f32],
        allowed: Option<&[u32]>,
        position: usize,
        scratch: &mut Scratch,
    ) -> Result<Choice, Error> {
        let draw = Draw { seed: self.sampling.seed, position: position as u64 };
        let params = Params { allowed, ..self.sampling.params() };
        let sampled = sample::sample(logits, &params, &self.history, draw, scratch)?;
        let choice = Choice { token: sampled.token, logprob: sampled.logprob, top: sampled.top.to_vec() };
        self.history.push(choice.token);
        Ok(choice)
    }

    /// Adds what [`choose`](Self::choose) would go by to what a device is asked. Returns false, with nothing added, where the choice has to be
    /// made here: because log-probabilities are wanted, or to be refused.
    pub fn ask(&self, allowed: Option<&[u32]>, position: usize, rows: &mut Rows) -> bool {
        let draw = Draw { seed: self.sampling.seed, position: position as u64 };
        let params = Params { allowed, ..self.sampling.params() };
        params.logprobs.is_none() && rows.push(&params, &self.history, draw).is_ok()
    }

    /// A device has chosen as it was asked.
    pub fn accept(&mut self, token: u32) -> Choice {
        self.history.push(token);
        Choice { token, logprob: None, top: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_knows_what_was_written() {
        let sampling = Sampling { temperature: 0.0, frequency_penalty: 1.0, logprobs: Some(1), ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[0], &[2]);
        let mut scratch = Scratch::new();
        let mut next = || sampler.choose(&mut [1.0, 2.5, 3.0], None, 9, &mut scratch).unwrap();
        // 3 − 1 for what was generated, then each by one for each time it is chosen.
        let tokens: Vec<u32> = (0..4).map(|_| next().token).collect();
        assert_eq!(tokens, [1, 2, 1, 0]);
        let choice = next();
        assert_eq!((choice.top.len(), choice.top[0].1), (1, choice.logprob.unwrap()));
    }

    #[test]
    fn what_is_not_allowed_is_not_chosen() {
        let mut sampler = Sampler::new(Sampling::default(), &[0], &[]);
        let mut scratch = Scratch::new();
        for position in 0..100 {
            let choice = sampler.choose(&mut [9.0, 1.0, 9.0, 2.0], Some(&[0b1010]), position, &mut scratch).unwrap();
            assert!([1, 3].contains(&choice.token), "{choice:?}");
        }
        let none = sampler.choose(&mut [1.0; 4], Some(&[0]), 0, &mut scratch);
        assert_eq!(none, Err(Error::NoToken { tokens: 4 }));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let error = Sampling { temperature: 3.0, ..Sampling::default() }.check().unwrap_err().to_string();
        assert!(error.contains("temperature"), "{error}");
        assert_eq!(Sampling::default().check(), Ok(()));
    }
}
