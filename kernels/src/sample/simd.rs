//! The passes over a row, over vectors of any width. Logits or cells come in; the best, the cells, the winner go out. Never unsafe: the
//! instructions are in `launch::lanes`.
//!
//! Where a pass works on whole numbers it is written over arrays of 16, which the compiler turns into vectors of the instruction set that the
//! pass is compiled for. Loops, not closures: see [`Lanes`].

use super::truncate::Kept;
use super::{CELLS, CELLS_PER_UNIT, Draw, GROUP, noise};
use crate::launch::lanes::{Kernel, Lanes};
use crate::launch::math;

/// Vectors per step: enough independent maxima and sums to hide their latency.
const UNROLL: usize = 4;

/// Elements after which a maximum or a sum is put away: short enough to look through again for where the maximum is, and no
/// partial sum takes more than 256 roundings.
const BLOCK: usize = 4096;

/// Tokens side by side in whole numbers.
const LANES: usize = noise::LANES;

/// The largest logit of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Largest {
    pub(super) token: u32,
    pub(super) value: f32,
}

/// The largest logit, of equals the first; `None` where one is NaN or +∞.
pub(super) struct Best<'a> {
    pub(super) logits: &'a [f32],
}

impl Kernel for Best<'_> {
    type Output = Option<Largest>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Option<Largest> {
        let mut best = (f32::NEG_INFINITY, 0);
        for first in (0..self.logits.len()).step_by(BLOCK) {
            let block = &self.logits[first..self.logits.len().min(first + BLOCK)];
            let (value, is_good) = largest(l, block);
            if !is_good {
                return None;
            }
            if value > best.0 {
                best = (value, first);
            }
        }
        let (value, mut token) = best;
        while self.logits[token] != value {
            token += 1;
        }
        Some(Largest { token: token as u32, value })
    }
}

/// The largest element, and whether all are below +∞: NaN is not below anything.
#[inline(always)]
fn largest<L: Lanes>(l: L, block: &[f32]) -> (f32, bool) {
    let infinity = l.splat(f32::INFINITY);
    let all = u32::MAX >> (32 - L::WIDTH);
    let mut below = all;
    let mut maxima = [l.splat(f32::NEG_INFINITY); UNROLL];
    let mut at = 0;
    while at + UNROLL * L::WIDTH <= block.len() {
        for (step, max) in maxima.iter_mut().enumerate() {
            let x = l.load(&block[at + step * L::WIDTH..]);
            below &= l.above(infinity, x);
            *max = l.max(*max, x);
        }
        at += UNROLL * L::WIDTH;
    }
    let [a, b, c, d] = maxima;
    let mut value = l.largest(l.max(l.max(a, b), l.max(c, d)));
    let mut is_good = below == all;
    for &x in &block[at..] {
        is_good &= x < f32::INFINITY;
        if x > value {
            value = x;
        }
    }
    (value, is_good)
}

/// Each token's cell: how far it is below the best, on the grid of scaled logits.
pub(super) struct Cells<'a> {
    pub(super) logits: &'a [f32],
    /// What makes a logit cells.
    pub(super) scale: f32,
    /// The largest logit, which is finite.
    pub(super) best: f32,
    /// Whole groups, of which the last may be longer than the logits.
    pub(super) cells: &'a mut [u16],
}

impl Kernel for Cells<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let best = on_grid(self.best, self.scale);
        let (logits, rest) = self.logits.as_chunks::<LANES>();
        let (cells, padded) = self.cells.split_at_mut(logits.len() * LANES);
        for (x, cells) in logits.iter().zip(cells.as_chunks_mut::<LANES>().0) {
            *cells = self::cells(x, best, self.scale);
        }
        padded.fill(CELLS as u16);
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let last = self::cells(&last, best, self.scale);
        padded[..rest.len()].copy_from_slice(&last[..rest.len()]);
    }
}

/// A logit in steps of the grid, a whole number.
#[inline(always)]
fn on_grid(x: f32, scale: f32) -> f32 {
    /// What logits count as that are larger: its product with the largest scale is finite.
    const SATURATED: f32 = 1e30;
    /// From here on every number is whole; and added to a smaller one it leaves no room for a fraction.
    const WHOLE: f32 = 8_388_608.0;
    let x = if x < SATURATED { x } else { SATURATED };
    let x = if x > -SATURATED { x } else { -SATURATED };
    let y = x * scale;
    let magnitude = y.abs();
    let rounded = ((magnitude + WHOLE) - WHOLE).copysign(y);
    if magnitude < WHOLE { rounded } else { y }
}

/// The cells of some logits. Those that take no part are spread over several, so that counting them never waits for the counter.
#[inline(always)]
fn cells(x: &[f32; LANES], best: f32, scale: f32) -> [u16; LANES] {
    /// Added to a smaller whole number it makes it the lowest bits.
    const WHOLE: f32 = 8_388_608.0;
    let mut cells = [0; LANES];
    for i in 0..LANES {
        let below = best - on_grid(x[i], scale);
        let below = if x[i] > f32::NEG_INFINITY { below } else { f32::INFINITY };
        let far = (CELLS + i) as f32;
        let below = if below < far { below } else { far };
        cells[i] = (below + WHOLE).to_bits() as u16;
    }
    cells
}

/// The token that noise makes the best of those that are left.
pub(super) struct Choose<'a> {
    pub(super) cells: &'a [u16],
    pub(super) kept: Kept,
    pub(super) draw: Draw,
}

