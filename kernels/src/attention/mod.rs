//! Attention over packed sequences: every sequence looks at itself alone, without padding and without a mask tensor. Queries,
//! keys and values of all tokens come in, one context row per token goes out. Never a cache of keys, never a gradient.
//!
//! For a query at position `i` of its sequence and head `a`, over the keys `j` that [`Reach`] lets it see:
//!
//! ```text
//! s_j = q_i · k_j · scale + bias_a(j − i)        y_i = Σ_j e^(s_j − max s) v_j / Σ_j e^(s_j − max s)
//! ```
//!
//! Keys are taken some hundred at a time with a running maximum, so that memory does not grow with the square of the length.
//! Sums are f32. A sequence's rows are the same to the last bit whatever other sequences are there. (The forms for GPUs take heads
//! of up to 256 elements, in steps of 16 bytes.)
//!
//! # Source
//! Vaswani et al.: Attention Is All You Need, 2017, arXiv:1706.03762, equation 1. The running maximum is that of Milakov,
//! Gimelshein: Online normalizer calculation for softmax, 2018, arXiv:1805.02867, as Dao et al. use it in FlashAttention,
//! arXiv:2205.14135, whose `cu_seqlens` this is. Several query heads for one of keys: Ainslie et al., GQA, arXiv:2305.13245.
//! A bias by distance: Press et al., ALiBi, arXiv:2108.12409, and Raffel et al., T5, arXiv:1910.10683, section 2.1.

use std::ops::Range;

use crate::launch::columns::Columns;
use crate::launch::{self, Isa};

pub mod cpu;
mod relative;
pub(crate) mod simd;
#[cfg(test)]
mod tests;

pub use relative::Relative;
pub use simd::Scratch;

/// Which keys a query at position `i` sees: those from `i − behind` to `i + ahead`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// How far back.
    pub behind: usize,
    /// How far forward.
    pub ahead: usize,
}

impl Reach {
    /// The whole sequence, in both directions.
    pub const ALL: Self = Self { behind: usize::MAX, ahead: usize::MAX };
    /// What came before, and itself.
    pub const CAUSAL: Self = Self { behind: usize::MAX, ahead: 0 };

    /// The keys of `len` that query `i` sees.
    pub(crate) fn keys(self, i: usize, len: usize) -> Range<usize> {
        i.saturating_sub(self.behind)..len.min(i.saturating_add(self.ahead).saturating_add(1))
    }
}

/// Rows of one operand inside a wider matrix: row `r` begins at `values[r · stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the operand's first element on.
    pub values: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
}

/// What is the same for every sequence.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// `cu_seqlens: [sequences + 1]`: where each sequence begins, in tokens, and behind them where the last one ends.
    pub cu_seqlens: &'a [u32],
    /// Heads of queries, `a`.
    pub heads: usize,
    /// Heads of keys and values; they divide the heads of queries.
    pub kv_heads: usize,
    /// Elements of a head, `d`.
    pub head_dim: usize,
    /// What products are multiplied with, `1 / √d` in most models.
    pub scale: f32,
    /// Which keys are seen.
    pub reach: Reach,
    /// What is added by head and distance.
    pub bias: Option<&'a Relative>,
}

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// The heads do not fit each other.
    #[error(
        "attention: {heads} heads of queries over {kv_heads} of keys, {head_dim} wide; the second must divide the first and none may be 0"
    )]
    Heads {
        /// Of queries.
        heads: usize,
        /// Of keys and values.
        kv_heads: usize,
        /// Elements of each.
        head_dim: usize,
    },
    /// The sequences are not in order.
    #[error("attention: {0}")]
    Sequences(#[from] crate::sequences::Error),
    /// An operand is too short.
    #[error("attention: {what} have {elements} elements at a stride of {stride}; {tokens} rows of {width} do not fit")]
    Operand {
        /// `queries`, `keys` or `values`.
        what: &'static str,
        /// How many there are.
        elements: usize,
        /// From row to row.
        stride: usize,
        /// Rows that are needed.
        tokens: usize,
        /// Elements of a row that are needed.
        width: usize,
    },
    /// The output does not fit.
    #[error("attention: the output is {rows} rows of {width}; {wanted_rows} of {wanted_width} are needed")]
    Output {
        /// Its rows.
        rows: usize,
        /// Its columns.
        width: usize,
        /// The rows it needs.
        wanted_rows: usize,
        /// The columns it needs.
        wanted_width: usize,
    },
    /// The bias is of other heads, or of shorter sequences.
    #[error(
        "attention: the bias is of {heads} heads and distances up to {span}; {wanted_heads} and {wanted_span} are needed"
    )]
    Bias {
        /// Its heads.
        heads: usize,
        /// Its largest distance.
        span: usize,
        /// The heads it needs.
        wanted_heads: usize,
        /// The distance it needs.
        wanted_span: usize,
    },
    /// There is no such sequence or head.
    #[error("attention: sequence {sequence} with heads {first} to {end} is asked for")]
    Part {
        /// Which sequence.
        sequence: usize,
        /// The first head.
        first: usize,
        /// The one behind the last.
        end: usize,
    },
    /// The scale is not usable.
    #[error("attention: the scale is {0}; it must be positive and finite")]
    Scale(f32),
}

