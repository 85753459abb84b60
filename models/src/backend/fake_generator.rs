//! A generator without a model, for tests of what stands before it: its next token depends on every token before, as they lie in the
//! blocks of the plan. Who is given another's block, or one that was never written, gets an error or another text.

use super::fake::{self, hash};
use crate::engine::{Choose, Device, Error, Generator, GeneratorInfo, Rows};
use crate::generate::{Part, Plan};
use crate::load::{LoadedText, TextNeed};
use crate::task::Tokenizer;
use crate::task::generate::language::{Files, Language};
use crate::task::generate::sampling::Scratch;
use serde_json::{Value, json};
use std::sync::Arc;

/// The fake.
#[derive(Debug)]
pub struct FakeGenerator {
    info: GeneratorInfo,
    /// The token that was written at each place of each block.
    cells: Vec<Option<u32>>,
    /// Tokens below this are never the likeliest.
    first: u32,
    /// Whether marked tokens do what they say.
    is_marked: bool,
    /// Whether it chooses tokens itself where it may, as devices do.
    chooses: bool,
}

/// What the fake that is loaded as a model has of everything: enough for a dozen short texts.
pub const NEED: TextNeed =
    TextNeed { weights_bytes: 0, block_bytes: 1 << 10, block_tokens: BLOCK_TOKENS, context: CONTEXT };
const BLOCK_TOKENS: usize = 4;
const CONTEXT: usize = 512;
const VOCABULARY: u32 = 256;

/// A fake that writes, as a model: its words are numbers, its template writes contents one after the other, and a marked word in a prompt
/// makes the step fail that reads it.
pub fn loaded(cache_bytes: u64) -> LoadedText {
    let blocks = (cache_bytes / NEED.block_bytes) as usize;
    let mut fake = FakeGenerator::new(VOCABULARY as usize, blocks, BLOCK_TOKENS);
    fake.info.context = CONTEXT.min(fake.info.context);
    (fake.info.block_bytes, fake.first, fake.is_marked) = (NEED.block_bytes, Tokenizer::FIRST_WORD, true);
    let tokenizer = Tokenizer::words(VOCABULARY, fake::MARKED);
    let config = json!({"chat_template": "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"});
    let files = Files { config: &Value::Null, generation: &Value::Null, tokenizer: &config, template: None };
    let language = Language::new(tokenizer, files).expect("its own template can be read");
    LoadedText { language: Arc::new(language), generator: Box::new(fake), choice: "the fake was asked for".into() }
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
        Self { info, cells: vec![None; blocks * block_tokens], first: 0, is_marked: false, chooses: false }
    }

    /// Chooses tokens itself where it may.
    pub fn choosing(self) -> Self {
        Self { chooses: true, ..self }
    }

    /// The likeliest next token of a text.
    pub fn next(&self, text: &[u32]) -> u32 {
        let count = self.info.vocabulary as u64 - u64::from(self.first);
        self.first + (hash(text.iter().flat_map(|token| token.to_le_bytes())) % count) as u32
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
            if self.is_marked {
                part.tokens.iter().try_for_each(|token| fake::heed(*token))?;
            }
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

    fn step_and_choose(&mut self, plan: &Plan, choose: &mut dyn Choose) -> Result<(), Error> {
        let mut rows = Rows::new(self.info.vocabulary);
        let (chooses, mut scratch) = (self.chooses, Scratch::new());
        self.step(plan, &mut |at, logits| {
            if chooses && choose.ask(at, &mut rows) {
                choose.chosen(at, rows.choose(rows.len() - 1, logits, &mut scratch));
            } else {
                choose.logits(at, logits);
            }
        })
    }
}
