//! Vectors of dot products of whole numbers: elements of 8 bits times weights of 8 bits, summed in 32. A [`Kernel`] (a loop
//! over any width) and an [`Isa`] come in, the loop compiled for that instruction set runs. Never a sum that could be another
//! on another instruction set: all of them are exact.
//!
//! As with [`super::lanes`], a value that implements [`Dots`] is a proof that the CPU has its instructions.

use super::Isa;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

/// An instruction set's dot products. Elements of a row are taken in groups of [`Dots::GROUP`], which are one word of 32 bits.
///
/// Every method is `#[inline(always)]`, and so must be everything between it and [`run`].
pub(crate) trait Dots: Copy {
    /// Sums of as many outputs as f32 have lanes.
    type Sums: Copy;
    /// The weights from one group to these outputs.
    type Weights: Copy;
    /// One group of a row, for every output.
    type Group: Copy;
    /// How many outputs a vector of sums has.
    const WIDTH: usize;
    /// Elements of a group: 2 of 16 bits, or 4 of 8 bits.
    const GROUP: usize;
    /// What is taken from every element (0 to 255) before it is multiplied.
    const SHIFT: i32;
    /// Rows of a tile of two vectors of sums.
    const TILE_ROWS: usize;

    /// Asks for the cache line of an address, which need not be readable. A hint: nothing where the CPU has none.
    #[inline(always)]
    fn prefetch(self, _address: *const i8) {}
    /// No sum yet.
    fn zero(self) -> Self::Sums;
    /// Sums that were computed elsewhere.
    ///
    /// # Safety
    /// `WIDTH` of them can be read.
    unsafe fn load(self, from: *const i32) -> Self::Sums;
    /// A group.
    fn group(self, word: u32) -> Self::Group;
    /// Weights `[WIDTH, GROUP]`.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn weights(self, from: *const i8) -> Self::Weights;
    /// `sums + Σ element · weight` over the group.
    fn add(self, sums: Self::Sums, group: Self::Group, weights: Self::Weights) -> Self::Sums;
    /// Writes `(sums − zero · totals) · scale · scales`, the difference exact, the rest in f32 from left to right.
    ///
    /// # Safety
    /// `totals` and `scales` hold `WIDTH` elements that can be read, `to` as many that can be written by nobody else.
    unsafe fn finish(
        self,
        sums: Self::Sums,
        zero: i32,
        totals: *const i32,
        scale: f32,
        scales: *const f32,
        to: *mut f32,
    );
}

/// How many elements a group has on an instruction set.
pub(crate) const fn group(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Vnni | Isa::Avx512Amx | Isa::NeonDotprod => 4,
        _ => 2,
    }
}

/// How many elements are taken at once: a group, or what a tile's row has. Behind a row's last element are zeros.
pub(crate) const fn inputs_at_once(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Amx => 64,
        _ => group(isa),
    }
}

/// A loop, written once over any instruction set.
pub(crate) trait Kernel {
    /// Runs it. Implementations must be `#[inline(always)]`.
    fn run<D: Dots>(self, dots: D);
}

