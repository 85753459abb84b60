//! Dot products of x86-64: pairs of 16 bits on AVX2 and AVX-512, four of 8 bits with VNNI. Vectors come in, vectors go out.
//! Never a choice between them: `super::run` makes it.
//!
//! AVX2's own product of 8 bits would saturate at the sum of two; the product of 16 bits is exact and no slower, because it
//! needs one instruction less.

use std::arch::x86_64::*;

use super::{Dots, Kernel};

/// The proof that the CPU has AVX2. Made only by [`run_avx2`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// The proof that the CPU has AVX-512 F and BW. Made only by [`run_avx512`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// The proof that the CPU has AVX-512 F and VNNI. Made only by [`run_vnni`].
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

/// Runs the kernel with AVX2 and FMA switched on.
#[target_feature(enable = "avx2,fma")]
pub(super) fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run(Avx2(()));
}

/// Runs the kernel with AVX-512 switched on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run(Avx512(()));
}

/// Runs the kernel with AVX-512 and VNNI switched on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn run_vnni<K: Kernel>(kernel: K) {
    kernel.run(Vnni(()));
}

impl Dots for Avx2 {
    type Sums = __m256i;
    type Weights = __m256i;
    type Group = __m256i;
    const WIDTH: usize = 8;
    const GROUP: usize = 2;
    const SHIFT: i32 = 0;
    const TILE_ROWS: usize = 5;

    #[inline(always)]
    fn prefetch(self, address: *const i8) {
        // SAFETY: a prefetch reads nothing, so any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address) }
    }

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> __m256i {
        // SAFETY: `self` proves AVX2; the caller vouches for the 8 sums.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    fn group(self, word: u32) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_epi32(word as i32) }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> __m256i {
        // SAFETY: `self` proves AVX2; the caller vouches for the 16 weights.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    fn add(self, sums: __m256i, group: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(group, weights)) }
    }

    #[inline(always)]
    unsafe fn finish(self, sums: __m256i, zero: i32, totals: *const i32, scale: f32, scales: *const f32, to: *mut f32) {
        // SAFETY: `self` proves AVX2; the caller vouches for 8 elements of each.
        unsafe {
            let taken = _mm256_mullo_epi32(_mm256_set1_epi32(zero), _mm256_loadu_si256(totals.cast()));
            let whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, taken));
            _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_mul_ps(whole, _mm256_set1_ps(scale)), _mm256_loadu_ps(scales)));
        }
    }
}

/// What both forms of AVX-512 do alike.
macro_rules! avx512 {
    () => {
        type Sums = __m512i;
        type Weights = __m512i;
        type Group = __m512i;
        const WIDTH: usize = 16;
        const SHIFT: i32 = 0;
        // With more, not all stays in registers, and with these there are enough sums in flight.
        const TILE_ROWS: usize = 8;

        #[inline(always)]
        fn prefetch(self, address: *const i8) {
            // SAFETY: a prefetch reads nothing, so any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address) }
        }

        #[inline(always)]
        fn zero(self) -> __m512i {
            // SAFETY: `self` proves AVX-512.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        unsafe fn load(self, from: *const i32) -> __m512i {
            // SAFETY: `self` proves AVX-512; the caller vouches for the 16 sums.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        fn group(self, word: u32) -> __m512i {
            // SAFETY: `self` proves AVX-512.
            unsafe { _mm512_set1_epi32(word as i32) }
        }

        #[inline(always)]
        unsafe fn finish(
            self,
            sums: __m512i,
            zero: i32,
            totals: *const i32,
            scale: f32,
            scales: *const f32,
            to: *mut f32,
        ) {
            // SAFETY: `self` proves AVX-512; the caller vouches for 16 elements of each.
            unsafe {
                let taken = _mm512_mullo_epi32(_mm512_set1_epi32(zero), _mm512_loadu_si512(totals.cast()));
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums, taken)), _mm512_set1_ps(scale));
                _mm512_storeu_ps(to, _mm512_mul_ps(scaled, _mm512_loadu_ps(scales)));
            }
        }
    };
}

impl Dots for Avx512 {
    avx512!();
    const GROUP: usize = 2;

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> __m512i {
        // SAFETY: `self` proves AVX-512; the caller vouches for the 32 weights.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, group: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(group, weights)) }
    }
}

impl Dots for Vnni {
    avx512!();
    const GROUP: usize = 4;

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> __m512i {
        // SAFETY: `self` proves AVX-512; the caller vouches for the 64 weights.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, group: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: `self` proves VNNI. Elements are unsigned, weights signed, as the instruction has it.
        unsafe { _mm512_dpbusd_epi32(sums, group, weights) }
    }
}
