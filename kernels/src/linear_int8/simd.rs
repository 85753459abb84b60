//! The dense layer in 8 bits, in blocks that fit the caches. Checked calls come in, rows in 8 bits or a rectangle of the result
//! are written. Never an instruction of one CPU: those are `launch::dots`.

use std::ops::Range;

use super::{Epilogue, Quantized, Rows};
use crate::launch::Isa;
use crate::launch::aligned::Aligned;
use crate::launch::amx::{SIGNED, Step, Sums, TILE, Tiles, UNSIGNED};
use crate::launch::columns::Columns;
use crate::launch::dots::{self, Dots};
use crate::launch::lanes::{self, Lanes};
use crate::linear::simd::Strip;

/// Rows at a time: so much of `x` stays in the second cache (64 rows of 1,536 inputs of 16 bits: 196 KB) while the panels go past.
const ROWS: usize = 64;

/// The same where tiles take them, of which a row is half as long, and which are done with a panel so soon that it must be read less often.
const ROWS_TILED: usize = 256;

/// Inputs that tiles take at once.
const INPUTS_TILED: usize = dots::inputs_at_once(Isa::Avx512Amx);

/// Vectors side by side in a panel, as in every packed operand.
const VECTORS: usize = 2;

/// Groups that one turn of the innermost loop takes, for the reason that `launch::tile` gives. With more, not all stays in registers.
const GROUPS_PER_TURN: usize = 2;

/// Puts checked rows into 8 bits.
pub(super) fn quantize(x: &[f32], weights: &Quantized, rows: &mut Rows) {
    let (k, isa, groups) = (weights.inputs(), weights.isa(), weights.groups());
    let mut whole = std::mem::take(&mut rows.whole);
    let padded = whole.at_least(groups * dots::group(isa));
    padded[k..].fill(0.0);
    let places = rows.words.chunks_exact_mut(groups).zip(rows.scales.iter_mut().zip(&mut rows.zeros));
    for (x, (words, (scale, zero))) in x.chunks_exact(k).zip(places) {
        *scale = lanes::run(isa, Round { x, to: &mut padded[..k], zero });
        dots::run(isa, Narrow { from: padded, to: words, zero });
    }
    rows.whole = whole;
}

/// One row as whole numbers from 0 to 255, still in f32. Gives the scale.
struct Round<'a> {
    x: &'a [f32],
    to: &'a mut [f32],
    zero: &'a mut i32,
}

impl lanes::Kernel for Round<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let (blocks, rest) = self.x.split_at(self.x.len() - self.x.len() % L::WIDTH);
        let none = l.splat(0.0);
        // Zero is among them, so that it is a whole number, too. The third shows by NaN that one of them is no number.
        let (mut least, mut most, mut finite) = (none, none, none);
        // A loop, not a closure for an iterator, which would not be compiled for the instruction set.
        for block in blocks.chunks_exact(L::WIDTH) {
            let v = l.load(block);
            (least, most, finite) = (l.min(least, v), l.max(most, v), l.mul_add(v, none, finite));
        }
        if !rest.is_empty() {
            let v = l.load_partial(rest);
            (least, most, finite) = (l.min(least, v), l.max(most, v), l.mul_add(v, none, finite));
        }
        let (least, most) = (-l.largest(l.sub(none, least)), l.largest(most));
        // Each divided by itself: their difference may leave the range.
        let scale = most / 255.0 - least / 255.0;
        if l.sum(finite).is_nan() {
            self.to.fill(0.0);
            *self.zero = 0;
            return f32::NAN;
        }
        // Numbers so small that their scale has no inverse are as good as zeros.
        let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
        let zero = (-least * inverse).round_ties_even();
        *self.zero = zero as i32;
        let (inverse, zero) = (l.splat(inverse), l.splat(zero));
        let (to, to_rest) = self.to.split_at_mut(blocks.len());
        for (block, to) in blocks.chunks_exact(L::WIDTH).zip(to.chunks_exact_mut(L::WIDTH)) {
            l.store(whole(l, l.load(block), inverse, zero), to);
        }
        if !rest.is_empty() {
            l.store_partial(whole(l, l.load_partial(rest), inverse, zero), to_rest);
        }
        scale
    }
}

/// `round(v · inverse) + zero`, within 0 to 255.
#[inline(always)]
fn whole<L: Lanes>(l: L, v: L::V, inverse: L::V, zero: L::V) -> L::V {
    l.min(l.splat(255.0), l.max(l.splat(0.0), l.add(l.round(l.mul(v, inverse)), zero)))
}

/// Whole numbers from 0 to 255 as an instruction set takes them; the zero is shifted as they are.
struct Narrow<'a> {
    from: &'a [f32],
    to: &'a mut [u32],
    zero: &'a mut i32,
}

