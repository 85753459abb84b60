//! Attention's part of the suite: lengths around every tile, reaches, biases, groups of heads, widths of heads, scores that lie far
//! apart, NaN.

use super::{Backend, Type};
use kernels::attention::{Params, Reach, Relative, Rows, cpu};
use kernels::testing::{Fill, Tolerance, compare};

/// What the names of functions end with: the least that is not below a head's width.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];

struct Case {
    lengths: Vec<usize>,
    heads: usize,
    kv_heads: usize,
    d: usize,
    /// Elements of a row that belong to nobody.
    gap: usize,
    reach: Reach,
    bias: Option<Relative>,
    /// Whether something is added to each row of queries, keys and values.
    is_shifted: bool,
    fill: Fill,
    /// What queries, keys and values are multiplied with.
    scale: f32,
    /// Tokens and elements of their rows that are NaN.
    nan: &'static [(usize, usize)],
}

impl Case {
    fn of(lengths: &[usize]) -> Self {
        let lengths = lengths.to_vec();
        let (fill, reach) = (Fill::Normal, Reach::ALL);
        Self {
            lengths,
            heads: 2,
            kv_heads: 2,
            d: 32,
            gap: 0,
            reach,
            bias: None,
            is_shifted: false,
            fill,
            scale: 1.0,
            nan: &[],
        }
    }

    fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.d + self.gap
    }

    fn cu_seqlens(&self) -> Vec<u32> {
        let mut ends = vec![0];
        ends.extend(self.lengths.iter().scan(0, |end, length| {
            *end += *length as u32;
            Some(*end)
        }));
        ends
    }

    fn values(&self, of: &Type) -> Vec<f32> {
        let mut values = self.fill.numbers(1, self.lengths.iter().sum::<usize>() * self.stride());
        values.iter_mut().for_each(|x| *x *= self.scale);
        self.nan.iter().for_each(|(token, element)| values[token * self.stride() + element] = f32::NAN);
        of.rounded(&values)
    }

    fn params<'a>(&'a self, cu_seqlens: &'a [u32]) -> Params<'a> {
        Params {
            cu_seqlens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.d,
            scale: 1.0 / (self.d as f32).sqrt(),
            reach: self.reach,
            bias: self.bias.as_ref(),
        }
    }

    /// What is added to each row, in `of`'s type.
    fn shift(&self, of: &Type) -> Vec<f32> {
        let width = if self.is_shifted { self.stride() - self.gap } else { 0 };
        of.rounded(&Fill::Normal.numbers(9, width))
    }

    fn expected(&self, values: &[f32], shift: &[f32]) -> Vec<f32> {
        let (q, kv, stride) = (self.heads * self.d, self.kv_heads * self.d, self.stride());
        let mut values = values.to_vec();
        for row in values.chunks_exact_mut(stride) {
            row.iter_mut().zip(shift).for_each(|(x, shift)| *x += shift);
        }
        let mut expected = vec![0.0; values.len() / stride * q];
        let rows = |first: usize| Rows { values: &values[first..], stride };
        cpu::attention(rows(0), rows(q), rows(q + kv), &self.params(&self.cu_seqlens()), &mut expected).unwrap();
        expected
    }

    /// Numbers: heads, kv_heads, head_dim, a row's stride, behind, ahead, span, whether there are a bias (1) and a shift (2), cu_seqlens. Arrays: queries,
    /// keys and values side by side, the bias, the shift. Gives the result.
    fn found(&self, backend: &Backend, of: &Type, values: &[f32], cu_seqlens: &[u32]) -> Option<Vec<f32>> {
        let bound = |distance: usize| distance.min(u32::MAX as usize);
        let (span, table) = self.bias.as_ref().map_or((0, &[][..]), |bias| (bias.span(), bias.table()));
        let Reach { behind, ahead } = self.reach;
        let (behind, ahead) = (bound(behind), bound(ahead));
        let extras = usize::from(self.bias.is_some()) + 2 * usize::from(self.is_shifted);
        let mut numbers = vec![self.heads, self.kv_heads, self.d, self.stride(), behind, ahead, span, extras];
        numbers.extend(cu_seqlens.iter().map(|at| *at as usize));
        let width = WIDTHS.into_iter().find(|width| *width >= self.d).expect("heads are at most that wide");
        let function = format!("attention_{}_{width}", of.ending);
        let shift = self.shift(of);
        let arrays: &[&[f32]] = if self.is_shifted { &[values, table, &shift] } else { &[values, table] };
        (backend.run)(&function, self.params(cu_seqlens).scale, &numbers, arrays)
    }

    fn check(&self, backend: &Backend) {
        self.check_within(backend, |of| match of.tolerance {
            // Weights sum to 1, so a row is as exact as the largest value in it; scores lose a digit before the exponential.
            Tolerance::F32 => Tolerance { absolute: 1e-5, relative: 1e-5 },
            other => other,
        });
    }

    fn check_within(&self, backend: &Backend, tolerance: impl Fn(&Type) -> Tolerance) {
        for of in backend.types {
            let values = self.values(of);
            let Some(found) = self.found(backend, of, &values, &self.cu_seqlens()) else { return };
            let compared = compare(&found, &self.expected(&values, &self.shift(of)), tolerance(of));
            let Self { lengths, heads, kv_heads, d, reach, fill, .. } = self;
            assert!(
                compared.is_ok(),
                "attention in {}, {lengths:?}, {heads} heads over {kv_heads}, {d} wide, {reach:?}, {fill:?}: {compared:?}",
                of.ending
            );
        }
    }
}

