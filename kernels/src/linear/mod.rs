//! The dense layer: rows times weights that were packed once, with what follows it done while the result is in the cache.
//! Rows come in, rows or some of their columns go out. Never a gradient, never weights in another order than the packing's.
//!
//! For each row `x` and each output `j`, with `f` the [`Activation`]:
//!
//! ```text
//! y_j = f(Σ_p x_p · w_jp + bias_j) + residual_j
//! ```
//!
//! Sums are f32, in the order of `p` within blocks of some hundred, which are then added: a row's result is the same to the
//! last bit whatever other rows are there. Weights are computed with as they are stored: f16 and bf16 are widened, never rounded again.
//! On CUDA the product is cuBLAS', and `cuda.cu` is what comes behind it.
//!
//! # Source
//! The blocking is that of Goto, van de Geijn: Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008, with
//! the roles of the operands exchanged: the weights are the operand that is packed, and they are packed once.

use std::ops::Range;

use crate::launch::Isa;
use crate::launch::columns::Columns;
use crate::launch::lanes::Lanes;
use crate::launch::math;
use crate::launch::panels::Shape;
use crate::stored::Stored;

pub mod cpu;
pub(crate) mod pack;
pub(crate) mod simd;
#[cfg(test)]
mod tests;

pub use pack::Packed;

/// What is done to a sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x · Φ(x)`, see [`crate::gelu`].
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: Hendrycks, Gimpel, arXiv:1606.08415, section 2.
    GeluTanh,
    /// `x / (1 + e^(−x))`: Elfwing et al., arXiv:1702.03118.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh x`, as the poolers of classifiers have it.
    Tanh,
}

impl Activation {
    /// On one vector.
    #[inline(always)]
    pub(crate) fn vector<L: Lanes>(self, l: L, x: L::V) -> L::V {
        match self {
            Self::None => x,
            Self::Gelu => math::gelu(l, x),
            Self::GeluTanh => math::gelu_tanh(l, x),
            Self::Silu => math::silu(l, x),
            Self::Relu => l.max(l.splat(0.0), x),
            Self::Tanh => math::tanh(l, x),
        }
    }

    /// As the formula says it.
    pub(crate) fn exact(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Gelu => crate::gelu::cpu::point(x),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                // The same as with tanh, but without the cancellation of 1 and tanh for negative x.
                x / (1.0 + (-2.0 * inner).exp())
            }
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Tanh => x.tanh(),
        }
    }
}

/// What follows the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `bias: [n]`, added before the activation.
    pub bias: Option<&'a [f32]>,
    /// Done to the sum.
    pub activation: Activation,
    /// `residual: [m, n]`, added after the activation.
    pub residual: Option<&'a [f32]>,
}

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Weights of no size.
    #[error("linear: weights of {outputs} outputs and {inputs} inputs; both must be at least 1")]
    Empty {
        /// Rows of the weights.
        outputs: usize,
        /// Columns of the weights.
        inputs: usize,
    },
    /// A part of the weights is not whole rows.
    #[error("linear: {bytes} bytes of weights are not rows of {inputs} inputs in {stored:?}")]
    Weights {
        /// Its length.
        bytes: usize,
        /// Elements of a row.
        inputs: usize,
        /// The type of an element.
        stored: Stored,
    },
    /// The input is not whole rows.
    #[error("linear: the input has {elements} elements, which are not rows of {inputs}")]
    Input {
        /// How many it has.
        elements: usize,
        /// Elements of a row.
        inputs: usize,
    },
    /// Bias, residual or output do not fit.
    #[error("linear: {what} has {found} elements, {wanted} are needed")]
    Length {
        /// `bias`, `residual` or `output`.
        what: &'static str,
        /// How many it has.
        found: usize,
        /// How many it needs.
        wanted: usize,
    },
    /// More inputs than sums of 32 bits hold.
    #[error("linear_int8: weights of {inputs} inputs; at most {most} can be multiplied in 8 bits")]
    Inputs {
        /// How many there are.
        inputs: usize,
        /// How many there may be.
        most: usize,
    },
    /// NaN or an infinity among weights that become whole numbers.
    #[error("linear_int8: the weights of output {output} hold NaN or an infinity; they have no form in 8 bits")]
    NotFinite {
        /// The first output of which that is so.
        output: usize,
    },
    /// Rows that were put into 8 bits for other weights.
    #[error("linear_int8: rows of {found} inputs for {found_isa} meet weights of {wanted} inputs for {wanted_isa}")]
    Rows {
        /// Inputs of the rows.
        found: usize,
        /// What they were put into 8 bits for.
        found_isa: Isa,
        /// Inputs of the weights.
        wanted: usize,
        /// What those were packed for.
        wanted_isa: Isa,
    },
    /// Panels that are not there.
    #[error("linear: panels {first} to {end} are asked for of {panels}")]
    Panels {
        /// The first.
        first: usize,
        /// The one behind the last.
        end: usize,
        /// How many there are.
        panels: usize,
    },
}

/// `out = f(x · Wᵀ + bias) + residual`, on the instruction set that the weights were packed for.
///
/// # Shapes
/// `x`: `[m, k]`, row-major, f32; `weights`: `[n, k]`; `bias`: `[n]`; `residual`, `out`: `[m, n]`. `m` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn linear(x: &[f32], weights: &Packed, epilogue: &Epilogue<'_>, out: &mut [f32]) -> Result<(), Error> {
    let rows = rows(x, weights)?;
    check(rows, weights, 0..weights.panels(), epilogue, out.len(), rows)?;
    simd::run(x, weights, 0..weights.panels(), epilogue, Columns::whole(out, weights.outputs()));
    Ok(())
}

/// [`linear`] for some panels of the outputs, so that threads can share one small product: `out` has the columns that
/// [`Shape::columns`] names for them. Bias and residual are those of all outputs.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn linear_columns(
    x: &[f32],
    weights: &Packed,
    panels: Range<usize>,
    epilogue: &Epilogue<'_>,
    out: Columns<'_>,
) -> Result<(), Error> {
    check(rows(x, weights)?, weights, panels.clone(), epilogue, out.rows() * out.width(), out.rows())?;
    simd::run(x, weights, panels, epilogue, out);
    Ok(())
}

/// How many rows an input has.
pub(crate) fn rows(x: &[f32], shape: &Shape) -> Result<usize, Error> {
    let inputs = shape.inputs();
    if !x.len().is_multiple_of(inputs) {
        return Err(Error::Input { elements: x.len(), inputs });
    }
    Ok(x.len() / inputs)
}

/// Refuses what does not fit `rows` rows and some panels: an output has `found` elements in `found_rows` rows.
pub(crate) fn check(
    rows: usize,
    shape: &Shape,
    panels: Range<usize>,
    epilogue: &Epilogue<'_>,
    found: usize,
    found_rows: usize,
) -> Result<(), Error> {
    let outputs = shape.outputs();
    for (what, slice, wanted) in [("bias", epilogue.bias, outputs), ("residual", epilogue.residual, rows * outputs)] {
        if let Some(found) = slice.map(<[f32]>::len).filter(|found| *found != wanted) {
            return Err(Error::Length { what, found, wanted });
        }
    }
    if panels.start > panels.end || panels.end > shape.panels() {
        return Err(Error::Panels { first: panels.start, end: panels.end, panels: shape.panels() });
    }
    let wanted = rows * shape.columns(panels).len();
    if found != wanted || (rows > 0 && found_rows != rows) {
        return Err(Error::Length { what: "output", found, wanted });
    }
    Ok(())
}
