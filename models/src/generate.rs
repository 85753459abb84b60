//! What one step of text generation runs: which tokens of which sequences, and where each sequence's keys and values lie. Plain data
//! between the scheduler that makes a plan and the engine that carries it out. Never here: a choice, a tensor, a type of a backend.
//!
//! # The KV cache
//! An engine keeps the keys and values of all sequences in one pool of numbered blocks of so many tokens each (paged attention).
//! A sequence's block table names its blocks in order: the token at position `p` lies in block `blocks[p / block_tokens]`, there at
//! `p % block_tokens`. Two sequences may have leading blocks in common; then only read them. A step writes at the positions of its
//! tokens, and the blocks of these belong to that one sequence.
//!
//! # Source
//! Paged attention: Kwon et al. 2023, arXiv 2309.06180. Decodes and chunks of prompts in one step: Agrawal et al. 2024,
//! arXiv 2403.02310.

/// A sequence's number. Never used twice while an engine lives.
pub type SequenceId = u64;

/// A block's number in the pool, from 0.
pub type BlockId = u32;

/// What a step runs. Made once and filled again for each step, so that steps allocate nothing once it has grown.
///
/// First come the sequences that run one token and want the next (decodes), then chunks of longer ones (prefills): see
/// [`decodes`](Self::decodes).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    parts: Vec<Ends>,
    tokens: Vec<u32>,
    blocks: Vec<BlockId>,
    decodes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ends {
    sequence: SequenceId,
    position: usize,
    is_sampled: bool,
    tokens_end: usize,
    blocks_end: usize,
}

/// What a step runs of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// Which sequence.
    pub sequence: SequenceId,
    /// The tokens to run, `[n]`, n ≥ 1: a chunk of the prompt, or the last token.
    pub tokens: &'a [u32],
    /// Position of the first of them in the sequence. The keys and values of all before it are in the cache.
    pub position: usize,
    /// The block table, `[⌈(position + n) / block_tokens⌉]`.
    pub blocks: &'a [BlockId],
    /// Whether a token is to be sampled from the logits of the last of them.
    pub is_sampled: bool,
}

/// A token that was sampled after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    /// Of which sequence.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
}

impl Plan {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.tokens.clear();
        self.blocks.clear();
        self.decodes = 0;
    }

    /// Adds what is run of a sequence. Decodes come first.
    pub fn push(&mut self, part: Part<'_>) {
        let is_decode = part.tokens.len() == 1 && part.is_sampled;
        if is_decode && self.decodes == self.parts.len() {
            self.decodes += 1;
        }
        self.tokens.extend_from_slice(part.tokens);
        self.blocks.extend_from_slice(part.blocks);
        self.parts.push(Ends {
            sequence: part.sequence,
            position: part.position,
            is_sampled: part.is_sampled,
            tokens_end: self.tokens.len(),
            blocks_end: self.blocks.len(),
        });
    }

    /// How many sequences are in it.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The tokens of all parts, one after another, `[sum of n]`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many parts, from the first on, run one token and sample the next.
    pub fn decodes(&self) -> usize {
        self.decodes
    }

    /// One part.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn part(&self, at: usize) -> Part<'_> {
        let (tokens, blocks) = match at.checked_sub(1) {
            Some(before) => (self.parts[before].tokens_end, self.parts[before].blocks_end),
            None => (0, 0),
        };
        let ends = &self.parts[at];
        Part {
            sequence: ends.sequence,
            tokens: &self.tokens[tokens..ends.tokens_end],
            position: ends.position,
            blocks: &self.blocks[blocks..ends.blocks_end],
            is_sampled: ends.is_sampled,
        }
    }

    /// The parts, in order.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Part<'_>> {
        (0..self.len()).map(|at| self.part(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_as_they_went_in_also_the_second_time() {
        let decode = Part { sequence: 7, tokens: &[5], position: 33, blocks: &[4, 1, 9], is_sampled: true };
        let chunk = Part { sequence: 2, tokens: &[1, 2, 3], position: 0, blocks: &[3], is_sampled: false };
        let last = Part { sequence: 3, tokens: &[8], position: 0, blocks: &[2], is_sampled: true };
        let mut plan = Plan::default();
        for parts in [vec![decode, chunk, last], vec![chunk], vec![]] {
            plan.clear();
            parts.iter().for_each(|part| plan.push(*part));
            assert_eq!(plan.parts().collect::<Vec<_>>(), parts);
            assert_eq!((plan.len(), plan.is_empty()), (parts.len(), parts.is_empty()));
            assert_eq!(plan.tokens(), parts.iter().flat_map(|part| part.tokens).copied().collect::<Vec<_>>());
        }
        for part in [decode, chunk, last] {
            plan.push(part);
        }
        assert_eq!(plan.decodes(), 1, "one behind a chunk is not among the first");
    }
}
