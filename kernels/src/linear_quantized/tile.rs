//! The innermost loops of the dense layer over blocks: a few rows times two vectors of outputs. A checked product comes in, its sums
//! are written. Never a choice of how much is done at a time, but for rows of a tile.
//!
//! Where sums are two of 16 bits in a lane (AVX2), products are added up only as long as they fit. An element is at most 127, and
//! each sum takes two inputs of every group of four:
//!
//! | weights | a group at most | groups | sum at most |
//! |---|--:|--:|--:|
//! | 4 bits: 0 to 15 | 2 · 15 · 127 | 8 | 30,480 |
//! | 5 bits: 0 to 31 | 2 · 31 · 127 | 4 | 31,496 |
//! | 6 bits, less 32: −32 to 31 | 2 · 32 · 127 | 4 | 32,512 |
//!
//! Elements of 6 bits are stored as 0 to 63, and so are their products (of a group at most 2 · 63 · 127 = 16,002). Their sums begin with what that is too
//! much, and may leave 16 bits on their way, but come back: additions wrap around.
//!
//! Sums of a block in 32 bits: at most 256 · 127 · 63 · 128 = 262,176,768, for 6 bits with a scale of −128.

use std::mem::MaybeUninit;

use super::blocks::Blocks;
use super::pack::Layout;
use super::rows::GROUP;
use super::simd::Product;
use crate::launch::bytes::{Bytes, Kernel};

/// Vectors side by side in a panel, as in every packed operand.
pub(super) const VECTORS: usize = 2;

/// Units of a block of 256: 32 inputs each.
pub(super) const UNITS: usize = 8;

/// Pairs of groups of a unit: 8 inputs each.
pub(super) const PAIRS: usize = 4;

/// Groups of a unit.
pub(super) const GROUPS: usize = 2 * PAIRS;

/// Bytes of the widest vector.
pub(super) const VECTOR_MAX: usize = 64;

// What one block of a panel is unpacked to, in vectors from its start.
pub(super) const SCALES: usize = 0;
const MINS: usize = SCALES + 16 * VECTORS;
const D: usize = MINS + 8 * VECTORS;
const DMIN: usize = D + VECTORS;
const QUANTS: usize = DMIN + VECTORS;
const UNPACKED: usize = QUANTS + UNITS * GROUPS * VECTORS;

/// Room for one block of a panel.
#[repr(C, align(64))]
pub(super) struct Unpacked([u8; UNPACKED * VECTOR_MAX]);

/// What is read so many bytes later is asked for now: at 6 bytes a cycle, what a memory that answers in 200 ns needs. Blocks and panels
/// lie side by side, so that it is what comes next.
const AHEAD: usize = 4096;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for one part of `parts` of what lies ahead of a block of so many bytes.
#[inline(always)]
pub(super) fn ahead<B: Bytes>(b: B, from: *const u8, len: usize, part: usize, parts: usize) {
    let first = from.wrapping_add(AHEAD + part * len / parts);
    for line in 0..(len / parts).div_ceil(LINE) {
        b.prefetch(first.wrapping_add(line * LINE));
    }
}

/// The type of blocks of 256 whose elements have 4 bits and `high` more.
pub(super) const fn blocks(high: usize) -> Blocks {
    match high {
        0 => Blocks::Q4_K,
        1 => Blocks::Q5_K,
        _ => Blocks::Q6_K,
    }
}

/// A product over blocks of 256 whose elements have 4 bits and `HIGH` more.
pub(super) struct Bits<'a, const HIGH: usize>(pub(super) Product<'a>);

/// Some rows of `x` for one block, and where their sums go.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) words: *const u32,
    pub(super) words_stride: usize,
    pub(super) scales: *const f32,
    pub(super) scales_stride: usize,
    /// The sums that minimums (or what elements have too much) are multiplied with, in pairs. Where [`starts_below`], what sums begin with.
    pub(super) sums: *const u32,
    pub(super) sums_stride: usize,
    /// Of blocks of 32, the sums over each of them, as far apart; else null.
    pub(super) totals: *const f32,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// Whether the sums in `c` are of inputs before these.
    pub(super) accumulate: bool,
}

