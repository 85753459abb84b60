//! The innermost loops over blocks of 32: a few rows times two vectors of outputs. A checked product comes in, its sums are written.
//! Never a choice of how much is done at a time, but for rows of a tile.
//!
//! Elements of 4 and 5 bits are multiplied as they are stored, unsigned, which takes two instructions where signed ones take five
//! (on AVX2); what they have too much, or the minimum, comes in once a block by way of the sum of the row's elements. Where no
//! instruction takes two signs (VNNI), those with a sign are made unsigned and go the same way. How far sums of 16 bits reach is
//! told in [`super::tile`]. In 32 bits a block's is at most 32 · 127 · 255 = 1,036,320.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::blocks::{self, Blocks};
use super::pack::Layout;
use super::rows::GROUP;
use super::simd::Product;
use super::tile::{GROUPS, PAIRS, Place, VECTOR_MAX, VECTORS, ahead, vector};
use crate::launch::bytes::{Bytes, Kernel};

/// Blocks at a time, as many inputs as the larger blocks have.
const BLOCKS: usize = 8;

/// Room for the elements of so many blocks of a panel, a byte each: `[blocks, groups, vectors, WIDTH, 4]`.
#[repr(C, align(64))]
struct Unpacked([u8; BLOCKS * GROUPS * VECTORS * VECTOR_MAX]);

/// A type of blocks of 32, known when the loops are compiled.
pub(super) trait Of {
    const BLOCKS: Blocks;
}

macro_rules! types {
    ($($name:ident)+) => {$(
        #[allow(non_camel_case_types, reason = "the names that files and their readers use")]
        pub(super) struct $name;

        impl Of for $name {
            const BLOCKS: Blocks = Blocks::$name;
        }
    )+};
}

types! { Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL }

/// Whether elements are multiplied as they are stored, unsigned.
const fn is_unsigned(blocks: Blocks) -> bool {
    matches!(blocks, Blocks::Q4_0 | Blocks::Q4_1 | Blocks::Q5_0 | Blocks::Q5_1)
}

/// How much elements are above what they stand for when they are multiplied.
pub(super) const fn excess<B: Bytes>(blocks: Blocks) -> i16 {
    if is_unsigned(blocks) { blocks.excess() } else { B::EXCESS }
}

/// Whether it pays to unpack elements once for several tiles.
pub(super) const fn is_packed(blocks: Blocks) -> bool {
    blocks.bits() < 8
}

/// A product over blocks of 32.
pub(super) struct Small<'a, T>(Product<'a>, PhantomData<T>);

impl<'a, T: Of> Small<'a, T> {
    pub(super) fn new(product: Product<'a>) -> Self {
        Self(product, PhantomData)
    }
}

