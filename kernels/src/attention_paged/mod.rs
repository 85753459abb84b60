//! Attention of new queries over keys and values that lie in blocks, for text generation: each sequence's table names its blocks in
//! order. Queries and a cache that already holds their keys come in, one context row per query goes out. Never a decision about
//! blocks, never a thread.
//!
//! For query `i` of the `n` that a sequence of `length` tokens brings, at position `p = length − n + i`, and the last `window`
//! keys `j ≤ p`:
//!
//! ```text
//! s_j = cap(q_i · k_j · scale)     cap(s) = c · tanh(s / c), or s     y_i = Σ_j e^(s_j − max s) v_j / Σ_j e^(s_j − max s)
//! ```
//!
//! Keys are weighed [`SPLIT`] at a time, counted from the first token, each time with a maximum of their own; what that
//! gives is added up in order. So a query's row is the same to the last bit whichever blocks its keys lie in, whatever other sequences
//! are there, whether its prompt came at once, in chunks or token by token, and however many threads took part. Sums are f32.
//! Several heads of queries over one head of keys are done together, so that keys and values are read once.
//!
//! On GPUs a cache has its rows by token, sums go by other splits, and what writes keys and values turns them first: see the head of
//! `cuda.cu`.
//!
//! # Source
//! Kwon et al.: Efficient Memory Management for Large Language Model Serving with PagedAttention, 2023, arXiv:2309.06180. Splitting keys
//! and merging what the parts give: Dao et al., Flash-Decoding for long-context inference, 2023, after Milakov, Gimelshein,
//! arXiv:1805.02867. Heads in groups: Ainslie et al., GQA, arXiv:2305.13245. The cap: Gemma 2, arXiv:2408.00118, section 2.

use std::ops::Range;

use crate::attention::Reach;
pub use crate::attention::Rows;
use crate::launch::columns::Columns;
use crate::launch::{self, Isa};

mod cache;
pub mod cpu;
mod simd;
mod split;
#[cfg(test)]
mod tests;

pub use cache::{Cache, Kind, Shape};
pub use simd::Scratch;
pub use split::{SPLIT, attention_paged_splits, merge, split_len, splits_of};

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct Sequence<'a> {
    /// Its rows of the queries and of the output.
    pub queries: Range<usize>,
    /// Its blocks in order. Those behind its last token are not looked at; those before the window have no effect, but must be blocks.
    pub table: &'a [u32],
    /// Its tokens in the cache, those of these queries among them: query `i` of `n` is at position `length − n + i`.
    pub length: usize,
}

/// What is the same for every sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Heads of queries, `a`. Those of keys are the cache's and divide them.
    pub heads: usize,
    /// Elements of a head, `d`, as the cache has them.
    pub head_dim: usize,
    /// What products are multiplied with, `1 / √d` in most models.
    pub scale: f32,
    /// `c`, between whose negative and which scores are squeezed.
    pub softcap: Option<f32>,
    /// How many keys a query sees at most: the last ones, its own included.
    pub window: Option<usize>,
}

