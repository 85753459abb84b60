//! Lanes of x86-64: AVX2 with FMA (8 wide) and AVX-512 (16 wide). Vectors come in, vectors go out. Never a choice between
//! the two: `super::run` makes it.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes};

/// The proof that the CPU has AVX2, FMA and F16C. Made only by [`run_avx2`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// The proof that the CPU has AVX-512 F, BW, DQ and VL. Made only by [`run_avx512`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs the kernel with AVX2, FMA and F16C switched on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Runs the kernel with AVX-512 switched on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Methods that are one instruction from vectors to a vector.
macro_rules! instructions {
    ($($name:ident($($v:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($v: Self::V),+) -> Self::V {
            // SAFETY: `self` exists only in code that runs after the CPU was asked for these instructions.
            unsafe { $intrinsic($($v),+) }
        }
    )+};
}

impl Lanes for Avx2 {
    type V = __m256;
    const WIDTH: usize = 8;
    const TILE_ROWS: usize = 6;

    instructions! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        mul_add(a, b, c) = _mm256_fmadd_ps;
        // Both give their second operand when either is NaN.
        min(bound, value) = _mm256_min_ps;
        max(bound, value) = _mm256_max_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..Self::WIDTH];
        // SAFETY: `self` proves AVX2; the slice holds the 8 elements that are read, and needs no alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: `self` proves AVX2; the slice holds the 8 elements that are written, and needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn abs(self, v: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), v) }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m256 {
        // SAFETY: `self` proves the instructions; the caller vouches for the elements.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: __m256, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch reads nothing, so any address will do. To the second cache: the nearest is full of what is
        // being computed with.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m256 {
        let from = &from[..Self::WIDTH];
        // SAFETY: `self` proves F16C; the slice holds the elements that are read.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m256 {
        let from = &from[..Self::WIDTH];
        // SAFETY: `self` proves the instructions; the slice holds the elements that are read. A bf16 is the upper half of an f32.
        unsafe {
            let whole = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(whole))
        }
    }

    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn exp2(self, n: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions. The biased exponent of 2ⁿ is n + 127.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn above(self, v: __m256, bound: __m256) -> u32 {
        // SAFETY: `self` proves AVX2. The comparison is false where either is NaN; the sign bits of eight lanes are a whole
        // number from 0 to 255.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(v, bound)) as u32 }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

impl Lanes for Avx512 {
    type V = __m512;
    const WIDTH: usize = 16;
    // With more, the compiler keeps sums in memory: those of 11 rows and the weights of a turn are more than 32 registers.
    const TILE_ROWS: usize = 10;

    instructions! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        mul_add(a, b, c) = _mm512_fmadd_ps;
        // Both give their second operand when either is NaN.
        min(bound, value) = _mm512_min_ps;
        max(bound, value) = _mm512_max_ps;
        abs(v) = _mm512_abs_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..Self::WIDTH];
        // SAFETY: `self` proves AVX-512; the slice holds the 16 elements that are read, and needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: `self` proves AVX-512; the slice holds the 16 elements that are written, and needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves the instructions; the caller vouches for the elements.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: __m512, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const f32) {
        // SAFETY: a prefetch reads nothing, so any address will do. To the second cache: the nearest is full of what is
        // being computed with.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m512 {
        let from = &from[..Self::WIDTH];
        // SAFETY: `self` proves F16C; the slice holds the elements that are read.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        let from = &from[..Self::WIDTH];
        // SAFETY: `self` proves the instructions; the slice holds the elements that are read. A bf16 is the upper half of an f32.
        unsafe {
            let whole = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(whole))
        }
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn exp2(self, n: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions. The biased exponent of 2ⁿ is n + 127.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn above(self, v: __m512, bound: __m512) -> u32 {
        // SAFETY: `self` proves AVX-512. The comparison is false where either is NaN.
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, bound)) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_add_ps(v) }
    }
}