impl<T: Of> Kernel for Small<'_, T> {
    #[inline(always)]
    fn run<B: Bytes>(self, b: B) {
        const {
            assert!(
                4 * B::WIDTH <= VECTOR_MAX && B::TILE_ROWS >= 4 && B::TILE_ROWS <= 6,
                "room for a vector, and a tile for every count of rows"
            )
        };
        let Product { x, weights, panels, rows, .. } = &self.0;
        assert_eq!(
            (weights.width(), weights.blocks()),
            (VECTORS * B::WIDTH, T::BLOCKS),
            "panels of this instruction set"
        );
        let blocks = weights.blocks_a_row();
        assert!(rows.end <= x.len() && x.totals.len() >= rows.end * blocks, "rows with their sums");
        let tiles = rows.len().div_ceil(B::TILE_ROWS);
        let is_unpacked = tiles > 1 && const { is_packed(T::BLOCKS) };
        let mut unpacked = MaybeUninit::<Unpacked>::uninit();
        let scratch = unpacked.as_mut_ptr().cast::<u8>();
        for panel in panels.clone() {
            let (first_block, layout) = weights.panel(panel);
            for block in (0..blocks).step_by(BLOCKS) {
                let count = BLOCKS.min(blocks - block);
                // SAFETY: the panel has so many blocks, the scratch room for them, and each of the rows has what is read of it
                // here; `c` has a panel's columns of every row, as who made the product vouches.
                unsafe {
                    let from = first_block.add(block * layout.len);
                    let place = place(&self.0, panel, block);
                    if is_unpacked {
                        (0..count).for_each(|block| unpack::<B, T>(b, from, layout, scratch, block));
                    }
                    let mut first = 0;
                    for index in 0..tiles {
                        // As even as possible: of 5 rows, 3 and 2.
                        let rows = (rows.len() - first).div_ceil(tiles - index);
                        let place = place.behind(first);
                        match (rows, is_unpacked) {
                            (1, false) => tile::<B, T, 1, false>(b, from, layout, scratch, count, place),
                            (2, false) => tile::<B, T, 2, false>(b, from, layout, scratch, count, place),
                            (3, false) => tile::<B, T, 3, false>(b, from, layout, scratch, count, place),
                            (4, false) => tile::<B, T, 4, false>(b, from, layout, scratch, count, place),
                            (5, false) if B::TILE_ROWS >= 5 => {
                                tile::<B, T, 5, false>(b, from, layout, scratch, count, place)
                            }
                            (6, false) if B::TILE_ROWS >= 6 => {
                                tile::<B, T, 6, false>(b, from, layout, scratch, count, place)
                            }
                            (1, true) => tile::<B, T, 1, true>(b, from, layout, scratch, count, place),
                            (2, true) => tile::<B, T, 2, true>(b, from, layout, scratch, count, place),
                            (3, true) => tile::<B, T, 3, true>(b, from, layout, scratch, count, place),
                            (4, true) => tile::<B, T, 4, true>(b, from, layout, scratch, count, place),
                            (5, true) if B::TILE_ROWS >= 5 => {
                                tile::<B, T, 5, true>(b, from, layout, scratch, count, place)
                            }
                            (6, true) if B::TILE_ROWS >= 6 => {
                                tile::<B, T, 6, true>(b, from, layout, scratch, count, place)
                            }
                            _ => unreachable!("a tile has at most TILE_ROWS rows"),
                        }
                        first += rows;
                    }
                }
            }
        }
    }
}

/// The rows of a product from a block of 32 on, and where their sums go for a panel.
///
/// # Safety
/// The rows have that block and its sums, and `c` has the panel's columns of each of them.
#[inline(always)]
pub(super) unsafe fn place(product: &Product<'_>, panel: usize, block: usize) -> Place {
    let Product { x, weights, panels, rows, c, c_stride } = product;
    let (words, blocks) = (weights.inputs() / GROUP, weights.blocks_a_row());
    let first = rows.start * blocks + block;
    // SAFETY: as the caller vouches.
    unsafe {
        Place {
            words: x.words.words().as_ptr().add(rows.start * words + block * GROUPS),
            words_stride: words,
            scales: x.scales.as_ptr().add(first),
            scales_stride: blocks,
            sums: x.sums_16.as_ptr().add(first),
            sums_stride: blocks,
            totals: x.totals.as_ptr().add(first),
            c: c.add((panel - panels.start) * weights.width()),
            c_stride: *c_stride,
            accumulate: block > 0,
        }
    }
}

/// Unpacks the elements of one block of a panel to the scratch.
///
/// # Safety
/// The block can be read, the scratch written.
#[inline(always)]
unsafe fn unpack<B: Bytes, T: Of>(b: B, from: *const u8, layout: Layout, scratch: *mut u8, block: usize) {
    // SAFETY: as the caller vouches.
    unsafe {
        let from = from.add(block * layout.len);
        ahead(b, from, const { Layout::new(T::BLOCKS, VECTORS * B::WIDTH).len }, 0, 1);
        unpack_pair::<B, T, 0>(b, from, layout, scratch, block);
        unpack_pair::<B, T, 1>(b, from, layout, scratch, block);
        unpack_pair::<B, T, 2>(b, from, layout, scratch, block);
        unpack_pair::<B, T, 3>(b, from, layout, scratch, block);
    }
}

