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
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs treat them apart"))]
    pub(super) decodes: usize,
    /// Rows whose logits are asked for, in order.
    asked: Vec<u32>,
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
        Ok(batch)
    }

    /// Copies it to a device.
    pub(super) fn arrays(&self, device: &Device) -> Result<Arrays> {
        let blocks = self.runs.iter().map(|run| run.table.len()).max().unwrap_or(0);
        let mut all = Vec::with_capacity(3 * self.ids.len() + self.runs.len() * (blocks + 2) + self.asked.len() + 1);
        let mut ends = vec![];
        let mut put = |numbers: &mut dyn Iterator<Item = u32>| {
            all.extend(numbers);
            ends.push(all.len());
        };
        put(&mut self.ids.iter().copied());
        put(&mut self.positions.iter().copied());
        put(&mut self.runs.iter().flat_map(|run| (run.first..run.length()).map(|position| run.slot(position))));
        put(&mut std::iter::once(0).chain(self.runs.iter().map(|run| run.rows.end as u32)));
        put(&mut self.runs.iter().map(|run| run.length() as u32));
        put(&mut self
            .runs
            .iter()
            .flat_map(|run| run.table.iter().copied().chain(std::iter::repeat_n(0, blocks - run.table.len()))));
        put(&mut self.asked.iter().copied());
        let count = all.len();
        let all = Tensor::from_vec(all, count, device)?;
        let part = |which: usize| {
            let first = which.checked_sub(1).map_or(0, |before| ends[before]);
            all.narrow(0, first, ends[which] - first)
        };
        Ok(Arrays {
            ids: part(0)?,
            positions: part(1)?,
            slots: part(2)?,
            cu_queries: part(3)?,
            lengths: part(4)?,
            tables: part(5)?.reshape((self.runs.len(), blocks))?,
            asked: if self.asked.is_empty() { None } else { Some(part(6)?) },
        })
    }
}
