//! Mean pooling over packed sequences, with L2 normalisation behind it where it is asked for. Token vectors come in, one
//! vector per sequence goes out. Never padding: the sequences lie end to end, and `cu_seqlens` says where each begins.
//!
//! For sequence `i`, with `n = cu_seqlens[i + 1] − cu_seqlens[i]` tokens:
//!
//! ```text
//! m = Σ x[t] / n  over t in cu_seqlens[i] .. cu_seqlens[i + 1]
//! y = m                               Norm::None
//! y = m / max(√(Σ m²), 1e-12)         Norm::L2
//! ```
//!
//! The vector code adds four rows in pairs and that to a running f32 sum: a sequence of 512 tokens takes 128 roundings per
//! element. A sequence whose sums leave the range of f32, or that holds NaN or an infinity, is computed as the oracle does. (The CUDA
//! code has no such way out: it gives zeros or NaN.)
//!
//! # Source
//! Reimers, Gurevych: Sentence-BERT, 2019, arXiv:1908.10084, section 3 (the MEAN strategy). `cu_seqlens` is the layout of
//! FlashAttention's variable-length kernels. 1e-12 is the floor of PyTorch's `normalize`.

use crate::launch::{self, Isa};

pub mod cpu;
mod simd;
#[cfg(test)]
mod tests;

/// What a norm is divided by at least.
const NORM_MIN: f64 = 1e-12;

/// What happens to the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Nothing.
    None,
    /// It is scaled to length 1.
    L2,
}

/// How the rows are to be read, and what to make of them.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// `cu_seqlens: [sequences + 1]`: where each sequence begins, in tokens, and behind them where the last one ends. Begins
    /// with 0, rises, ends with the number of tokens.
    pub cu_seqlens: &'a [u32],
    /// Elements of a token's vector, `d`.
    pub dim: usize,
    /// What happens to the mean.
    pub norm: Norm,
}

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A vector needs an element.
    #[error("mean_pool: dim is 0; a token's vector needs at least one element")]
    NoElements,
    /// `cu_seqlens` is empty or does not begin with 0.
    #[error("mean_pool: cu_seqlens begins with {0:?}; it must begin with 0, also when there is no sequence")]
    Start(Option<u32>),
    /// A sequence has no token: its mean does not exist.
    #[error("mean_pool: sequence {index} runs from token {start} to {end}; every sequence needs at least one token")]
    Sequence {
        /// Which.
        index: usize,
        /// Its first token.
        start: u32,
        /// The token behind its last.
        end: u32,
    },
    /// Input and `cu_seqlens` differ.
    #[error(
        "mean_pool: the input has {elements} elements; {tokens} tokens of {dim} are needed, as cu_seqlens ends with {tokens}"
    )]
    Input {
        /// Elements of the input.
        elements: usize,
        /// The last entry of `cu_seqlens`.
        tokens: u32,
        /// Elements of a token's vector.
        dim: usize,
    },
    /// The output does not fit.
    #[error("mean_pool: the output has {elements} elements; {sequences} sequences of {dim} are needed")]
    Output {
        /// Elements of the output.
        elements: usize,
        /// How many sequences there are.
        sequences: usize,
        /// Elements of a token's vector.
        dim: usize,
    },
}

/// Writes the mean of each sequence's rows of `x` into `out`, normalised if asked for.
///
/// # Shapes
/// `x`: `[tokens, d]`, row-major, f32; `out`: `[sequences, d]`. `sequences` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other or a sequence has no token.
pub fn mean_pool(x: &[f32], params: &Params<'_>, out: &mut [f32]) -> Result<(), Error> {
    mean_pool_on(launch::isa(), x, params, out)
}

/// [`mean_pool`] on an instruction set of the caller's choice.
pub(crate) fn mean_pool_on(isa: Isa, x: &[f32], params: &Params<'_>, out: &mut [f32]) -> Result<(), Error> {
    check(x, params, out)?;
    launch::lanes::run(isa, simd::MeanPool { x, params, out });
    Ok(())
}

/// Sequence `i`'s rows of `x`; `cu_seqlens` has been checked.
#[inline(always)]
fn rows<'a>(x: &'a [f32], params: &Params<'_>, i: usize) -> &'a [f32] {
    &x[params.cu_seqlens[i] as usize * params.dim..params.cu_seqlens[i + 1] as usize * params.dim]
}

fn check(x: &[f32], params: &Params<'_>, out: &[f32]) -> Result<(), Error> {
    let &Params { cu_seqlens, dim, .. } = params;
    if dim == 0 {
        return Err(Error::NoElements);
    }
    let (Some(0), Some(&tokens)) = (cu_seqlens.first(), cu_seqlens.last()) else {
        return Err(Error::Start(cu_seqlens.first().copied()));
    };
    for (index, pair) in cu_seqlens.windows(2).enumerate() {
        if pair[0] >= pair[1] {
            return Err(Error::Sequence { index, start: pair[0], end: pair[1] });
        }
    }
    if (tokens as usize).checked_mul(dim) != Some(x.len()) {
        return Err(Error::Input { elements: x.len(), tokens, dim });
    }
    let sequences = cu_seqlens.len() - 1;
    if sequences.checked_mul(dim) != Some(out.len()) {
        return Err(Error::Output { elements: out.len(), sequences, dim });
    }
    Ok(())
}
