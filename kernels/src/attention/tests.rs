//! Attention against its oracle: lengths around every block size, reaches, biases, groups of heads, threads' parts, and what
//! it refuses.

use proptest::prelude::*;

use super::*;
use crate::testing::{Fill, Tolerance, compare, isas_aloud};

/// Weights sum to 1, so a row is as exact as the largest value in it; scores of some tens lose a digit before the exponential.
const TOLERANCE: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };

#[derive(Clone, Debug)]
struct Case {
    lengths: Vec<u32>,
    heads: usize,
    kv_heads: usize,
    d: usize,
    reach: Reach,
    bias: Option<Relative>,
    fill: Fill,
}

impl Case {
    fn of(lengths: &[u32]) -> Self {
        let lengths = lengths.to_vec();
        Self { lengths, heads: 2, kv_heads: 2, d: 32, reach: Reach::ALL, bias: None, fill: Fill::Normal }
    }

    fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Queries, keys and values as a joined layer gives them.
    fn with<R>(&self, run: impl FnOnce([Rows<'_>; 3], &Params<'_>) -> R) -> R {
        let (q, kv) = (self.heads * self.d, self.kv_heads * self.d);
        let (stride, tokens) = (q + 2 * kv, self.lengths.iter().sum::<u32>() as usize);
        let values = self.fill.numbers(1, tokens * stride);
        let cu_seqlens = self.cu_seqlens();
        let rows = |first: usize| Rows { values: values.get(first..).unwrap_or_default(), stride };
        let params = Params {
            cu_seqlens: &cu_seqlens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.d,
            scale: 1.0 / (self.d as f32).sqrt(),
            reach: self.reach,
            bias: self.bias.as_ref(),
        };
        run([rows(0), rows(q), rows(q + kv)], &params)
    }

    fn out(&self) -> Vec<f32> {
        vec![7.0; self.lengths.iter().sum::<u32>() as usize * self.heads * self.d]
    }

    fn check(&self) {
        let mut expected = self.out();
        self.with(|[q, k, v], params| cpu::attention(q, k, v, params, &mut expected)).unwrap();
        for isa in isas_aloud() {
            let mut found = self.out();
            self.with(|[q, k, v], params| attention_on(isa, q, k, v, params, &mut found)).unwrap();
            let compared =
                compare(&found, &expected, TOLERANCE.at_scale(if self.fill == Fill::Offset { 1000.0 } else { 1.0 }));
            assert!(compared.is_ok(), "{isa} {self:?}: {compared:?}");
        }
    }
}

const LENGTHS: &[u32] = &[1, 2, 7, 15, 16, 17, 23, 24, 25, 33, 255, 256, 257, 520];

#[test]
fn every_isa_agrees_with_the_oracle_on_lengths_around_every_block() {
    Case::of(&[]).check();
    Case::of(LENGTHS).check();
    for d in [1, 5, 24, 64, 80, 128] {
        Case { d, ..Case::of(&[1, 9, 40, 270]) }.check();
    }
}

#[test]
fn a_query_sees_what_it_reaches() {
    for (behind, ahead) in [(usize::MAX, 0), (0, 0), (3, 3), (16, 2), (0, usize::MAX), (64, 64), (300, 0)] {
        Case { reach: Reach { behind, ahead }, ..Case::of(&[1, 5, 17, 64, 100, 400, 600]) }.check();
    }
}

#[test]
fn a_bias_is_added_by_head_and_distance() {
    for reach in [Reach::ALL, Reach::CAUSAL, Reach { behind: 20, ahead: 20 }] {
        let bias = Some(Relative::alibi(3, 600));
        Case { heads: 3, kv_heads: 3, bias, reach, ..Case::of(&[1, 40, 300, 601]) }.check();
        let bias = Some(Relative::new(4, 99, |head, distance| (distance * (head as isize + 1)) as f32 / 25.0));
        Case { heads: 4, kv_heads: 2, bias, reach, ..Case::of(&[100, 3]) }.check();
    }
}

#[test]
fn heads_of_queries_share_heads_of_keys() {
    for (heads, kv_heads) in [(4, 1), (4, 2), (6, 3), (3, 3)] {
        Case { heads, kv_heads, reach: Reach::CAUSAL, ..Case::of(&[30, 1, 260]) }.check();
    }
}

#[test]
fn every_kind_of_data_agrees_with_the_oracle() {
    for fill in [Fill::Offset, Fill::Constant, Fill::Zero, Fill::Denormal, Fill::Nan] {
        Case { fill, ..Case::of(&[3, 30, 300]) }.check();
    }
}

#[test]
fn scores_that_lie_far_apart_neither_overflow_nor_vanish() {
    // Products of some thousands: without the maximum taken away, every exponential would be infinite or 0.
    let values: Vec<f32> = crate::testing::normal(1, 40 * 24).iter().map(|x| 100.0 * x).collect();
    let rows = |first: usize| Rows { values: &values[first..], stride: 24 };
    let params =
        Params { cu_seqlens: &[0, 40], heads: 1, kv_heads: 1, head_dim: 8, scale: 1.0, reach: Reach::ALL, bias: None };
    let (mut found, mut expected) = (vec![0.0; 320], vec![0.0; 320]);
    attention(rows(0), rows(8), rows(16), &params, &mut found).unwrap();
    cpu::attention(rows(0), rows(8), rows(16), &params, &mut expected).unwrap();
    assert_eq!(compare(&found, &expected, Tolerance { absolute: 0.5, relative: 1e-3 }).map(|_| ()), Ok(()));
}

#[test]
fn a_sequence_is_the_same_to_the_last_bit_alone_and_among_others() {
    let all = Case::of(LENGTHS);
    let mut together = all.out();
    all.with(|[q, k, v], params| {
        attention(q, k, v, params, &mut together).unwrap();
        let width = params.heads * params.head_dim;
        for pair in params.cu_seqlens.windows(2) {
            let (first, end) = (pair[0] as usize, pair[1] as usize);
            let [q, k, v] = [q, k, v].map(|rows| Rows { values: &rows.values[first * rows.stride..], ..rows });
            let mut alone = vec![0.0; (end - first) * width];
            let params = Params { cu_seqlens: &[0, pair[1] - pair[0]], ..*params };
            attention(q, k, v, &params, &mut alone).unwrap();
            assert_eq!(alone, together[first * width..end * width]);
        }
    });
}

#[test]
fn parts_of_the_heads_are_what_the_whole_has_there() {
    let case = Case { heads: 4, kv_heads: 2, ..Case::of(&[20, 70]) };
    let (mut whole, mut parts) = (case.out(), case.out());
    case.with(|[q, k, v], params| {
        attention(q, k, v, params, &mut whole).unwrap();
        let (first, second) = Columns::whole(&mut parts, 4 * 32).split_rows(20);
        let mut scratch = Scratch::default();
        for (sequence, rows) in [(1, second), (0, first)] {
            let (left, right) = rows.split_columns(3 * 32);
            attention_part(q, k, v, params, sequence, 3..4, &mut scratch, right).unwrap();
            attention_part(q, k, v, params, sequence, 0..3, &mut scratch, left).unwrap();
        }
    });
    assert_eq!(parts, whole);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let values = vec![1.0; 60];
    let rows = |first: usize, stride| Rows { values: &values[first..], stride };
    let good = Params {
        cu_seqlens: &[0, 2, 5],
        heads: 2,
        kv_heads: 1,
        head_dim: 3,
        scale: 1.0,
        reach: Reach::ALL,
        bias: None,
    };
    let check = |params: Params<'_>, stride: usize, len: usize, want: Option<Error>| {
        let mut out = vec![9.0; len];
        let answer = attention(rows(0, stride), rows(6, stride), rows(9, stride), &params, &mut out);
        assert!(answer.is_ok() || out.iter().all(|x| *x == 9.0));
        assert_eq!(answer.err(), want);
    };
    check(good, 12, 30, None);
    check(Params { kv_heads: 0, ..good }, 12, 30, Some(Error::Heads { heads: 2, kv_heads: 0, head_dim: 3 }));
    check(Params { heads: 3, kv_heads: 2, ..good }, 12, 30, Some(Error::Heads { heads: 3, kv_heads: 2, head_dim: 3 }));
    check(Params { scale: 0.0, ..good }, 12, 30, Some(Error::Scale(0.0)));
    check(Params { cu_seqlens: &[1, 2], ..good }, 12, 30, Some(crate::sequences::Error::Start(Some(1)).into()));
    let empty = crate::sequences::Error::Sequence { index: 1, start: 2, end: 2 };
    check(Params { cu_seqlens: &[0, 2, 2], ..good }, 12, 12, Some(empty.into()));
    let short = |what, elements, width| Error::Operand { what, elements, stride: 14, tokens: 5, width };
    check(good, 14, 30, Some(short("queries", 60, 6)));
    let wanted = Error::Output { rows: 4, width: 6, wanted_rows: 5, wanted_width: 6 };
    check(good, 12, 29, Some(wanted));
    let bias = Relative::alibi(2, 1);
    let wanted = Error::Bias { heads: 2, span: 1, wanted_heads: 2, wanted_span: 2 };
    check(Params { bias: Some(&bias), ..good }, 12, 30, Some(wanted));
}

proptest! {
    #[test]
    fn any_sequences_agree_with_the_oracle(
        lengths in prop::collection::vec(1_u32..120, 0..4),
        groups in 1_usize..3,
        kv_heads in 1_usize..3,
        d in 1_usize..40,
        (behind, ahead) in (0_usize..150, 0_usize..150),
        biased: bool,
    ) {
        let heads = groups * kv_heads;
        let bias = biased.then(|| Relative::alibi(heads, 120));
        Case { heads, kv_heads, d, bias, reach: Reach { behind, ahead }, ..Case::of(&lengths) }.check();
    }
}
