//! Paged attention's part of the suite: what is kept of a step, single queries over splits of keys, chunks of prompts; lengths around every
//! tile and split, windows, caps, groups of heads, widths of heads, tables in any order. Slots that belong to nobody hold NaN.

use super::{Backend, EPS, Type, weight};
use kernels::attention::Rows;
use kernels::attention_paged::{Cache, Kind, Params, Sequence, Shape, cpu};
use kernels::testing::{Fill, Tolerance, compare};
use kernels::{rms_norm, rotary};

/// What the names of functions have: the least that is not below a head's width.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];
/// Tokens of a block.
const BLOCK: usize = 16;

/// Sequences with their queries and their tokens, these among them.
struct Case {
    sequences: Vec<(usize, usize)>,
    heads: usize,
    kv_heads: usize,
    d: usize,
    softcap: Option<f32>,
    window: Option<usize>,
    fill: Fill,
    /// What queries, keys and values are multiplied with.
    scale: f32,
}

impl Case {
    fn of(sequences: &[(usize, usize)]) -> Self {
        let sequences = sequences.to_vec();
        Self { sequences, heads: 4, kv_heads: 2, d: 32, softcap: None, window: None, fill: Fill::Normal, scale: 1.0 }
    }

    /// One query each.
    fn decode(lengths: &[usize]) -> Self {
        Self::of(&lengths.iter().map(|length| (1, *length)).collect::<Vec<_>>())
    }

    fn rows(&self) -> usize {
        self.sequences.iter().map(|(queries, _)| queries).sum()
    }

    fn blocks(&self) -> usize {
        self.sequences.iter().map(|(_, length)| length.div_ceil(BLOCK)).sum::<usize>() + 3
    }

    /// Blocks in an order that is nobody's, backwards.
    fn tables(&self) -> Vec<Vec<u32>> {
        let mut free = 2..self.blocks() as u32;
        let table = |(_, length): &(usize, usize)| free.by_ref().take(length.div_ceil(BLOCK)).collect::<Vec<u32>>();
        let mut tables: Vec<Vec<u32>> = self.sequences.iter().map(table).collect();
        tables.iter_mut().for_each(|table| table.reverse());
        tables
    }

    fn numbers(&self, of: &Type, seed: u64, count: usize) -> Vec<f32> {
        of.rounded(&self.fill.numbers(seed, count).iter().map(|x| x * self.scale).collect::<Vec<_>>())
    }

    /// Queries, and a pool of keys and one of values.
    fn operands(&self, of: &Type) -> [Vec<f32>; 3] {
        let width = self.kv_heads * self.d;
        let mut is_used = vec![false; self.blocks() * BLOCK];
        for (table, (_, length)) in self.tables().iter().zip(&self.sequences) {
            (0..*length).for_each(|at| is_used[table[at / BLOCK] as usize * BLOCK + at % BLOCK] = true);
        }
        let pool = |seed| {
            let mut pool = self.numbers(of, seed, is_used.len() * width);
            let unused = pool.chunks_exact_mut(width).zip(&is_used).filter(|(_, is_used)| !**is_used);
            unused.for_each(|(row, _)| row.fill(f32::NAN));
            pool
        };
        [self.numbers(of, 1, self.rows() * self.heads * self.d), pool(2), pool(3)]
    }

    fn attention_scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    fn expected(&self, [q, keys, values]: &[Vec<f32>; 3]) -> Vec<f32> {
        let width = self.kv_heads * self.d;
        let shape = Shape { blocks: self.blocks(), block: BLOCK, kv_heads: self.kv_heads, head_dim: self.d };
        let mut cache = Cache::new(shape, Kind::F32).unwrap();
        let tables = self.tables();
        let mut sequences = vec![];
        let mut row = 0;
        for (table, (queries, length)) in tables.iter().zip(&self.sequences) {
            for at in 0..*length {
                let first = (table[at / BLOCK] as usize * BLOCK + at % BLOCK) * width;
                let [key, value] = [keys, values].map(|pool| Rows { values: &pool[first..], stride: width });
                cache.write(table, at, key, value, 1).unwrap();
            }
            sequences.push(Sequence { queries: row..row + queries, table, length: *length });
            row += queries;
        }
        let params = Params {
            heads: self.heads,
            head_dim: self.d,
            scale: self.attention_scale(),
            softcap: self.softcap,
            window: self.window,
        };
        let mut expected = vec![0.0; q.len()];
        let q = Rows { values: q, stride: self.heads * self.d };
        cpu::attention_paged(q, &cache, &sequences, &params, &mut expected).unwrap();
        expected
    }

