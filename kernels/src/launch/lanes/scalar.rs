//! Lanes in plain Rust: arrays come in, arrays go out. Any width, so that tests try the widths of CPUs that they do not run
//! on. Never an intrinsic.

use std::array::from_fn;

use super::Lanes;

/// `N` lanes in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<const N: usize>;

impl<const N: usize> Lanes for Scalar<N> {
    type V = [f32; N];
    const WIDTH: usize = N;

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
