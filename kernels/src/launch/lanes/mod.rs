//! Vectors of f32 whose width is the CPU's. A [`Kernel`] (an op's loop over any width) and an [`Isa`] come in, the loop
//! compiled for that instruction set runs. Never here: an op's arithmetic.
//!
//! A value that implements [`Lanes`] is a proof that the CPU has its instructions: only [`run`] makes the ones that need
//! proof, after asking. So the ops hold no unsafe code.

use half::{bf16, f16};

use super::Isa;

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use scalar::Scalar;

/// An instruction set's f32 vectors.
///
/// Every method is `#[inline(always)]`, and so must be everything between it and [`run`]: the instructions exist only in a
/// function that was compiled with them switched on. A closure that an iterator's method is given is a function of its own: write
/// loops.
pub(crate) trait Lanes: Copy {
    /// One vector.
    type V: Copy;
    /// How many f32 a vector holds.
    const WIDTH: usize;
    /// Rows of a matrix tile of two vectors: as many as leave registers for two vectors of the other operand and one splat.
    const TILE_ROWS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The first `WIDTH` elements; panics when there are fewer.
    fn load(self, from: &[f32]) -> Self::V;
    /// Writes the first `WIDTH` elements; panics when there is no room.
    fn store(self, v: Self::V, to: &mut [f32]);
    /// `WIDTH` elements.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_at(self, from: *const f32) -> Self::V;
    /// Writes `WIDTH` elements.
    ///
    /// # Safety
    /// They can be written, by nobody else at the same time.
    unsafe fn store_at(self, v: Self::V, to: *mut f32);
    /// Asks for the cache line of an address, which need not be readable. A hint: nothing where the CPU has none.
    fn prefetch(self, address: *const f32);
    /// The first `WIDTH` elements, widened; panics when there are fewer.
    fn load_f16(self, from: &[f16]) -> Self::V;
    /// The first `WIDTH` elements, widened; panics when there are fewer.
    fn load_bf16(self, from: &[bf16]) -> Self::V;
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once where the CPU has it (everywhere but in the scalar code).
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller of a bound and a value; NaN where the value is NaN. The bound must not be NaN.
    fn min(self, bound: Self::V, value: Self::V) -> Self::V;
    /// The larger of a bound and a value; NaN where the value is NaN. The bound must not be NaN.
    fn max(self, bound: Self::V, value: Self::V) -> Self::V;
    /// `|v|`
    fn abs(self, v: Self::V) -> Self::V;
    /// The nearest whole numbers, those in the middle to even. Only for magnitudes below 2³¹.
    fn round(self, v: Self::V) -> Self::V;
    /// `2ⁿ` for whole numbers from −126 to 127, 0 for −127, infinity for 128. What NaN gives is not said.
    fn exp2(self, n: Self::V) -> Self::V;
    /// The sum of all lanes, added in pairs.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane. What a NaN among them gives is not said.
    fn largest(self, v: Self::V) -> f32;
    /// Which lanes are above a bound, the first one in the lowest bit. NaN is not above anything, nor is anything above it.
    fn above(self, v: Self::V, bound: Self::V) -> u32;

    /// Fewer than `WIDTH` elements, with zeros behind them.
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> Self::V {
        let mut whole = [0.0; WIDTH_MAX];
        whole[..from.len()].copy_from_slice(from);
        self.load(&whole)
    }

    /// The first `to.len()` lanes, where that is fewer than `WIDTH`.
    #[inline(always)]
    fn store_partial(self, v: Self::V, to: &mut [f32]) {
        let mut whole = [0.0; WIDTH_MAX];
        self.store(v, &mut whole);
        to.copy_from_slice(&whole[..to.len()]);
    }
}

/// The widest vector of any instruction set here.
const WIDTH_MAX: usize = 16;

