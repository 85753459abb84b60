//! Attention over blocks in tiles of rows that share keys: their scores with a split of the keys, their weights, and the sum of the
//! values, each read where it lies. A checked call comes in, a rectangle of the result or a split's records are written. Never a key
//! or a value that no row of the tile sees.

use std::ops::Range;

use half::{bf16, f16};

use super::cache::Element;
use super::split::{HEAD, Running, SPLIT};
use super::{Kind, Params, Shape, Task};
use crate::attention::simd::{exponentials, largest};
use crate::launch::Isa;
use crate::launch::aligned::Aligned;
use crate::launch::columns::Columns;
use crate::launch::lanes::{self, Kernel, Lanes};
use crate::launch::math;

/// Rows at a time, each a query and a head: a multiple of every instruction set's [`Lanes::TILE_ROWS`].
const ROWS: usize = 24;

/// Vectors side by side in a tile of a product.
const VECTORS: usize = 2;

/// Blocks whose values are summed up in registers, where there are so many rows that values are read again and again.
const BLOCKS: usize = 16;

/// Memory that a thread keeps between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[ROWS, d]`
    queries: Aligned,
    /// `[ROWS, SPLIT]`: scores, then weights.
    scores: Aligned,
    /// Keys out of blocks that are not whole vectors.
    gathered: Aligned,
    /// `[ROWS, stride]`: the sum of values of one split.
    sums: Aligned,
    /// `[ROWS, d]`: that of all splits so far.
    totals: Aligned,
    /// Of each row, over one split.
    parts: Vec<Running>,
    /// Of each row, over all splits so far.
    running: Vec<Running>,
}

/// `out` is the sequence's rows and the heads' columns.
pub(super) fn whole(isa: Isa, task: &Task<'_>, scratch: &mut Scratch, mut out: Columns<'_>) {
    let d = task.params.head_dim;
    for tile in tiles(task) {
        scratch.prepare(isa, task, &tile);
        scratch.running.clear();
        scratch.running.resize(tile.rows.len(), Running::NONE);
        scratch.totals.at_least(ROWS * d)[..tile.rows.len() * d].fill(0.0);
        let seen = tile.seen(task);
        for split in seen.start / SPLIT..seen.end.div_ceil(SPLIT) {
            scratch.weigh_and_sum(isa, task, &tile, split);
            let stride = sums_stride(isa, task);
            let totals = scratch.totals.chunks_exact_mut(d);
            let sums = scratch.sums.chunks_exact(stride);
            let parts = scratch.running.iter_mut().zip(&scratch.parts);
            for ((total, sums), (running, part)) in totals.zip(sums).zip(parts) {
                running.add(total, *part, &sums[..d]);
            }
        }
        for (index, row) in tile.rows.clone().enumerate() {
            let total = &mut scratch.totals[index * d..][..d];
            scratch.running[index].finish(total);
            let column = (tile.head(row) - task.heads.start) * d;
            out.row(tile.query(row))[column..column + d].copy_from_slice(total);
        }
    }
}

/// `part` is `[queries, heads, HEAD + d]`.
pub(super) fn one_split(isa: Isa, task: &Task<'_>, split: usize, scratch: &mut Scratch, part: &mut [f32]) {
    let d = task.params.head_dim;
    for tile in tiles(task) {
        scratch.prepare(isa, task, &tile);
        scratch.weigh_and_sum(isa, task, &tile, split);
        let stride = sums_stride(isa, task);
        for (index, row) in tile.rows.clone().enumerate() {
            let record = tile.query(row) * task.heads.len() + tile.head(row) - task.heads.start;
            let record = &mut part[record * (HEAD + d)..][..HEAD + d];
            let Running { max, sum } = scratch.parts[index];
            record[..HEAD].copy_from_slice(&[max, sum]);
            record[HEAD..].copy_from_slice(&scratch.sums[index * stride..][..d]);
        }
    }
}

/// Some rows whose heads share keys.
struct Tile {
    kv_head: usize,
    /// The asked heads that it serves.
    heads: Range<usize>,
    /// Of `[queries, heads]`.
    rows: Range<usize>,
}

impl Tile {
    /// Which of the sequence's queries a row is.
    #[inline(always)]
    fn query(&self, row: usize) -> usize {
        row / self.heads.len()
    }

    /// Which head it is.
    #[inline(always)]
    fn head(&self, row: usize) -> usize {
        self.heads.start + row % self.heads.len()
    }

