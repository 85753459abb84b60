//! GELU over vectors of any width. A checked call comes in, elements are replaced. Never unsafe: the instructions are in
//! `launch::lanes`.

use crate::launch::lanes::{Kernel, Lanes};

/// The coefficients of `p`, from the constant on; `fit.py` finds them. The exact `c` differs by at most 0.7 · (1e-8 + 1e-7 · c).
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

/// Where `c` is cut off: it is 2e-9 there and falls, so that what is beyond is worth less than any rounding.
const CUT: f32 = 6.2;

/// A call whose lengths have been checked.
pub(super) struct Gelu<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) bias: Option<&'a [f32]>,
}

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.bias {
            Some([]) => {}
            Some(bias) => self.x.chunks_exact_mut(bias.len()).for_each(|row| with_bias(l, row, bias)),
            None => without_bias(l, self.x),
        }
    }
}

#[inline(always)]
fn with_bias<L: Lanes>(l: L, row: &mut [f32], bias: &[f32]) {
    let (mut row, mut bias) = (row.chunks_exact_mut(L::WIDTH), bias.chunks_exact(L::WIDTH));
    for (x, bias) in (&mut row).zip(&mut bias) {
        l.store(point(l, l.add(l.load(x), l.load(bias))), x);
    }
    let (tail, bias) = (row.into_remainder(), bias.remainder());
    if !tail.is_empty() {
        l.store_partial(point(l, l.add(l.load_partial(tail), l.load_partial(bias))), tail);
    }
}

#[inline(always)]
fn without_bias<L: Lanes>(l: L, x: &mut [f32]) {
    let mut x = x.chunks_exact_mut(L::WIDTH);
    for x in &mut x {
        l.store(point(l, l.load(x)), x);
    }
    let tail = x.into_remainder();
    if !tail.is_empty() {
        l.store_partial(point(l, l.load_partial(tail)), tail);
    }
}

/// `u · Φ(u) = max(u, 0) − c(|u|)` with `c(t) = t · Φ(−t) = t/2 · erfc(t/√2)`.
///
/// The usual `u/2 · (1 + erf)` loses what is left of it for negative `u`, where 1 and erf cancel. `c` is small, smooth and one-sided, and
/// an eighth root makes a polynomial of its falling exponential: `c(t) = t/2 / p(t)⁸`, one polynomial, three squarings and
/// one division.
#[inline(always)]
fn point<L: Lanes>(l: L, u: L::V) -> L::V {
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