/// Writes every token's context row into `out`.
///
/// # Shapes
/// `q`: `[tokens, a · d]`, `k`, `v`: `[tokens, kv_heads · d]`, each with its stride, f32; `out`: `[tokens, a · d]`, row-major.
/// Query head `h` belongs to key head `h · kv_heads / a`.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
pub fn attention(q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, params: &Params<'_>, out: &mut [f32]) -> Result<(), Error> {
    attention_on(launch::isa(), q, k, v, params, out)
}

/// [`attention`] on an instruction set of the caller's choice.
pub(crate) fn attention_on(
    isa: Isa,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    params: &Params<'_>,
    out: &mut [f32],
) -> Result<(), Error> {
    let tokens = check(q, k, v, params)?;
    let width = params.heads * params.head_dim;
    if out.len() != tokens * width {
        let (rows, wanted_rows) = (out.len() / width, tokens);
        return Err(Error::Output { rows, width, wanted_rows, wanted_width: width });
    }
    let mut scratch = Scratch::default();
    let mut rest = Columns::whole(out, width);
    for sequence in 0..params.cu_seqlens.len() - 1 {
        let (mine, others) = rest.split_rows(tokens_of(params, sequence).len());
        rest = others;
        simd::run(isa, q, k, v, params, sequence, 0..params.heads, &mut scratch, mine);
    }
    Ok(())
}

/// [`attention`] for some heads of one sequence, so that threads can share the work: `out` is the sequence's rows and the
/// heads' columns. The scratch is memory that a thread keeps between calls.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other.
#[expect(clippy::too_many_arguments, reason = "three operands, what is done with them, which part, and where it goes")]
pub fn attention_part(
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    params: &Params<'_>,
    sequence: usize,
    heads: Range<usize>,
    scratch: &mut Scratch,
    out: Columns<'_>,
) -> Result<(), Error> {
    check(q, k, v, params)?;
    if sequence + 1 >= params.cu_seqlens.len() || heads.start > heads.end || heads.end > params.heads {
        return Err(Error::Part { sequence, first: heads.start, end: heads.end });
    }
    let (wanted_rows, wanted_width) = (tokens_of(params, sequence).len(), heads.len() * params.head_dim);
    if (out.rows(), out.width()) != (wanted_rows, wanted_width) {
        return Err(Error::Output { rows: out.rows(), width: out.width(), wanted_rows, wanted_width });
    }
    simd::run(launch::isa(), q, k, v, params, sequence, heads, scratch, out);
    Ok(())
}

/// A sequence's tokens; `cu_seqlens` has been checked.
fn tokens_of(params: &Params<'_>, sequence: usize) -> Range<usize> {
    params.cu_seqlens[sequence] as usize..params.cu_seqlens[sequence + 1] as usize
}

/// Gives the number of tokens.
fn check(q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, params: &Params<'_>) -> Result<usize, Error> {
    let &Params { cu_seqlens, heads, kv_heads, head_dim, scale, bias, .. } = params;
    if heads == 0 || kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::Heads { heads, kv_heads, head_dim });
    }
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Error::Scale(scale));
    }
    let tokens = crate::sequences::check(cu_seqlens)?;
    for (what, rows, heads) in [("queries", q, heads), ("keys", k, kv_heads), ("values", v, kv_heads)] {
        let width = heads * head_dim;
        let needed =
            tokens.checked_sub(1).map_or(Some(0), |before| before.checked_mul(rows.stride)?.checked_add(width));
        if needed.is_none_or(|needed| needed > rows.values.len()) || (tokens > 1 && rows.stride < width) {
            return Err(Error::Operand { what, elements: rows.values.len(), stride: rows.stride, tokens, width });
        }
    }
    if let Some(bias) = bias {
        let longest = cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
        let wanted_span = longest.saturating_sub(1);
        if bias.heads() != heads || bias.span() < wanted_span {
            return Err(Error::Bias { heads: bias.heads(), span: bias.span(), wanted_heads: heads, wanted_span });
        }
    }
    Ok(tokens)
}
