//! Lanes in plain Rust: arrays come in, arrays go out. Any width, so that tests try the widths of CPUs that they do not run
//! on. Never an intrinsic.

use std::array::from_fn;

use half::{bf16, f16};

use super::Lanes;

/// `N` lanes in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<const N: usize>;

impl<const N: usize> Lanes for Scalar<N> {
    type V = [f32; N];
    const WIDTH: usize = N;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; N]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        let from = &from[..N];
        from_fn(|i| from[i])
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32]) {
        to[..N].copy_from_slice(&v);
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] / b[i])
    }

    // Not `f32::mul_add`: on a CPU without the instruction that is a library call per lane.
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn min(self, bound: Self::V, value: Self::V) -> Self::V {
        from_fn(|i| if bound[i] < value[i] { bound[i] } else { value[i] })
    }

    #[inline(always)]
    fn max(self, bound: Self::V, value: Self::V) -> Self::V {
        from_fn(|i| if bound[i] > value[i] { bound[i] } else { value[i] })
    }

    #[inline(always)]
    fn abs(self, v: Self::V) -> Self::V {
        from_fn(|i| v[i].abs())
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for the elements.
        from_fn(|i| unsafe { *from.add(i) })
    }

    #[inline(always)]
    unsafe fn store_at(self, v: Self::V, to: *mut f32) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { *to.add(i) = x }
        }
    }

    #[inline(always)]
    fn prefetch(self, _: *const f32) {}

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> Self::V {
        let from = &from[..N];
        from_fn(|i| from[i].to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::V {
        let from = &from[..N];
        from_fn(|i| from[i].to_f32())
    }

    // Adding and taking away 2²³, from where on there are no fractions, leaves no room for one. Not `round_ties_even`: without
    // SSE4.1 that is a library call per lane.
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        const FRACTIONLESS: f32 = 8_388_608.0;
        let round = |v: f32| ((v.abs() + FRACTIONLESS) - FRACTIONLESS).copysign(v);
        from_fn(|i| if v[i].abs() < FRACTIONLESS { round(v[i]) } else { v[i] })
    }

    #[inline(always)]
    fn exp2(self, n: Self::V) -> Self::V {
        from_fn(|i| f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn above(self, v: Self::V, bound: Self::V) -> u32 {
        (0..N).fold(0, |bits, i| bits | u32::from(v[i] > bound[i]) << i)
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut sums = v;
        let mut half = N / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        sums[0]
    }
}