    /// The keys that any of its rows sees.
    #[inline(always)]
    fn seen(&self, task: &Task<'_>) -> Range<usize> {
        task.keys(self.query(self.rows.start)).start..task.keys(self.query(self.rows.end - 1)).end
    }
}

/// What a task falls into.
fn tiles<'a>(task: &'a Task<'_>) -> impl Iterator<Item = Tile> + use<'a> {
    let group = task.params.heads / task.cache.shape().kv_heads;
    let heads_of = move |kv_head: usize| {
        let heads = kv_head * group..(kv_head + 1) * group;
        heads.start.max(task.heads.start)..heads.end.min(task.heads.end)
    };
    (task.heads.start / group..task.heads.end.div_ceil(group)).flat_map(move |kv_head| {
        let heads = heads_of(kv_head);
        let rows = task.sequence.queries.len() * heads.len();
        (0..rows).step_by(ROWS).map(move |first| Tile {
            kv_head,
            heads: heads.clone(),
            rows: first..rows.min(first + ROWS),
        })
    })
}

/// Elements from one row of sums to the next: whole tiles of every product.
fn sums_stride(isa: Isa, task: &Task<'_>) -> usize {
    task.cache.shape().value_stride().next_multiple_of(VECTORS * isa.width())
}

impl Scratch {
    /// Puts a tile's queries side by side, and sees to it that there is room.
    fn prepare(&mut self, isa: Isa, task: &Task<'_>, tile: &Tile) {
        let d = task.params.head_dim;
        self.scores.at_least(ROWS * SPLIT);
        self.sums.at_least(ROWS * sums_stride(isa, task));
        self.gathered.at_least(VECTORS * isa.width() * d);
        self.parts.resize(ROWS, Running::NONE);
        let queries = self.queries.at_least(ROWS * d);
        for (row, to) in tile.rows.clone().zip(queries.chunks_exact_mut(d)) {
            let at = (task.sequence.queries.start + tile.query(row)) * task.q.stride + tile.head(row) * d;
            to.copy_from_slice(&task.q.values[at..at + d]);
        }
    }

    /// Fills `parts` and `sums` with what the keys of one split give.
    fn weigh_and_sum(&mut self, isa: Isa, task: &Task<'_>, tile: &Tile, split: usize) {
        let seen = tile.seen(task);
        let keys = seen.start.max(split * SPLIT)..seen.end.min((split + 1) * SPLIT);
        if keys.is_empty() {
            self.parts.fill(Running::NONE);
            self.sums.fill(0.0);
            return;
        }
        match task.cache.kind() {
            Kind::F32 => lanes::run(isa, Part::<f32>::new(task, tile, keys, self)),
            Kind::F16 => lanes::run(isa, Part::<f16>::new(task, tile, keys, self)),
            Kind::Bf16 => lanes::run(isa, Part::<bf16>::new(task, tile, keys, self)),
        }
    }
}

/// A tile's rows and the keys of one split.
struct Part<'a, E> {
    task: &'a Task<'a>,
    tile: &'a Tile,
    shape: Shape,
    cached_keys: &'a [E],
    cached_values: &'a [E],
    /// Positions, all of them in one split.
    keys: Range<usize>,
    scratch: &'a mut Scratch,
}

/// Rows of an operand, some elements from each to the next; of each a vector at either address.
#[derive(Clone, Copy)]
struct Operand<E> {
    at: [*const E; VECTORS],
    rows: usize,
    /// What will be read next, laid out as this: it is asked for row by row, so that it is near when its turn comes. It need not be
    /// readable. Blocks lie anywhere, so that the core's own prefetcher begins anew with each.
    next: *const E,
}

impl<E: Element> Kernel for Part<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        self.score(l);
        self.weigh(l);
        let rows = self.tile.rows.len();
        self.sum(l, 0..rows, self.keys.clone());
        // A key that a row does not see has no weight, but 0 times NaN is NaN: such rows are summed up again over their own keys.
        if rows > 1 && !self.is_finite(l) {
            for index in 0..rows {
                let keys = self.seen_by(index);
                self.sum(l, index..index + 1, keys);
            }
        }
    }
}

impl<'a, E: Element> Part<'a, E> {
    fn new(task: &'a Task<'a>, tile: &'a Tile, keys: Range<usize>, scratch: &'a mut Scratch) -> Self {
        let cache = task.cache;
        Self {
            task,
            tile,
            shape: cache.shape(),
            cached_keys: cache.keys(),
            cached_values: cache.values(),
            keys,
            scratch,
        }
    }

