//! Products of bytes of aarch64, on cores that have dot products of 8 bits. Vectors come in, vectors go out. Never anything that needs
//! SVE.

use std::arch::aarch64::*;

use super::{Bytes, Kernel};

/// The proof that the CPU has NEON with dot products. Made only by [`run_dotprod`].
#[derive(Clone, Copy)]
pub(super) struct Dotprod(());

/// Runs the kernel with dot products switched on.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn run_dotprod<K: Kernel>(kernel: K) {
    kernel.run(Dotprod(()));
}

impl Dotprod {
    /// `sums + Σ a · b` over the signed bytes of each lane.
    #[inline(always)]
    fn dot(self, sums: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        let mut sums = sums;
        // SAFETY: `self` proves the instruction, which touches nothing but its registers. The standard library has no stable
        // name for it yet.
        unsafe {
            std::arch::asm!(
                "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
                sums = inout(vreg) sums,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }
}

/// Methods that are one instruction from vectors to a vector.
macro_rules! instructions {
    ($($name:ident($($v:ident: $type:ty),+) -> $out:ty = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($v: $type),+) -> $out {
            // SAFETY: `self` proves NEON.
            unsafe { $intrinsic($($v),+) }
        }
    )+};
}

impl Bytes for Dotprod {
    type I = int32x4_t;
    type F = float32x4_t;
    const WIDTH: usize = 4;
    const TILE_ROWS: usize = 4;
    const IS_NARROW: bool = false;
    const EXCESS: i16 = 0;

    instructions! {
        add_short(sums: int32x4_t, short: int32x4_t) -> int32x4_t = vaddq_s32;
        add_scaled(sums: int32x4_t, short: int32x4_t, scales: int32x4_t) -> int32x4_t = vmlaq_s32;
        float(v: int32x4_t) -> float32x4_t = vcvtq_f32_s32;
        splat_f32(x: f32) -> float32x4_t = vdupq_n_f32;
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32;
        sub(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32;
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32;
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> int32x4_t {
        // SAFETY: `self` proves NEON; the caller vouches for 16 bytes.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, v: int32x4_t, to: *mut u8) {
        // SAFETY: `self` proves NEON; the caller vouches for 16 bytes.
        unsafe { vst1q_u8(to, vreinterpretq_u8_s32(v)) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vdupq_n_s32(word.cast_signed()) }
    }

    #[inline(always)]
    fn low(self, v: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vandq_s32(v, vdupq_n_s32(0x0f0f_0f0f)) }
    }

    #[inline(always)]
    fn high(self, v: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(v))) }
    }

    #[inline(always)]
    fn with_bits(self, nibbles: int32x4_t, v: int32x4_t, left: i32, mask: u8) -> int32x4_t {
        // SAFETY: `self` proves NEON. Where `left` is negative, the instruction moves to the right.
        unsafe {
            let moved = vshlq_u8(vreinterpretq_u8_s32(v), vdupq_n_s8(left as i8));
            vorrq_s32(nibbles, vreinterpretq_s32_u8(vandq_u8(moved, vdupq_n_u8(mask))))
        }
    }

    #[inline(always)]
    fn lookup(self, table: &[i8; 16], places: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves NEON; the table is 16 bytes.
        unsafe { vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table.as_ptr()), vreinterpretq_u8_s32(places))) }
    }

    #[inline(always)]
    fn add_unsigned(self, sums: int32x4_t, weights: int32x4_t, x: int32x4_t) -> int32x4_t {
        // Weights of 6 bits at most have the same form signed.
        self.dot(sums, weights, x)
    }

    #[inline(always)]
    fn plus(self, v: int32x4_t, byte: u8) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vreinterpretq_s32_u8(vaddq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(byte))) }
    }

    #[inline(always)]
    fn add_signed(self, sums: int32x4_t, weights: int32x4_t, x: int32x4_t) -> int32x4_t {
        self.dot(sums, weights, x)
    }

    #[inline(always)]
    unsafe fn pairs(self, from: *const u8) -> int32x4_t {
        // SAFETY: `self` proves NEON; the caller vouches for 8 bytes.
        unsafe { vreinterpretq_s32_u16(vmovl_u8(vld1_u8(from))) }
    }

    #[inline(always)]
    unsafe fn signed_pairs(self, from: *const u8) -> int32x4_t {
        // SAFETY: `self` proves NEON; the caller vouches for 8 bytes.
        unsafe { vreinterpretq_s32_s16(vmovl_s8(vld1_s8(from.cast()))) }
    }

    #[inline(always)]
    fn first(self, pairs: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vshrq_n_s32::<16>(vshlq_n_s32::<16>(pairs)) }
    }

    #[inline(always)]
    fn second(self, pairs: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vshrq_n_s32::<16>(pairs) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: int32x4_t, pairs: int32x4_t, x: int32x4_t) -> int32x4_t {
        self.add_scaled(self.add_scaled(sums, self.first(pairs), self.first(x)), self.second(pairs), self.second(x))
    }

    #[inline(always)]
    fn less_32(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vsubq_s32(a, vshlq_n_s32::<5>(b)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> float32x4_t {
        // SAFETY: `self` proves NEON, which widens f16; the caller vouches for 8 bytes. The vector of f16 has no stable name yet.
        unsafe {
            let halves = vld1_u8(from);
            let wide: float32x4_t;
            std::arch::asm!(
                "fcvtl {wide:v}.4s, {halves:v}.4h",
                wide = lateout(vreg) wide,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags)
            );
            wide
        }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> float32x4_t {
        // SAFETY: `self` proves NEON; the caller vouches for four f32.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, v: float32x4_t, to: *mut f32) {
        // SAFETY: `self` proves NEON; the caller vouches for four f32.
        unsafe { vst1q_f32(to, v) }
    }
}
