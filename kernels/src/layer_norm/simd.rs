//! Layer normalisation over vectors of any width. A checked call comes in, rows are written. Never unsafe: the
//! instructions are in `launch::lanes`.

use super::{Params, cpu};
use crate::launch::lanes::{Kernel, Lanes};

/// Vectors per step of a sum: enough independent additions to hide their latency.
const UNROLL: usize = 4;

/// A call whose lengths have been checked.
pub(super) struct LayerNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) residual: Option<&'a [f32]>,
    pub(super) params: &'a Params<'a>,
    pub(super) out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let dim = self.params.weight.len();
        for (r, out) in self.out.chunks_exact_mut(dim).enumerate() {
            let range = r * dim..(r + 1) * dim;
            let x = &self.x[range.clone()];
            let residual = self.residual.map(|residual| &residual[range]);
            let stats = match residual {
                Some(residual) => {
                    add(l, x, residual, out);
                    Stats::of(l, out)
                }
                None => Stats::of(l, x),
            };
            if !stats.var.is_finite() {
                cpu::row(x, residual, self.params, out);
                continue;
            }
            match residual {
                Some(_) => scale_in_place(l, &stats, self.params, out),
                None => scale(l, x, &stats, self.params, out),
            }
        }
    }
}

/// A call whose lengths have been checked, on rows that are replaced.
pub(super) struct InPlace<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) params: &'a Params<'a>,
}

impl Kernel for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for row in self.x.chunks_exact_mut(self.params.weight.len()) {
            let stats = Stats::of(l, row);
            if stats.var.is_finite() {
                scale_in_place(l, &stats, self.params, row);
            } else {
                let x = row.to_vec();
                cpu::row(&x, None, self.params, row);
            }
        }
    }
}

/// A row's moments. The mean is in two parts, `centre + rest`: `s − centre` loses nothing for an `s` near the mean.
struct Stats {
    centre: f32,
    rest: f32,
    var: f32,
}

impl Stats {
    #[inline(always)]
    fn of<L: Lanes>(l: L, row: &[f32]) -> Self {
        let n = row.len() as f32;
        let centre = sum(l, row) / n;
        let (first, second) = deviations(l, row, centre);
        // `Σ(s − mean)² = Σ(s − centre)² − n·rest²`, where `rest` is what rounding left out of `centre`.
        let rest = first / n;
        let var = second / n - rest * rest;
        // Not `max`, which would make 0 of NaN.
        Self { centre, rest, var: if var < 0.0 { 0.0 } else { var } }
    }

    /// `1 / √(var + eps)`
    #[inline(always)]
    fn inverse_deviation(&self, eps: f32) -> f32 {
        1.0 / (self.var + eps).sqrt()
    }
}

/// `out = a + b`
#[inline(always)]
fn add<L: Lanes>(l: L, a: &[f32], b: &[f32], out: &mut [f32]) {
    let (mut a, mut b, mut out) = (a.chunks_exact(L::WIDTH), b.chunks_exact(L::WIDTH), out.chunks_exact_mut(L::WIDTH));
    for ((a, b), out) in (&mut a).zip(&mut b).zip(&mut out) {
        l.store(l.add(l.load(a), l.load(b)), out);
    }
    for ((a, b), out) in a.remainder().iter().zip(b.remainder()).zip(out.into_remainder()) {
        *out = a + b;
    }
}

/// `Σ s`
#[inline(always)]
fn sum<L: Lanes>(l: L, row: &[f32]) -> f32 {
    let mut sums = [l.splat(0.0); UNROLL];
    let mut blocks = row.chunks_exact(UNROLL * L::WIDTH);
    for block in &mut blocks {
        for (sum, s) in sums.iter_mut().zip(block.chunks_exact(L::WIDTH)) {
            *sum = l.add(*sum, l.load(s));
        }
    }
    let mut rest = blocks.remainder().chunks_exact(L::WIDTH);
    for s in &mut rest {
        sums[0] = l.add(sums[0], l.load(s));
    }
    let tail: f32 = rest.remainder().iter().sum();
    l.sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3]))) + tail
}

