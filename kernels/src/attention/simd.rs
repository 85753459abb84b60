//! Attention in tiles that fit the caches: scores of some queries and some keys, their weights, and the sum of the values. A
//! checked call comes in, a rectangle of the result is written. Never the arithmetic of a product: that is `launch::tile`.

use std::ops::Range;

use super::{Params, Rows, tokens_of};
use crate::launch::Isa;
use crate::launch::aligned::Aligned;
use crate::launch::columns::Columns;
use crate::launch::lanes::{self, Kernel, Lanes};
use crate::launch::math;
use crate::launch::tile::{self, Block};

/// Queries at a time. A multiple of every tile's rows.
const QUERIES: usize = 24;

/// Keys at a time: their scores with so many queries fill 24 KB. A multiple of every panel's width.
const KEYS: usize = 256;

/// Memory that a thread keeps between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Keys of one head: panels of some keys side by side, one element after the other.
    keys: Aligned,
    /// Values of one head: panels of some elements side by side, one key after the other.
    values: Aligned,
    /// `[QUERIES, KEYS]`
    scores: Aligned,
    /// `[QUERIES, d]`, whole panels.
    sums: Aligned,
    /// Of each query.
    running: Vec<Running>,
}

/// What is known of a query after some of its keys.
#[derive(Clone, Copy, Debug)]
struct Running {
    /// The largest score.
    max: f32,
    /// `Σ e^(s − max)`
    sum: f32,
}

/// `out` is the sequence's rows and the heads' columns.
#[expect(clippy::too_many_arguments, reason = "as the public call")]
pub(super) fn run(
    isa: Isa,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    params: &Params<'_>,
    sequence: usize,
    heads: Range<usize>,
    scratch: &mut Scratch,
    mut out: Columns<'_>,
) {
    let tokens = tokens_of(params, sequence);
    let d = params.head_dim;
    let width = tile::panel_width(isa);
    let shape = Shape {
        width,
        keys_padded: tokens.len().next_multiple_of(width),
        len: tokens.len(),
        dim: d,
        dim_padded: d.next_multiple_of(width),
    };
    let keys = scratch.keys.at_least(shape.keys_padded * d);
    let values = scratch.values.at_least(shape.dim_padded * shape.len);
    let scores = scratch.scores.at_least(QUERIES * KEYS);
    let sums = scratch.sums.at_least(QUERIES * shape.dim_padded);
    scratch.running.resize(QUERIES, Running { max: 0.0, sum: 0.0 });
    let mut packed = None;
    for head in heads.clone() {
        let kv_head = head * params.kv_heads / params.heads;
        if packed != Some(kv_head) {
            let of = |rows: Rows<'_>| tokens.start * rows.stride + kv_head * d;
            pack_keys(&k.values[of(k)..], k.stride, &shape, keys);
            pack_values(&v.values[of(v)..], v.stride, &shape, values);
            packed = Some(kv_head);
        }
        let column = (head - heads.start) * d;
        for first in (0..shape.len).step_by(QUERIES) {
            let queries = first..shape.len.min(first + QUERIES);
            let at = (tokens.start + first) * q.stride + head * d;
            let seen = params.reach.keys(first, shape.len).start..params.reach.keys(queries.end - 1, shape.len).end;
            let mut is_first = true;
            // Whole panels.
            for first_key in (seen.start / width * width..seen.end).step_by(KEYS) {
                let block = first_key..seen.end.next_multiple_of(width).min(first_key + KEYS);
                let products = block.clone().step_by(width).map(|panel| Block {
                    a: q.values[at..].as_ptr(),
                    a_stride: q.stride,
                    rows: queries.len(),
                    b: keys[panel * d..].as_ptr(),
                    k: d,
                    c: scores[panel - first_key..].as_mut_ptr(),
                    c_stride: KEYS,
                    accumulate: false,
                    next: keys[(panel + width).min(shape.keys_padded) * d..].as_ptr(),
                });
                // SAFETY: `q` has these rows (the caller checked), a panel of the packed keys begins at `panel · d`, and a row of
                // scores holds KEYS, of which `block` has no more.
                unsafe { tile::run_each(isa, products) };
                lanes::run(
                    isa,
                    Weigh {
                        params,
                        head,
                        queries: queries.clone(),
                        block: block.clone(),
                        len: shape.len,
                        scores,
                        sums: (!is_first).then_some(&mut *sums),
                        dim_padded: shape.dim_padded,
                        running: &mut scratch.running,
                    },
                );
                let there = block.start..block.end.min(shape.len);
                let products = (0..shape.dim_padded).step_by(width).map(|panel| Block {
                    a: scores.as_ptr(),
                    a_stride: KEYS,
                    rows: queries.len(),
                    b: values[panel * shape.len + there.start * width..].as_ptr(),
                    k: there.len(),
                    c: sums[panel..].as_mut_ptr(),
                    c_stride: shape.dim_padded,
                    accumulate: !is_first,
                    next: values[(panel + width).min(shape.dim_padded) * shape.len..].as_ptr(),
                });
                // SAFETY: weights are rows of KEYS; a panel of the packed values begins at `panel · len` and has `width` elements
                // for each of `len` keys; a row of sums has `dim_padded`.
                unsafe { tile::run_each(isa, products) };
                is_first = false;
            }
            let (columns, running, out) = (column..column + d, &scratch.running, out.reborrow());
            lanes::run(isa, Divide { queries, columns, sums, dim_padded: shape.dim_padded, running, out });
        }
    }
}