    /// Of these keys, those that a row sees. Empty where there is none.
    #[inline(always)]
    fn seen_by(&self, index: usize) -> Range<usize> {
        let seen = self.task.keys(self.tile.query(self.tile.rows.start + index));
        let start = seen.start.clamp(self.keys.start, self.keys.end);
        start..seen.end.clamp(start, self.keys.end)
    }

    /// The scores of all rows with whole tiles of keys, in columns by their place in the split.
    #[inline(always)]
    fn score<L: Lanes>(&mut self, l: L) {
        let (d, width) = (self.shape.head_dim, VECTORS * L::WIDTH);
        let in_place = self.shape.block.is_multiple_of(L::WIDTH);
        let rows = self.tile.rows.len();
        let tiles = rows.div_ceil(L::TILE_ROWS);
        let mut first = self.keys.start / width * width;
        while first < self.keys.end {
            let (operand, stride) = match in_place {
                true => (self.keys_in_place::<L>(first), self.shape.block),
                false => (self.gather::<L>(first), width),
            };
            let mut row = 0;
            for index in 0..tiles {
                let some = (rows - row).div_ceil(tiles - index);
                let a = &self.scratch.queries[row * d..(row + some) * d];
                let c = &mut self.scratch.scores[row * SPLIT + first % SPLIT..(row + some) * SPLIT];
                // SAFETY: a row of `d` queries and of `SPLIT` scores for each, of which a whole tile of columns follows `first`, as
                // both are multiples of it; `d` rows of keys, each a vector at either address.
                unsafe {
                    product::<L, E>(l, some, (a.as_ptr(), d), (&[operand], stride), (c.as_mut_ptr(), SPLIT), false)
                };
                row += some;
            }
            first += width;
        }
    }

    /// A tile's keys in the cache. Where there are fewer than two vectors of them, the first one twice: nobody looks at its
    /// scores.
    #[inline(always)]
    fn keys_in_place<L: Lanes>(&self, first: usize) -> Operand<E> {
        let from = |position: usize| {
            let block = self.task.sequence.table[position / self.shape.block];
            self.shape.keys_of(block, self.tile.kv_head) + position % self.shape.block
        };
        let second = first + L::WIDTH;
        let from_second = from(if second < self.keys.end { second } else { first });
        // To the last element of the last vector: a bounds check for all that is read.
        let len = (self.shape.head_dim - 1) * self.shape.block + L::WIDTH;
        let at = [from(first), from_second].map(|from| self.cached_keys[from..from + len].as_ptr());
        let following = first + VECTORS * L::WIDTH;
        let next = if following < self.keys.end {
            self.cached_keys[from(following)..].as_ptr()
        } else {
            let block = self.task.sequence.table[self.keys.start / self.shape.block];
            self.cached_values[self.shape.values_of(block, self.tile.kv_head)..].as_ptr()
        };
        Operand { at, rows: self.shape.head_dim, next }
    }

    /// A tile's keys, put side by side. What is behind the last one is of no meaning.
    #[inline(always)]
    fn gather<L: Lanes>(&mut self, first: usize) -> Operand<E> {
        let Shape { block, head_dim, .. } = self.shape;
        let width = VECTORS * L::WIDTH;
        let gathered = &mut E::all_mut(&mut self.scratch.gathered)[..width * head_dim];
        for (column, position) in (first..self.keys.end.min(first + width)).enumerate() {
            let number = self.task.sequence.table[position / block];
            let from = self.shape.keys_of(number, self.tile.kv_head) + position % block;
            for element in 0..head_dim {
                gathered[element * width + column] = self.cached_keys[from + element * block];
            }
        }
        Operand { at: [gathered.as_ptr(), gathered[L::WIDTH..].as_ptr()], rows: head_dim, next: gathered.as_ptr() }
    }