impl dots::Kernel for Narrow<'_> {
    #[inline(always)]
    fn run<D: Dots>(self, _: D) {
        *self.zero -= D::SHIFT;
        // SAFETY: 0 to 255 have a form in 32 bits. A check would cost more than the conversion.
        let element = |x: f32| unsafe { x.to_int_unchecked::<i32>() } - D::SHIFT;
        let elements = self.to.len() * D::GROUP;
        let from = &self.from[..elements];
        let first = self.to.as_mut_ptr();
        if D::GROUP == 2 {
            // SAFETY: a word is two elements of 16 bits, which any bits are, and the slice is borrowed alone.
            let to = unsafe { std::slice::from_raw_parts_mut(first.cast::<i16>(), elements) };
            for (to, x) in to.iter_mut().zip(from) {
                *to = element(*x) as i16;
            }
        } else {
            // SAFETY: as above, four elements of 8 bits.
            let to = unsafe { std::slice::from_raw_parts_mut(first.cast::<i8>(), elements) };
            for (to, x) in to.iter_mut().zip(from) {
                *to = element(*x) as i8;
            }
        }
    }
}

/// `out`'s columns are those of `panels`.
pub(super) fn run(x: &Rows, weights: &Quantized, panels: Range<usize>, epilogue: &Epilogue<'_>, mut out: Columns<'_>) {
    let (m, width, isa) = (x.len(), weights.width(), weights.isa());
    if m == 0 || panels.is_empty() {
        return;
    }
    let first_column = weights.columns(panels.clone()).start;
    // The last panel's result, which is wider than what is wanted of it.
    let is_ragged = panels.end == weights.panels() && !weights.outputs().is_multiple_of(width);
    // Few rows are done before tiles are worth their while.
    let mut tiles = if m < TILE { None } else { Tiles::<INPUTS_TILED>::set_up(isa).map(|tiles| (tiles, Sums::zero())) };
    let at_once = if tiles.is_some() { ROWS_TILED } else { ROWS };
    let mut ragged = Aligned::zeros(if is_ragged { at_once.min(m) * width } else { 0 });
    for first_row in (0..m).step_by(at_once) {
        let rows = first_row..m.min(first_row + at_once);
        for panel in panels.clone() {
            let columns = weights.columns(panel..panel + 1);
            let is_whole = columns.len() == width;
            let (c, c_stride) = if is_whole {
                let (first, stride) = out.raw();
                (first.wrapping_add(rows.start * stride + columns.start - first_column), stride)
            } else {
                (ragged.as_mut_ptr(), width)
            };
            // What the block writes are these rows of the panel's columns of `out`, which has them all (the caller checked), or
            // the scratch, which has ROWS or m rows of a panel. `out` and the scratch are borrowed alone.
            let block = Block { x, weights, panel, rows: rows.clone(), c, c_stride };
            match &mut tiles {
                Some((tiles, sums)) if rows.len() >= TILE => dots::run(isa, Tiled { tiles, sums, block }),
                _ => dots::run(isa, block),
            }
            let ragged = (!is_whole).then_some(&*ragged);
            let (rows, outputs, out) = (rows.clone(), weights.outputs(), out.reborrow());
            lanes::run(isa, Strip { ragged, rows, columns, first_column, outputs, epilogue, out });
        }
    }
}

/// Some rows times one panel. `c` is `[rows, width]`, a row `c_stride` behind the one before it, borrowed alone by who makes this.
struct Block<'a> {
    x: &'a Rows,
    weights: &'a Quantized,
    panel: usize,
    rows: Range<usize>,
    c: *mut f32,
    c_stride: usize,
}

impl dots::Kernel for Block<'_> {
    #[inline(always)]
    fn run<D: Dots>(self, d: D) {
        // As even as possible: of 7 rows, 4 and 3 keep more sums in flight than 6 and 1.
        let tiles = self.rows.len().div_ceil(D::TILE_ROWS);
        let mut first = self.rows.start;
        for index in 0..tiles {
            let rows = (self.rows.end - first).div_ceil(tiles - index);
            // What is read next lies behind this panel: each tile asks for its share of it, bit by bit.
            let share = VECTORS * D::WIDTH * D::GROUP / tiles;
            let next = self.weights.panel(self.panel).as_ptr_range().end.cast::<i8>();
            let ahead = (next.wrapping_add(self.weights.groups() * share * index), share);
            match rows {
                1 => self.tile::<D, 1>(d, first, ahead),
                2 => self.tile::<D, 2>(d, first, ahead),
                3 => self.tile::<D, 3>(d, first, ahead),
                4 => self.tile::<D, 4>(d, first, ahead),
                5 if D::TILE_ROWS >= 5 => self.tile::<D, 5>(d, first, ahead),
                6 if D::TILE_ROWS >= 6 => self.tile::<D, 6>(d, first, ahead),
                7 if D::TILE_ROWS >= 7 => self.tile::<D, 7>(d, first, ahead),
                8 if D::TILE_ROWS >= 8 => self.tile::<D, 8>(d, first, ahead),
                9 if D::TILE_ROWS >= 9 => self.tile::<D, 9>(d, first, ahead),
                10 if D::TILE_ROWS >= 10 => self.tile::<D, 10>(d, first, ahead),
                11 if D::TILE_ROWS >= 11 => self.tile::<D, 11>(d, first, ahead),
                12 if D::TILE_ROWS >= 12 => self.tile::<D, 12>(d, first, ahead),
                _ => unreachable!("a tile has at most TILE_ROWS rows"),
            }
            first += rows;
        }
    }
}