impl Params {
    /// Which keys are seen.
    fn reach(&self) -> Reach {
        Reach { behind: self.window.map_or(usize::MAX, |window| window - 1), ahead: 0 }
    }
}

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// A cache of this shape cannot be.
    #[error(
        "attention_paged: a cache of {0:?} cannot be; no size but the blocks may be 0, and it must fit into memory"
    )]
    Shape(Shape),
    /// The heads do not fit the cache.
    #[error(
        "attention_paged: {heads} heads of queries, {head_dim} wide, over a cache of {kv_heads}, {cache_dim} wide; the second must divide the first, and the widths be the same"
    )]
    Heads {
        /// Of queries.
        heads: usize,
        /// Elements of each.
        head_dim: usize,
        /// Of keys and values.
        kv_heads: usize,
        /// Elements of each.
        cache_dim: usize,
    },
    /// The scale is not usable.
    #[error("attention_paged: the scale is {0}; it must be positive and finite")]
    Scale(f32),
    /// The cap is not usable.
    #[error("attention_paged: scores are capped at {0}; that must be positive and finite, or there must be no cap")]
    Softcap(f32),
    /// Nothing would be seen.
    #[error("attention_paged: a window of 0 keys; a query sees at least its own, or there must be no window")]
    Window,
    /// The sequence is shorter than what is new in it.
    #[error(
        "attention_paged: a sequence of {length} tokens with {queries} queries; write the queries' own keys first, and count them"
    )]
    Length {
        /// Its tokens.
        length: usize,
        /// Its queries, or tokens to be written.
        queries: usize,
    },
    /// A table is too short.
    #[error(
        "attention_paged: a table of {blocks} blocks of {block} tokens for {length} tokens; more blocks are needed"
    )]
    Table {
        /// How many it names.
        blocks: usize,
        /// Tokens of each.
        block: usize,
        /// Tokens that it is for.
        length: usize,
    },
    /// A table names a block that is not there.
    #[error("attention_paged: entry {index} of a table is block {number}; the cache has {blocks}")]
    Block {
        /// Which entry.
        index: usize,
        /// What it names.
        number: u32,
        /// How many there are.
        blocks: usize,
    },
    /// An operand is too short.
    #[error(
        "attention_paged: {what} have {elements} elements at a stride of {stride}; {rows} rows of {width} do not fit"
    )]
    Operand {
        /// `queries`, `keys` or `values`.
        what: &'static str,
        /// How many there are.
        elements: usize,
        /// From row to row.
        stride: usize,
        /// Rows that are needed.
        rows: usize,
        /// Elements of a row that are needed.
        width: usize,
    },
    /// The output does not fit.
    #[error("attention_paged: the output is {rows} rows of {width}; {wanted_rows} of {wanted_width} are needed")]
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
    /// There are no such heads or splits.
    #[error("attention_paged: {what} {first} to {end} are asked for; there are {there}")]
    Part {
        /// `heads` or `splits`.
        what: &'static str,
        /// The first one.
        first: usize,
        /// The one behind the last.
        end: usize,
        /// How many there are.
        there: usize,
    },
    /// The buffer for what splits give does not fit.
    #[error("attention_paged: a buffer of {elements} elements for parts that take {wanted}")]
    Parts {
        /// Its elements.
        elements: usize,
        /// What it needs.
        wanted: usize,
    },
}