impl Backend {
    /// Attention over sequences and heads of all sizes.
    pub(crate) fn attention(&self) {
        Case::of(&[1, 7, 16, 17, 33, 64, 65, 130]).check(self);
        for d in [8, 16, 24, 40, 64, 80, 128, 136, 256] {
            Case { d, gap: 8, ..Case::of(&[3, 20, 66]) }.check(self);
        }
        for (heads, kv_heads) in [(4, 1), (6, 3), (1, 1)] {
            Case { heads, kv_heads, ..Case::of(&[30, 1, 40]) }.check(self);
        }
    }

    /// Queries that do not see every key.
    pub(crate) fn attention_reach(&self) {
        for (behind, ahead) in [(usize::MAX, 0), (0, 0), (3, 3), (5, 1), (16, 2), (0, usize::MAX), (64, 64), (100, 0)] {
            Case { reach: Reach { behind, ahead }, ..Case::of(&[1, 5, 33, 150]) }.check(self);
        }
        Case { reach: Reach { behind: 40, ahead: 7 }, d: 200, ..Case::of(&[90]) }.check(self);
        // One key of a tile is out of one query's reach: its first, its last.
        for (behind, ahead) in [(62, usize::MAX), (usize::MAX, 30)] {
            Case { reach: Reach { behind, ahead }, ..Case::of(&[64]) }.check(self);
        }
    }

    /// Biases by head and distance.
    pub(crate) fn attention_bias(&self) {
        for reach in [Reach::ALL, Reach::CAUSAL, Reach { behind: 20, ahead: 20 }] {
            let bias = Some(Relative::alibi(3, 129));
            Case { heads: 3, kv_heads: 3, bias, reach, ..Case::of(&[1, 40, 130]) }.check(self);
            let bias = Some(Relative::new(4, 50, |head, distance| (distance * (head as isize + 1)) as f32 / 25.0));
            Case { heads: 4, kv_heads: 2, bias, reach, ..Case::of(&[51, 3]) }.check(self);
        }
    }

    /// Queries, keys and values that something is added to, as a product's bias is.
    pub(crate) fn attention_shift(&self) {
        for (d, heads, kv_heads) in [(8, 2, 2), (24, 2, 1), (64, 3, 3), (136, 2, 1)] {
            Case { d, heads, kv_heads, gap: 8, is_shifted: true, ..Case::of(&[1, 17, 40]) }.check(self);
        }
        let bias = Some(Relative::alibi(2, 49));
        Case { bias, is_shifted: true, reach: Reach { behind: 20, ahead: 3 }, ..Case::of(&[50]) }.check(self);
    }

    /// Data that sums and exponentials could stumble on.
    pub(crate) fn attention_data(&self) {
        for fill in [Fill::Constant, Fill::Zero] {
            Case { fill, ..Case::of(&[3, 40]) }.check(self);
        }
        if self.fills.contains(&Fill::Nan) {
            // Queries are elements 0 to 63 of a row, keys 64 to 127, values 128 to 191. A query spoils its own row, a key all rows of
            // its head and sequence, a value one column of them; other sequences stay whole.
            for nan in [&[(25, 1)][..], &[(30, 64 + 33)], &[(59, 128 + 32 + 3)], &[(20, 131), (59, 70), (60, 160)]] {
                Case { nan, ..Case::of(&[20, 40, 5]) }.check(self);
            }
        }
        // Scores of some hundreds: without the maximum taken away, exponentials would be infinite or 0.
        let far = |of: &Type| Tolerance { absolute: 50.0 * of.tolerance.absolute.max(1e-4), relative: 1e-2 };
        Case { scale: 10.0, ..Case::of(&[5, 70]) }.check_within(self, far);
    }

    /// A sequence's rows are the same to the last bit alone and among others.
    pub(crate) fn attention_alone(&self) {
        let case = Case { reach: Reach { behind: 50, ahead: 50 }, ..Case::of(&[33, 1, 70, 16]) };
        let (cu_seqlens, width) = (case.cu_seqlens(), case.heads * case.d);
        for of in self.types {
            let values = case.values(of);
            let Some(together) = case.found(self, of, &values, &cu_seqlens) else { return };
            for pair in cu_seqlens.windows(2) {
                let (first, end) = (pair[0] as usize, pair[1] as usize);
                let own = &values[first * case.stride()..end * case.stride()];
                let alone = case.found(self, of, own, &[0, pair[1] - pair[0]]).expect("it has just run");
                assert_eq!(alone, together[first * width..end * width], "{}, tokens {first} to {end}", of.ending);
            }
        }
    }
}
