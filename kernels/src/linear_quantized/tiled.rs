//! The dense layer over blocks by AMX's tiles, where there are rows enough: 32 rows times a panel at a time. A checked product comes
//! in, its sums are written. Never another sum than that of the loops for fewer rows.
//!
//! Weights of a block are unpacked to bytes, which tiles read as they lie. Those of a block of 32 are what they stand for but for the
//! scale, with their sign: one step of the tiles is a block's sums. Within a block of 256 there are 8 or 16 scales, with which tiles
//! cannot multiply. So scales are made part of the weights: in digits to the base 8, `sc = c_0 + 8 c_1 (+ 64 c_2)`, and
//!
//! ```text
//! Σ_p sc_p · w_p · q_p = Σ_i 8^i · Σ_p (c_ip · w_p) · q_p
//! ```
//!
//! where a weight times a digit has 8 bits, so that there is one product over the whole block for each digit:
//!
//! | weights | digits | a weight times a digit |
//! |---|--:|--:|
//! | 4 bits: 0 to 15 | 2 of 0 to 7 | 0 to 105 |
//! | 5 bits: 0 to 31 | 2 of 0 to 7 | 0 to 217 |
//! | 6 bits, less 32: −32 to 31 | 3 of −3 to 4 | −128 to 124 |

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::pack::Layout;
use super::rows::GROUP;
use super::simd::Product;
use super::small::{self, Of};
use super::tile::{self, Ends, GROUPS, Place, UNITS, VECTOR_MAX, VECTORS, ahead, vector};
use crate::launch::amx::{OUTPUTS, SIGNED, Step, Sums, Tiles, UNSIGNED};
use crate::launch::bytes::{BesideTiles, TiledKernel};

/// Words of a cache line.
const LINE: usize = 16;

/// Inputs that tiles take at once of blocks of 32, and of blocks of 256.
const OF_SMALL: usize = 32;
const OF_BITS: usize = 64;

/// Where what the step after `step` multiplies begins: other rows, or so many words further on the first ones. It need not be there.
fn after(step: Step, place: Place, rows: usize, words: usize) -> *const u32 {
    let next = step.rows().end;
    place.words.wrapping_add(if next < rows { next * place.words_stride } else { words })
}

/// Asks for so many words of one of the rows that begin at `next`, which lie too far apart for the CPU to guess what comes.
#[inline(always)]
fn ask<B: BesideTiles>(b: B, next: *const u32, row: usize, place: Place, words: usize) {
    let of_row = next.wrapping_add(row * place.words_stride);
    for first in (0..words).step_by(LINE) {
        b.prefetch(of_row.wrapping_add(first).cast());
    }
}

/// A product over blocks of 32.
pub(super) struct Small<'a, T> {
    tiles: &'a Tiles<OF_SMALL>,
    product: Product<'a>,
    of: PhantomData<T>,
}

impl<'a, T> Small<'a, T> {
    /// `product` has as many rows as a tile, or more.
    pub(super) fn new(tiles: &'a Tiles<OF_SMALL>, product: Product<'a>) -> Self {
        Self { tiles, product, of: PhantomData }
    }
}

/// Blocks of 32 at a time, whose sums are scaled together: what a row has come to is then read and written once for them.
const BLOCKS: usize = 4;

/// Bytes of the elements of a block of 32 of a panel.
const BLOCK: usize = GROUPS * VECTORS * VECTOR_MAX;

/// Room for those of so many.
#[repr(C, align(64))]
struct Unpacked([u8; BLOCKS * BLOCK]);

