//! Flash decoding: what some keys give of a result, and how such parts are put together. Keys in splits of a fixed size come in, records
//! of a maximum, a sum and a sum of values go out, and of them the result. Never a number of threads.

use std::ops::Range;

use super::{Cache, Error, Params, Rows, Scratch, Sequence, Task, simd};
use crate::launch;
use crate::launch::columns::Columns;

/// Keys that are weighed together, by their positions: 0 to 255, 256 to 511 and so on. Their scores with as many rows as are done at
/// a time fill 24 KB. Fixed, so that a result does not depend on who shares the work.
pub const SPLIT: usize = 256;

/// What a record has before its sum of values: the largest score, and the sum of the weights.
pub(super) const HEAD: usize = 2;

/// The splits whose keys a sequence's queries see: those that [`attention_paged_splits`] is asked for and [`merge`] needs.
pub fn splits_of(sequence: &Sequence<'_>, params: &Params) -> Range<usize> {
    let Sequence { queries, length, .. } = sequence;
    let first =
        length.saturating_sub(queries.len()).saturating_add(1).saturating_sub(params.window.unwrap_or(usize::MAX));
    first / SPLIT..length.div_ceil(SPLIT)
}

/// f32 elements that one split gives: `[queries, heads, 2 + head_dim]`.
pub fn split_len(queries: usize, heads: usize, head_dim: usize) -> usize {
    queries * heads * (HEAD + head_dim)
}

/// What the keys of some splits alone give for some heads of one sequence, so that threads can share a long context: any
/// splits, in any order, on any thread, then [`merge`].
///
/// # Shapes
/// `q` as [`super::attention_paged`]; `parts`: `[splits, queries, heads, 2 + head_dim]`, f32: of each record the largest score,
/// `Σ e^(s − max)` and `Σ e^(s − max) v`; −∞ and zeros where a query sees none of the keys.
///
/// # Errors
/// [`Error`], as [`super::attention_paged_part`], and when there are no such splits or the buffer has another length.
#[expect(clippy::too_many_arguments, reason = "as for heads, and which splits")]
pub fn attention_paged_splits(
    q: Rows<'_>,
    cache: &Cache,
    sequence: &Sequence<'_>,
    params: &Params,
    heads: Range<usize>,
    splits: Range<usize>,
    scratch: &mut Scratch,
    parts: &mut [f32],
) -> Result<(), Error> {
    let task = Task::checked(q, cache, sequence, params, heads)?;
    let there = sequence.length.div_ceil(SPLIT);
    if splits.start > splits.end || splits.end > there {
        return Err(Error::Part { what: "splits", first: splits.start, end: splits.end, there });
    }
    let one = split_len(sequence.queries.len(), task.heads.len(), params.head_dim);
    if parts.len() != splits.len() * one {
        return Err(Error::Parts { elements: parts.len(), wanted: splits.len() * one });
    }
    if one > 0 {
        for (split, part) in splits.zip(parts.chunks_exact_mut(one)) {
            simd::one_split(launch::isa(), &task, split, scratch, part);
        }
    }
    Ok(())
}

/// The result, out of the records of all of [`splits_of`], in order. It is that of [`super::attention_paged_part`] to the last bit.
///
/// # Shapes
/// `parts`: `[splits, queries, heads, 2 + head_dim]`; `out`: the sequence's rows and the heads' columns.
///
/// # Errors
/// [`Error::Parts`] or [`Error::Output`], when the lengths do not fit each other.
pub fn merge(parts: &[f32], splits: usize, head_dim: usize, mut out: Columns<'_>) -> Result<(), Error> {
    let (rows, width) = (out.rows(), out.width());
    if head_dim == 0 || !width.is_multiple_of(head_dim) {
        let wanted_width = width.next_multiple_of(head_dim.max(1));
        return Err(Error::Output { rows, width, wanted_rows: rows, wanted_width });
    }
    let heads = width / head_dim;
    let one = split_len(rows, heads, head_dim);
    if splits.checked_mul(one) != Some(parts.len()) || (splits == 0 && one > 0) {
        return Err(Error::Parts { elements: parts.len(), wanted: splits.max(1).saturating_mul(one) });
    }
    for row in 0..rows {
        for (head, out) in out.row(row).chunks_exact_mut(head_dim).enumerate() {
            let mut running = Running::NONE;
            out.fill(0.0);
            for part in parts.chunks_exact(one) {
                let record = &part[(row * heads + head) * (HEAD + head_dim)..][..HEAD + head_dim];
                running.add(out, Running { max: record[0], sum: record[1] }, &record[HEAD..]);
            }
            running.finish(out);
        }
    }
    Ok(())
}

/// What is known of a row after some of its keys, beside the sum of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Running {
    /// The largest score.
    pub(super) max: f32,
    /// `Σ e^(s − max)`
    pub(super) sum: f32,
}

impl Running {
    /// Of no keys.
    pub(super) const NONE: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Takes up what further keys give.
    #[inline(always)]
    pub(super) fn add(&mut self, values: &mut [f32], part: Self, part_values: &[f32]) {
        if part == Self::NONE {
            return;
        }
        let max = if part.max > self.max || part.max.is_nan() { part.max } else { self.max };
        let (shrink, factor) = ((self.max - max).exp(), (part.max - max).exp());
        *self = Self { max, sum: self.sum * shrink + part.sum * factor };
        for (to, x) in values.iter_mut().zip(part_values) {
            *to = *to * shrink + x * factor;
        }
    }

    /// Makes the result of the sum of values.
    #[inline(always)]
    pub(super) fn finish(self, values: &mut [f32]) {
        let factor = 1.0 / self.sum;
        // What underflowed is 0 without a sign, whose sign would depend on which keys with no weight were there.
        values.iter_mut().for_each(|x| *x = *x * factor + 0.0);
    }
}
