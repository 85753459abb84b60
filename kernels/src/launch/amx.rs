//! AMX's tiles: products of bytes, 32 rows by 32 outputs at a time, summed in 32 bits. Addresses come in, whole numbers go out. Never a
//! scale: what the sums mean, the ops know.
//!
//! # Source
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (Intel AMX).

use std::marker::PhantomData;
use std::ops::Range;

use super::Isa;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86;

/// Rows of a tile, and outputs of one.
pub(crate) const TILE: usize = 16;

/// Outputs of a product: two tiles, as wide as a panel.
pub(crate) const OUTPUTS: usize = 2 * TILE;

/// Bytes are numbers from −128 to 127.
pub(crate) const SIGNED: bool = true;

/// Bytes are numbers from 0 to 255.
pub(crate) const UNSIGNED: bool = false;

/// Whether the CPU has tiles of bytes, and the system lends them to this process.
pub(super) fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return x86::is_available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// Rows in bytes, each the same distance behind the one before it.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// Where 16 of them begin, and where 16 others do; null where there are no others.
    pub(crate) tiles: [*const u8; 2],
    /// Bytes from a row to the next.
    pub(crate) stride: usize,
}

/// Rows of a product that tiles take at once: 32, or the last 16.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Where each tile begins. Where rows are not whole tiles, the last has some of those of the one before: their sums are the same
    /// again.
    starts: [usize; 2],
    /// How many tiles there are.
    tiles: usize,
    /// The first row whose sums were not there before.
    first: usize,
}

impl Step {
    /// All of so many rows, at least [`TILE`].
    pub(crate) fn all(rows: usize) -> impl Iterator<Item = Self> {
        let last = rows - TILE;
        (0..rows).step_by(2 * TILE).map(move |first| Self {
            starts: [first.min(last), last.min(first + TILE)],
            tiles: if first < last { 2 } else { 1 },
            first,
        })
    }

    /// The rows whose sums were not there before.
    #[inline(always)]
    pub(crate) fn rows(&self) -> Range<usize> {
        self.first..self.starts[self.tiles - 1] + TILE
    }

    /// Which of the tiles' rows one of them is.
    #[inline(always)]
    pub(crate) fn of_row(&self, row: usize) -> usize {
        if row < self.starts[0] + TILE { row - self.starts[0] } else { TILE + row - self.starts[1] }
    }

    /// The tiles' rows, of rows that begin at `words` and lie `stride` words apart.
    ///
    /// # Safety
    /// There are all of the rows.
    #[inline(always)]
    pub(crate) unsafe fn of(&self, words: *const u32, stride: usize) -> Rows {
        // SAFETY: as the caller vouches.
        let mut tiles = self.starts.map(|start| unsafe { words.add(start * stride) }.cast());
        if self.tiles == 1 {
            tiles[1] = std::ptr::null();
        }
        Rows { tiles, stride: stride * size_of::<u32>() }
    }
}

/// What a product of tiles gives: `[2 · TILE, OUTPUTS]`, of which only the first half is written where there are 16 rows.
#[repr(C, align(64))]
pub(crate) struct Sums([[i32; OUTPUTS]; 2 * TILE]);

impl Sums {
    pub(crate) const fn zero() -> Self {
        Self([[0; OUTPUTS]; 2 * TILE])
    }

    /// The sums of a row, from an output on.
    #[inline(always)]
    pub(crate) fn of(&self, row: usize, output: usize) -> &[i32] {
        &self.0[row][output..]
    }
}

/// This thread's tiles, set up for products of `INPUTS` bytes at a time (64 or 32), until this is dropped. Then they are set up as before:
/// others in the process use them, too, such as Candle, whose threads set them up once and rely on it.
pub(crate) struct Tiles<const INPUTS: usize> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    before: x86::Configuration,
    /// They belong to one thread.
    of_this_thread: PhantomData<*const ()>,
}

impl<const INPUTS: usize> Tiles<INPUTS> {
    /// `None` on every other instruction set, and where this CPU has none.
    pub(crate) fn set_up(isa: Isa) -> Option<Self> {
        if isa != Isa::Avx512Amx || !super::available().contains(&isa) {
            return None;
        }
        Some(Self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the guard has just asked the CPU for them.
            before: unsafe { x86::set_up::<INPUTS>() },
            of_this_thread: PhantomData,
        })
    }

    /// Sums over `steps · INPUTS` inputs of elements that are [`SIGNED`] or [`UNSIGNED`], as `X` says, times weights
    /// `[inputs / 4, OUTPUTS, 4]`, as `W` says.
    ///
    /// # Safety
    /// So many bytes of each of the 16 or 32 rows, and of the weights, can be read.
    #[inline(always)]
    pub(crate) unsafe fn multiply<const X: bool, const W: bool>(
        &self,
        x: Rows,
        weights: *const u8,
        steps: usize,
        sums: &mut Sums,
    ) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: that `self` exists proves that the tiles are set up; the rest is as the caller vouches.
        unsafe {
            x86::multiply::<INPUTS, X, W>(x, weights, steps, sums);
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        unreachable!("there are no tiles: {:?} {weights:?} {steps} {:?}", (x.tiles, x.stride), sums.0.as_ptr());
    }
}