impl Place {
    /// The rows behind the first so many.
    ///
    /// # Safety
    /// There are so many.
    #[inline(always)]
    pub(super) unsafe fn behind(self, row: usize) -> Self {
        // SAFETY: the caller vouches for the rows.
        unsafe {
            Self {
                words: self.words.add(row * self.words_stride),
                scales: self.scales.add(row * self.scales_stride),
                sums: self.sums.add(row * self.sums_stride),
                totals: self.totals.wrapping_add(row * self.sums_stride),
                c: self.c.add(row * self.c_stride),
                ..self
            }
        }
    }
}

impl<const HIGH: usize> Kernel for Bits<'_, HIGH> {
    #[inline(always)]
    fn run<B: Bytes>(self, b: B) {
        const {
            assert!(
                4 * B::WIDTH <= VECTOR_MAX && B::TILE_ROWS >= 4 && B::TILE_ROWS <= 6,
                "room for a vector, and a tile for every count of rows"
            )
        };
        let Product { x, weights, panels, rows, c, c_stride } = self.0;
        assert_eq!(weights.width(), VECTORS * B::WIDTH, "panels of this instruction set");
        let (k, blocks) = (weights.inputs(), weights.blocks_a_row());
        let (sums, sums_stride) = match HIGH {
            2 if starts_below::<B, HIGH>() => (&x.excess_16, k / 16),
            2 => (&x.sums_16, k / 32),
            _ => (&x.sums_32, k / 64),
        };
        assert!(rows.end <= x.len() && sums.len() >= rows.end * sums_stride, "rows with their sums");
        let tiles = rows.len().div_ceil(B::TILE_ROWS);
        let mut unpacked = MaybeUninit::<Unpacked>::uninit();
        let scratch = unpacked.as_mut_ptr().cast::<u8>();
        for panel in panels.clone() {
            let (first_block, layout) = weights.panel(panel);
            for block in 0..blocks {
                // SAFETY: the panel has so many blocks, the scratch room for one, and each of the rows has what is read of it
                // here; `c` has a panel's columns of every row, as who made the product vouches.
                unsafe {
                    let from = first_block.add(block * layout.len);
                    scales::<B, HIGH>(b, from, layout, scratch);
                    let place = Place {
                        words: x.words.words().as_ptr().add((rows.start * k + block * UNITS * GROUPS * GROUP) / GROUP),
                        words_stride: k / GROUP,
                        scales: x.scales.as_ptr().add(rows.start * blocks + block),
                        scales_stride: blocks,
                        sums: sums.as_ptr().add(rows.start * sums_stride + block * sums_stride / blocks),
                        sums_stride,
                        totals: std::ptr::null(),
                        c: c.add((panel - panels.start) * VECTORS * B::WIDTH),
                        c_stride,
                        accumulate: block > 0,
                    };
                    if tiles == 1 {
                        match rows.len() {
                            1 => tile::<B, HIGH, 1, false>(b, from, layout, scratch, place),
                            2 => tile::<B, HIGH, 2, false>(b, from, layout, scratch, place),
                            3 => tile::<B, HIGH, 3, false>(b, from, layout, scratch, place),
                            4 => tile::<B, HIGH, 4, false>(b, from, layout, scratch, place),
                            5 if B::TILE_ROWS >= 5 => tile::<B, HIGH, 5, false>(b, from, layout, scratch, place),
                            6 if B::TILE_ROWS >= 6 => tile::<B, HIGH, 6, false>(b, from, layout, scratch, place),
                            _ => unreachable!("a tile has at most TILE_ROWS rows"),
                        }
                        continue;
                    }
                    quants::<B, HIGH>(b, from, layout, scratch);
                    let mut first = 0;
                    for index in 0..tiles {
                        // As even as possible: of 5 rows, 3 and 2.
                        let count = (rows.len() - first).div_ceil(tiles - index);
                        let place = place.behind(first);
                        match count {
                            1 => tile::<B, HIGH, 1, true>(b, from, layout, scratch, place),
                            2 => tile::<B, HIGH, 2, true>(b, from, layout, scratch, place),
                            3 => tile::<B, HIGH, 3, true>(b, from, layout, scratch, place),
                            4 => tile::<B, HIGH, 4, true>(b, from, layout, scratch, place),
                            5 if B::TILE_ROWS >= 5 => tile::<B, HIGH, 5, true>(b, from, layout, scratch, place),
                            6 if B::TILE_ROWS >= 6 => tile::<B, HIGH, 6, true>(b, from, layout, scratch, place),
                            _ => unreachable!("a tile has at most TILE_ROWS rows"),
                        }
                        first += count;
                    }
                }
            }
        }
    }
}