/// `Σ(s − centre)` and `Σ(s − centre)²`
#[inline(always)]
fn deviations<L: Lanes>(l: L, row: &[f32], centre: f32) -> (f32, f32) {
    let centres = l.splat(centre);
    let mut first = [l.splat(0.0); UNROLL];
    let mut second = [l.splat(0.0); UNROLL];
    let mut blocks = row.chunks_exact(UNROLL * L::WIDTH);
    for block in &mut blocks {
        for ((first, second), s) in first.iter_mut().zip(&mut second).zip(block.chunks_exact(L::WIDTH)) {
            let deviation = l.sub(l.load(s), centres);
            *first = l.add(*first, deviation);
            *second = l.mul_add(deviation, deviation, *second);
        }
    }
    let mut rest = blocks.remainder().chunks_exact(L::WIDTH);
    for s in &mut rest {
        let deviation = l.sub(l.load(s), centres);
        first[0] = l.add(first[0], deviation);
        second[0] = l.mul_add(deviation, deviation, second[0]);
    }
    let (mut first_tail, mut second_tail) = (0.0, 0.0);
    for s in rest.remainder() {
        let deviation = s - centre;
        first_tail += deviation;
        second_tail += deviation * deviation;
    }
    let total = |sums: [L::V; UNROLL]| l.sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])));
    (total(first) + first_tail, total(second) + second_tail)
}

/// `out = (x − mean) / √(var + eps) · weight + bias`
#[inline(always)]
fn scale<L: Lanes>(l: L, x: &[f32], stats: &Stats, params: &Params<'_>, out: &mut [f32]) {
    let inverse = stats.inverse_deviation(params.eps);
    let (centres, rests, inverses) = (l.splat(stats.centre), l.splat(stats.rest), l.splat(inverse));
    let (mut x, mut out) = (x.chunks_exact(L::WIDTH), out.chunks_exact_mut(L::WIDTH));
    let (mut weight, mut bias) = (params.weight.chunks_exact(L::WIDTH), params.bias.chunks_exact(L::WIDTH));
    for (((x, weight), bias), out) in (&mut x).zip(&mut weight).zip(&mut bias).zip(&mut out) {
        let deviation = l.sub(l.sub(l.load(x), centres), rests);
        l.store(l.mul_add(l.mul(deviation, inverses), l.load(weight), l.load(bias)), out);
    }
    let params = weight.remainder().iter().zip(bias.remainder());
    for ((x, (weight, bias)), out) in x.remainder().iter().zip(params).zip(out.into_remainder()) {
        *out = (x - stats.centre - stats.rest) * inverse * weight + bias;
    }
}

/// [`scale`] where `out` holds the input.
#[inline(always)]
fn scale_in_place<L: Lanes>(l: L, stats: &Stats, params: &Params<'_>, out: &mut [f32]) {
    let inverse = stats.inverse_deviation(params.eps);
    let (centres, rests, inverses) = (l.splat(stats.centre), l.splat(stats.rest), l.splat(inverse));
    let mut out = out.chunks_exact_mut(L::WIDTH);
    let (mut weight, mut bias) = (params.weight.chunks_exact(L::WIDTH), params.bias.chunks_exact(L::WIDTH));
    for ((weight, bias), out) in (&mut weight).zip(&mut bias).zip(&mut out) {
        let deviation = l.sub(l.sub(l.load(out), centres), rests);
        l.store(l.mul_add(l.mul(deviation, inverses), l.load(weight), l.load(bias)), out);
    }
    let params = weight.remainder().iter().zip(bias.remainder());
    for ((weight, bias), out) in params.zip(out.into_remainder()) {
        *out = (*out - stats.centre - stats.rest) * inverse * weight + bias;
    }
}
