//! The innermost loop of every matrix product: a few rows of one operand times a packed panel of the other. Addresses come
//! in, a block of the product is written. Never a choice of block sizes: the ops make those.

use half::{bf16, f16};

use super::Isa;
use super::aligned::LINE;
use super::lanes::{self, Kernel, Lanes};

/// Vectors side by side in a panel.
const PANEL_VECTORS: usize = 2;

/// How many columns a panel has on an instruction set.
pub(crate) const fn panel_width(isa: Isa) -> usize {
    PANEL_VECTORS * isa.width()
}

/// How many bytes ahead of the one being read a tile asks for, where a panel is read once: at 6 bytes a cycle, what a memory that
/// answers in 200 ns needs. Panels lie side by side, so that it is what comes next.
const AHEAD: usize = 4096;

/// Inputs that one turn of the loop takes. Counting, addresses and requests for what comes next are instructions, too, and where two
/// threads share a core each of them starts three in a cycle: every other one costs a multiply-add its place. With one input a turn they
/// were eight of 28, with four they are three of 23; with eight, vectors of 16-bit elements would no longer all stay in registers.
const INPUTS_PER_TURN: usize = 4;

/// A number as a panel holds it.
pub(crate) trait Element: Copy {
    /// `WIDTH` of them, widened exactly.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load<L: Lanes>(l: L, from: *const Self) -> L::V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const f32) -> L::V {
        // SAFETY: as the caller vouches.
        unsafe { l.load_at(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const f16) -> L::V {
        // SAFETY: as the caller vouches.
        l.load_f16(unsafe { std::slice::from_raw_parts(from, L::WIDTH) })
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const bf16) -> L::V {
        // SAFETY: as the caller vouches.
        l.load_bf16(unsafe { std::slice::from_raw_parts(from, L::WIDTH) })
    }
}

/// `c = a · b`, or `c += a · b`.
///
/// `a`: `[rows, k]`, a row `a_stride` elements behind the one before it; `b`: `[k, panel_width]`, contiguous; `c`:
/// `[rows, panel_width]`, a row `c_stride` elements behind the one before it. Each element is summed in the order of `k`.
#[derive(Clone, Copy)]
pub(crate) struct Block<T = f32> {
    pub(crate) a: *const f32,
    pub(crate) a_stride: usize,
    pub(crate) rows: usize,
    pub(crate) b: *const T,
    pub(crate) k: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
    pub(crate) accumulate: bool,
    /// Elements that will be read next, as many as `b` has, such as the panel after this one: they are asked for bit by bit while
    /// this one is computed with, so that they are near when their turn comes. They need not be readable.
    pub(crate) next: *const T,
}

impl<T: Element> Block<T> {
    /// Computes it.
    ///
    /// # Safety
    /// All of `a` and `b` can be read, and all of `c` can be read and written by nobody else, with the panel width of `isa`.
    pub(crate) unsafe fn run(self, isa: Isa) {
        lanes::run(isa, Promised(self));
    }
}

/// Computes some blocks, one after the other: for blocks so small that choosing the instruction set anew would be felt.
///
/// # Safety
/// As [`Block::run`], for each of them.
pub(crate) unsafe fn run_each(isa: Isa, blocks: impl Iterator<Item = Block>) {
    lanes::run(isa, Each(blocks));
}

/// Blocks whose addresses somebody has vouched for.
struct Each<B>(B);

impl<B: Iterator<Item = Block>> Kernel for Each<B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for block in self.0 {
            Promised(block).run(l);
        }
    }
}

/// A block whose addresses somebody has vouched for.
struct Promised<T>(Block<T>);

impl<T: Element> Kernel for Promised<T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let block = self.0;
        // SAFETY: as `Block::run` was promised.
        unsafe {
            match block.rows.div_ceil(L::TILE_ROWS) {
                1 => block.tiles::<L, true>(l),
                _ => block.tiles::<L, false>(l),
            }
        }
    }
}

/// How many cache lines a tile asks for with every how many inputs: what a panel has of them where it is `alone`, and else half of
/// that or less, as others ask, too. Evenly, as many requests at once hold up other loads. With AVX2, f32 are read as fast as the
/// core's own prefetcher brings, which serves a tile alone best.
const fn lines_ahead<L: Lanes, T>(alone: bool) -> (usize, usize) {
    match (PANEL_VECTORS * L::WIDTH * size_of::<T>() / LINE, alone) {
        (2.., true) => (2, 1),
        (1, true) if size_of::<T>() == size_of::<f32>() => (0, 1),
        (2.., false) | (1, true) => (1, 1),
        (..=1, _) => (1, 2),
    }
}

