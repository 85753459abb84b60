//! What is asked of the scheduler and how it ends: a request comes in, a refusal with its figures or one end goes out.

use std::time::{Duration, Instant};

pub use models::generate::SequenceId;

use crate::device::ledger::Size;

/// A text to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The prompt's tokens, with the special ones. Not empty.
    pub prompt: Vec<u32>,
    /// Tokens that were generated already, elsewhere or by force: it goes on behind them.
    pub generated: Vec<u32>,
    /// Generated tokens at most, those that are there already included.
    pub new_tokens_max: usize,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// When its text is of no use any more.
    pub deadline: Option<Instant>,
    /// Only requests with the same salt share blocks. Whoever can time its own requests can tell whether a text is cached: give those who must
    /// not know of each other, and different adapters of a model, different salts, with a secret in them.
    pub salt: u64,
}

/// Why a request is not admitted. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to continue.
    #[error("the prompt holds no token; give it at least one")]
    Empty,
    /// There is nothing to generate.
    #[error("{generated} tokens are generated and at most {new_tokens_max} are wanted; ask for more")]
    Complete {
        /// Those that came with the request.
        generated: usize,
        /// As asked.
        new_tokens_max: usize,
    },
    /// A priority that there is not.
    #[error("priority {0} is above 9; give 0 to 9")]
    Priority(u8),
    /// Its deadline has passed.
    #[error("its deadline passed {} ms ago; allow more time", by.as_millis())]
    Late {
        /// How long ago.
        by: Duration,
    },
    /// It is longer than the model's context.
    #[error(
        "a prompt of {prompt} tokens and {new_tokens_max} new ones are more than the context of {context_max}; shorten the \
         prompt, or ask for at most {} new ones", context_max.saturating_sub(*prompt)
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// As asked.
        new_tokens_max: usize,
        /// Tokens that one sequence may have.
        context_max: usize,
    },
    /// It would not fit into the KV cache if it were alone.
    #[error(
        "needs {} of KV cache for {tokens} tokens ({needed_blocks} blocks), {} are free of {} ({free_blocks} of {total_blocks}); \
         shorten the prompt, ask for fewer new tokens, or give the model more memory",
        Size(*needed_blocks as u64 * block_bytes), Size(*free_blocks as u64 * block_bytes), Size(*total_blocks as u64 * block_bytes)
    )]
    Memory {
        /// Tokens of the prompt and new ones.
        tokens: usize,
        /// Blocks that they take.
        needed_blocks: usize,
        /// Blocks that no sequence holds now.
        free_blocks: usize,
        /// All blocks.
        total_blocks: usize,
        /// Bytes of one block.
        block_bytes: u64,
    },
    /// As many wait as may. Later there may be room.
    #[error("{waiting} requests wait, as many as may; try again later")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
}

impl Refusal {
    /// Whether the same request may be admitted later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::QueueFull { .. })
    }
}

/// What the caller found in a sampled token that ends a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A token that ends texts.
    Token,
    /// A string that was asked to end it.
    Text,
    /// The grammar allows nothing more.
    Grammar,
}

/// Why a text is at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The caller said so with its last token.
    Stopped(Stop),
    /// It has as many tokens as were wanted.
    Length,
    /// It was called off.
    Cancelled,
    /// Its deadline passed.
    Deadline,
}

/// The end of a request. Every admitted one has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub id: SequenceId,
    /// Why.
    pub end: End,
    /// Tokens of the prompt, without those that were generated elsewhere.
    pub prompt_tokens: usize,
    /// Tokens that were never computed for it, because the cache had them when it came to them.
    pub cached_tokens: usize,
    /// Tokens that were generated here.
    pub new_tokens: usize,
    /// How often its blocks were taken and computed again.
    pub preemptions: u32,
    /// From its arrival to when it was first begun.
    pub queued: Option<Duration>,
    /// From its arrival to its first token.
    pub first_token: Option<Duration>,
    /// From its arrival to its end.
    pub total: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_figures_and_what_to_do() {
        let memory = Refusal::Memory {
            tokens: 32_768,
            needed_blocks: 2_048,
            free_blocks: 900,
            total_blocks: 1_000,
            block_bytes: 4_876_000,
        };
        let text = memory.to_string();
        assert!(
            text.starts_with(
                "needs 9523 MiB of KV cache for 32768 tokens (2048 blocks), 4185 MiB are free of 4650 MiB"
            ),
            "{text}"
        );
        let context = Refusal::Context { prompt: 1_000, new_tokens_max: 2_000, context_max: 2_048 };
        assert!(context.to_string().ends_with("ask for at most 1048 new ones"), "{context}");
        assert!(Refusal::QueueFull { waiting: 3 }.is_transient() && !context.is_transient());
    }
}
