//! A generator without a model, for tests of what stands before it: its next token depends on every token before, as they lie in the
//! blocks of the plan. Who is given another's block, or one that was never written, gets an error or another text.

use super::fake::hash;
use crate::engine::{Device, Error, Generator, GeneratorInfo};
use crate::generate::{Part, Plan};

/// The fake.
#[derive(Debug)]
pub struct FakeGenerator {
    info: GeneratorInfo,
    /// The token that was written at each place of each block.
    cells: Vec<Option<u32>>,
}

/// How far the next token's logit is above all others.
const LEAD: f32 = 8.0;

impl FakeGenerator {
    /// With so many tokens in its vocabulary and so many blocks of so many tokens.
    pub fn new(vocabulary: usize, blocks: usize, block_tokens: usize) -> Self {
        let info = GeneratorInfo {
            backend: "fake",
            provider: "fake".into(),
            device: Device::Cpu,
            execution_class: "fake".into(),
            weights_bytes: 0,
            vocabulary,
            context: blocks * block_tokens,
            block_tokens,
            blocks,
            block_bytes: 1 << 20,
        };
        Self { info, cells: vec![None; blocks * block_tokens] }
    }

    /// The likeliest next token of a text.
    pub fn next(&self, text: &[u32]) -> u32 {
        (hash(text.iter().flat_map(|token| token.to_le_bytes())) % self.info.vocabulary as u64) as u32
    }

    /// Where a token of a part lies.
    fn place(&self, part: &Part<'_>, position: usize) -> Result<usize, Error> {
        let block = part.blocks.get(position / self.info.block_tokens).map(|block| *block as usize);
        let block = block.filter(|block| *block < self.info.blocks);
        let block = block.ok_or_else(|| Error::Input(format!("position {position} has no block")))?;
        Ok(block * self.info.block_tokens + position % self.info.block_tokens)
    }
}

impl Generator for FakeGenerator {
    fn info(&self) -> &GeneratorInfo {
        &self.info
    }

    fn step(&mut self, plan: &Plan, choose: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), Error> {
        for part in plan.parts() {
            for (at, token) in part.tokens.iter().enumerate() {
                let place = self.place(&part, part.position + at)?;
                self.cells[place] = Some(*token);
            }
        }
        for (index, part) in plan.parts().enumerate().filter(|(_, part)| part.is_sampled) {
            let read = |position| self.place(&part, position).map(|place| self.cells[place]);
            let text: Option<Vec<u32>> = (0..part.position + part.tokens.len()).map(read).collect::<Result<_, _>>()?;
            let text = text.ok_or_else(|| Error::Backend { backend: "fake", detail: "an unwritten place".into() })?;
            let next = self.next(&text);
            let mut logits: Vec<f32> = (0..self.info.vocabulary as u32)
                .map(|token| (hash([next, token].iter().flat_map(|id| id.to_le_bytes())) % 1024) as f32 / 1024.0)
                .collect();
            logits[next as usize] += LEAD;
            choose(index, &mut logits);
        }
        Ok(())
    }
}