impl Kernel for Choose<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> u32 {
        let Draw { seed, position } = self.draw;
        let (mut best, mut token) = (f64::NEG_INFINITY, 0);
        // The last cell that can still win, and the bound of `can_win`.
        let (mut last, mut bound) = (self.kept.last, i32::MAX);
        for (group, cells) in self.cells.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut any = false;
            for cell in cells {
                any |= (self.kept.first <= *cell) & (*cell <= last);
            }
            if !any {
                continue;
            }
            let bits = noise::bits_of_group(group as u32, seed, position);
            for (part, (cells, bits)) in cells.as_chunks::<LANES>().0.iter().zip(&bits).enumerate() {
                let mut any = false;
                for lane in 0..LANES {
                    any |= (self.kept.first <= cells[lane])
                        & (cells[lane] <= last)
                        & can_win(bits[lane], cells[lane], bound);
                }
                if !any {
                    continue;
                }
                for lane in 0..LANES {
                    let (cell, place) = (cells[lane], (group * GROUP + part * LANES + lane) as u32);
                    if !can_win(bits[lane], cell, bound) || !self.kept.has(cell, place) {
                        continue;
                    }
                    let sum = noise::of_bits(bits[lane]) - f64::from(cell) / CELLS_PER_UNIT as f64;
                    if sum > best {
                        (best, token) = (sum, place);
                        last = last.min(last_that_can_win(best));
                        bound = self::bound(best);
                    }
                }
            }
        }
        token
    }
}

/// The last cell of which the largest noise could make more than the best.
#[inline(always)]
fn last_that_can_win(best: f64) -> u16 {
    // What is below 0 becomes 0, what is above the last cell stays the last by the caller.
    ((noise::GUMBEL_MAX - best) * CELLS_PER_UNIT as f64) as u16
}

/// How many units of [`can_win`] a cell is: `2²³ · log₂ e / 1024`, rounded down.
const UNITS_PER_CELL: i32 = 11_818;

/// Whether the noise of these bits can make more of a cell than the best that `bound` is of. Never says no where it can.
///
/// The noise `−ln(−ln u)` is at most `−ln(1 − u)`, for `−ln u ≥ 1 − u`; `1 − u ≥ v / 2³¹` with `v` the upper 31 bits of `!r`; and `log₂ v` is at
/// least what the bits of the float `v` say when they are read as a fixed-point number, as `log₂(1 + m) ≥ m` for `m` from 0 to 1.
#[inline(always)]
fn can_win(r: u32, cell: u16, bound: i32) -> bool {
    let v = (!r >> 1) as i32 as f32;
    v.to_bits() as i32 + i32::from(cell) * UNITS_PER_CELL <= bound
}

/// What [`can_win`] needs to know of the best so far: `2²³ · (31 + 127 − log₂ e · best)`, and a little more, for `v` is rounded.
#[inline(always)]
fn bound(best: f64) -> i32 {
    ((158.0 - best * std::f64::consts::LOG2_E) * 8_388_608.0) as i32 + 16
}

/// `Σ e^(x − best)`.
pub(super) struct Total<'a> {
    pub(super) logits: &'a [f32],
    pub(super) best: f32,
}

impl Kernel for Total<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f64 {
        let mut total = 0.0;
        let best = l.splat(self.best);
        for first in (0..self.logits.len()).step_by(BLOCK) {
            let block = &self.logits[first..self.logits.len().min(first + BLOCK)];
            let mut sums = [l.splat(0.0); UNROLL];
            let mut at = 0;
            while at + UNROLL * L::WIDTH <= block.len() {
                for (step, sum) in sums.iter_mut().enumerate() {
                    let x = l.load(&block[at + step * L::WIDTH..]);
                    *sum = l.add(*sum, math::exp(l, l.sub(x, best)));
                }
                at += UNROLL * L::WIDTH;
            }
            while at < block.len() {
                let n = L::WIDTH.min(block.len() - at);
                let mut rest = [f32::NEG_INFINITY; LANES];
                rest[..n].copy_from_slice(&block[at..at + n]);
                sums[0] = l.add(sums[0], math::exp(l, l.sub(l.load(&rest), best)));
                at += n;
            }
            total += f64::from(l.sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3]))));
        }
        total
    }
}

/// The `n` largest logits above −∞ in order, of equals the first, into an empty list.
pub(super) struct Top<'a> {
    pub(super) logits: &'a [f32],
    pub(super) n: usize,
    pub(super) top: &'a mut Vec<(u32, f32)>,
}

impl Kernel for Top<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { logits, n, top } = self;
        if n == 0 {
            return;
        }
        top.reserve(n + 1);
        let mut least = f32::NEG_INFINITY;
        let mut at = 0;
        while at + UNROLL * L::WIDTH <= logits.len() {
            let bound = l.splat(least);
            let mut above = 0_u64;
            for step in 0..UNROLL {
                let x = l.load(&logits[at + step * L::WIDTH..]);
                above |= u64::from(l.above(x, bound)) << (step * L::WIDTH);
            }
            while above != 0 {
                let token = at + above.trailing_zeros() as usize;
                least = offer(top, n, least, token, logits[token]);
                above &= above - 1;
            }
            at += UNROLL * L::WIDTH;
        }
        for (token, x) in logits.iter().enumerate().skip(at) {
            least = offer(top, n, least, token, *x);
        }
    }
}

/// Puts a logit where it belongs if it is above the least that is needed. Gives the least that is needed from now on.
#[inline(always)]
fn offer(top: &mut Vec<(u32, f32)>, n: usize, least: f32, token: usize, x: f32) -> f32 {
    if x <= least {
        return least;
    }
    let mut place = top.len();
    while place > 0 && top[place - 1].1 < x {
        place -= 1;
    }
    top.insert(place, (token as u32, x));
    top.truncate(n);
    if top.len() == n { top[n - 1].1 } else { f32::NEG_INFINITY }
}
