//! The gated linear unit behind its two products. Rows of both halves come in, rows of one half's width go out. Never the
//! products themselves.
//!
//! For each row, whose first half is `a` and whose second is `b`, with `f` the [`Activation`]:
//!
//! ```text
//! y = f(a) · b
//! ```
//!
//! # Source
//! Shazeer: GLU Variants Improve Transformer, 2020, arXiv:2002.05202, equation 5 (GEGLU, SwiGLU).

use crate::launch::{self, Isa};
use crate::linear::Activation;

pub mod cpu;
mod simd;
#[cfg(test)]
mod tests;

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The lengths do not fit.
    #[error(
        "glu: an input of {input} elements and an output of {output}, in rows of {dim}; the first must be twice the second, in whole rows"
    )]
    Length {
        /// Elements of the input.
        input: usize,
        /// Elements of the output.
        output: usize,
        /// Elements of a row of the output.
        dim: usize,
    },
}

/// `out = f(first half of x) · second half of x`, row by row.
///
/// # Shapes
/// `x`: `[rows, 2 · dim]`, row-major, f32; `out`: `[rows, dim]`. `rows` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn glu(x: &[f32], dim: usize, activation: Activation, out: &mut [f32]) -> Result<(), Error> {
    glu_on(launch::isa(), x, dim, activation, out)
}

/// [`glu`] on an instruction set of the caller's choice.
pub(crate) fn glu_on(isa: Isa, x: &[f32], dim: usize, activation: Activation, out: &mut [f32]) -> Result<(), Error> {
    check(x, dim, out)?;
    launch::lanes::run(isa, simd::Glu { x, dim, activation, out });
    Ok(())
}

fn check(x: &[f32], dim: usize, out: &[f32]) -> Result<(), Error> {
    if dim == 0 || !out.len().is_multiple_of(dim) || out.len().checked_mul(2) != Some(x.len()) {
        return Err(Error::Length { input: x.len(), output: out.len(), dim });
    }
    Ok(())
}