    /// Makes weights of the scores: 0 where a row does not see a key.
    #[inline(always)]
    fn weigh<L: Lanes>(&mut self, l: L) {
        let width = VECTORS * L::WIDTH;
        let first = self.keys.start / width * width;
        let columns = first % SPLIT..(self.keys.end - first).next_multiple_of(width) + first % SPLIT;
        // With a cap the scale goes first; without one it is part of the exponent.
        let Params { scale, softcap, .. } = *self.task.params;
        let scale_left = if softcap.is_some() { 1.0 } else { scale };
        // Step by step, so that the steps of one row are taken while those of another are waited for.
        for index in 0..self.tile.rows.len() {
            let seen = self.seen_by(index);
            let row = &mut self.scratch.scores[index * SPLIT..][columns.clone()];
            self.scratch.parts[index] = Running::NONE;
            if seen.is_empty() {
                row.fill(0.0);
                continue;
            }
            if let Some(cap) = softcap {
                squeeze(l, row, scale / cap, cap);
            }
            row[..seen.start - first].fill(f32::NEG_INFINITY);
            row[seen.end - first..].fill(f32::NEG_INFINITY);
        }
        for index in 0..self.tile.rows.len() {
            if !self.seen_by(index).is_empty() {
                let row = &self.scratch.scores[index * SPLIT..][columns.clone()];
                self.scratch.parts[index].max = largest(l, row) * scale_left;
            }
        }
        for index in 0..self.tile.rows.len() {
            if !self.seen_by(index).is_empty() {
                let row = &mut self.scratch.scores[index * SPLIT..][columns.clone()];
                let Running { max, sum } = &mut self.scratch.parts[index];
                *sum = exponentials(l, row, scale_left, *max);
            }
        }
    }

    /// The sums of values of some rows over some of the keys.
    #[inline(always)]
    fn sum<L: Lanes>(&mut self, l: L, rows: Range<usize>, keys: Range<usize>) {
        let width = VECTORS * L::WIDTH;
        let value_stride = self.shape.value_stride();
        let stride = value_stride.next_multiple_of(width);
        self.scratch.sums[rows.start * stride..rows.end * stride].fill(0.0);
        let tiles = rows.len().div_ceil(L::TILE_ROWS);
        // One tile reads everything once, in the order in which it lies.
        let blocks_max = if tiles == 1 { 1 } else { BLOCKS };
        let mut first = keys.start;
        while first < keys.end {
            let mut operands = [Operand { at: [std::ptr::null(); VECTORS], rows: 0, next: std::ptr::null() }; BLOCKS];
            let (mut blocks, mut end) = (0, first);
            while blocks < blocks_max && end < keys.end {
                operands[blocks] = self.values_in_place::<L>(end, &keys);
                end += operands[blocks].rows;
                blocks += 1;
            }
            for column in (0..value_stride).step_by(width) {
                let mut row = rows.start;
                for index in 0..tiles {
                    let some = (rows.end - row).div_ceil(tiles - index);
                    let a = &self.scratch.scores[row * SPLIT + first % SPLIT..(row + some) * SPLIT];
                    let c = &mut self.scratch.sums[row * stride + column..(row + some) * stride];
                    // SAFETY: a weight for each key in each of these rows, whole tiles in a row of sums, and rows of values that
                    // are whole vectors.
                    unsafe {
                        let b = (&operands[..blocks], value_stride);
                        product::<L, E>(l, some, (a.as_ptr(), SPLIT), b, (c.as_mut_ptr(), stride), true);
                    }
                    row += some;
                }
                for operand in &mut operands[..blocks] {
                    // Where only one vector is left, it is taken twice: there is room for what nobody looks at.
                    let second = if column + width + L::WIDTH < value_stride { L::WIDTH } else { 0 };
                    let at = operand.at[0].wrapping_add(width);
                    *operand = Operand {
                        at: [at, at.wrapping_add(second)],
                        next: operand.next.wrapping_add(width),
                        ..*operand
                    };
                }
            }
            first = end;
        }
    }

    /// The values of some keys, the first columns of them, from a position on to the end of its block.
    #[inline(always)]
    fn values_in_place<L: Lanes>(&self, first: usize, keys: &Range<usize>) -> Operand<E> {
        let (block, stride) = (self.shape.block, self.shape.value_stride());
        let from = |position: usize| {
            let number = self.task.sequence.table[position / block];
            self.shape.values_of(number, self.tile.kv_head) + position % block * stride
        };
        let rows = (block - first % block).min(keys.end - first);
        let values = &self.cached_values[from(first)..][..rows * stride];
        let second = if L::WIDTH < stride { L::WIDTH } else { 0 };
        let next =
            if first + rows < keys.end { self.cached_values[from(first + rows)..].as_ptr() } else { values.as_ptr() };
        Operand { at: [values.as_ptr(), values[second..].as_ptr()], rows, next }
    }