/// # Safety
/// As [`unpack`].
#[inline(always)]
unsafe fn unpack_pair<B: Bytes, T: Of, const PAIR: usize>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *mut u8,
    block: usize,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let weights = pair::<B, T, PAIR, false>(b, from, layout, scratch, block);
        for (group, weights) in weights.into_iter().enumerate() {
            for (v, weights) in weights.into_iter().enumerate() {
                b.store(weights, scratch.add(unpacked_at::<B>(block, 2 * PAIR + group, v)));
            }
        }
    }
}

/// Where a vector of elements lies in the scratch.
#[inline(always)]
fn unpacked_at<B: Bytes>(block: usize, group: usize, v: usize) -> usize {
    ((block * GROUPS + group) * VECTORS + v) * vector::<B>()
}

/// The elements of two groups of a block, in bytes: `[group][vector]`.
///
/// # Safety
/// The block can be read; where `IS_UNPACKED`, the scratch holds its elements.
#[inline(always)]
pub(super) unsafe fn pair<B: Bytes, T: Of, const PAIR: usize, const IS_UNPACKED: bool>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    block: usize,
) -> [[B::I; VECTORS]; 2] {
    let mut out = [[b.splat(0); VECTORS]; 2];
    for v in 0..VECTORS {
        // SAFETY: inside the block as its layout says, or inside the scratch, which is as large as the blocks in bytes.
        unsafe {
            if IS_UNPACKED || !const { is_packed(T::BLOCKS) } {
                for (group, out) in out.iter_mut().enumerate() {
                    out[v] = match IS_UNPACKED {
                        true => b.load(scratch.add(unpacked_at::<B>(block, 2 * PAIR + group, v))),
                        false => raised(b, b.load(from.add(layout.quants + unpacked_at::<B>(0, 2 * PAIR + group, v)))),
                    };
                }
                continue;
            }
            let nibbles = b.load(from.add(layout.quants + (PAIR * VECTORS + v) * vector::<B>()));
            (out[0][v], out[1][v]) = (b.low(nibbles), b.high(nibbles));
            if const { T::BLOCKS.bits() == 5 } {
                let bits = b.load(from.add(layout.bits + v * vector::<B>()));
                out[0][v] = b.with_bits(out[0][v], bits, 4 - 2 * PAIR as i32, 0x10);
                out[1][v] = b.with_bits(out[1][v], bits, 3 - 2 * PAIR as i32, 0x10);
            }
            if const { matches!(T::BLOCKS, Blocks::IQ4_NL) } {
                out[0][v] = raised(b, b.lookup(&blocks::IQ4_NL, out[0][v]));
                out[1][v] = raised(b, b.lookup(&blocks::IQ4_NL, out[1][v]));
            }
        }
    }
    out
}

/// Weights with a sign, as they are multiplied.
#[inline(always)]
fn raised<B: Bytes>(b: B, weights: B::I) -> B::I {
    if B::EXCESS == 0 { weights } else { b.plus(weights, B::EXCESS as u8) }
}