impl<T: Of> TiledKernel for Small<'_, T> {
    #[inline(always)]
    fn run<B: BesideTiles>(self, b: B) {
        const { assert!(VECTORS * B::WIDTH == OUTPUTS, "a panel as wide as tiles") };
        let Product { x, weights, panels, rows, .. } = &self.product;
        assert_eq!((weights.width(), weights.blocks()), (OUTPUTS, T::BLOCKS), "panels of this instruction set");
        let blocks = weights.blocks_a_row();
        assert!(rows.end <= x.len() && x.totals.len() >= rows.end * blocks, "rows with their sums");
        let mut unpacked = MaybeUninit::<Unpacked>::uninit();
        let scratch = unpacked.as_mut_ptr().cast::<u8>();
        let mut sums = [const { Sums::zero() }; BLOCKS];
        for panel in panels.clone() {
            let (first_block, layout) = weights.panel(panel);
            for block in (0..blocks).step_by(BLOCKS) {
                let count = BLOCKS.min(blocks - block);
                // SAFETY: the panel has so many blocks, the scratch room for them, and each of the rows has what is read of it
                // here; `c` has a panel's columns of every row, as who made the product vouches.
                unsafe {
                    let from = first_block.add(block * layout.len);
                    let place = small::place(&self.product, panel, block);
                    // Where 8-bit elements lie as tiles take them, they are left there.
                    let (elements, stride) = match const { small::is_packed(T::BLOCKS) } {
                        true => (scratch.cast_const(), BLOCK),
                        false => (from.add(layout.quants), layout.len),
                    };
                    for index in 0..count {
                        let from = from.add(index * layout.len);
                        ahead(b, from, const { Layout::new(T::BLOCKS, OUTPUTS).len }, 0, 1);
                        if const { small::is_packed(T::BLOCKS) } {
                            unpack::<B, T>(b, from, layout, scratch.add(index * BLOCK));
                        }
                    }
                    for step in Step::all(rows.len()) {
                        for (index, sums) in sums.iter_mut().take(count).enumerate() {
                            let words = step.of(place.words.add(index * GROUPS), place.words_stride);
                            let elements = elements.add(index * stride);
                            self.tiles.multiply::<SIGNED, SIGNED>(words, elements, 1, sums);
                        }
                        match count {
                            BLOCKS => scale::<B, T, BLOCKS>(
                                b,
                                &sums,
                                from,
                                layout,
                                place,
                                step,
                                after(step, place, rows.len(), BLOCKS * GROUPS),
                            ),
                            _ => {
                                for (index, sums) in sums.chunks_exact(1).take(count).enumerate() {
                                    let place = Place {
                                        scales: place.scales.add(index),
                                        totals: place.totals.add(index),
                                        accumulate: place.accumulate || index > 0,
                                        ..place
                                    };
                                    scale::<B, T, 1>(
                                        b,
                                        sums,
                                        from.add(index * layout.len),
                                        layout,
                                        place,
                                        step,
                                        std::ptr::null(),
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Unpacks the elements of a block of a panel.
///
/// # Safety
/// The block can be read, the scratch written.
#[inline(always)]
unsafe fn unpack<B: BesideTiles, T: Of>(b: B, from: *const u8, layout: Layout, scratch: *mut u8) {
    // SAFETY: as the caller vouches.
    unsafe {
        let pairs = [
            small::pair::<B, T, 0, false>(b, from, layout, scratch, 0),
            small::pair::<B, T, 1, false>(b, from, layout, scratch, 0),
            small::pair::<B, T, 2, false>(b, from, layout, scratch, 0),
            small::pair::<B, T, 3, false>(b, from, layout, scratch, 0),
        ];
        let less = const { small::excess::<B>(T::BLOCKS).wrapping_neg() as u8 };
        for (pair, weights) in pairs.into_iter().enumerate() {
            for (group, weights) in weights.into_iter().enumerate() {
                for (v, weights) in weights.into_iter().enumerate() {
                    let index = (2 * pair + group) * VECTORS + v;
                    b.store(b.plus(weights, less), scratch.add(index * vector::<B>()));
                }
            }
        }
    }
}

/// Adds what the sums of `COUNT` blocks come to, by their scales and the rows', to the rows of a step.
///
/// # Safety
/// The blocks' scales can be read; the place has the step's rows; there are so many sums.
#[inline(always)]
unsafe fn scale<B: BesideTiles, T: Of, const COUNT: usize>(
    b: B,
    sums: &[Sums],
    from: *const u8,
    layout: Layout,
    place: Place,
    step: Step,
    next: *const u32,
) {
    // SAFETY: as the caller vouches; the sums of a row are two vectors.
    unsafe {
        let mut d = [[(b.splat_f32(0.0), b.splat_f32(0.0)); COUNT]; VECTORS];
        for (v, d) in d.iter_mut().enumerate() {
            for (index, d) in d.iter_mut().enumerate() {
                let from = from.add(index * layout.len + 2 * v * B::WIDTH);
                *d = (b.load_f16(from.add(layout.d)), b.load_f16(from.add(small::dmin_at::<T>(layout))));
            }
        }
        for row in step.rows() {
            ask(b, next, row - step.rows().start, place, COUNT * GROUPS);
            let (place, of_row) = (place.behind(row), step.of_row(row));
            let mut y = [b.splat_f32(0.0); VECTORS];
            if place.accumulate {
                for (v, y) in y.iter_mut().enumerate() {
                    *y = b.load_f32(place.c.add(v * B::WIDTH));
                }
            }
            for index in 0..COUNT {
                let (total, scale) = (b.splat_f32(*place.totals.add(index)), b.splat_f32(*place.scales.add(index)));
                for (v, y) in y.iter_mut().enumerate() {
                    let sums = b.load(sums[index].of(of_row, v * B::WIDTH).as_ptr().cast());
                    *y = b.add(*y, small::scaled::<B, T>(b, sums, total, d[v][index], scale));
                }
            }
            for (v, y) in y.into_iter().enumerate() {
                b.store_f32(y, place.c.add(v * B::WIDTH));
            }
        }
    }
}

/// A product over blocks of 256 whose elements have 4 bits and `HIGH` more.
pub(super) struct Bits<'a, const HIGH: usize> {
    tiles: &'a Tiles<OF_BITS>,
    product: Product<'a>,
}

impl<'a, const HIGH: usize> Bits<'a, HIGH> {
    /// `product` has as many rows as a tile, or more.
    pub(super) fn new(tiles: &'a Tiles<OF_BITS>, product: Product<'a>) -> Self {
        Self { tiles, product }
    }
}

/// Digits of a scale at most.
const DIGITS_MAX: usize = 3;

/// Digits of a scale.
const fn digits(high: usize) -> usize {
    if high == 2 { DIGITS_MAX } else { 2 }
}

/// Bytes of a block of a panel times one of the digits.
const TIMES_A_DIGIT: usize = UNITS * GROUPS * VECTORS * VECTOR_MAX;

/// Room for the elements of a block of a panel times each of the digits: `[digits, units, groups, vectors, WIDTH, 4]`.
#[repr(C, align(64))]
struct TimesDigits([u8; DIGITS_MAX * TIMES_A_DIGIT]);

impl<const HIGH: usize> TiledKernel for Bits<'_, HIGH> {
    #[inline(always)]
    fn run<B: BesideTiles>(self, b: B) {
        const { assert!(VECTORS * B::WIDTH == OUTPUTS, "a panel as wide as tiles") };
        let Product { x, weights, panels, rows, c, c_stride } = self.product;
        assert_eq!(
            (weights.width(), weights.blocks()),
            (OUTPUTS, tile::blocks(HIGH)),
            "panels of this instruction set"
        );
        let (k, blocks) = (weights.inputs(), weights.blocks_a_row());
        assert!(rows.end <= x.len() && x.sums_32.len() >= rows.end * k / 64, "rows with their sums");
        let mut unpacked = MaybeUninit::<tile::Unpacked>::uninit();
        let scratch = unpacked.as_mut_ptr().cast::<u8>();
        let mut products = MaybeUninit::<TimesDigits>::uninit();
        let products = products.as_mut_ptr().cast::<u8>();
        let mut sums = [const { Sums::zero() }; DIGITS_MAX];
        for panel in panels.clone() {
            let (first_block, layout) = weights.panel(panel);
            for block in 0..blocks {
                // SAFETY: the panel has so many blocks, the scratches room for one, and each of the rows has what is read of it
                // here; `c` has a panel's columns of every row, as who made the product vouches.
                unsafe {
                    let from = first_block.add(block * layout.len);
                    tile::scales::<B, HIGH>(b, from, layout, scratch);
                    times_digits::<B, HIGH>(b, from, layout, scratch, products);
                    let place = Place {
                        words: x.words.words().as_ptr().add((rows.start * k + block * UNITS * GROUPS * GROUP) / GROUP),
                        words_stride: k / GROUP,
                        scales: x.scales.as_ptr().add(rows.start * blocks + block),
                        scales_stride: blocks,
                        sums: x.sums_32.as_ptr().add((rows.start * k + block * UNITS * GROUPS * GROUP) / 64),
                        sums_stride: k / 64,
                        totals: std::ptr::null(),
                        c: c.add((panel - panels.start) * OUTPUTS),
                        c_stride,
                        accumulate: block > 0,
                    };
                    let ends = Ends::<B, HIGH>::load(b, scratch, false);
                    for step in Step::all(rows.len()) {
                        for (digit, sums) in sums.iter_mut().take(digits(HIGH)).enumerate() {
                            let (x, products) =
                                (step.of(place.words, place.words_stride), products.add(digit * TIMES_A_DIGIT));
                            let steps = UNITS * GROUPS * GROUP / OF_BITS;
                            match HIGH {
                                2 => self.tiles.multiply::<SIGNED, SIGNED>(x, products, steps, sums),
                                _ => self.tiles.multiply::<SIGNED, UNSIGNED>(x, products, steps, sums),
                            }
                        }
                        let next = after(step, place, rows.len(), UNITS * GROUPS);
                        for row in step.rows() {
                            ask(b, next, row - step.rows().start, place, UNITS * GROUPS);
                            let of_row = step.of_row(row);
                            let mut totals = [b.splat(0); VECTORS];
                            for sums in sums[..digits(HIGH)].iter().rev() {
                                for (v, total) in totals.iter_mut().enumerate() {
                                    let sums = b.load(sums.of(of_row, v * B::WIDTH).as_ptr().cast());
                                    *total = b.eightfold(*total, sums);
                                }
                            }
                            ends.add_to(b, totals, place.behind(row));
                        }
                    }
                }
            }
        }
    }
}

/// What multiplies the bytes of an output by a digit of its scale.
#[derive(Clone, Copy)]
struct Factor<I> {
    times: I,
    /// Of elements of 6 bits: the bits that are turned over before, and what is taken away afterwards.
    flip: I,
    less: I,
}

/// Those of two vectors of outputs.
type Factors<I> = [[Factor<I>; DIGITS_MAX]; VECTORS];

/// The factors that a scale of every output is made of.
///
/// # Safety
/// The scratch holds the scales.
#[inline(always)]
unsafe fn factors<B: BesideTiles, const HIGH: usize>(b: B, scratch: *const u8, scale: usize) -> Factors<B::I> {
    let none = Factor { times: b.splat(0), flip: b.splat(0), less: b.splat(0) };
    let mut factors = [[none; DIGITS_MAX]; VECTORS];
    for (v, factors) in factors.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        let scales = unsafe { b.load(scratch.add((tile::SCALES + scale * VECTORS + v) * vector::<B>())) };
        for (index, factors) in factors.iter_mut().take(digits(HIGH)).enumerate() {
            *factors = factor::<B, HIGH>(b, scales, index);
        }
    }
    factors
}

/// The factor that the digits `index` of 32-bit `scales` are.
#[inline(always)]
fn factor<B: BesideTiles, const HIGH: usize>(b: B, scales: B::I, index: usize) -> Factor<B::I> {
    let at = 3 * index as u32;
    if HIGH < 2 {
        let times = b.digit(scales, at);
        return Factor { times, flip: times, less: times };
    }
    // Each digit is 3 too much. For digits c below 0, w − 32 = 31 − (63 − w), and 63 − w is w with its bits turned over; so all that is
    // multiplied is without a sign: (w − 32) c = w c − 32 c, or (63 − w) |c| − 31 |c|.
    let digit = b.digit(b.add_short(scales, b.splat(3 + 3 * 8 + 3 * 64)), at);
    Factor {
        times: b.lookup(&[3, 2, 1, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0], digit),
        flip: b.lookup(&[63, 63, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], digit),
        less: b.lookup(&[93, 62, 31, 0, 32, 64, 96, -128, 0, 0, 0, 0, 0, 0, 0, 0], digit),
    }
}

/// Writes the elements of a block of a panel times each digit of their scales.
///
/// # Safety
/// The block can be read, the scratch holds its scales, the products can be written.
#[inline(always)]
unsafe fn times_digits<B: BesideTiles, const HIGH: usize>(
    b: B,
    from: *const u8,
    layout: Layout,
    scratch: *const u8,
    products: *mut u8,
) {
    for unit in 0..UNITS {
        ahead(b, from, const { Layout::new(tile::blocks(HIGH), OUTPUTS).len }, unit, UNITS);
        // SAFETY: as the caller vouches.
        unsafe {
            let first = factors::<B, HIGH>(b, scratch, if HIGH == 2 { 2 * unit } else { unit });
            times_digits_of_pair::<B, HIGH, 0>(b, from, layout, products, unit, &first);
            times_digits_of_pair::<B, HIGH, 1>(b, from, layout, products, unit, &first);
            let second = if HIGH == 2 { factors::<B, HIGH>(b, scratch, 2 * unit + 1) } else { first };
            times_digits_of_pair::<B, HIGH, 2>(b, from, layout, products, unit, &second);
            times_digits_of_pair::<B, HIGH, 3>(b, from, layout, products, unit, &second);
        }
    }
}

/// # Safety
/// As [`times_digits`].
#[inline(always)]
unsafe fn times_digits_of_pair<B: BesideTiles, const HIGH: usize, const PAIR: usize>(
    b: B,
    from: *const u8,
    layout: Layout,
    products: *mut u8,
    unit: usize,
    factors: &Factors<B::I>,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let weights = tile::pair::<B, HIGH, PAIR, false>(b, from, layout, products, unit);
        for (group, weights) in weights.into_iter().enumerate() {
            for (v, weights) in weights.into_iter().enumerate() {
                let to = products.add(((unit * GROUPS + 2 * PAIR + group) * VECTORS + v) * vector::<B>());
                for (index, factor) in factors[v].iter().take(digits(HIGH)).enumerate() {
                    let product = match HIGH {
                        2 => b.minus(b.times(b.xor(weights, factor.flip), factor.times), factor.less),
                        _ => b.times(weights, factor.times),
                    };
                    b.store(product, to.add(index * TIMES_A_DIGIT));
                }
            }
        }
    }
}