/// Bytes of a vector.
pub(super) const fn vector<B: Bytes>() -> usize {
    4 * B::WIDTH
}

/// Whether sums begin with what elements have too much, so that nothing is to be taken away from them at the end.
const fn starts_below<B: Bytes, const HIGH: usize>() -> bool {
    HIGH == 2 && B::IS_NARROW
}

/// Unpacks scales, minimums (of 6 bits the scales once more, which the 32 is taken from), `d` and `dmin` of one block of a panel.
///
/// # Safety
/// The block can be read, the scratch written.
#[inline(always)]
pub(super) unsafe fn scales<B: Bytes, const HIGH: usize>(b: B, from: *const u8, layout: Layout, scratch: *mut u8) {
    // SAFETY: inside the block as its layout says, and inside the scratch as its constants say.
    unsafe {
        let at = |part: usize, index: usize, vector_index: usize| {
            scratch.add((part + index * VECTORS + vector_index) * vector::<B>())
        };
        for pair in 0..if HIGH == 2 { 8 } else { 4 } {
            for v in 0..VECTORS {
                let pairs_at = (pair * VECTORS + v) * 2 * B::WIDTH;
                let scales = from.add(layout.scales + pairs_at);
                let scales = if HIGH == 2 { b.signed_pairs(scales) } else { b.pairs(scales) };
                b.store(b.first(scales), at(SCALES, 2 * pair, v));
                b.store(b.second(scales), at(SCALES, 2 * pair + 1, v));
                if !starts_below::<B, HIGH>() {
                    let mins = if HIGH == 2 { scales } else { b.pairs(from.add(layout.mins + pairs_at)) };
                    b.store(mins, at(MINS, pair, v));
                }
            }
        }
        for v in 0..VECTORS {
            b.store_f32(b.load_f16(from.add(layout.d + 2 * v * B::WIDTH)), at(D, 0, v).cast());
            if HIGH != 2 {
                b.store_f32(b.load_f16(from.add(layout.dmin + 2 * v * B::WIDTH)), at(DMIN, 0, v).cast());
            }
        }
    }
}

/// Unpacks the elements of one block of a panel to bytes: `[units, groups, vectors, WIDTH, 4]`.
///
/// # Safety
/// The block can be read, the scratch written.
#[inline(always)]
unsafe fn quants<B: Bytes, const HIGH: usize>(b: B, from: *const u8, layout: Layout, scratch: *mut u8) {
    for unit in 0..UNITS {
        ahead(b, from, const { Layout::new(blocks(HIGH), VECTORS * B::WIDTH).len }, unit, UNITS);
        // SAFETY: as the caller vouches.
        unsafe {
            quants_of_pair::<B, HIGH, 0>(b, from, layout, scratch, unit);
            quants_of_pair::<B, HIGH, 1>(b, from, layout, scratch, unit);
            quants_of_pair::<B, HIGH, 2>(b, from, layout, scratch, unit);
            quants_of_pair::<B, HIGH, 3>(b, from, layout, scratch, unit);
        }
    }
}

/// # Safety
/// As [`quants`].
#[inline(always)]
unsafe fn quants_of_pair<B: Bytes, const HIGH: usize, const PAIR: usize>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *mut u8,
    unit: usize,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let weights = pair::<B, HIGH, PAIR, false>(b, from, layout, scratch, unit);
        for (group, weights) in weights.into_iter().enumerate() {
            for (v, weights) in weights.into_iter().enumerate() {
                let index = ((unit * GROUPS + 2 * PAIR + group) * VECTORS) + v;
                b.store(weights, scratch.add((QUANTS + index) * vector::<B>()));
            }
        }
    }
}

