//! Attention over blocks against its oracle and against `attention`: tables in any order, blocks of any size, chunks, splits, threads'
//! parts, garbage where nothing may look, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::attention::{self, attention};
use crate::testing::{Fill, Numbers, Tolerance, compare, isas_aloud, normal};

/// As `attention`'s.
const TOLERANCE: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };

/// `math::tanh` is off by 2e-7 of 1, and the cap makes 50 times as much of it in a score.
const CAPPED: Tolerance = Tolerance { absolute: 4e-5, relative: 4e-5 };

/// What the tests vary.
#[derive(Clone, Debug)]
struct Case {
    /// Of each sequence.
    lengths: Vec<usize>,
    /// How many of its last tokens are queries, at most.
    queries: usize,
    heads: (usize, usize),
    d: usize,
    block: usize,
    kind: Kind,
    softcap: Option<f32>,
    window: Option<usize>,
    fill: Fill,
    seed: u64,
}

impl Case {
    fn of(lengths: &[usize]) -> Self {
        Self {
            lengths: lengths.to_vec(),
            queries: usize::MAX,
            heads: (4, 2),
            d: 32,
            block: 16,
            kind: Kind::F32,
            softcap: None,
            window: None,
            fill: Fill::Normal,
            seed: 1,
        }
    }

    fn params(&self) -> Params {
        let (heads, head_dim) = (self.heads.0, self.d);
        let scale = 1.0 / (head_dim as f32).sqrt();
        Params { heads, head_dim, scale, softcap: self.softcap, window: self.window }
    }

    /// Blocks handed out in an order of the seed's, and a cache full of NaN but for what is written to it.
    fn setup(&self) -> Setup {
        let mut numbers = Numbers::new(self.seed);
        let needed: Vec<usize> = self.lengths.iter().map(|length| length.div_ceil(self.block)).collect();
        // Some blocks more than are needed.
        let blocks = needed.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        for last in (1..blocks).rev() {
            free.swap(last, numbers.bits() as usize % (last + 1));
        }
        let shape = Shape { blocks, block: self.block, kv_heads: self.heads.1, head_dim: self.d };
        let mut cache = Cache::new(shape, self.kind).unwrap();
        let garbage = vec![f32::NAN; self.block * self.heads.1 * self.d];
        let garbage = Rows { values: &garbage, stride: self.heads.1 * self.d };
        (0..blocks as u32).for_each(|block| cache.write(&[block], 0, garbage, garbage, self.block).unwrap());
        let tables: Vec<Vec<u32>> = needed.iter().map(|needed| free.drain(..needed).collect()).collect();
        let joined: Vec<Joined> = (0..self.lengths.len()).map(|sequence| self.joined(sequence)).collect();
        for ((table, joined), length) in tables.iter().zip(&joined).zip(&self.lengths) {
            cache.write(table, 0, joined.keys(), joined.values(), *length).unwrap();
        }
        Setup { cache, tables, joined }
    }

    /// Numbers of a sequence, which depend on nothing but its own length.
    fn joined(&self, sequence: usize) -> Joined {
        let (heads, kv_heads) = self.heads;
        let (q, kv) = (heads * self.d, kv_heads * self.d);
        let length = self.lengths[sequence];
        Joined { numbers: self.fill.numbers(length as u64, length * (q + 2 * kv)), q, kv }
    }

    /// The rows of all sequences' queries, and where each sequence's are.
    fn queries(&self, setup: &Setup) -> (Vec<f32>, Vec<Range<usize>>) {
        let (mut rows, mut ranges) = (vec![], vec![]);
        for (joined, &length) in setup.joined.iter().zip(&self.lengths) {
            let first = rows.len() / joined.q;
            for token in length - self.queries.min(length)..length {
                rows.extend(&joined.numbers[token * joined.stride()..][..joined.q]);
            }
            ranges.push(first..rows.len() / joined.q);
        }
        (rows, ranges)
    }