/// Writes the context rows of every sequence's queries into `out`. Rows of no sequence stay as they are.
///
/// # Shapes
/// `q`: `[rows, a · d]` with its stride, f32; `out`: `[rows, a · d]`, row-major. Query head `h` belongs to key head `h · kv_heads / a`.
///
/// # Errors
/// [`Error`], when something does not fit or a table names what is not there.
pub fn attention_paged(
    q: Rows<'_>,
    cache: &Cache,
    sequences: &[Sequence<'_>],
    params: &Params,
    out: &mut [f32],
) -> Result<(), Error> {
    attention_paged_on(launch::isa(), q, cache, sequences, params, out)
}

/// [`attention_paged`] on an instruction set of the caller's choice.
pub(crate) fn attention_paged_on(
    isa: Isa,
    q: Rows<'_>,
    cache: &Cache,
    sequences: &[Sequence<'_>],
    params: &Params,
    out: &mut [f32],
) -> Result<(), Error> {
    let width = check_all(q, cache, sequences, params, out)?;
    let mut scratch = Scratch::default();
    for sequence in sequences {
        let rows = sequence.queries.start * width..sequence.queries.end * width;
        let task = Task { q, cache, sequence, params, heads: 0..params.heads };
        simd::whole(isa, &task, &mut scratch, Columns::whole(&mut out[rows], width));
    }
    Ok(())
}

/// [`attention_paged`] for some heads of one sequence, so that threads can share the work: `out` is the sequence's rows and the
/// heads' columns. Heads that share keys are best asked for together. The scratch is memory that a thread keeps between calls.
///
/// # Errors
/// [`Error`], as [`attention_paged`], and when there are no such heads.
pub fn attention_paged_part(
    q: Rows<'_>,
    cache: &Cache,
    sequence: &Sequence<'_>,
    params: &Params,
    heads: Range<usize>,
    scratch: &mut Scratch,
    out: Columns<'_>,
) -> Result<(), Error> {
    let task = Task::checked(q, cache, sequence, params, heads)?;
    task.check_output(&out)?;
    simd::whole(launch::isa(), &task, scratch, out);
    Ok(())
}

/// Some heads of one sequence; everything has been checked.
struct Task<'a> {
    q: Rows<'a>,
    cache: &'a Cache,
    sequence: &'a Sequence<'a>,
    params: &'a Params,
    heads: Range<usize>,
}

impl<'a> Task<'a> {
    fn checked(
        q: Rows<'a>,
        cache: &'a Cache,
        sequence: &'a Sequence<'a>,
        params: &'a Params,
        heads: Range<usize>,
    ) -> Result<Self, Error> {
        check_params(cache, params)?;
        check_sequence(q, cache, sequence, params)?;
        if heads.start > heads.end || heads.end > params.heads {
            return Err(Error::Part { what: "heads", first: heads.start, end: heads.end, there: params.heads });
        }
        Ok(Self { q, cache, sequence, params, heads })
    }

    fn check_output(&self, out: &Columns<'_>) -> Result<(), Error> {
        let (wanted_rows, wanted_width) = (self.sequence.queries.len(), self.heads.len() * self.params.head_dim);
        if (out.rows(), out.width()) != (wanted_rows, wanted_width) {
            return Err(Error::Output { rows: out.rows(), width: out.width(), wanted_rows, wanted_width });
        }
        Ok(())
    }

    /// The keys that query `i` of the sequence sees.
    fn keys(&self, i: usize) -> Range<usize> {
        let Sequence { ref queries, length, .. } = *self.sequence;
        self.params.reach().keys(length - queries.len() + i, length)
    }
}

/// Gives the width of an output row.
fn check_all(
    q: Rows<'_>,
    cache: &Cache,
    sequences: &[Sequence<'_>],
    params: &Params,
    out: &[f32],
) -> Result<usize, Error> {
    check_params(cache, params)?;
    let width = params.heads * params.head_dim;
    let rows = out.len() / width;
    for sequence in sequences {
        check_sequence(q, cache, sequence, params)?;
        if sequence.queries.end > rows || !out.len().is_multiple_of(width) {
            let wanted_rows = sequence.queries.end;
            return Err(Error::Output { rows, width, wanted_rows, wanted_width: width });
        }
    }
    Ok(width)
}

fn check_params(cache: &Cache, params: &Params) -> Result<(), Error> {
    let &Params { heads, head_dim, scale, softcap, window } = params;
    let Shape { kv_heads, head_dim: cache_dim, .. } = cache.shape();
    if heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim != cache_dim {
        return Err(Error::Heads { heads, head_dim, kv_heads, cache_dim });
    }
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Error::Scale(scale));
    }
    if let Some(cap) = softcap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
        return Err(Error::Softcap(cap));
    }
    if window == Some(0) { Err(Error::Window) } else { Ok(()) }
}

fn check_sequence(q: Rows<'_>, cache: &Cache, sequence: &Sequence<'_>, params: &Params) -> Result<(), Error> {
    let &Sequence { ref queries, table, length } = sequence;
    if queries.start > queries.end || queries.len() > length {
        return Err(Error::Length { length, queries: queries.len() });
    }
    cache.check_table(table, length)?;
    check_rows("queries", q, queries.end, params.heads * params.head_dim)
}

fn check_rows(what: &'static str, operand: Rows<'_>, rows: usize, width: usize) -> Result<(), Error> {
    let Rows { values, stride } = operand;
    let needed = rows.checked_sub(1).map_or(Some(0), |before| before.checked_mul(stride)?.checked_add(width));
    if needed.is_none_or(|needed| needed > values.len()) || (rows > 1 && stride < width) {
        return Err(Error::Operand { what, elements: values.len(), stride, rows, width });
    }
    Ok(())
}
