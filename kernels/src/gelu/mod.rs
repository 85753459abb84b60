//! GELU in its exact form, with the bias addition in front of it where there is one. Rows come in and are replaced. Never
//! the tanh approximation: a model that was trained with that one needs another op.
//!
//! For each element, with `u = x + bias` (rounded to the storage type, as when the two steps are apart):
//!
//! ```text
//! y = u · Φ(u) = u/2 · (1 + erf(u/√2))
//! ```
//!
//! The vector code is off by at most [`ERROR_MAX`] plus half a unit in the last place of `y`, and gives the same bits on
//! every instruction set that has a fused multiply-add. −∞ gives the limit 0 to within that error (PyTorch's formula gives NaN there).
//!
//! # Source
//! Hendrycks, Gimpel: Gaussian Error Linear Units, 2016, arXiv:1606.08415, section 2.

use crate::launch::{self, Isa};

pub mod cpu;
mod simd;
#[cfg(test)]
mod tests;

/// How far the vector code is off beside the last rounding; `tests.rs` measures it. f32 itself is that coarse at 2.
pub const ERROR_MAX: f32 = 2e-7;

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The input is not whole rows.
    #[error("gelu: {elements} elements are not whole rows of {dim}, the length of the bias")]
    Rows {
        /// Elements of the input.
        elements: usize,
        /// Elements of the bias.
        dim: usize,
    },
}

/// Replaces each element of `x` by its GELU, after adding the bias where there is one.
///
/// # Shapes
/// `x`: `[rows, d]`, row-major, f32; `bias`: `[d]`. Without a bias any length; `rows` may be 0.
///
/// # Errors
/// [`Error`], when `x` is not whole rows of the bias's length.
pub fn gelu(x: &mut [f32], bias: Option<&[f32]>) -> Result<(), Error> {
    gelu_on(launch::isa(), x, bias)
}

/// [`gelu`] on an instruction set of the caller's choice.
pub(crate) fn gelu_on(isa: Isa, x: &mut [f32], bias: Option<&[f32]>) -> Result<(), Error> {
    check(x, bias)?;
    launch::lanes::run(isa, simd::Gelu { x, bias });
    Ok(())
}

fn check(x: &[f32], bias: Option<&[f32]>) -> Result<(), Error> {
    match bias {
        // A number is a multiple of zero only if it is zero.
        Some(bias) if !x.len().is_multiple_of(bias.len()) => Err(Error::Rows { elements: x.len(), dim: bias.len() }),
        _ => Ok(()),
    }
}