impl<const INPUTS: usize> Drop for Tiles<INPUTS> {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: that `self` exists proves that there are tiles, and these were what they were set up for.
        unsafe {
            x86::restore(&self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles, where there are any; where there are none, that is said.
    fn aloud<const INPUTS: usize>() -> Option<Tiles<INPUTS>> {
        crate::testing::isas_aloud().into_iter().find_map(Tiles::set_up)
    }

    fn check<const INPUTS: usize>(steps: usize) {
        check_signs::<INPUTS, UNSIGNED, SIGNED>(steps);
        check_signs::<INPUTS, SIGNED, UNSIGNED>(steps);
        check_signs::<INPUTS, SIGNED, SIGNED>(steps);
        check_signs::<INPUTS, UNSIGNED, UNSIGNED>(steps);
    }

    fn check_signs<const INPUTS: usize, const X: bool, const W: bool>(steps: usize) {
        let Some(tiles) = aloud::<INPUTS>() else { return };
        let inputs = steps * INPUTS;
        // The greatest of all, and every sign.
        let element = |row: usize, p: usize| if (row + p).is_multiple_of(3) { 255_u8 } else { (7 * row + p) as u8 };
        let weight = |output: usize, p: usize| {
            let with_sign = if (output + p).is_multiple_of(5) { -128_i8 } else { (output as i8) - (p % 64) as i8 };
            with_sign.cast_unsigned()
        };
        let number =
            |byte: u8, is_signed: bool| if is_signed { i32::from(byte.cast_signed()) } else { i32::from(byte) };
        let x: Vec<u8> = (0..20).flat_map(|row| (0..inputs).map(move |p| element(row, p))).collect();
        let weights: Vec<u8> = (0..inputs / 4)
            .flat_map(|g| (0..OUTPUTS).flat_map(move |output| (0..4).map(move |i| weight(output, 4 * g + i))))
            .collect();
        let mut sums = Sums([[i32::MIN; OUTPUTS]; 2 * TILE]);
        // Only 16 rows, and then, of 20, those from 4 on in both.
        let rows = Rows { tiles: [x[inputs..].as_ptr(), std::ptr::null()], stride: inputs };
        // SAFETY: there are 20 rows of so many inputs, and as many weights for each output.
        unsafe { tiles.multiply::<X, W>(rows, weights.as_ptr(), steps, &mut sums) };
        let of_first = sums.0[0];
        assert_eq!(sums.0[TILE..], [[i32::MIN; OUTPUTS]; TILE]);
        let rows = Rows { tiles: [x.as_ptr(), x[4 * inputs..].as_ptr()], stride: inputs };
        // SAFETY: there are 20 rows of so many inputs, and as many weights for each output.
        unsafe { tiles.multiply::<X, W>(rows, weights.as_ptr(), steps, &mut sums) };
        assert_eq!(sums.0[1], of_first);
        for (tile, first) in [0, 4].into_iter().enumerate() {
            for row in 0..TILE {
                for output in 0..OUTPUTS {
                    let product = |p: usize| number(element(first + row, p), X) * number(weight(output, p), W);
                    let expected: i32 = (0..inputs).map(product).sum();
                    assert_eq!(
                        sums.of(tile * TILE + row, output)[0],
                        expected,
                        "row {row} of tile {tile}, output {output}"
                    );
                }
            }
        }
    }

    #[test]
    fn tiles_are_left_as_they_were() {
        let Some(outer) = aloud::<64>() else { return };
        check::<32>(2);
        let x = [1_u8; TILE * 64];
        let weights = [2_u8; 64 * OUTPUTS];
        let mut sums = Sums::zero();
        let rows = Rows { tiles: [x.as_ptr(), std::ptr::null()], stride: 64 };
        // SAFETY: there are 16 rows of 64 inputs, and as many weights for each output.
        unsafe { outer.multiply::<UNSIGNED, UNSIGNED>(rows, weights.as_ptr(), 1, &mut sums) };
        assert_eq!(sums.0[..TILE], [[128; OUTPUTS]; TILE]);
    }

    #[test]
    fn steps_have_every_row_once() {
        for rows in TILE..200 {
            let mut next = 0;
            for step in Step::all(rows) {
                assert_eq!(step.rows().start, next, "{rows}");
                for row in step.rows() {
                    let (tile, of_tile) = (step.of_row(row) / TILE, step.of_row(row) % TILE);
                    assert!(tile < step.tiles && step.starts[tile] + of_tile == row, "row {row} of {rows}");
                }
                assert!(step.starts[..step.tiles].iter().all(|start| start + TILE <= rows), "{rows}");
                next = step.rows().end;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn products_of_tiles_are_exact() {
        check::<64>(1);
        check::<64>(3);
        check::<32>(1);
        check::<32>(5);
        check::<64>(0);
    }
}