/// Sizes of one sequence's head.
struct Shape {
    /// Of a panel.
    width: usize,
    len: usize,
    keys_padded: usize,
    dim: usize,
    dim_padded: usize,
}

/// `[len, dim]` at a stride to panels `[keys_padded / width][dim][width]`; what is behind the last key is 0.
fn pack_keys(rows: &[f32], stride: usize, shape: &Shape, panels: &mut [f32]) {
    let (dim, width) = (shape.dim, shape.width);
    for (first, panel) in (0..shape.len).step_by(width).zip(panels.chunks_exact_mut(dim * width)) {
        let there = width.min(shape.len - first);
        if there < width {
            panel.fill(0.0);
        }
        let row = |column: usize| &rows[(first + column) * stride..][..dim];
        let quads = there - there % 4;
        for column in (0..quads).step_by(4) {
            let rows = [row(column), row(column + 1), row(column + 2), row(column + 3)];
            let [a, b, c, d] = rows.map(|row| row.chunks_exact(4));
            for (lines, (((a, b), c), d)) in panel.chunks_exact_mut(4 * width).zip(a.zip(b).zip(c).zip(d)) {
                for (i, line) in lines.chunks_exact_mut(width).enumerate() {
                    line[column..][..4].copy_from_slice(&[a[i], b[i], c[i], d[i]]);
                }
            }
            for (element, line) in panel.chunks_exact_mut(width).enumerate().skip(dim - dim % 4) {
                line[column..][..4].copy_from_slice(&rows.map(|row| row[element]));
            }
        }
        for column in quads..there {
            for (line, x) in panel.chunks_exact_mut(width).zip(row(column)) {
                line[column] = *x;
            }
        }
    }
}

/// `[len, dim]` at a stride to panels `[dim_padded / width][len][width]`; what is behind the last element is 0.
fn pack_values(rows: &[f32], stride: usize, shape: &Shape, panels: &mut [f32]) {
    for (first, panel) in (0..shape.dim).step_by(shape.width).zip(panels.chunks_exact_mut(shape.len * shape.width)) {
        let there = shape.width.min(shape.dim - first);
        for (key, line) in panel.chunks_exact_mut(shape.width).enumerate() {
            line[..there].copy_from_slice(&rows[key * stride + first..][..there]);
            line[there..].fill(0.0);
        }
    }
}

/// Writes what some queries give: their sums, each divided by that of its weights.
struct Divide<'a> {
    queries: Range<usize>,
    columns: Range<usize>,
    sums: &'a [f32],
    dim_padded: usize,
    running: &'a [Running],
    out: Columns<'a>,
}

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let rows = self.sums.chunks_exact(self.dim_padded).zip(self.running);
        for (row, (sums, running)) in self.queries.zip(rows) {
            let factor = l.splat(1.0 / running.sum);
            let out = &mut self.out.row(row)[self.columns.clone()];
            let whole = out.len() - out.len() % L::WIDTH;
            for at in (0..whole).step_by(L::WIDTH) {
                l.store(l.mul(l.load(&sums[at..]), factor), &mut out[at..]);
            }
            if whole < out.len() {
                // There is a whole vector of sums, as panels are padded.
                l.store_partial(l.mul(l.load(&sums[whole..]), factor), &mut out[whole..]);
            }
        }
    }
}

/// Makes weights of the scores of some queries with a block of keys.
struct Weigh<'a> {
    params: &'a Params<'a>,
    head: usize,
    /// Positions in the sequence.
    queries: Range<usize>,
    /// Keys whose scores are there, whole panels.
    block: Range<usize>,
    /// Keys of the sequence.
    len: usize,
    /// `[QUERIES, KEYS]`, of which the first columns are the block.
    scores: &'a mut [f32],
    /// What has been summed up with the maximum so far; `None` at the first block.
    sums: Option<&'a mut [f32]>,
    dim_padded: usize,
    running: &'a mut [Running],
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        for first in (0..self.queries.len()).step_by(TOGETHER) {
            self.weigh(l, first..self.queries.len().min(first + TOGETHER));
        }
    }
}

/// Queries whose steps are taken one after the other, so that the steps of one are taken while those of another are waited for.
const TOGETHER: usize = 8;