impl<T: Element> Block<T> {
    /// # Safety
    /// As [`Block::run`].
    #[inline(always)]
    unsafe fn tiles<L: Lanes, const ALONE: bool>(&self, l: L) {
        // As even as possible: of 7 rows, 4 and 3 keep more sums in flight than 6 and 1.
        let tiles = self.rows.div_ceil(L::TILE_ROWS);
        let mut first = 0;
        for index in 0..tiles {
            let rows = (self.rows - first).div_ceil(tiles - index);
            // Each tile asks for its share of what comes next, one alone for what it will read itself.
            let share = PANEL_VECTORS * L::WIDTH * size_of::<T>() / tiles;
            let next = match ALONE {
                true => self.b.wrapping_byte_add(AHEAD),
                false => self.next.wrapping_byte_add(self.k * share * index),
            };
            // SAFETY: rows first..first + rows of what `Block::run` was promised.
            unsafe {
                let a = self.a.add(first * self.a_stride);
                let c = self.c.add(first * self.c_stride);
                let ahead = (next, share);
                match rows {
                    1 => self.tile::<L, 1, ALONE>(l, a, c, ahead),
                    2 => self.tile::<L, 2, ALONE>(l, a, c, ahead),
                    3 => self.tile::<L, 3, ALONE>(l, a, c, ahead),
                    4 => self.tile::<L, 4, ALONE>(l, a, c, ahead),
                    5 if L::TILE_ROWS >= 5 => self.tile::<L, 5, ALONE>(l, a, c, ahead),
                    6 if L::TILE_ROWS >= 6 => self.tile::<L, 6, ALONE>(l, a, c, ahead),
                    7 if L::TILE_ROWS >= 7 => self.tile::<L, 7, ALONE>(l, a, c, ahead),
                    8 if L::TILE_ROWS >= 8 => self.tile::<L, 8, ALONE>(l, a, c, ahead),
                    9 if L::TILE_ROWS >= 9 => self.tile::<L, 9, ALONE>(l, a, c, ahead),
                    10 if L::TILE_ROWS >= 10 => self.tile::<L, 10, ALONE>(l, a, c, ahead),
                    11 if L::TILE_ROWS >= 11 => self.tile::<L, 11, ALONE>(l, a, c, ahead),
                    12 if L::TILE_ROWS >= 12 => self.tile::<L, 12, ALONE>(l, a, c, ahead),
                    _ => unreachable!("a tile has at most TILE_ROWS rows"),
                }
            }
            first += rows;
        }
    }

    /// # Safety
    /// As [`Block::run`], for `ROWS` rows from `a` and `c` on. `ahead` is what is asked for, and how many bytes of it with every
    /// input.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const ROWS: usize, const ALONE: bool>(
        &self,
        l: L,
        a: *const f32,
        c: *mut f32,
        ahead: (*const T, usize),
    ) {
        let mut sums = [[l.splat(0.0); PANEL_VECTORS]; ROWS];
        let mut b = self.b;
        let (mut next, share) = ahead;
        let mut a = a;
        let panel = PANEL_VECTORS * L::WIDTH;
        let (lines, every) = const { lines_ahead::<L, T>(ALONE) };
        // What the sums go to may have left the nearer caches since the inputs before.
        for row in 0..ROWS {
            let c = c.wrapping_add(row * self.c_stride);
            l.prefetch(c);
            l.prefetch(c.wrapping_add(panel - 1));
        }
        for _ in 0..self.k / INPUTS_PER_TURN {
            // SAFETY: so many elements of every row of `a`, and rows of `b`, are left.
            unsafe {
                for p in 0..INPUTS_PER_TURN {
                    if p.is_multiple_of(every) {
                        for line in 0..lines {
                            l.prefetch(next.wrapping_byte_add(line * LINE).cast());
                        }
                        next = next.wrapping_byte_add(every * share);
                    }
                    add_input(l, (a.add(p), self.a_stride), b.add(p * panel), &mut sums);
                }
                a = a.add(INPUTS_PER_TURN);
                b = b.add(INPUTS_PER_TURN * panel);
            }
        }
        for _ in 0..self.k % INPUTS_PER_TURN {
            // SAFETY: as above, one.
            unsafe {
                add_input(l, (a, self.a_stride), b, &mut sums);
                a = a.add(1);
                b = b.add(panel);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                // SAFETY: inside row `row` of `c`.
                unsafe {
                    let c = c.add(row * self.c_stride + vector * L::WIDTH);
                    let sum = if self.accumulate { l.add(l.load_at(c), *sum) } else { *sum };
                    l.store_at(sum, c);
                }
            }
        }
    }
}

/// Adds one input's products: the element at `a.0` of the first row, `a.1` further on in each other, times a row of the panel.
///
/// # Safety
/// All of them can be read.
#[inline(always)]
unsafe fn add_input<L: Lanes, T: Element, const ROWS: usize>(
    l: L,
    a: (*const f32, usize),
    b: *const T,
    sums: &mut [[L::V; PANEL_VECTORS]; ROWS],
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let (b0, b1) = (T::load(l, b), T::load(l, b.add(L::WIDTH)));
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = l.splat(*a.0.add(row * a.1));
            sums[0] = l.mul_add(x, b0, sums[0]);
            sums[1] = l.mul_add(x, b1, sums[1]);
        }
    }
}
