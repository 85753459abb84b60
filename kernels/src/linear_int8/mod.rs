//! The dense layer in 8 bits: rows that are put into 8 bits as they come, times weights that were put into 8 bits once. f32 rows
//! come in, f32 rows or some of their columns go out. Never a scale that was learnt from other data: each row has its own.
//!
//! For each row `x` and each output `j`, with `f` the [`Activation`]:
//!
//! ```text
//! s  = (max(x, 0) − min(x, 0)) / 255     z = round(−min(x, 0) / s)     q_p = round(x_p / s) + z     in 0..=255
//! s_j = max_p |w_jp| / 127               v_jp = round(w_jp / s_j)                                   in −127..=127
//! y_j = f(s · s_j · Σ_p (q_p − z) · v_jp + bias_j) + residual_j
//! ```
//!
//! Halves are rounded to even. Sums are exact, in 32 bits, so that a row's result is the same to the last bit in any company and
//! in any order of the inputs. A row that holds NaN or an infinity gives NaN in every output.
//!
//! Off is a sum by what rounding takes: at most `s / 2` an input (`s` at the ends of its range) and `s_j / 2` a weight.
//!
//! # Source
//! Scales by row and by output, computed while it runs: Dettmers et al., LLM.int8(), arXiv:2208.07339, section 2.1 (vector-wise);
//! the zero point: Jacob et al., arXiv:1712.05877, section 2.1.

use std::ops::Range;

use crate::launch::columns::Columns;
use crate::linear::check;

pub mod cpu;
mod pack;
mod simd;
#[cfg(test)]
mod tests;

pub use crate::linear::{Activation, Epilogue, Error};
pub use pack::{Quantized, Rows};

/// `out = f(x · Wᵀ + bias) + residual`, on the instruction set that the weights were packed for.
///
/// # Shapes
/// `x`: `[m, k]`, put into 8 bits for these weights; `weights`: `[n, k]`; `bias`: `[n]`; `residual`, `out`: `[m, n]`. `m` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn linear_int8(x: &Rows, weights: &Quantized, epilogue: &Epilogue<'_>, out: &mut [f32]) -> Result<(), Error> {
    let rows = fitting(x, weights)?;
    check(rows, weights, 0..weights.panels(), epilogue, out.len(), rows)?;
    simd::run(x, weights, 0..weights.panels(), epilogue, Columns::whole(out, weights.outputs()));
    Ok(())
}

/// [`linear_int8`] for some panels of the outputs, so that threads can share one small product: see
/// [`crate::linear::linear_columns`].
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn linear_int8_columns(
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
    if (x.inputs(), x.isa()) != (weights.inputs(), weights.isa()) {
        let (wanted, wanted_isa) = (weights.inputs(), weights.isa());
        return Err(Error::Rows { found: x.inputs(), found_isa: x.isa(), wanted, wanted_isa });
    }
    Ok(x.len())
}