    /// Whatever computes it, on the same operands.
    fn run(
        &self,
        compute: impl Fn(Rows<'_>, &Cache, &[Sequence<'_>], &Params, &mut [f32]) -> Result<(), Error>,
    ) -> Vec<f32> {
        let setup = self.setup();
        let (queries, ranges) = self.queries(&setup);
        let sequences = setup.sequences(&ranges, &self.lengths);
        let mut out = vec![7.0; queries.len()];
        let stride = self.heads.0 * self.d;
        compute(Rows { values: &queries, stride }, &setup.cache, &sequences, &self.params(), &mut out).unwrap();
        out
    }

    fn found(&self, isa: Isa) -> Vec<f32> {
        self.run(|q, cache, sequences, params, out| attention_paged_on(isa, q, cache, sequences, params, out))
    }

    /// Holds every instruction set against the oracle.
    fn check(&self) {
        let expected = self.run(cpu::attention_paged);
        let tolerance = if self.softcap.is_some() { CAPPED } else { TOLERANCE };
        for isa in isas_aloud() {
            let compared = compare(&self.found(isa), &expected, tolerance);
            assert!(compared.is_ok(), "{isa} {self:?}: {compared:?}");
        }
    }
}

/// Queries, keys and values of one sequence as a joined layer gives them.
struct Joined {
    numbers: Vec<f32>,
    q: usize,
    kv: usize,
}

impl Joined {
    fn stride(&self) -> usize {
        self.q + 2 * self.kv
    }

    fn rows(&self, first: usize) -> Rows<'_> {
        Rows { values: self.numbers.get(first..).unwrap_or_default(), stride: self.stride() }
    }

    fn keys(&self) -> Rows<'_> {
        self.rows(self.q)
    }

    fn values(&self) -> Rows<'_> {
        self.rows(self.q + self.kv)
    }
}

struct Setup {
    cache: Cache,
    tables: Vec<Vec<u32>>,
    joined: Vec<Joined>,
}