impl Weigh<'_> {
    /// Some of the queries, counted from the first.
    #[inline(always)]
    fn weigh<L: Lanes>(&mut self, l: L, queries: Range<usize>) {
        let is_first = self.sums.is_none();
        // With a bias the scale goes first; without one it is part of the exponent.
        let scale = if self.params.bias.is_some() { 1.0 } else { self.params.scale };
        let mut sees_any = [false; TOGETHER];
        for (index, sees_any) in queries.clone().zip(&mut sees_any) {
            let query = self.queries.start + index;
            let row = &mut self.scores[index * KEYS..][..self.block.len()];
            let seen = self.params.reach.keys(query, self.len);
            let start = seen.start.clamp(self.block.start, self.block.end) - self.block.start;
            let end = seen.end.clamp(self.block.start, self.block.end) - self.block.start;
            *sees_any = start < end;
            if !*sees_any {
                row.fill(0.0);
                continue;
            }
            if let Some(bias) = self.params.bias {
                let bias = bias.from(self.head, query, self.block.start + start);
                scale_and_add(l, &mut row[start..end], self.params.scale, bias);
            }
            row[..start].fill(f32::NEG_INFINITY);
            row[end..].fill(f32::NEG_INFINITY);
        }
        let mut old = [f32::NEG_INFINITY; TOGETHER];
        for ((index, old), sees_any) in queries.clone().zip(&mut old).zip(sees_any) {
            let running = &mut self.running[index];
            if is_first {
                *running = Running { max: f32::NEG_INFINITY, sum: 0.0 };
            }
            if !sees_any {
                continue;
            }
            *old = running.max;
            let max = largest(l, &self.scores[index * KEYS..][..self.block.len()]) * scale;
            running.max = if max > *old || max.is_nan() { max } else { *old };
        }
        for ((index, old), _) in queries.zip(old).zip(sees_any).filter(|(_, sees_any)| *sees_any) {
            let running = &mut self.running[index];
            let row = &mut self.scores[index * KEYS..][..self.block.len()];
            let sum = exponentials(l, row, scale, running.max);
            if is_first {
                running.sum = sum;
                continue;
            }
            let shrink = (old - running.max).exp();
            running.sum = running.sum * shrink + sum;
            if let Some(sums) = self.sums.as_deref_mut().filter(|_| shrink != 1.0) {
                multiply(l, &mut sums[index * self.dim_padded..][..self.dim_padded], shrink);
            }
        }
    }
}

/// `row = row · scale + bias`
#[inline(always)]
fn scale_and_add<L: Lanes>(l: L, row: &mut [f32], scale: f32, bias: &[f32]) {
    let scales = l.splat(scale);
    let bias = &bias[..row.len()];
    let (mut row, mut bias) = (row.chunks_exact_mut(L::WIDTH), bias.chunks_exact(L::WIDTH));
    for (row, bias) in (&mut row).zip(&mut bias) {
        l.store(l.mul_add(l.load(row), scales, l.load(bias)), row);
    }
    for (row, bias) in row.into_remainder().iter_mut().zip(bias.remainder()) {
        *row = *row * scale + bias;
    }
}

/// The largest of a row of whole panels.
#[inline(always)]
pub(crate) fn largest<L: Lanes>(l: L, row: &[f32]) -> f32 {
    let mut largest = [l.splat(f32::NEG_INFINITY); 2];
    for pair in row.chunks_exact(2 * L::WIDTH) {
        largest[0] = l.max(largest[0], l.load(pair));
        largest[1] = l.max(largest[1], l.load(&pair[L::WIDTH..]));
    }
    l.largest(l.max(largest[0], largest[1]))
}

/// `row = e^(row · scale − max)`, a row of whole panels. Gives the sum.
#[inline(always)]
pub(crate) fn exponentials<L: Lanes>(l: L, row: &mut [f32], scale: f32, max: f32) -> f32 {
    let (scales, offset) = (l.splat(scale), l.splat(-max));
    let mut sums = [l.splat(0.0); 2];
    for pair in row.chunks_exact_mut(2 * L::WIDTH) {
        for (sum, vector) in sums.iter_mut().zip(pair.chunks_exact_mut(L::WIDTH)) {
            let weight = math::exp(l, l.mul_add(l.load(vector), scales, offset));
            *sum = l.add(*sum, weight);
            l.store(weight, vector);
        }
    }
    l.sum(l.add(sums[0], sums[1]))
}

/// `row = row · factor`, a row of whole panels.
#[inline(always)]
fn multiply<L: Lanes>(l: L, row: &mut [f32], factor: f32) {
    let factors = l.splat(factor);
    for vector in row.chunks_exact_mut(L::WIDTH) {
        l.store(l.mul(l.load(vector), factors), vector);
    }
}