/// An op's loop, written once over any width.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    /// Runs it. Implementations must be `#[inline(always)]`, see [`Lanes`].
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs the kernel compiled for `isa`, or for plain Rust when this CPU has not got it.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Amx if super::available().contains(&Isa::Avx512) => {
            // SAFETY: the guard has just asked the CPU for the features that the function is compiled with.
            unsafe { x86::run_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Fma if super::available().contains(&Isa::Avx2Fma) => {
            // SAFETY: as above.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDotprod if super::available().contains(&Isa::Neon) => {
            // SAFETY: as above.
            unsafe { neon::run_neon(kernel) }
        }
        // Four lanes: what SSE2 and NEON have, which the compiler may always use.
        _ => kernel.run(Scalar::<4>),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts every operation through inputs whose results are known exactly.
    struct EveryOperation;

    impl Kernel for EveryOperation {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self, l: L) {
            let lanes = |v: L::V| {
                let mut out = vec![0.0_f32; L::WIDTH];
                l.store(v, &mut out);
                out
            };
            let expect = |f: &dyn Fn(f32) -> f32| (0..L::WIDTH).map(|i| f(i as f32)).collect::<Vec<_>>();
            let ramp: Vec<f32> = expect(&|i| i);
            let v = l.load(&ramp);
            let two = l.splat(2.0);
            assert_eq!(lanes(v), ramp);
            assert_eq!(lanes(l.add(v, two)), expect(&|i| i + 2.0));
            assert_eq!(lanes(l.sub(v, two)), expect(&|i| i - 2.0));
            assert_eq!(lanes(l.mul(v, two)), expect(&|i| i * 2.0));
            assert_eq!(lanes(l.div(v, two)), expect(&|i| i / 2.0));
            assert_eq!(lanes(l.mul_add(v, two, v)), expect(&|i| 3.0 * i));
            assert_eq!(lanes(l.min(two, v)), expect(&|i| i.min(2.0)));
            assert_eq!(lanes(l.max(two, v)), expect(&|i| i.max(2.0)));
            assert_eq!(lanes(l.abs(l.sub(two, v))), expect(&|i| (2.0 - i).abs()));
            assert_eq!(l.sum(v), expect(&|i| i).iter().sum::<f32>());
            assert_eq!(l.largest(v), (L::WIDTH - 1) as f32);
            assert_eq!(l.largest(l.sub(two, v)), 2.0);
            // Around 0, where a sign is kept, and as far as there are fractions.
            for offset in [0.0, 2.5, 4_194_301.5, 4_194_303.5, 8_388_600.0, -8_388_607.5, 1e9] {
                let rounded = lanes(l.round(l.add(l.mul(v, l.splat(-0.5)), l.splat(offset))));
                let expected = expect(&|i| (i * -0.5 + offset).round_ties_even());
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&rounded), bits(&expected), "{offset}");
            }
            assert_eq!(
                lanes(l.exp2(l.sub(v, l.splat(127.0)))),
                expect(&|i| if i == 0.0 { 0.0 } else { (i - 127.0).exp2() })
            );
            assert_eq!(lanes(l.exp2(l.sub(l.splat(127.0), v))), expect(&|i| (127.0 - i).exp2()));
            let halves: Vec<f16> = ramp.iter().map(|x| f16::from_f32(x * 0.25)).collect();
            assert_eq!(lanes(l.load_f16(&halves)), expect(&|i| i * 0.25));
            let halves: Vec<bf16> = ramp.iter().map(|x| bf16::from_f32(x * -0.25)).collect();
            assert_eq!(lanes(l.load_bf16(&halves)), expect(&|i| i * -0.25));
            // SAFETY: the ramp and the buffer hold WIDTH elements.
            unsafe {
                let mut out = vec![0.0_f32; L::WIDTH];
                l.store_at(l.load_at(ramp.as_ptr()), out.as_mut_ptr());
                assert_eq!(out, ramp);
            }
            let bits = |f: &dyn Fn(usize) -> bool| (0..L::WIDTH).fold(0, |bits, i| bits | u32::from(f(i)) << i);
            assert_eq!(l.above(v, l.splat(1.0)), bits(&|i| i > 1));
            assert_eq!(l.above(two, v), bits(&|i| i < 2));
            let nan = l.splat(f32::NAN);
            assert_eq!((l.above(nan, v), l.above(v, nan)), (0, 0));
            assert!(lanes(l.min(two, nan)).iter().all(|x| x.is_nan()));
            assert!(lanes(l.max(two, nan)).iter().all(|x| x.is_nan()));
            for n in 0..L::WIDTH {
                let mut out = vec![9.0; n];
                l.store_partial(l.load_partial(&ramp[..n]), &mut out);
                assert_eq!(out, ramp[..n]);
                let padded = lanes(l.load_partial(&ramp[..n]));
                assert!(padded[n..].iter().all(|x| *x == 0.0));
            }
        }
    }

    #[test]
    fn every_operation_of_every_available_isa_does_what_it_says() {
        for isa in crate::testing::isas_aloud() {
            run(isa, EveryOperation);
        }
        EveryOperation.run(Scalar::<8>);
        EveryOperation.run(Scalar::<16>);
    }
}