impl Block<'_> {
    /// `ROWS` rows from `first` on. `ahead` is what is asked for, and how many bytes of it with every group.
    #[inline(always)]
    fn tile<D: Dots, const ROWS: usize>(&self, d: D, first: usize, ahead: (*const i8, usize)) {
        let groups = self.weights.groups();
        let x = &self.x.words[first * groups..(first + ROWS) * groups];
        let panel = self.weights.panel(self.panel);
        let step = VECTORS * D::WIDTH * D::GROUP;
        assert_eq!(panel.len(), groups * step, "a panel of this instruction set");
        let mut sums = [[d.zero(); VECTORS]; ROWS];
        let (mut next, share) = ahead;
        let (mut x, mut weights) = (x.as_ptr(), panel.as_ptr().cast::<i8>());
        // SAFETY: every row has every group, and the panel has two vectors of weights for each; what is asked for need not be there.
        unsafe {
            for _ in 0..groups / GROUPS_PER_TURN {
                d.prefetch(next);
                d.prefetch(next.wrapping_add(GROUPS_PER_TURN / 2 * share));
                next = next.wrapping_add(GROUPS_PER_TURN * share);
                for group in 0..GROUPS_PER_TURN {
                    add_group(d, (x.add(group), groups), weights.add(group * step), &mut sums);
                }
                x = x.add(GROUPS_PER_TURN);
                weights = weights.add(GROUPS_PER_TURN * step);
            }
            for _ in 0..groups % GROUPS_PER_TURN {
                add_group(d, (x, groups), weights, &mut sums);
                x = x.add(1);
                weights = weights.add(step);
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            self.finish(d, first + row, sums);
        }
    }

    /// Writes a row of the panel from its sums.
    #[inline(always)]
    fn finish<D: Dots>(&self, d: D, row: usize, sums: [D::Sums; VECTORS]) {
        assert!(self.rows.contains(&row), "a row of this block");
        let column = self.panel * VECTORS * D::WIDTH;
        let (totals, scales) = (&self.weights.totals[column..], &self.weights.scales[column..]);
        let (zero, scale) = (self.x.zeros[row], self.x.scales[row]);
        for (vector, sums) in sums.into_iter().enumerate() {
            let lane = vector * D::WIDTH;
            let (totals, scales) = (&totals[lane..lane + D::WIDTH], &scales[lane..lane + D::WIDTH]);
            // SAFETY: WIDTH elements of each, and a vector of a row of `c`.
            unsafe {
                let to = self.c.add((row - self.rows.start) * self.c_stride + lane);
                d.finish(sums, zero, totals.as_ptr(), scale, scales.as_ptr(), to);
            }
        }
    }
}

/// A block of at least as many rows as a tile has, whose sums are computed by tiles.
struct Tiled<'a> {
    tiles: &'a Tiles<INPUTS_TILED>,
    sums: &'a mut Sums,
    block: Block<'a>,
}

impl dots::Kernel for Tiled<'_> {
    #[inline(always)]
    fn run<D: Dots>(self, d: D) {
        let Self { tiles, sums, block } = self;
        let (groups, panel) = (block.weights.groups(), block.weights.panel(block.panel));
        let inputs = groups * D::GROUP;
        assert_eq!(panel.len(), inputs * VECTORS * D::WIDTH, "a panel of this instruction set");
        let x = &block.x.words[block.rows.start * groups..block.rows.end * groups];
        for step in Step::all(block.rows.len()) {
            // SAFETY: there are all of the rows, each of so many inputs, and the panel has the weights of as many.
            unsafe {
                let x = step.of(x.as_ptr(), groups);
                tiles.multiply::<UNSIGNED, SIGNED>(x, panel.as_ptr(), inputs / INPUTS_TILED, sums);
            }
            for row in step.rows() {
                let mut of_row = [d.zero(); VECTORS];
                for (vector, of_row) in of_row.iter_mut().enumerate() {
                    let sums = &sums.of(step.of_row(row), vector * D::WIDTH)[..D::WIDTH];
                    // SAFETY: the slice has the vector's sums.
                    *of_row = unsafe { d.load(sums.as_ptr()) };
                }
                block.finish(d, block.rows.start + row, of_row);
            }
        }
    }
}

/// Adds one group's products: the word at `x.0` of the first row, `x.1` further on in each other, times two vectors of weights.
///
/// # Safety
/// All of them can be read.
#[inline(always)]
unsafe fn add_group<D: Dots, const ROWS: usize>(
    d: D,
    x: (*const u32, usize),
    weights: *const i8,
    sums: &mut [[D::Sums; VECTORS]; ROWS],
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let (w0, w1) = (d.weights(weights), d.weights(weights.add(D::WIDTH * D::GROUP)));
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = d.group(*x.0.add(row * x.1));
            sums[0] = d.add(sums[0], x, w0);
            sums[1] = d.add(sums[1], x, w1);
        }
    }
}
