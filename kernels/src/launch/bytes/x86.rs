//! Products of bytes of x86-64: AVX2, and AVX-512 with VNNI. Vectors come in, vectors go out. Never a choice: `super::run` makes it.

use std::arch::x86_64::*;

use super::{BesideTiles, Bytes, Kernel, TiledKernel};

/// The proof that the CPU has AVX2 and F16C. Made only by [`run_avx2`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs the kernel with AVX2 and F16C switched on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run(Avx2(()));
}

/// Methods that are one instruction from vectors to a vector.
macro_rules! instructions {
    ($($name:ident($($v:ident: $type:ty),+) -> $out:ty = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($v: $type),+) -> $out {
            // SAFETY: `self` proves AVX2, or AVX-512 with VNNI.
            unsafe { $intrinsic($($v),+) }
        }
    )+};
}

/// Bytes of a half of a vector that double the first number of 16 bits of every lane.
const FIRST: [i8; 16] = [0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13];

/// The same for the second.
const SECOND: [i8; 16] = [2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15];

impl Avx2 {
    #[inline(always)]
    fn doubled(self, pairs: __m256i, order: &[i8; 16]) -> __m256i {
        // SAFETY: `self` proves AVX2; 16 bytes are read, which need no alignment.
        unsafe { _mm256_shuffle_epi8(pairs, _mm256_broadcastsi128_si256(_mm_loadu_si128(order.as_ptr().cast()))) }
    }
}

impl Bytes for Avx2 {
    type I = __m256i;
    type F = __m256;
    const WIDTH: usize = 8;
    const TILE_ROWS: usize = 4;
    const IS_NARROW: bool = true;
    const EXCESS: i16 = 0;

    instructions! {
        float(v: __m256i) -> __m256 = _mm256_cvtepi32_ps;
        splat_f32(x: f32) -> __m256 = _mm256_set1_ps;
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps;
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps;
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps;
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing, so any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m256i {
        // SAFETY: `self` proves AVX2; the caller vouches for 32 bytes.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, v: __m256i, to: *mut u8) {
        // SAFETY: `self` proves AVX2; the caller vouches for 32 bytes.
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    fn low(self, v: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_and_si256(v, _mm256_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn high(self, v: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn with_bits(self, nibbles: __m256i, v: __m256i, left: i32, mask: u8) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            // `left` is a constant wherever this is inlined, so that one arm is left.
            let moved = match left {
                4 => _mm256_slli_epi16::<4>(v),
                3 => _mm256_slli_epi16::<3>(v),
                2 => _mm256_slli_epi16::<2>(v),
                1 => _mm256_slli_epi16::<1>(v),
                0 => v,
                -1 => _mm256_srli_epi16::<1>(v),
                -2 => _mm256_srli_epi16::<2>(v),
                -3 => _mm256_srli_epi16::<3>(v),
                _ => _mm256_srli_epi16::<4>(v),
            };
            _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(mask.cast_signed())))
        }
    }

    #[inline(always)]
    fn add_unsigned(self, sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2. The product saturates where two of them leave 16 bits, which the caller rules out.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, x)) }
    }

    #[inline(always)]
    fn lookup(self, table: &[i8; 16], places: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2; the table is 16 bytes, which need no alignment.
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), places) }
    }

    #[inline(always)]
    fn add_short(self, sums: __m256i, short: __m256i) -> __m256i {
        self.add_scaled(sums, short, self.splat(0x0001_0001))
    }

    #[inline(always)]
    fn add_scaled(self, sums: __m256i, short: __m256i, scales: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(short, scales)) }
    }

    #[inline(always)]
    fn plus(self, v: __m256i, byte: u8) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_epi8(v, _mm256_set1_epi8(byte.cast_signed())) }
    }

    #[inline(always)]
    fn add_signed(self, sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2. Inputs take the weights' signs, the weights their magnitudes: at most 2 · 128 · 127 a sum of
        // two, which 16 bits hold.
        unsafe {
            let products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
            _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn pairs(self, from: *const u8) -> __m256i {
        // SAFETY: `self` proves AVX2; the caller vouches for 16 bytes.
        unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn signed_pairs(self, from: *const u8) -> __m256i {
        // SAFETY: `self` proves AVX2; the caller vouches for 16 bytes.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    fn first(self, pairs: __m256i) -> __m256i {
        self.doubled(pairs, &FIRST)
    }

    #[inline(always)]
    fn second(self, pairs: __m256i) -> __m256i {
        self.doubled(pairs, &SECOND)
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m256i, pairs: __m256i, x: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, x)) }
    }

    #[inline(always)]
    fn less_32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_sub_epi32(a, _mm256_slli_epi32::<5>(b)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m256 {
        // SAFETY: `self` proves F16C; the caller vouches for 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m256 {
        // SAFETY: `self` proves AVX2; the caller vouches for 8 f32.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, v: __m256, to: *mut f32) {
        // SAFETY: `self` proves AVX2; the caller vouches for 8 f32.
        unsafe { _mm256_storeu_ps(to, v) }
    }
}