/// The elements of two groups of a unit, in bytes: `[group][vector]`.
///
/// # Safety
/// The block can be read; where `IS_UNPACKED`, the scratch holds its elements.
#[inline(always)]
pub(super) unsafe fn pair<B: Bytes, const HIGH: usize, const PAIR: usize, const IS_UNPACKED: bool>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    unit: usize,
) -> [[B::I; VECTORS]; 2] {
    let mut out = [[b.splat(0); VECTORS]; 2];
    for v in 0..VECTORS {
        // SAFETY: inside the block as its layout says, or inside the scratch as its constants say.
        unsafe {
            if IS_UNPACKED {
                for (group, out) in out.iter_mut().enumerate() {
                    let index = (unit * GROUPS + 2 * PAIR + group) * VECTORS + v;
                    out[v] = b.load(scratch.add((QUANTS + index) * vector::<B>()));
                }
                continue;
            }
            let nibbles = b.load(from.add(layout.quants + ((unit * PAIRS + PAIR) * VECTORS + v) * vector::<B>()));
            (out[0][v], out[1][v]) = (b.low(nibbles), b.high(nibbles));
            if HIGH == 1 {
                let bits = b.load(from.add(layout.bits + (unit * VECTORS + v) * vector::<B>()));
                out[0][v] = b.with_bits(out[0][v], bits, 4 - 2 * PAIR as i32, 0x10);
                out[1][v] = b.with_bits(out[1][v], bits, 3 - 2 * PAIR as i32, 0x10);
            }
            if HIGH == 2 {
                let half = 2 * unit + PAIR / 2;
                let bits = b.load(from.add(layout.bits + (half * VECTORS + v) * vector::<B>()));
                out[0][v] = b.with_bits(out[0][v], bits, 4 - 4 * (PAIR % 2) as i32, 0x30);
                out[1][v] = b.with_bits(out[1][v], bits, 2 - 4 * (PAIR % 2) as i32, 0x30);
            }
        }
    }
    out
}

/// After how many pairs of groups their sums must be scaled: when 16 bits are full, or when another scale begins.
const fn pairs_a_scale(high: usize, is_narrow: bool) -> usize {
    match (high, is_narrow) {
        (0, _) | (1, false) => 4,
        _ => 2,
    }
}

/// `ROWS` rows times one block of a panel.
///
/// # Safety
/// The block can be read, the scratch holds its scales and, where `IS_UNPACKED`, its elements; the place has so many rows.
#[inline(always)]
unsafe fn tile<B: Bytes, const HIGH: usize, const ROWS: usize, const IS_UNPACKED: bool>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    place: Place,
) {
    let mut sums = [[b.splat(0); VECTORS]; ROWS];
    for unit in 0..UNITS {
        let mut short = [[b.splat(0); VECTORS]; ROWS];
        if !IS_UNPACKED {
            ahead(b, from, const { Layout::new(blocks(HIGH), VECTORS * B::WIDTH).len }, unit, UNITS);
        }
        // SAFETY: as the caller vouches.
        unsafe {
            step::<B, HIGH, 0, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, unit, &mut short, &mut sums);
            step::<B, HIGH, 1, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, unit, &mut short, &mut sums);
            step::<B, HIGH, 2, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, unit, &mut short, &mut sums);
            step::<B, HIGH, 3, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, unit, &mut short, &mut sums);
        }
    }
    // SAFETY: as the caller vouches.
    unsafe {
        let ends = Ends::<B, HIGH>::load(b, scratch, HIGH == 2 && !starts_below::<B, HIGH>());
        for (row, sums) in sums.into_iter().enumerate() {
            ends.add_to(b, sums, place.behind(row));
        }
    }
}

/// What a block's sums are multiplied with when they are whole, and what is taken from them, for two vectors of outputs.
pub(super) struct Ends<B: Bytes, const HIGH: usize> {
    is_above: bool,
    mins: [[B::I; UNITS]; VECTORS],
    d: [B::F; VECTORS],
    dmin: [B::F; VECTORS],
}

impl<B: Bytes, const HIGH: usize> Ends<B, HIGH> {
    /// Pairs of minimums, or of scales where 32 times their sums is to be taken away.
    #[inline(always)]
    const fn pairs(is_above: bool) -> usize {
        match HIGH {
            2 if is_above => 8,
            2 => 0,
            _ => 4,
        }
    }