impl Setup {
    fn sequences(&self, ranges: &[Range<usize>], lengths: &[usize]) -> Vec<Sequence<'_>> {
        let all = ranges.iter().zip(&self.tables).zip(lengths);
        all.map(|((queries, table), &length)| Sequence { queries: queries.clone(), table, length }).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

const HEADS: &[(usize, usize)] = &[(4, 4), (8, 2), (9, 3), (14, 2)];

#[test]
fn every_isa_agrees_with_the_oracle_on_lengths_around_every_block() {
    Case::of(&[]).check();
    for block in [1, 4, 16, 32] {
        Case { block, ..Case::of(&[1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 255, 256, 257, 300]) }.check();
    }
}

#[test]
fn every_group_of_heads_and_width_agrees_with_the_oracle() {
    for &heads in HEADS {
        Case { heads, block: 32, ..Case::of(&[40, 1, 270]) }.check();
        Case { heads, queries: 1, ..Case::of(&[40, 1, 270]) }.check();
    }
    // More heads over one of keys than rows are done at a time.
    Case { heads: (26, 1), ..Case::of(&[9]) }.check();
    for d in [1, 5, 24, 32, 64, 80, 128, 256] {
        Case { d, heads: (4, 4), ..Case::of(&[19, 260]) }.check();
    }
}

#[test]
fn a_query_sees_its_window() {
    for window in [1, 2, 16, 17, 100, 256, 1000] {
        Case { window: Some(window), ..Case::of(&[1, 33, 600]) }.check();
        Case { window: Some(window), queries: 2, block: 1, ..Case::of(&[33, 520]) }.check();
    }
}

#[test]
fn scores_are_capped() {
    for (cap, fill) in [(50.0, Fill::Normal), (0.5, Fill::Normal), (30.0, Fill::Constant)] {
        Case { softcap: Some(cap), fill, window: Some(60), ..Case::of(&[3, 90, 300]) }.check();
    }
}

#[test]
fn every_storage_agrees_with_the_oracle_over_what_it_stores() {
    for kind in [Kind::F32, Kind::F16, Kind::Bf16] {
        for block in [1, 16, 32] {
            Case { kind, block, heads: (9, 3), d: 64, ..Case::of(&[1, 30, 300]) }.check();
            Case { kind, block, queries: 1, d: 80, ..Case::of(&[1, 30, 300]) }.check();
        }
    }
}

#[test]
fn every_kind_of_data_agrees_with_the_oracle() {
    for fill in [Fill::Constant, Fill::Zero, Fill::Denormal, Fill::Nan, Fill::Infinite] {
        Case { fill, ..Case::of(&[3, 30, 300]) }.check();
    }
}

#[test]
fn what_attention_has_for_a_sequence_is_what_its_blocks_give() {
    for (window, length) in [(None, 1), (None, 300), (Some(40), 300), (None, 700)] {
        let case = Case { window, heads: (9, 3), d: 64, ..Case::of(&[length]) };
        let joined = case.joined(0);
        let mut expected = vec![0.0; length * 9 * 64];
        let params = attention::Params {
            cu_seqlens: &[0, length as u32],
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            scale: 0.125,
            reach: Reach { behind: window.map_or(usize::MAX, |window| window - 1), ..Reach::CAUSAL },
            bias: None,
        };
        attention(joined.rows(0), joined.keys(), joined.values(), &params, &mut expected).unwrap();
        let compared = compare(&case.found(launch::isa()), &expected, TOLERANCE);
        assert!(compared.is_ok(), "{window:?} {length}: {compared:?}");
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_in_any_blocks_of_any_size_and_company() {
    for isa in isas_aloud() {
        let alone = Case { heads: (9, 3), window: Some(270), ..Case::of(&[300]) };
        let expected = bits(&alone.found(isa));
        for (block, seed) in [(16, 2), (16, 3), (32, 4), (1, 5), (24, 6), (300, 7)] {
            let found = Case { block, seed, ..alone.clone() }.found(isa);
            assert!(bits(&found) == expected, "{isa}, blocks of {block}");
        }
        let found = Case { lengths: vec![17, 300, 40], ..alone.clone() }.found(isa);
        assert!(bits(&found[17 * 9 * 32..][..expected.len()]) == expected, "{isa}, beside others");
    }
}

#[test]
fn a_prompt_is_the_same_to_the_last_bit_in_chunks_of_any_size() {
    for isa in isas_aloud() {
        // With infinities and NaN, each of which may be met by those tokens only that come after it.
        for (fill, window) in
            [(Fill::Normal, None), (Fill::Normal, Some(50)), (Fill::Nan, None), (Fill::Infinite, None)]
        {
            let case = Case { fill, window, heads: (6, 2), ..Case::of(&[530]) };
            let whole = bits(&case.found(isa));
            let (setup, width) = (case.setup(), 6 * 32);
            for chunk in [1, 7, 64, 255, 256] {
                let mut found = vec![0.0; whole.len()];
                for first in (0..530).step_by(chunk) {
                    let length = 530.min(first + chunk);
                    let queries = first..length;
                    let sequence = Sequence { queries, table: &setup.tables[0], length };
                    let q = setup.joined[0].rows(0);
                    attention_paged_on(isa, q, &setup.cache, &[sequence], &case.params(), &mut found).unwrap();
                }
                // Which NaN it is may differ.
                let differs = |(a, b): (&f32, &u32)| a.to_bits() != *b && !(a.is_nan() && f32::from_bits(*b).is_nan());
                let first = found.iter().zip(&whole).position(differs).map(|at| (at / width, at % width));
                assert_eq!(first, None, "{isa} {fill:?} {window:?} in chunks of {chunk}: first at (row, column)");
            }
        }
    }
}

#[test]
fn splits_merged_are_the_whole_to_the_last_bit() {
    for (lengths, queries, window) in
        [(700, 1, None), (700, 300, None), (700, 40, Some(300)), (1030, 1, Some(256)), (256, 1, None), (5, 5, None)]
    {
        let case = Case { queries, window, heads: (6, 2), ..Case::of(&[lengths]) };
        let whole = case.found(launch::isa());
        let setup = case.setup();
        let (rows, ranges) = case.queries(&setup);
        let sequence = &setup.sequences(&ranges, &case.lengths)[0];
        let (q, params) = (Rows { values: &rows, stride: 6 * 32 }, case.params());
        let splits = splits_of(sequence, &params);
        // Heads 1 to 4 of both groups: each split on its own, the last first.
        let one = split_len(ranges[0].len(), 4, 32);
        let mut parts = vec![f32::NAN; splits.len() * one];
        for (split, part) in splits.clone().zip(parts.chunks_exact_mut(one)).rev() {
            let mut scratch = Scratch::default();
            let splits = split..split + 1;
            attention_paged_splits(q, &setup.cache, sequence, &params, 1..5, splits, &mut scratch, part).unwrap();
        }
        let mut found = whole.clone();
        let (_, rest) = Columns::whole(&mut found, 6 * 32).split_columns(32);
        let (mut columns, _) = rest.split_columns(4 * 32);
        (0..columns.rows()).for_each(|row| columns.row(row).fill(7.0));
        merge(&parts, splits.len(), 32, columns).unwrap();
        assert!(bits(&found) == bits(&whole), "{case:?}");
    }
}

#[test]
fn parts_of_the_heads_are_what_the_whole_has_there() {
    let case = Case { heads: (8, 2), ..Case::of(&[300]) };
    let whole = case.found(launch::isa());
    let setup = case.setup();
    let (rows, ranges) = case.queries(&setup);
    let sequence = &setup.sequences(&ranges, &case.lengths)[0];
    let (q, params) = (Rows { values: &rows, stride: 8 * 32 }, case.params());
    let mut found = vec![0.0; whole.len()];
    let mut rest = Columns::whole(&mut found, 8 * 32);
    let mut scratch = Scratch::default();
    for heads in [0..1, 1..1, 1..6, 6..8] {
        let (columns, others) = rest.split_columns(heads.len() * 32);
        rest = others;
        attention_paged_part(q, &setup.cache, sequence, &params, heads, &mut scratch, columns).unwrap();
    }
    assert!(bits(&found) == bits(&whole));
}

#[test]
fn a_scratch_that_was_used_for_something_larger_changes_nothing() {
    let mut scratch = Scratch::default();
    for case in [
        Case { d: 128, heads: (14, 2), ..Case::of(&[300]) },
        Case { d: 5, heads: (3, 1), block: 1, ..Case::of(&[40]) },
        Case { d: 64, heads: (9, 3), queries: 1, ..Case::of(&[600]) },
    ] {
        let whole = case.found(launch::isa());
        let setup = case.setup();
        let (rows, ranges) = case.queries(&setup);
        let sequence = &setup.sequences(&ranges, &case.lengths)[0];
        let width = case.heads.0 * case.d;
        let mut found = vec![0.0; whole.len()];
        let (q, out) = (Rows { values: &rows, stride: width }, Columns::whole(&mut found, width));
        let heads = 0..case.heads.0;
        attention_paged_part(q, &setup.cache, sequence, &case.params(), heads, &mut scratch, out).unwrap();
        assert!(bits(&found) == bits(&whole), "{case:?}");
    }
}

#[test]
fn nan_in_one_sequence_touches_no_other() {
    let case = Case { heads: (4, 2), ..Case::of(&[40, 300, 20]) };
    let whole = case.found(launch::isa());
    let mut setup = case.setup();
    let garbage = vec![f32::NAN; 300 * 64];
    let garbage = Rows { values: &garbage, stride: 64 };
    setup.cache.write(&setup.tables[1], 0, garbage, garbage, 300).unwrap();
    let (mut rows, ranges) = case.queries(&setup);
    rows[40 * 128..340 * 128].fill(f32::NAN);
    let mut found = vec![0.0; whole.len()];
    let sequences = setup.sequences(&ranges, &case.lengths);
    attention_paged(Rows { values: &rows, stride: 128 }, &setup.cache, &sequences, &case.params(), &mut found).unwrap();
    assert!(bits(&found[..40 * 128]) == bits(&whole[..40 * 128]));
    assert!(found[40 * 128..340 * 128].iter().all(|x| x.is_nan()));
    assert!(bits(&found[340 * 128..]) == bits(&whole[340 * 128..]));
}

#[test]
fn a_copied_block_is_what_it_was_copied_from() {
    for kind in [Kind::F32, Kind::F16] {
        let case = Case { kind, d: 24, ..Case::of(&[50]) };
        let whole = case.found(launch::isa());
        let mut setup = case.setup();
        // The cache has three blocks more than the sequence's four.
        let other = (0..7).find(|block| !setup.tables[0].contains(block)).unwrap();
        let moved = std::mem::replace(&mut setup.tables[0][1], other);
        setup.cache.copy_block(moved, other);
        let garbage = vec![f32::NAN; 16 * 48];
        let garbage = Rows { values: &garbage, stride: 48 };
        setup.cache.write(&[moved], 0, garbage, garbage, 16).unwrap();
        let (rows, ranges) = case.queries(&setup);
        let mut found = vec![0.0; whole.len()];
        let sequences = setup.sequences(&ranges, &case.lengths);
        attention_paged(Rows { values: &rows, stride: 96 }, &setup.cache, &sequences, &case.params(), &mut found)
            .unwrap();
        assert!(bits(&found) == bits(&whole), "{kind:?}");
    }
}

#[test]
#[should_panic(expected = "block 0 to 2 of 2")]
fn a_block_that_is_not_there_is_not_copied() {
    let shape = Shape { blocks: 2, block: 16, kv_heads: 1, head_dim: 8 };
    Cache::new(shape, Kind::F32).unwrap().copy_block(0, 2);
}

#[test]
fn a_cache_says_what_it_takes() {
    let shape = Shape { blocks: 10, block: 16, kv_heads: 3, head_dim: 64 };
    let bytes = 2 * 10 * 16 * 3 * 64;
    for (kind, each) in [(Kind::F32, 4), (Kind::F16, 2), (Kind::Bf16, 2)] {
        assert_eq!(Cache::new(shape, kind).unwrap().bytes(), bytes * each);
    }
    let none = Cache::new(Shape { blocks: 0, ..shape }, Kind::F32).unwrap();
    assert_eq!(none.bytes(), 0);
    for shape in [
        Shape { block: 0, ..shape },
        Shape { kv_heads: 0, ..shape },
        Shape { head_dim: 0, ..shape },
        Shape { blocks: 1 << 31, head_dim: usize::MAX >> 20, ..shape },
        Shape { head_dim: usize::MAX, ..shape },
    ] {
        assert_eq!(Cache::new(shape, Kind::F32).unwrap_err(), Error::Shape(shape));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let shape = Shape { blocks: 4, block: 2, kv_heads: 1, head_dim: 3 };
    let mut cache = Cache::new(shape, Kind::F32).unwrap();
    let numbers = normal(1, 60);
    let rows = |elements: usize, stride| Rows { values: &numbers[..elements], stride };
    let params = Params { heads: 2, head_dim: 3, scale: 1.0, softcap: None, window: None };
    let sequence = |queries: Range<usize>, table, length| Sequence { queries, table, length };
    let whole = |q: Rows<'_>, params: &Params, sequence: Sequence<'_>, wanted: Option<Error>| {
        let mut out = vec![9.0; 24];
        let first = Sequence { queries: 0..1, table: &[1], length: 1 };
        let answer = attention_paged(q, &cache, &[first, sequence], params, &mut out);
        assert!(answer.is_ok() || out.iter().all(|x| *x == 9.0));
        assert_eq!(answer.err(), wanted);
    };
    let (q, good) = (rows(24, 6), sequence(1..4, &[3, 0], 4));
    whole(q, &params, good.clone(), None);
    let heads = |heads, head_dim| Error::Heads { heads, head_dim, kv_heads: 1, cache_dim: 3 };
    whole(q, &Params { heads: 0, ..params }, good.clone(), Some(heads(0, 3)));
    whole(q, &Params { head_dim: 2, ..params }, good.clone(), Some(heads(2, 2)));
    whole(q, &Params { scale: 0.0, ..params }, good.clone(), Some(Error::Scale(0.0)));
    whole(q, &Params { softcap: Some(-1.0), ..params }, good.clone(), Some(Error::Softcap(-1.0)));
    whole(q, &Params { window: Some(0), ..params }, good.clone(), Some(Error::Window));
    whole(q, &params, sequence(1..4, &[3, 0], 2), Some(Error::Length { length: 2, queries: 3 }));
    #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
    whole(q, &params, sequence(4..1, &[3, 0], 2), Some(Error::Length { length: 2, queries: 0 }));
    whole(q, &params, sequence(1..4, &[3, 0], 5), Some(Error::Table { blocks: 2, block: 2, length: 5 }));
    let huge = Error::Table { blocks: 2, block: 2, length: usize::MAX };
    whole(q, &params, sequence(1..4, &[3, 0], usize::MAX), Some(huge));
    whole(q, &params, sequence(1..4, &[3, 4], 4), Some(Error::Block { index: 1, number: 4, blocks: 4 }));
    // An entry behind the last token is nobody's business.
    whole(q, &params, sequence(1..2, &[3, 4], 2), None);
    let short = |elements, stride| Error::Operand { what: "queries", elements, stride, rows: 4, width: 6 };
    whole(rows(23, 6), &params, good.clone(), Some(short(23, 6)));
    whole(rows(24, 5), &params, good.clone(), Some(short(24, 5)));
    let output = Error::Output { rows: 4, width: 6, wanted_rows: 5, wanted_width: 6 };
    whole(rows(30, 6), &params, sequence(2..5, &[3, 0], 4), Some(output));

    let mut scratch = Scratch::default();
    let mut out = vec![9.0; 18];
    let mut part = |heads, width| {
        let out = Columns::whole(&mut out, width);
        attention_paged_part(q, &cache, &good, &params, heads, &mut scratch, out).unwrap_err()
    };
    assert_eq!(part(0..3, 6), Error::Part { what: "heads", first: 0, end: 3, there: 2 });
    assert_eq!(part(0..1, 6), Error::Output { rows: 3, width: 6, wanted_rows: 3, wanted_width: 3 });
    let mut splits = |splits, elements| {
        let parts = &mut vec![9.0; elements][..];
        attention_paged_splits(q, &cache, &good, &params, 0..2, splits, &mut scratch, parts).unwrap_err()
    };
    assert_eq!(splits(0..2, 60), Error::Part { what: "splits", first: 0, end: 2, there: 1 });
    assert_eq!(splits(0..1, 31), Error::Parts { elements: 31, wanted: 3 * 2 * 5 });
    let merged =
        |parts: usize, splits, dim| merge(&vec![0.0; parts], splits, dim, Columns::whole(&mut [0.0; 18], 6)).err();
    assert_eq!(merged(60, 2, 3), None);
    assert_eq!(merged(61, 2, 3), Some(Error::Parts { elements: 61, wanted: 60 }));
    assert_eq!(merged(0, 0, 3), Some(Error::Parts { elements: 0, wanted: 30 }));
    assert!(matches!(merged(60, 2, 4), Some(Error::Output { .. })));
    assert!(matches!(merged(60, 2, 0), Some(Error::Output { .. })));

    let before = cache.clone();
    let mut write = |table: &[u32], first, keys, values| cache.write(table, first, keys, values, 3).unwrap_err();
    assert_eq!(write(&[0, 1], 2, q, q), Error::Table { blocks: 2, block: 2, length: 5 });
    assert_eq!(write(&[0, 9], 1, q, q), Error::Block { index: 1, number: 9, blocks: 4 });
    assert_eq!(write(&[0], usize::MAX, q, q), Error::Length { length: usize::MAX, queries: 3 });
    let short = |what| Error::Operand { what, elements: 8, stride: 3, rows: 3, width: 3 };
    assert_eq!(write(&[0, 1], 0, rows(8, 3), q), short("keys"));
    assert_eq!(write(&[0, 1], 0, q, rows(8, 3)), short("values"));
    assert_eq!((before.keys::<f32>(), before.values::<f32>()), (cache.keys::<f32>(), cache.values::<f32>()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequences_agree_with_the_oracle(
        lengths in prop::collection::vec(1_usize..300, 0..4),
        queries in prop_oneof![Just(1), Just(usize::MAX), 1_usize..40],
        heads in prop::sample::select(HEADS),
        d in prop_oneof![Just(32), Just(64), 1_usize..40],
        block in prop::sample::select(&[1_usize, 3, 16, 32][..]),
        kind in prop::sample::select(&[Kind::F32, Kind::F16, Kind::Bf16][..]),
        softcap in prop::option::of(1.0_f32..60.0),
        window in prop::option::of(1_usize..300),
        seed: u64,
    ) {
        let fill = Fill::Normal;
        Case { lengths, queries, heads, d, block, kind, softcap, window, fill, seed }.check();
    }
}
