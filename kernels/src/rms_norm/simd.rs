//! The norm over vectors of any width. A checked call comes in, rows are replaced. Never unsafe: the instructions are in
//! `launch::lanes`.

use super::{Params, cpu};
use crate::launch::lanes::{Kernel, Lanes};

/// Vectors per step of the sum: enough independent additions to hide their latency.
const UNROLL: usize = 4;

/// A call whose lengths have been checked.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) params: &'a Params<'a>,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let dim = self.params.weight.len();
        for row in self.x.chunks_exact_mut(dim) {
            let mean = squares(l, row) / dim as f32;
            if !mean.is_finite() {
                cpu::row(row, self.params);
                continue;
            }
            scale(l, row, 1.0 / (mean + self.params.eps).sqrt(), self.params.weight);
        }
    }
}

/// `Σ x²`
#[inline(always)]
fn squares<L: Lanes>(l: L, row: &[f32]) -> f32 {
    let mut sums = [l.splat(0.0); UNROLL];
    let mut blocks = row.chunks_exact(UNROLL * L::WIDTH);
    for block in &mut blocks {
        for (sum, x) in sums.iter_mut().zip(block.chunks_exact(L::WIDTH)) {
            let x = l.load(x);
            *sum = l.mul_add(x, x, *sum);
        }
    }
    let tail: f32 = blocks.remainder().iter().map(|x| x * x).sum();
    l.sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3]))) + tail
}

/// `x = x · factor · weight`
#[inline(always)]
fn scale<L: Lanes>(l: L, row: &mut [f32], factor: f32, weight: &[f32]) {
    let factors = l.splat(factor);
    let (mut row, mut weight) = (row.chunks_exact_mut(L::WIDTH), weight.chunks_exact(L::WIDTH));
    for (x, weight) in (&mut row).zip(&mut weight) {
        l.store(l.mul(l.mul(l.load(x), factors), l.load(weight)), x);
    }
    for (x, weight) in row.into_remainder().iter_mut().zip(weight.remainder()) {
        *x = *x * factor * weight;
    }
}
