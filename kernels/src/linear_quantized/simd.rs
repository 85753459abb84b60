//! The dense layer over blocks, cut so that it fits the caches. Checked calls come in, rows in 8 bits or a rectangle of the result
//! are written. Never an instruction of one CPU: those are `launch::bytes` and `launch::amx`.

use std::ops::Range;

use super::blocks::Blocks;
use super::rows::GROUP;
use super::small::{self, Small};
use super::tile::Bits;
use super::{Epilogue, MINIMUM_SCALE, Quantized, Rows, tiled};
use crate::launch::Isa;
use crate::launch::aligned::Aligned;
use crate::launch::amx::{self, Tiles};
use crate::launch::bytes::{self, Bytes};
use crate::launch::columns::Columns;
use crate::launch::lanes::{self, Lanes};
use crate::linear::simd::Strip;

/// Bytes of rows at a time: so much of `x` stays in the second cache while the panels go past.
const ROWS_BYTES: usize = 256 << 10;

/// Rows at a time at most. Unpacking a block then costs some hundredths of what computing with it does.
const ROWS: usize = 64;

/// The same two where tiles take them, on CPUs whose second cache has 2 MB: making a block's weights ready for tiles costs more, and computing
/// with them less.
const ROWS_TILED_BYTES: usize = 1 << 20;
const ROWS_TILED: usize = 256;

/// Rows that are so few that their sums are kept where they belong. More of them could lie in a few sets of the nearest cache, which
/// would throw them out again between one block and the next.
const ROWS_IN_PLACE: usize = 8;

/// Puts checked rows into 8 bits, `block` inputs a scale.
pub(super) fn quantize(x: &[f32], isa: Isa, block: usize, rows: &mut Rows) {
    let (k, _) = rows.shape();
    let mut whole = std::mem::take(&mut rows.whole);
    let to = whole.at_least(k);
    for (row, x) in x.chunks_exact(k).enumerate() {
        let scales = &mut rows.scales[row * (k / block)..][..k / block];
        lanes::run(isa, Round { x, to, block, scales });
        let words = &mut rows.words.words_mut()[row * (k / GROUP)..][..k / GROUP];
        let sums_16 = &mut rows.sums_16[row * (k / 32)..][..k / 32];
        let of_sums = if rows.sums_32.is_empty() { 0 } else { k };
        let of_totals = if rows.totals.is_empty() { 0 } else { k };
        let totals = &mut rows.totals[row * (of_totals / 32)..][..of_totals / 32];
        let sums_32 = &mut rows.sums_32[row * (of_sums / 64)..][..of_sums / 64];
        let excess_16 = &mut rows.excess_16[row * (of_sums / 16)..][..of_sums / 16];
        bytes::run(isa, Narrow { from: to, words, sums_16, totals, sums_32, excess_16 });
    }
    rows.whole = whole;
}

/// One row as whole numbers from −127 to 127, still in f32, and its scales.
struct Round<'a> {
    x: &'a [f32],
    to: &'a mut [f32],
    block: usize,
    scales: &'a mut [f32],
}

impl lanes::Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        // Loops, not closures for iterators, which would not be compiled for the instruction set. A block is whole vectors.
        let blocks = self.x.chunks_exact(self.block).zip(self.to.chunks_exact_mut(self.block));
        for ((x, to), scale) in blocks.zip(self.scales) {
            let none = l.splat(0.0);
            // The second shows by NaN that one of them is no number.
            let (mut most, mut finite) = (none, none);
            for v in x.chunks_exact(L::WIDTH) {
                let v = l.load(v);
                (most, finite) = (l.max(most, l.abs(v)), l.mul_add(v, none, finite));
            }
            *scale = l.largest(most) / 127.0;
            if l.sum(finite).is_nan() {
                to.fill(0.0);
                *scale = f32::NAN;
                continue;
            }
            let inverse = l.splat(if *scale >= MINIMUM_SCALE { scale.recip() } else { 0.0 });
            for (v, to) in x.chunks_exact(L::WIDTH).zip(to.chunks_exact_mut(L::WIDTH)) {
                // The inverse is rounded, but by less than would make 127.5 of 127.
                l.store(l.round(l.mul(l.load(v), inverse)), to);
            }
        }
    }
}

/// Whole numbers from −127 to 127 in 8 bits, and their sums.
struct Narrow<'a> {
    from: &'a [f32],
    words: &'a mut [u32],
    sums_16: &'a mut [u32],
    totals: &'a mut [f32],
    sums_32: &'a mut [u32],
    excess_16: &'a mut [u32],
}

