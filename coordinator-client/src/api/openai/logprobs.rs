//! Log-probabilities in OpenAI's two shapes: one for chat, an older one for completions.

use crate::wire::text::TokenLogprob;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// What OpenAI writes for a probability of nothing: JSON has no infinity.
const LOGPROB_MIN: f32 = -9999.0;

/// A chat's.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// Of each token of the text.
    pub content: Vec<ChatLogprob>,
    /// Always null: nothing is refused in words here.
    #[schema(value_type = Option<Object>)]
    pub refusal: (),
}

/// A token's.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprob {
    /// What it says and how likely it was.
    #[serde(flatten)]
    pub token: Likelihood,
    /// The likeliest in its place, likeliest first.
    pub top_logprobs: Vec<Likelihood>,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Likelihood {
    /// What it says.
    pub token: String,
    /// The bytes of that; null for a part of a character.
    pub bytes: Option<Vec<u8>>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl Likelihood {
    fn new(TokenLogprob { text, logprob, .. }: &TokenLogprob) -> Self {
        let is_whole = !text.contains(char::REPLACEMENT_CHARACTER);
        let bytes = is_whole.then(|| text.as_bytes().to_vec());
        Self { token: text.clone(), bytes, logprob: finite(*logprob) }
    }
}

impl ChatLogprobs {
    /// Of these tokens; nothing where they were not asked for.
    pub(super) fn new(tokens: &[TokenLogprob]) -> Option<Self> {
        let one = |token: &TokenLogprob| ChatLogprob {
            token: Likelihood::new(token),
            top_logprobs: token.top.iter().map(Likelihood::new).collect(),
        };
        (!tokens.is_empty()).then(|| Self { content: tokens.iter().map(one).collect(), refusal: () })
    }
}

/// A completion's: lists of the same length, one entry per token.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// What each says.
    pub tokens: Vec<String>,
    /// Natural logarithm of each one's probability.
    pub token_logprobs: Vec<f32>,
    /// The likeliest in each place by what they say, the chosen one among them.
    #[schema(value_type = Vec<std::collections::BTreeMap<String, f32>>)]
    pub top_logprobs: Vec<ByText>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// Log-probabilities by text, likeliest first.
#[derive(Debug, Clone, PartialEq)]
pub struct ByText(Vec<(String, f32)>);

impl Serialize for ByText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, logprob) in &self.0 {
            map.serialize_entry(text, logprob)?;
        }
        map.end()
    }
}

impl CompletionLogprobs {
    /// Of these tokens, which stand behind so many characters of text; nothing where they were not asked for.
    pub(super) fn new(tokens: &[TokenLogprob], behind: &mut usize) -> Option<Self> {
        if tokens.is_empty() {
            return None;
        }
        let offset = |token: &TokenLogprob| {
            let here = *behind;
            *behind += token.text.chars().count();
            here
        };
        Some(Self {
            tokens: tokens.iter().map(|token| token.text.clone()).collect(),
            token_logprobs: tokens.iter().map(|token| finite(token.logprob)).collect(),
            top_logprobs: tokens.iter().map(by_text).collect(),
            text_offset: tokens.iter().map(offset).collect(),
        })
    }
}

/// Two tokens may say the same: the likelier one stands for both.
fn by_text(token: &TokenLogprob) -> ByText {
    let mut entries: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
    for entry in token.top.iter().chain([token]) {
        if entries.iter().all(|(text, _)| *text != entry.text) {
            entries.push((entry.text.clone(), finite(entry.logprob)));
        }
    }
    ByText(entries)
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
