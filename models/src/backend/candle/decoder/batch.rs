//! A step's plan as the arrays that ops read: parts of sequences come in, checked against the engine's bounds, and what each token and each
//! part is goes to the device in one copy. Never a tensor of numbers that are computed with.

use super::cache::BLOCK_TOKENS;
use crate::engine::{Error, GeneratorInfo};
use crate::generate::Plan;
use candle_core::{Device, Result, Tensor};
use std::ops::Range;

/// One sequence's tokens of a step.
pub(super) struct Run {
    /// Its rows.
    pub(super) rows: Range<usize>,
    /// Position of the first of them.
    pub(super) first: usize,
    /// Its blocks in order, as many as its tokens need.
    pub(super) table: Vec<u32>,
}

impl Run {
    /// Its tokens in the cache, these among them.
    pub(super) fn length(&self) -> usize {
        self.first + self.rows.len()
    }

    /// Where the token at a position lies.
    pub(super) fn slot(&self, position: usize) -> u32 {
        self.table[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
    }
}

/// A step, here.
pub(super) struct Batch {
    pub(super) runs: Vec<Run>,
    ids: Vec<u32>,
    pub(super) positions: Vec<u32>,
    /// How many runs, from the first on, are one token each.
    pub(super) decodes: usize,
    /// Rows whose logits are asked for, in order.
    asked: Vec<u32>,
    /// For how many tokens decodes are laid out: those of the longest, or more.
    reach: usize,
}

/// A step, on the device.
pub(super) struct Arrays {
    /// `[t]`
    pub(super) ids: Tensor,
    /// `[t]`
    pub(super) positions: Tensor,
    /// `[t]`: where each token's key and value go.
    pub(super) slots: Tensor,
    /// `[runs + 1]`: where each run's rows begin, and where the last ones end.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs read it there"))]
    pub(super) cu_queries: Tensor,
    /// `[runs]`: tokens in the cache.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs read it there"))]
    pub(super) lengths: Tensor,
    /// `[runs, blocks of the longest]`
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs read it there"))]
    pub(super) tables: Tensor,
    /// `[asked]`, where any are.
    pub(super) asked: Option<Tensor>,
}

impl Batch {
    /// Checks a plan: what it names is there, so that no code on a device reads or writes elsewhere.
    ///
    /// # Errors
    /// [`Error::Input`], when a part does not fit the model or its cache.
    pub(super) fn new(plan: &Plan, info: &GeneratorInfo) -> std::result::Result<Self, Error> {
        let refuse = |detail: String| Err(Error::Input(detail));
        let mut batch = Self {
            runs: Vec::with_capacity(plan.len()),
            ids: plan.tokens().to_vec(),
            positions: Vec::with_capacity(plan.tokens().len()),
            decodes: plan.decodes(),
            asked: vec![],
            reach: 0,
        };
        for part in plan.parts() {
            let end = part.position + part.tokens.len();
            if part.tokens.is_empty() || end > info.context {
                return refuse(format!("tokens {} to {end} of a context of {}", part.position, info.context));
            }
            if let Some(id) = part.tokens.iter().find(|id| **id as usize >= info.vocabulary) {
                return refuse(format!("token id {id} is not below the vocabulary's {}", info.vocabulary));
            }
            let Some(table) = part.blocks.get(..end.div_ceil(BLOCK_TOKENS)) else {
                return refuse(format!("a table of {} blocks of {BLOCK_TOKENS} for {end} tokens", part.blocks.len()));
            };
            if let Some(block) = table.iter().find(|block| **block as usize >= info.blocks) {
                return refuse(format!("block {block} is not below the cache's {}", info.blocks));
            }
            let first = batch.positions.len();
            batch.positions.extend(part.position as u32..end as u32);
            let rows = first..batch.positions.len();
            if part.is_sampled {
                batch.asked.push(rows.end as u32 - 1);
            }
            batch.runs.push(Run { rows, first: part.position, table: table.to_vec() });
        }
        batch.reach = batch.runs[..batch.decodes].iter().map(Run::length).max().unwrap_or(0);
        Ok(batch)
    }

    /// Whether the logits of every row are asked for.
    pub(super) fn asks_for_all(&self) -> bool {
        self.asked.len() == self.positions.len()
    }

    /// Copies it to a device.
    pub(super) fn arrays(&self, device: &Device) -> Result<Arrays> {
        let numbers = self.numbers();
        let count = numbers.len();
        self.arrays_in(&Tensor::from_vec(numbers, count, device)?)
    }

    /// Blocks of a row of the tables.
    fn width(&self) -> usize {
        let longest = self.runs.iter().map(|run| run.table.len()).max().unwrap_or(0);
        longest.max(self.reach.div_ceil(BLOCK_TOKENS))
    }

    /// All its arrays, one after the other.
    pub(super) fn numbers(&self) -> Vec<u32> {
        let width = self.width();
        let mut all = Vec::with_capacity(3 * self.ids.len() + self.runs.len() * (width + 2) + self.asked.len() + 1);
        all.extend(&self.ids);
        all.extend(&self.positions);
        all.extend(self.runs.iter().flat_map(|run| (run.first..run.length()).map(|position| run.slot(position))));
        all.extend(std::iter::once(0).chain(self.runs.iter().map(|run| run.rows.end as u32)));
        all.extend(self.runs.iter().map(|run| run.length() as u32));
        for run in &self.runs {
            all.extend(&run.table);
            all.resize(all.len() + width - run.table.len(), 0);
        }
        all.extend(&self.asked);
        all
    }

    /// Where they lie in one that is on a device already.
    pub(super) fn arrays_in(&self, all: &Tensor) -> Result<Arrays> {
        let (tokens, runs, width) = (self.ids.len(), self.runs.len(), self.width());
        let mut begin = 0;
        let mut part = |count: usize| {
            begin += count;
            all.narrow(0, begin - count, count)
        };
        Ok(Arrays {
            ids: part(tokens)?,
            positions: part(tokens)?,
            slots: part(tokens)?,
            cu_queries: part(runs + 1)?,
            lengths: part(runs)?,
            tables: part(runs * width)?.reshape((runs, width))?,
            asked: if self.asked.is_empty() { None } else { Some(part(self.asked.len())?) },
        })
    }
}

/// As graphs of a device want it, which replay steps of one shape.
#[cfg(feature = "cuda")]
impl Batch {
    /// How many runs there are, and for how many tokens they are laid out, where each is one token whose logits are asked for.
    pub(super) fn decodes_only(&self) -> Option<(usize, usize)> {
        let is_so = self.decodes == self.runs.len() && self.asks_for_all();
        is_so.then_some((self.decodes, self.reach))
    }

    /// The same step with more runs of one token behind it, which write and read a block that is nobody's, laid out for so many tokens.
    pub(super) fn padded(mut self, runs: usize, reach: usize, spare: u32) -> Self {
        for row in self.runs.len()..runs {
            self.ids.push(0);
            self.positions.push(0);
            self.asked.push(row as u32);
            self.runs.push(Run { rows: row..row + 1, first: 0, table: vec![spare] });
        }
        (self.decodes, self.reach) = (runs, reach);
        self
    }

    /// Splits of the keys that a decode sees at most, of so many keys each, through a window.
    pub(super) fn splits(&self, of: usize, window: Option<usize>) -> usize {
        let all = self.reach.div_ceil(of);
        // A window may begin and end within a split.
        window.map_or(all, |window| all.min(window / of + 2))
    }
}