    /// Scalar: the scale. Numbers: heads, kv_heads, head_dim, window, sequences, entries of a table, queries of each sequence,
    /// tokens of each, tables. Arrays: the cap (0 for none), queries, keys, values. Gives the result.
    fn found(&self, backend: &Backend, of: &Type, operands: &[Vec<f32>; 3], is_decode: bool) -> Option<Vec<f32>> {
        let entries = self.sequences.iter().map(|(_, length)| length.div_ceil(BLOCK)).max().unwrap_or(0);
        let window = self.window.unwrap_or(u32::MAX as usize);
        let mut numbers = vec![self.heads, self.kv_heads, self.d, window, self.sequences.len(), entries];
        numbers.extend(self.sequences.iter().map(|(queries, _)| queries));
        numbers.extend(self.sequences.iter().map(|(_, length)| length));
        for table in self.tables() {
            numbers.extend((0..entries).map(|at| table.get(at).map_or(0, |block| *block as usize)));
        }
        let width = WIDTHS.into_iter().find(|width| *width >= self.d).expect("heads are at most that wide");
        let function = match is_decode {
            true => {
                let group = self.heads / self.kv_heads;
                let together = [1, 4].into_iter().find(|heads| group <= *heads).unwrap_or(8);
                format!("attention_paged_decode_{}_{width}_{together}", of.ending)
            }
            false => format!("attention_paged_prefill_{}_{width}", of.ending),
        };
        let cap = [self.softcap.unwrap_or(0.0)];
        let [q, keys, values] = operands;
        (backend.run)(&function, self.attention_scale(), &numbers, &[&cap, q, keys, values])
    }

    fn check(&self, backend: &Backend) {
        self.check_within(backend, |of| match of.tolerance {
            // Weights sum to 1, so a row is as exact as the largest value in it; scores lose a digit before the exponential.
            Tolerance::F32 => Tolerance { absolute: 1e-5, relative: 1e-5 },
            other => other,
        });
    }

    fn check_within(&self, backend: &Backend, tolerance: impl Fn(&Type) -> Tolerance) {
        let is_decode = self.sequences.iter().all(|(queries, _)| *queries == 1);
        for of in backend.types {
            let operands = self.operands(of);
            let expected = self.expected(&operands);
            // A single query may come as a chunk of a prompt, too. Only chunks have a form of their own for some types.
            for is_decode in if is_decode && !of.ending.starts_with("plain") { vec![true, false] } else { vec![false] }
            {
                let Some(found) = self.found(backend, of, &operands, is_decode) else { return };
                let compared = compare(&found, &expected, tolerance(of));
                let Self { sequences, heads, kv_heads, d, softcap, window, .. } = self;
                assert!(
                    compared.is_ok(),
                    "attention_paged in {}, {sequences:?}, {heads} heads over {kv_heads}, {d} wide, cap {softcap:?}, window {window:?}, \
                     decode {is_decode}: {compared:?}",
                    of.ending
                );
            }
        }
    }
}

impl Backend {
    /// Single queries over sequences and heads of all sizes.
    pub(crate) fn attention_paged_decode(&self) {
        Case::decode(&[1, 2, 15, 16, 17, 127, 128, 129, 300]).check(self);
        for d in [8, 24, 40, 64, 80, 128, 136, 256] {
            Case { d, ..Case::decode(&[3, 140]) }.check(self);
        }
        for (heads, kv_heads) in [(1, 1), (3, 3), (9, 3), (7, 1), (8, 1), (14, 2), (20, 2)] {
            Case { heads, kv_heads, ..Case::decode(&[1, 140]) }.check(self);
        }
    }

    /// Chunks of prompts, with what came before them in the cache or nothing.
    pub(crate) fn attention_paged_prefill(&self) {
        Case::of(&[(1, 1), (7, 7), (16, 40), (17, 17), (65, 70), (2, 150), (1, 33)]).check(self);
        for d in [8, 40, 64, 128, 136, 256] {
            Case { d, ..Case::of(&[(3, 3), (20, 55)]) }.check(self);
        }
        for (heads, kv_heads) in [(1, 1), (6, 3), (7, 1)] {
            Case { heads, kv_heads, ..Case::of(&[(30, 31), (1, 40)]) }.check(self);
        }
    }

    /// Windows and caps.
    pub(crate) fn attention_paged_reach(&self) {
        for window in [1, 2, 16, 20, 130] {
            let window = Some(window);
            Case { window, ..Case::decode(&[1, 19, 130, 300]) }.check(self);
            Case { window, ..Case::of(&[(5, 5), (33, 150)]) }.check(self);
        }
        // One key of a tile is out of one query's reach: its first, its last.
        for (window, tokens) in [(Some(63), (64, 64)), (None, (32, 46))] {
            Case { window, ..Case::of(&[tokens]) }.check(self);
        }
        for (softcap, window) in [(Some(0.5), None), (Some(50.0), Some(40))] {
            Case { softcap, window, ..Case::decode(&[1, 150]) }.check(self);
            Case { softcap, window, ..Case::of(&[(20, 60)]) }.check(self);
        }
    }