/// Runs the kernel compiled for `isa`, or for plain Rust when this CPU has not got it.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Amx if super::available().contains(&Isa::Avx512Vnni) => {
            // SAFETY: the guard has just asked the CPU for the features that the function is compiled with.
            unsafe { x86::run_vnni(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if super::available().contains(&Isa::Avx512) => {
            // SAFETY: as above.
            unsafe { x86::run_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Fma if super::available().contains(&Isa::Avx2Fma) => {
            // SAFETY: as above.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod if super::available().contains(&Isa::NeonDotprod) => {
            // SAFETY: as above.
            unsafe { neon::run_dotprod(kernel) }
        }
        _ => kernel.run(Scalar),
    }
}

/// Plain Rust, four outputs wide, on any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Dots for Scalar {
    type Sums = [i32; 4];
    type Weights = [i8; 8];
    type Group = [i32; 2];
    const WIDTH: usize = 4;
    const GROUP: usize = 2;
    const SHIFT: i32 = 0;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn zero(self) -> [i32; 4] {
        [0; 4]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> [i32; 4] {
        // SAFETY: the caller vouches for the four sums.
        unsafe { from.cast::<[i32; 4]>().read() }
    }

    #[inline(always)]
    fn group(self, word: u32) -> [i32; 2] {
        [(word & 0xffff) as i32, (word >> 16) as i32]
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> [i8; 8] {
        // SAFETY: the caller vouches for the 8 weights, which need no alignment.
        unsafe { from.cast::<[i8; 8]>().read() }
    }

    #[inline(always)]
    fn add(self, mut sums: [i32; 4], group: [i32; 2], weights: [i8; 8]) -> [i32; 4] {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += group[0] * i32::from(weights[2 * lane]) + group[1] * i32::from(weights[2 * lane + 1]);
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish(
        self,
        sums: [i32; 4],
        zero: i32,
        totals: *const i32,
        scale: f32,
        scales: *const f32,
        to: *mut f32,
    ) {
        for (lane, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller vouches for four elements of each.
            unsafe { *to.add(lane) = (sum - zero * *totals.add(lane)) as f32 * scale * *scales.add(lane) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts the greatest elements and weights through every operation.
    struct EveryOperation;

    impl Kernel for EveryOperation {
        #[inline(always)]
        fn run<D: Dots>(self, d: D) {
            assert_eq!(D::GROUP * (32 / D::GROUP), 32);
            let weight =
                |lane: usize, i: usize| if (lane + i).is_multiple_of(2) { 127_i32 } else { -127 + lane as i32 };
            let element = |i: usize| if i.is_multiple_of(2) { 255_i32 } else { 3 };
            let mut weights = vec![0_i8; D::WIDTH * D::GROUP];
            let mut totals = vec![0_i32; D::WIDTH];
            let mut expected = vec![5_i32; D::WIDTH];
            for lane in 0..D::WIDTH {
                for i in 0..D::GROUP {
                    weights[lane * D::GROUP + i] = weight(lane, i) as i8;
                    totals[lane] += weight(lane, i);
                    expected[lane] += 2 * (element(i) - 7) * weight(lane, i);
                }
            }
            let mask = u32::MAX >> (32 - 32 / D::GROUP);
            let word = (0..D::GROUP)
                .fold(0, |word, i| word | (((element(i) - D::SHIFT) as u32 & mask) << (32 / D::GROUP * i)));
            let scales: Vec<f32> = (0..D::WIDTH).map(|lane| 1.0 + lane as f32).collect();
            let mut found = vec![0.0_f32; D::WIDTH];
            let doubled: Vec<i32> = totals.iter().map(|total| 2 * total).collect();
            // SAFETY: every buffer has WIDTH elements, the weights WIDTH groups.
            unsafe {
                let (group, weights) = (d.group(word), d.weights(weights.as_ptr()));
                let some = vec![5_i32; D::WIDTH];
                let sums = d.add(d.add(d.load(some.as_ptr()), group, weights), group, weights);
                d.finish(sums, 7 - D::SHIFT, doubled.as_ptr(), 0.5, scales.as_ptr(), found.as_mut_ptr());
            }
            for (lane, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_eq!(*found, expected as f32 * 0.5 * (1.0 + lane as f32), "lane {lane}");
            }
        }
    }

    #[test]
    fn every_operation_of_every_available_isa_does_what_it_says() {
        for isa in crate::testing::isas_aloud() {
            run(isa, EveryOperation);
        }
    }

    /// What the width and the group of an instruction set are in the tables of others.
    struct AsTabled(Isa);

    impl Kernel for AsTabled {
        #[inline(always)]
        fn run<D: Dots>(self, _: D) {
            assert_eq!((D::WIDTH, D::GROUP), (self.0.width(), group(self.0)), "{}", self.0);
        }
    }

    #[test]
    fn widths_and_groups_are_as_the_tables_say() {
        crate::testing::isas_aloud().into_iter().for_each(|isa| run(isa, AsTabled(isa)));
    }
}
