//! The dense layer whose weights are GGUF's blocks of 4 to 8 bits: rows that are put into 8 bits as they come, times blocks that
//! were packed once. f32 rows come in, f32 rows or some of their columns go out. Never a weight that is another number than in the
//! file.
//!
//! For each row `x` and each output `j`, with `w` the weights that [`dequantize`] gives, `b(p)` the block of input `p` (32 inputs for
//! Q8_0, 256 for the others) and `f` the [`Activation`]:
//!
//! ```text
//! s_b = max_(p in b) |x_p| / 127     q_p = round(x_p / s_b(p))                in −127..=127
//! y_j = f(Σ_b s_b · Σ_(p in b) q_p · w_jp + bias_j) + residual_j
//! ```
//!
//! Halves are rounded to even. Within a block sums are whole numbers in 32 bits, which are exact; the blocks' sums are multiplied and
//! added in f32, in the order of the inputs and never in one step, so that a row's result is the same to the last bit in any company
//! and on every instruction set, but for what an [`Activation`] computes. A row that holds NaN or an infinity gives NaN in every
//! output.
//!
//! Off is a sum by what rounding the rows takes: at most `s_b / 2` an input.
//!
//! # Source
//! Rows in 8 bits with a scale for each block beside blocks of weights: as ggml does it (`Q8_0`, `Q8_K`). The format is described in
//! [`Blocks`].

use std::ops::Range;

use crate::launch::columns::Columns;
use crate::linear::{self, check};

mod blocks;
pub mod cpu;
mod pack;
mod quantize;
mod rows;
mod simd;
mod small;
#[cfg(test)]
mod tests;
mod tile;
mod tiled;

pub use crate::linear::{Activation, Epilogue};
pub use blocks::{Blocks, dequantize};
pub use pack::Quantized;
pub use quantize::quantize;
pub use rows::Rows;

/// Scales so small that they have no inverse are as good as none.
const MINIMUM_SCALE: f32 = f32::MIN_POSITIVE;

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// What every dense layer refuses.
    #[error(transparent)]
    Linear(#[from] linear::Error),
    /// Rows that are not whole blocks.
    #[error(
        "linear_quantized: rows of {inputs} elements are not whole blocks of {blocks:?}, which have {}; store these weights in \
         another type",
        .blocks.elements()
    )]
    Inputs {
        /// Elements of a row.
        inputs: usize,
        /// The type of a block.
        blocks: Blocks,
    },
    /// Bytes that are not whole rows.
    #[error(
        "linear_quantized: {bytes} bytes of weights are not rows of {inputs} elements in {blocks:?}, which have {row} bytes each"
    )]
    Bytes {
        /// How many there are.
        bytes: usize,
        /// Elements of a row.
        inputs: usize,
        /// Bytes of a row.
        row: usize,
        /// The type of a block.
        blocks: Blocks,
    },
    /// NaN or an infinity among the scales of weights.
    #[error("linear_quantized: a scale of the weights of output {output} is NaN or infinite; the file is damaged")]
    NotFinite {
        /// The first output of which that is so.
        output: usize,
    },
    /// NaN or an infinity among numbers that become blocks.
    #[error("linear_quantized: number {index} is NaN or infinite; it has no form in a block")]
    NotANumber {
        /// The first of them.
        index: usize,
    },
    /// Numbers that need a scale which f16 has not.
    #[error("linear_quantized: the numbers from {index} on are too large for a scale of {blocks:?}, which is an f16")]
    TooLarge {
        /// The first of the block.
        index: usize,
        /// The type of the block.
        blocks: Blocks,
    },
    /// Rows that were put into 8 bits for other weights.
    #[error(
        "linear_quantized: rows of {found} inputs in blocks of {found_block} meet weights of {wanted} inputs in blocks of {wanted_block}"
    )]
    Rows {
        /// Inputs of the rows.
        found: usize,
        /// Inputs of the rows that have one scale.
        found_block: usize,
        /// Inputs of the weights.
        wanted: usize,
        /// Elements of their blocks.
        wanted_block: usize,
    },
}

/// `out = f(x · Wᵀ + bias) + residual`, on the instruction set that the weights were packed for.
///
/// # Shapes
/// `x`: `[m, k]`, put into 8 bits for these weights or for others of the same inputs whose blocks have as many elements; `weights`:
/// `[n, k]`; `bias`: `[n]`; `residual`, `out`: `[m, n]`. `m` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn linear_quantized(x: &Rows, weights: &Quantized, epilogue: &Epilogue<'_>, out: &mut [f32]) -> Result<(), Error> {
    let rows = fitting(x, weights)?;
    check(rows, weights, 0..weights.panels(), epilogue, out.len(), rows)?;
    simd::run(x, weights, 0..weights.panels(), epilogue, Columns::whole(out, weights.outputs()));
    Ok(())
}

/// [`linear_quantized`] for some panels of the outputs, so that threads can share one small product: see
/// [`crate::linear::linear_columns`].
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn linear_quantized_columns(
    x: &Rows,
    weights: &Quantized,
    panels: Range<usize>,
    epilogue: &Epilogue<'_>,
    out: Columns<'_>,
) -> Result<(), Error> {
    check(fitting(x, weights)?, weights, panels.clone(), epilogue, out.rows() * out.width(), out.rows())?;
    simd::run(x, weights, panels, epilogue, out);
    Ok(())
}

/// How many rows there are.
fn fitting(x: &Rows, weights: &Quantized) -> Result<usize, Error> {
    let (found, wanted) = (x.shape(), (weights.inputs(), weights.blocks().elements()));
    if found != wanted {
        let ((found, found_block), (wanted, wanted_block)) = (found, wanted);
        return Err(Error::Rows { found, found_block, wanted, wanted_block });
    }
    Ok(x.len())
}