    /// `is_above`: the sums will be those of elements of 6 bits from which 32 was not taken. A constant.
    ///
    /// # Safety
    /// The scratch holds a block's scales.
    #[inline(always)]
    pub(super) unsafe fn load(b: B, scratch: *const u8, is_above: bool) -> Self {
        let mut ends = Self {
            is_above,
            mins: [[b.splat(0); UNITS]; VECTORS],
            d: [b.splat_f32(0.0); VECTORS],
            dmin: [b.splat_f32(0.0); VECTORS],
        };
        for v in 0..VECTORS {
            // SAFETY: inside the scratch as its constants say.
            unsafe {
                for pair in 0..Self::pairs(is_above) {
                    ends.mins[v][pair] = b.load(scratch.add((MINS + pair * VECTORS + v) * vector::<B>()));
                }
                ends.d[v] = b.load_f32(scratch.add((D + v) * vector::<B>()).cast());
                if HIGH != 2 {
                    ends.dmin[v] = b.load_f32(scratch.add((DMIN + v) * vector::<B>()).cast());
                }
            }
        }
        ends
    }

    /// Adds what the block's sums come to, by its scales and the row's, to the first row of the place.
    ///
    /// # Safety
    /// The place has the row.
    #[inline(always)]
    pub(super) unsafe fn add_to(&self, b: B, sums: [B::I; VECTORS], place: Place) {
        // SAFETY: as the caller vouches.
        unsafe {
            let mut mins = [b.splat(0); VECTORS];
            for pair in 0..Self::pairs(self.is_above) {
                let x = b.splat(*place.sums.add(pair));
                for (mins, of) in mins.iter_mut().zip(&self.mins) {
                    *mins = b.add_pairs(*mins, of[pair], x);
                }
            }
            let scale = b.splat_f32(*place.scales);
            let mut y = [scale; VECTORS];
            for v in 0..VECTORS {
                let sums = if self.is_above { b.less_32(sums[v], mins[v]) } else { sums[v] };
                y[v] = b.mul(b.float(sums), self.d[v]);
                if HIGH != 2 {
                    y[v] = b.sub(y[v], b.mul(b.float(mins[v]), self.dmin[v]));
                }
                y[v] = b.mul(y[v], scale);
                if place.accumulate {
                    y[v] = b.add(b.load_f32(place.c.add(v * B::WIDTH)), y[v]);
                }
            }
            for (v, y) in y.into_iter().enumerate() {
                b.store_f32(y, place.c.add(v * B::WIDTH));
            }
        }
    }
}

/// Two groups of a unit, for every row of a tile.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop that must be unrolled")]
unsafe fn step<B: Bytes, const HIGH: usize, const PAIR: usize, const ROWS: usize, const IS_UNPACKED: bool>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    place: Place,
    unit: usize,
    short: &mut [[B::I; VECTORS]; ROWS],
    sums: &mut [[B::I; VECTORS]; ROWS],
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let weights = pair::<B, HIGH, PAIR, IS_UNPACKED>(b, from, layout, scratch, unit);
        let is_first = PAIR.is_multiple_of(pairs_a_scale(HIGH, B::IS_NARROW));
        for (row, short) in short.iter_mut().enumerate() {
            if starts_below::<B, HIGH>() && is_first {
                *short = [b.splat(*place.sums.add(row * place.sums_stride + 2 * unit + PAIR / 2)); VECTORS];
            }
            let words = place.words.add(row * place.words_stride + unit * GROUPS + 2 * PAIR);
            for (group, weights) in weights.into_iter().enumerate() {
                let x = b.splat(*words.add(group));
                for v in 0..VECTORS {
                    short[v] = b.add_unsigned(short[v], weights[v], x);
                }
            }
        }
        if (PAIR + 1).is_multiple_of(pairs_a_scale(HIGH, B::IS_NARROW)) {
            let index = if HIGH == 2 { 2 * unit + PAIR / 2 } else { unit };
            for v in 0..VECTORS {
                let scales = b.load(scratch.add((SCALES + index * VECTORS + v) * vector::<B>()));
                for (sums, short) in sums.iter_mut().zip(short.iter_mut()) {
                    sums[v] = b.add_scaled(sums[v], short[v], scales);
                    short[v] = b.splat(0);
                }
            }
        }
    }
}