    /// Data that sums and exponentials could stumble on.
    pub(crate) fn attention_paged_data(&self) {
        for fill in [Fill::Constant, Fill::Zero] {
            Case { fill, ..Case::decode(&[3, 140]) }.check(self);
            Case { fill, ..Case::of(&[(3, 40)]) }.check(self);
        }
        // Scores of some hundreds: without the maximum taken away, exponentials would be infinite or 0.
        let far = |of: &Type| Tolerance { absolute: 50.0 * of.tolerance.absolute.max(1e-4), relative: 1e-2 };
        Case { scale: 10.0, ..Case::decode(&[5, 200]) }.check_within(self, far);
        Case { scale: 10.0, ..Case::of(&[(5, 70)]) }.check_within(self, far);
    }

    /// A sequence's row is the same to the last bit alone and among others.
    pub(crate) fn attention_paged_alone(&self) {
        let case = Case::decode(&[300, 5, 129]);
        for of in self.types.iter().filter(|of| !of.ending.starts_with("plain")) {
            let [q, keys, values] = case.operands(of);
            let Some(together) = case.found(self, of, &[q.clone(), keys.clone(), values.clone()], true) else { return };
            let (width, first) = (case.heads * case.d, case.tables()[0].clone());
            let alone = Case::decode(&[300]);
            // In blocks of its own, in another order.
            let row = case.kv_heads * case.d;
            let moved = |pool: &[f32]| {
                let mut own = vec![f32::NAN; alone.blocks() * BLOCK * row];
                for (from, to) in first.iter().zip(&alone.tables()[0]) {
                    let (from, to) = (*from as usize * BLOCK * row, *to as usize * BLOCK * row);
                    own[to..to + BLOCK * row].copy_from_slice(&pool[from..from + BLOCK * row]);
                }
                own
            };
            let own = [q[..width].to_vec(), moved(&keys), moved(&values)];
            let found = alone.found(self, of, &own, true).expect("it has just run");
            assert_eq!(found, together[..width], "{}", of.ending);
        }
    }

    /// Scalar: eps. Numbers: heads, kv_heads, half a head's elements, slots, positions in the tables, whether there are norms, each token's
    /// position, each token's slot. Arrays: queries, keys and values side by side, cos, sin, the norms of queries and keys. Gives the
    /// queries, and the pools of keys and values, which hold 7 where nothing was written.
    pub(crate) fn attention_paged_keep(&self) {
        for (heads, kv_heads, d, has_norms) in
            [(4, 2, 32, false), (3, 1, 64, true), (2, 2, 8, true), (6, 2, 40, false), (1, 1, 256, true)]
        {
            let (width, k) = ((heads + 2 * kv_heads) * d, kv_heads * d);
            let (positions, slots) = ([0_u32, 1, 40, 7, 49], [17_usize, 18, 3, 0, 31]);
            let table = rotary::Table::plain(50, d, 10_000.0);
            self.on_every_type_and_fill("attention_paged_keep", positions.len() * width, |of, x| {
                let norms = if has_norms { of.rounded(&[weight(d), weight(d)].concat()) } else { vec![] };
                let mut numbers = vec![heads, kv_heads, d / 2, 32, 50, usize::from(has_norms)];
                numbers.extend(positions.iter().map(|at| *at as usize));
                numbers.extend(slots);
                let function = format!("attention_paged_keep_{}", of.ending);
                let found = (self.run)(&function, EPS, &numbers, &[x, table.cos(), table.sin(), &norms])?;

                let mut turned = x.to_vec();
                for row in turned.chunks_exact_mut(width).filter(|_| has_norms) {
                    for (head, values) in row[..(heads + kv_heads) * d].chunks_exact_mut(d).enumerate() {
                        let weight = &norms[if head < heads { 0 } else { d }..][..d];
                        rms_norm::cpu::rms_norm(values, &rms_norm::Params { weight, eps: EPS }).unwrap();
                        values.copy_from_slice(&of.rounded(values));
                    }
                }
                rotary::cpu::rotary(&mut turned, width, (heads + kv_heads) * d, &positions, &table).unwrap();
                let mut expected: Vec<f32> = vec![];
                turned.chunks_exact(width).for_each(|row| expected.extend(&row[..heads * d]));
                for first in [heads * d, heads * d + k] {
                    let mut pool = vec![7.0; 32 * k];
                    for (row, slot) in turned.chunks_exact(width).zip(slots) {
                        pool[slot * k..(slot + 1) * k].copy_from_slice(&row[first..first + k]);
                    }
                    expected.extend(pool);
                }
                // Two products that may cancel, of what was rounded after its norm.
                let largest = turned.iter().copied().filter(|x| x.is_finite()).fold(1.0, f32::max);
                Some((found, expected, of.tolerance.at_scale(largest)))
            });
        }
    }
}
