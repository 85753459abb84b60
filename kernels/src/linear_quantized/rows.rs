//! Rows in 8 bits, as the innermost loop reads them. f32 come in, whole numbers with their scales go out. Never anything of one
//! instruction set: the same rows serve them all.

use super::{Error, Quantized, simd};
use crate::launch::aligned::Aligned;
use crate::linear;

/// Inputs of a lane of a vector: a word of 32 bits.
pub(super) const GROUP: usize = 4;

/// Elements of the smaller blocks.
const SMALL: usize = 32;

/// Rows in 8 bits, with a scale for as many inputs as a block of weights has. The memory is kept for the next ones.
#[derive(Debug, Default)]
pub struct Rows {
    /// Inputs, and inputs of a block; 0 while there is none.
    inputs: usize,
    block: usize,
    count: usize,
    /// `q`, four i8 in each word: `[rows, k / 4]`, and what is left of longer ones. It begins at a cache line, so that no tile's row
    /// lies across two of them where it need not.
    pub(super) words: Aligned,
    /// `s`: `[rows, blocks]`.
    pub(super) scales: Vec<f32>,
    /// The sums of `q` over every 16 inputs, two i16 in each word: `[rows, k / 32]`.
    pub(super) sums_16: Vec<u32>,
    /// The sums of `q` over every 32 inputs: `[rows, k / 32]`. Only blocks of 32 need them.
    pub(super) totals: Vec<f32>,
    /// The sums over every 32 inputs, two i16 in each word: `[rows, k / 64]`. Blocks of 32 do not need them.
    pub(super) sums_32: Vec<u32>,
    /// For weights of 6 bits, from which 32 is to be taken: −32 times the sums over the first two and over the last two inputs of every group of 4,
    /// over every 16 inputs: two i16 in each word, `[rows, k / 16]`. Blocks of 32 do not need them.
    pub(super) excess_16: Vec<u32>,
    /// One row of whole numbers.
    pub(super) whole: Aligned,
}

impl Rows {
    /// Puts rows `x: [m, k]` into 8 bits. They serve these weights, and all others of as many inputs whose blocks have as many
    /// elements: rows for Q4_K serve Q5_K and Q6_K, those for Q8_0 serve Q5_0. What it held before is gone.
    ///
    /// # Errors
    /// [`linear::Error::Input`], when `x` is not whole rows.
    pub fn quantize(&mut self, x: &[f32], weights: &Quantized) -> Result<(), Error> {
        self.count = linear::rows(x, weights)?;
        (self.inputs, self.block) = (weights.inputs(), weights.blocks().elements());
        let (count, k) = (self.count, self.inputs);
        self.words.at_least(count * k / GROUP);
        self.scales.resize(count * k / self.block, 0.0);
        let of_sums = if self.block == SMALL { 0 } else { count * k };
        self.sums_16.resize(count * k / 32, 0);
        self.totals.resize(if self.block == SMALL { count * k / 32 } else { 0 }, 0.0);
        self.sums_32.resize(of_sums / 64, 0);
        self.excess_16.resize(of_sums / 16, 0);
        simd::quantize(x, weights.isa(), self.block, self);
        Ok(())
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Inputs of a row, and how many of them have one scale.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.inputs, self.block)
    }

    /// `q_p` of a row.
    pub(super) fn get(&self, row: usize, p: usize) -> i8 {
        self.words.words()[(row * self.inputs + p) / GROUP].to_le_bytes()[p % GROUP].cast_signed()
    }

    /// The scale of a row's block.
    pub(super) fn scale(&self, row: usize, block: usize) -> f32 {
        self.scales[row * (self.inputs / self.block) + block]
    }
}