/// `ROWS` rows times some blocks of a panel.
///
/// # Safety
/// So many blocks can be read; where `IS_UNPACKED`, the scratch holds their elements; the place has so many rows.
#[inline(always)]
unsafe fn tile<B: Bytes, T: Of, const ROWS: usize, const IS_UNPACKED: bool>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    count: usize,
    place: Place,
) {
    let mut totals = [[b.splat_f32(0.0); VECTORS]; ROWS];
    if place.accumulate {
        for (row, totals) in totals.iter_mut().enumerate() {
            for (v, total) in totals.iter_mut().enumerate() {
                // SAFETY: as the caller vouches.
                *total = unsafe { b.load_f32(place.c.add(row * place.c_stride + v * B::WIDTH)) };
            }
        }
    }
    for block in 0..count {
        // SAFETY: as the caller vouches.
        unsafe {
            let from = from.add(block * layout.len);
            if !IS_UNPACKED {
                ahead(b, from, const { Layout::new(T::BLOCKS, VECTORS * B::WIDTH).len }, 0, 1);
            }
            // The sums of a row's elements, times what each weight has too much.
            let row_sums = |row: usize| b.splat(*place.sums.add(row * place.sums_stride + block));
            let mut sums = [[b.splat(0); VECTORS]; ROWS];
            if const { excess::<B>(T::BLOCKS) != 0 } {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums =
                        [b.add_pairs(b.splat(0), b.splat(pair_of(-excess::<B>(T::BLOCKS))), row_sums(row)); VECTORS];
                }
            }
            let words = place.words.add(block * GROUPS);
            let mut short = [[b.splat(0); VECTORS]; ROWS];
            let place = Place { words, ..place };
            step::<B, T, 0, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, block, &mut short, &mut sums);
            step::<B, T, 1, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, block, &mut short, &mut sums);
            step::<B, T, 2, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, block, &mut short, &mut sums);
            step::<B, T, 3, ROWS, IS_UNPACKED>(b, from, layout, scratch, place, block, &mut short, &mut sums);
            for v in 0..VECTORS {
                let d = b.load_f16(from.add(layout.d + 2 * v * B::WIDTH));
                let dmin = b.load_f16(from.add(dmin_at::<T>(layout) + 2 * v * B::WIDTH));
                for row in 0..ROWS {
                    let scale = b.splat_f32(*place.scales.add(row * place.scales_stride + block));
                    let total = b.splat_f32(*place.totals.add(row * place.sums_stride + block));
                    let y = scaled::<B, T>(b, sums[row][v], total, (d, dmin), scale);
                    totals[row][v] = b.add(totals[row][v], y);
                }
            }
        }
    }
    for (row, totals) in totals.into_iter().enumerate() {
        for (v, total) in totals.into_iter().enumerate() {
            // SAFETY: as the caller vouches.
            unsafe { b.store_f32(total, place.c.add(row * place.c_stride + v * B::WIDTH)) };
        }
    }
}

/// Where `dmin` lies, or something else where there is none.
pub(super) const fn dmin_at<T: Of>(layout: Layout) -> usize {
    if T::BLOCKS.has_minimums() { layout.dmin } else { layout.d }
}

/// What a block adds to an output of a row: its sum times its scale (and less its minimum times the row's total) times the row's scale.
#[inline(always)]
pub(super) fn scaled<B: Bytes, T: Of>(b: B, sums: B::I, total: B::F, (d, dmin): (B::F, B::F), scale: B::F) -> B::F {
    let mut y = b.mul(b.float(sums), d);
    if const { T::BLOCKS.has_minimums() } {
        y = b.sub(y, b.mul(total, dmin));
    }
    b.mul(y, scale)
}

/// The same number of 16 bits twice in a word.
const fn pair_of(number: i16) -> u32 {
    number.cast_unsigned() as u32 * 0x0001_0001
}

/// Two groups of a block, for every row of a tile.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop that must be unrolled")]
unsafe fn step<B: Bytes, T: Of, const PAIR: usize, const ROWS: usize, const IS_UNPACKED: bool>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    place: Place,
    block: usize,
    short: &mut [[B::I; VECTORS]; ROWS],
    sums: &mut [[B::I; VECTORS]; ROWS],
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let weights = pair::<B, T, PAIR, IS_UNPACKED>(b, from, layout, scratch, block);
        for row in 0..ROWS {
            let words = place.words.add(row * place.words_stride + 2 * PAIR);
            for (group, weights) in weights.into_iter().enumerate() {
                let x = b.splat(*words.add(group));
                for v in 0..VECTORS {
                    match const { is_unsigned(T::BLOCKS) } {
                        true if B::IS_NARROW => short[row][v] = b.add_unsigned(short[row][v], weights[v], x),
                        true => sums[row][v] = b.add_unsigned(sums[row][v], weights[v], x),
                        false => sums[row][v] = b.add_signed(sums[row][v], weights[v], x),
                    }
                }
            }
        }
        // 16 bits hold the sums of 4 bits over a whole block, those of 5 bits over half of one.
        let is_full = PAIR + 1 == PAIRS || const { T::BLOCKS.bits() == 5 } && PAIR + 1 == PAIRS / 2;
        if B::IS_NARROW && is_full && const { is_unsigned(T::BLOCKS) } {
            for (sums, short) in sums.iter_mut().zip(short) {
                for (sum, short) in sums.iter_mut().zip(short) {
                    *sum = b.add_short(*sum, *short);
                    *short = b.splat(0);
                }
            }
        }
    }
}
