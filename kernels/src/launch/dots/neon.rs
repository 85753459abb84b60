//! Dot products of aarch64: four of 8 bits, on cores that have them. Vectors come in, vectors go out. Never anything that needs
//! SVE.

use std::arch::aarch64::*;

use super::{Dots, Kernel};

/// The proof that the CPU has NEON with dot products. Made only by [`run_dotprod`].
#[derive(Clone, Copy)]
pub(super) struct Dotprod(());

/// Runs the kernel with dot products switched on.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn run_dotprod<K: Kernel>(kernel: K) {
    kernel.run(Dotprod(()));
}

impl Dots for Dotprod {
    type Sums = int32x4_t;
    type Weights = int8x16_t;
    type Group = int8x16_t;
    const WIDTH: usize = 4;
    const GROUP: usize = 4;
    // Both operands are signed.
    const SHIFT: i32 = 128;
    const TILE_ROWS: usize = 12;

    #[inline(always)]
    fn zero(self) -> int32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32) -> int32x4_t {
        // SAFETY: `self` proves NEON; the caller vouches for the four sums.
        unsafe { vld1q_s32(from) }
    }

    #[inline(always)]
    fn group(self, word: u32) -> int8x16_t {
        // SAFETY: `self` proves NEON.
        unsafe { vreinterpretq_s8_u32(vdupq_n_u32(word)) }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> int8x16_t {
        // SAFETY: `self` proves NEON; the caller vouches for the 16 weights.
        unsafe { vld1q_s8(from) }
    }

    #[inline(always)]
    fn add(self, sums: int32x4_t, group: int8x16_t, weights: int8x16_t) -> int32x4_t {
        let mut sums = sums;
        // SAFETY: `self` proves the instruction, which touches nothing but its registers. The standard library has no stable
        // name for it yet.
        unsafe {
            std::arch::asm!(
                "sdot {sums:v}.4s, {weights:v}.16b, {group:v}.16b",
                sums = inout(vreg) sums,
                weights = in(vreg) weights,
                group = in(vreg) group,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish(
        self,
        sums: int32x4_t,
        zero: i32,
        totals: *const i32,
        scale: f32,
        scales: *const f32,
        to: *mut f32,
    ) {
        // SAFETY: `self` proves NEON; the caller vouches for four elements of each.
        unsafe {
            let whole = vcvtq_f32_s32(vmlsq_n_s32(sums, vld1q_s32(totals), zero));
            vst1q_f32(to, vmulq_f32(vmulq_n_f32(whole, scale), vld1q_f32(scales)));
        }
    }
}