impl bytes::Kernel for Narrow<'_> {
    #[inline(always)]
    fn run<B: Bytes>(self, _: B) {
        let count = self.words.len() * GROUP;
        // SAFETY: a word is four elements of 8 bits, which any bits are, and the slice is borrowed alone.
        let to = unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<i8>(), count) };
        for (to, x) in to.iter_mut().zip(self.from) {
            // SAFETY: −127 to 127 have a form in 32 bits. A check would cost more than the conversion.
            *to = unsafe { x.to_int_unchecked::<i32>() } as i8;
        }
        for (sums, q) in self.sums_16.iter_mut().zip(to.chunks_exact(32)) {
            let (mut first, mut second) = (0_i16, 0_i16);
            for i in 0..16 {
                first += i16::from(q[i]);
                second += i16::from(q[16 + i]);
            }
            *sums = pair(first, second);
        }
        for (total, of_16) in self.totals.iter_mut().zip(&*self.sums_16) {
            *total = f32::from(*of_16 as i16 + (of_16 >> 16) as i16);
        }
        for (sums, of_16) in self.sums_32.iter_mut().zip(self.sums_16.chunks_exact(2)) {
            *sums = pair(of_16[0] as i16 + (of_16[0] >> 16) as i16, of_16[1] as i16 + (of_16[1] >> 16) as i16);
        }
        for (excess, q) in self.excess_16.iter_mut().zip(to.chunks_exact(16)) {
            let (mut first, mut second) = (0_i16, 0_i16);
            for group in q.chunks_exact(GROUP) {
                first -= i16::from(group[0]) + i16::from(group[1]);
                second -= i16::from(group[2]) + i16::from(group[3]);
            }
            *excess = pair(32 * first, 32 * second);
        }
    }
}

/// Two numbers of 16 bits in a word.
fn pair(first: i16, second: i16) -> u32 {
    u32::from(first.cast_unsigned()) | u32::from(second.cast_unsigned()) << 16
}

/// Some rows times some panels: the sums of row `rows.start + r` and output `o` of the first panel go to `c[r · c_stride + o]`, those of
/// the panels after it behind them. `c` is borrowed alone by who makes this.
pub(super) struct Product<'a> {
    pub(super) x: &'a Rows,
    pub(super) weights: &'a Quantized,
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

impl Product<'_> {
    fn run(self) {
        match self.weights.blocks() {
            Blocks::Q4_0 => self.of_small::<small::Q4_0>(),
            Blocks::Q4_1 => self.of_small::<small::Q4_1>(),
            Blocks::Q5_0 => self.of_small::<small::Q5_0>(),
            Blocks::Q5_1 => self.of_small::<small::Q5_1>(),
            Blocks::Q8_0 => self.of_small::<small::Q8_0>(),
            Blocks::IQ4_NL => self.of_small::<small::IQ4_NL>(),
            Blocks::Q4_K => self.of_bits::<0>(),
            Blocks::Q5_K => self.of_bits::<1>(),
            Blocks::Q6_K => self.of_bits::<2>(),
        }
    }

    fn of_small<T: small::Of>(self) {
        match self.tiles() {
            Some(tiles) => bytes::run_tiled(&tiles, tiled::Small::<T>::new(&tiles, self)),
            None => bytes::run(self.weights.isa(), Small::<T>::new(self)),
        }
    }

    fn of_bits<const HIGH: usize>(self) {
        match self.tiles() {
            Some(tiles) => bytes::run_tiled(&tiles, tiled::Bits::<HIGH>::new(&tiles, self)),
            None => bytes::run(self.weights.isa(), Bits::<HIGH>(self)),
        }
    }

    /// Tiles, where there are any and rows enough.
    fn tiles<const INPUTS: usize>(&self) -> Option<Tiles<INPUTS>> {
        if self.rows.len() < amx::TILE { None } else { Tiles::set_up(self.weights.isa()) }
    }
}

/// `out`'s columns are those of `panels`.
pub(super) fn run(x: &Rows, weights: &Quantized, panels: Range<usize>, epilogue: &Epilogue<'_>, mut out: Columns<'_>) {
    let (m, width, isa, outputs) = (x.len(), weights.width(), weights.isa(), weights.outputs());
    if m == 0 || panels.is_empty() {
        return;
    }
    let first_column = weights.columns(panels.clone()).start;
    let mut in_scratch = panels.clone();
    if m <= ROWS_IN_PLACE {
        // All panels but the last where it is wider than its outputs.
        let whole = panels.start..panels.end.min(outputs / width).max(panels.start);
        let (c, c_stride) = out.raw();
        // These rows of these panels' columns of `out`, which has them all (the caller checked).
        Product { x, weights, panels: whole.clone(), rows: 0..m, c, c_stride }.run();
        let columns = weights.columns(whole.clone());
        let strip = Strip { ragged: None, rows: 0..m, columns, first_column, outputs, epilogue, out: out.reborrow() };
        lanes::run(isa, strip);
        in_scratch.start = whole.end;
    }
    let (bytes_most, most) = if isa == Isa::Avx512Amx { (ROWS_TILED_BYTES, ROWS_TILED) } else { (ROWS_BYTES, ROWS) };
    let at_most = (bytes_most / weights.inputs()).clamp(ROWS_IN_PLACE, most);
    // As even as possible, so that none are too few for what many are good for.
    let at_a_time = m.div_ceil(m.div_ceil(at_most));
    let mut sums = Aligned::zeros(if in_scratch.is_empty() { 0 } else { at_a_time * width });
    for first_row in (0..m).step_by(at_a_time) {
        let rows = first_row..m.min(first_row + at_a_time);
        for panel in in_scratch.clone() {
            // The scratch has as many rows of a panel.
            let (c, c_stride) = (sums.as_mut_ptr(), width);
            Product { x, weights, panels: panel..panel + 1, rows: rows.clone(), c, c_stride }.run();
            let (columns, out) = (weights.columns(panel..panel + 1), out.reborrow());
            let (ragged, rows) = (Some(&*sums), rows.clone());
            lanes::run(isa, Strip { ragged, rows, columns, first_column, outputs, epilogue, out });
        }
    }
}