    /// Whether all sums are.
    #[inline(always)]
    fn is_finite<L: Lanes>(&self, l: L) -> bool {
        let value_stride = self.shape.value_stride();
        let stride = value_stride.next_multiple_of(VECTORS * L::WIDTH);
        let mut total = l.splat(0.0);
        // 0 times what is not finite is NaN.
        for sums in self.scratch.sums[..self.tile.rows.len() * stride].chunks_exact(L::WIDTH) {
            total = l.mul_add(l.load(sums), l.splat(0.0), total);
        }
        l.sum(total) == 0.0
    }
}

/// `row = cap · tanh(row · factor)`, a row of whole vectors.
#[inline(always)]
fn squeeze<L: Lanes>(l: L, row: &mut [f32], factor: f32, cap: f32) {
    let (factor, cap) = (l.splat(factor), l.splat(cap));
    for vector in row.chunks_exact_mut(L::WIDTH) {
        l.store(l.mul(cap, math::tanh(l, l.mul(l.load(vector), factor))), vector);
    }
}

/// `c = a · b`, or going on from what `c` holds, for up to [`Lanes::TILE_ROWS`] rows and a tile's columns. Each element is summed in the
/// order of the rows of `b`, one after the other, so that it does not matter in how many operands or calls that is done.
///
/// # Safety
/// Of `a`, each row a stride behind the one before it, as many elements can be read as the operands of `b` have rows together; of
/// each of these a vector at either address; and a tile's columns of each row of `c` can be read and written by nobody else.
#[inline(always)]
unsafe fn product<L: Lanes, E: Element>(
    l: L,
    rows: usize,
    a: (*const f32, usize),
    b: (&[Operand<E>], usize),
    c: (*mut f32, usize),
    goes_on: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match rows {
            1 => tile::<L, E, 1>(l, a, b, c, goes_on),
            2 => tile::<L, E, 2>(l, a, b, c, goes_on),
            3 => tile::<L, E, 3>(l, a, b, c, goes_on),
            4 => tile::<L, E, 4>(l, a, b, c, goes_on),
            5 if L::TILE_ROWS >= 5 => tile::<L, E, 5>(l, a, b, c, goes_on),
            6 if L::TILE_ROWS >= 6 => tile::<L, E, 6>(l, a, b, c, goes_on),
            7 if L::TILE_ROWS >= 7 => tile::<L, E, 7>(l, a, b, c, goes_on),
            8 if L::TILE_ROWS >= 8 => tile::<L, E, 8>(l, a, b, c, goes_on),
            9 if L::TILE_ROWS >= 9 => tile::<L, E, 9>(l, a, b, c, goes_on),
            10 if L::TILE_ROWS >= 10 => tile::<L, E, 10>(l, a, b, c, goes_on),
            11 if L::TILE_ROWS >= 11 => tile::<L, E, 11>(l, a, b, c, goes_on),
            12 if L::TILE_ROWS >= 12 => tile::<L, E, 12>(l, a, b, c, goes_on),
            _ => unreachable!("a tile has at most TILE_ROWS rows"),
        }
    }
}

/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tile<L: Lanes, E: Element, const ROWS: usize>(
    l: L,
    (mut a, a_stride): (*const f32, usize),
    (b, b_stride): (&[Operand<E>], usize),
    (c, c_stride): (*mut f32, usize),
    goes_on: bool,
) {
    let mut sums = [[l.splat(0.0); VECTORS]; ROWS];
    if goes_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (vector, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside row `row` of `c`.
                *sum = unsafe { l.load_at(c.add(row * c_stride + vector * L::WIDTH)) };
            }
        }
    }
    for &Operand { at: [mut first, mut second], rows, mut next } in b {
        for p in 0..rows {
            l.prefetch(next.cast());
            // SAFETY: a row of `b`, and an element of every row of `a`.
            unsafe {
                let (b0, b1) = (E::load(l, first), E::load(l, second));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = l.splat(*a.add(row * a_stride + p));
                    sums[0] = l.mul_add(x, b0, sums[0]);
                    sums[1] = l.mul_add(x, b1, sums[1]);
                }
            }
            // Behind the last row nothing is read.
            (first, second) = (first.wrapping_add(b_stride), second.wrapping_add(b_stride));
            next = next.wrapping_add(b_stride);
        }
        a = a.wrapping_add(rows);
    }
    for (row, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: inside row `row` of `c`.
            unsafe { l.store_at(*sum, c.add(row * c_stride + vector * L::WIDTH)) };
        }
    }
}