/// The proof that the CPU has AVX-512 F, BW and VNNI. Made only by [`run_vnni`].
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

/// Runs the kernel with AVX-512 and VNNI switched on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn run_vnni<K: Kernel>(kernel: K) {
    kernel.run(Vnni(()));
}

/// The same for a loop around tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn run_tiled<K: TiledKernel>(kernel: K) {
    kernel.run(Vnni(()));
}

impl Bytes for Vnni {
    type I = __m512i;
    type F = __m512;
    const WIDTH: usize = 16;
    const TILE_ROWS: usize = 6;
    const IS_NARROW: bool = false;
    const EXCESS: i16 = 128;

    instructions! {
        // Weights are unsigned, inputs signed, as the instruction has it.
        add_unsigned(sums: __m512i, weights: __m512i, x: __m512i) -> __m512i = _mm512_dpbusd_epi32;
        add_signed(sums: __m512i, weights: __m512i, x: __m512i) -> __m512i = _mm512_dpbusd_epi32;
        add_short(sums: __m512i, short: __m512i) -> __m512i = _mm512_add_epi32;
        add_pairs(sums: __m512i, pairs: __m512i, x: __m512i) -> __m512i = _mm512_dpwssd_epi32;
        float(v: __m512i) -> __m512 = _mm512_cvtepi32_ps;
        splat_f32(x: f32) -> __m512 = _mm512_set1_ps;
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps;
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps;
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps;
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing, so any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: `self` proves AVX-512; the caller vouches for 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, v: __m512i, to: *mut u8) {
        // SAFETY: `self` proves AVX-512; the caller vouches for 64 bytes.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    fn low(self, v: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn high(self, v: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn with_bits(self, nibbles: __m512i, v: __m512i, left: i32, mask: u8) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe {
            // `left` is a constant wherever this is inlined, so that one arm is left.
            let moved = match left {
                4 => _mm512_slli_epi16::<4>(v),
                3 => _mm512_slli_epi16::<3>(v),
                2 => _mm512_slli_epi16::<2>(v),
                1 => _mm512_slli_epi16::<1>(v),
                0 => v,
                -1 => _mm512_srli_epi16::<1>(v),
                -2 => _mm512_srli_epi16::<2>(v),
                -3 => _mm512_srli_epi16::<3>(v),
                _ => _mm512_srli_epi16::<4>(v),
            };
            _mm512_or_si512(nibbles, _mm512_and_si512(moved, _mm512_set1_epi8(mask.cast_signed())))
        }
    }

    #[inline(always)]
    fn lookup(self, table: &[i8; 16], places: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW; the table is 16 bytes, which need no alignment.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), places) }
    }

    #[inline(always)]
    fn add_scaled(self, sums: __m512i, short: __m512i, scales: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_epi32(sums, _mm512_mullo_epi32(short, scales)) }
    }

    #[inline(always)]
    fn plus(self, v: __m512i, byte: u8) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_add_epi8(v, _mm512_set1_epi8(byte.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn pairs(self, from: *const u8) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW; the caller vouches for 32 bytes.
        unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn signed_pairs(self, from: *const u8) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW; the caller vouches for 32 bytes.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn first(self, pairs: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs)) }
    }

    #[inline(always)]
    fn second(self, pairs: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_srai_epi32::<16>(pairs) }
    }

    #[inline(always)]
    fn less_32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sub_epi32(a, _mm512_slli_epi32::<5>(b)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m512 {
        // SAFETY: `self` proves AVX-512; the caller vouches for 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves AVX-512; the caller vouches for 16 f32.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, v: __m512, to: *mut f32) {
        // SAFETY: `self` proves AVX-512; the caller vouches for 16 f32.
        unsafe { _mm512_storeu_ps(to, v) }
    }
}

impl BesideTiles for Vnni {
    instructions! {
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512;
        minus(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi8;
    }

    #[inline(always)]
    fn digit(self, v: __m512i, at: u32) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe {
            let at = _mm512_set1_epi32(at.cast_signed());
            let first_bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
            _mm512_and_si512(_mm512_shuffle_epi8(_mm512_srlv_epi32(v, at), first_bytes), _mm512_set1_epi8(7))
        }
    }

    #[inline(always)]
    fn times(self, v: __m512i, factors: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW. Nothing is carried from the lower byte to the upper one.
        unsafe { _mm512_mullo_epi16(v, _mm512_and_si512(factors, _mm512_set1_epi16(0xff))) }
    }

    #[inline(always)]
    fn eightfold(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<3>(a), b) }
    }
}
