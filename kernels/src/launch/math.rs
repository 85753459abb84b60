//! Functions of one vector that several ops share. A vector comes in, a vector goes out. Never a loop over memory.

use super::lanes::Lanes;

/// Where `e^x` is cut off: the powers of two that these give are exactly 0 and infinity.
const EXP_MIN: f32 = -88.3;
const EXP_MAX: f32 = 88.8;

/// `ln 2` in two parts; the first has few enough digits for its products with whole numbers up to 128 to be exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`, off by at most 2 units in the last place; 0 below −87.7 (where it is under 1e-38), infinity above 88.37 (where it is
/// above 2.3e38), NaN for NaN.
///
/// `e^x = 2ⁿ · e^r` with `|r| ≤ ln 2 / 2`, and `e^r` by its Taylor series, whose next term is below 2e-8.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(l: L, x: L::V) -> L::V {
    let x = l.max(l.splat(EXP_MIN), l.min(l.splat(EXP_MAX), x));
    let n = l.round(l.mul(x, l.splat(std::f32::consts::LOG2_E)));
    let r = l.mul_add(n, l.splat(-LN2_HIGH), x);
    let r = l.mul_add(n, l.splat(-LN2_LOW), r);
    let mut p = l.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = l.mul_add(p, r, l.splat(coefficient));
    }
    l.mul(p, l.exp2(n))
}

/// `1 / (1 + e^(−x))`
#[inline(always)]
pub(crate) fn sigmoid<L: Lanes>(l: L, x: L::V) -> L::V {
    let one = l.splat(1.0);
    l.div(one, l.add(one, exp(l, l.sub(l.splat(0.0), x))))
}

/// `tanh x = 1 − 2 / (1 + e^(2x))`, off by at most 2e-7 of 1: near 0 not of its value, which a pooler does not need.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(l: L, x: L::V) -> L::V {
    let one = l.splat(1.0);
    let grown = exp(l, l.add(x, x));
    l.sub(one, l.div(l.splat(2.0), l.add(one, grown)))
}

/// `x · sigmoid(x)`
#[inline(always)]
pub(crate) fn silu<L: Lanes>(l: L, x: L::V) -> L::V {
    l.mul(x, sigmoid(l, x))
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, which is `x · sigmoid(2 √(2/π) · (x + 0.044715 x³))`.
#[inline(always)]
pub(crate) fn gelu_tanh<L: Lanes>(l: L, x: L::V) -> L::V {
    const TWICE_ROOT: f32 = 1.595_769;
    let inner = l.mul(x, l.mul_add(l.mul(x, x), l.splat(0.044_715 * TWICE_ROOT), l.splat(TWICE_ROOT)));
    l.mul(x, sigmoid(l, inner))
}

/// The coefficients of `p` in [`gelu`], from the constant on; `fit.py` beside the op `gelu` finds them. The exact `c` differs by at most
/// 0.7 · (1e-8 + 1e-7 · c).
const P: [f32; 10] = [
    1.0,
    0.099_736_564,
    0.044_751_856,
    0.008_715_915,
    0.000_771_565_2,
    0.000_308_271_15,
    -1.049_956_1e-5,
    1.743_931e-5,
    -2.820_347_4e-6,
    3.973_664e-7,
];

/// Where `c` is cut off in [`gelu`]: it is 2e-9 there and falls, so that what is beyond is worth less than any rounding.
const CUT: f32 = 6.2;

/// `u · Φ(u) = max(u, 0) − c(|u|)` with `c(t) = t · Φ(−t) = t/2 · erfc(t/√2)`.
///
/// The usual `u/2 · (1 + erf)` loses what is left of it for negative `u`, where 1 and erf cancel. `c` is small, smooth and one-sided, and
/// an eighth root makes a polynomial of its falling exponential: `c(t) = t/2 / p(t)⁸`, one polynomial, three squarings and
/// one division.
#[inline(always)]
pub(crate) fn gelu<L: Lanes>(l: L, u: L::V) -> L::V {
    let t = l.min(l.splat(CUT), l.abs(u));
    let mut p = l.splat(P[P.len() - 1]);
    for coefficient in P.iter().rev().skip(1) {
        p = l.mul_add(p, t, l.splat(*coefficient));
    }
    let p2 = l.mul(p, p);
    let p4 = l.mul(p2, p2);
    let p8 = l.mul(p4, p4);
    l.sub(l.max(l.splat(0.0), u), l.div(l.mul(l.splat(0.5), t), p8))
}
