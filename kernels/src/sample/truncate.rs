//! Where the filters cut. The cells of a row come in; which cells, and which tokens of a cell that is cut, are left goes out. Never a
//! sort: cells are counted, and the cuts are found by walking over the counts.

use super::{CELLS, CELLS_PER_UNIT, GROUP, Params, STRIDE, noise};

/// Counters: a power of two, so that no index of a cell needs a check; those from [`CELLS`] on are of tokens that take no part.
const COUNTERS: usize = 1 << 15;

/// The weights of the cells, `e^(−c / 1024)`, as a product of two: of a stride, and of a cell within its stride as a whole number, so that the
/// sum over a stride is exact in any order.
#[derive(Debug)]
pub(super) struct Weights {
    /// `2⁻³² · e^(−128 i / 1024)`
    strides: [f64; CELLS / STRIDE],
    /// `2³² · e^(−i / 1024)`, rounded.
    within: [u64; STRIDE],
}

impl Weights {
    pub(super) fn new() -> Self {
        let of = |cells: usize| noise::exp_of_negative(cells as f64 / CELLS_PER_UNIT as f64);
        let one = (1_u64 << 32) as f64;
        Self {
            strides: std::array::from_fn(|i| of(STRIDE * i) / one),
            // A half is far away: none of the products is that near to one.
            within: std::array::from_fn(|i| (of(i) * one + 0.5) as u64),
        }
    }
}

/// The tokens that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The first cell and the last one.
    pub(super) first: u16,
    pub(super) last: u16,
    /// Cells of which only the tokens up to one are left: cell and token.
    pub(super) parts: [(u16, u32); 2],
}

impl Kept {
    /// A cell that no token is in.
    const NO_PART: (u16, u32) = (u16::MAX, u32::MAX);

    /// Whether a token is left.
    #[inline(always)]
    pub(super) fn has(&self, cell: u16, token: u32) -> bool {
        let is_cut = |part: (u16, u32)| cell == part.0 && token > part.1;
        self.first <= cell && cell <= self.last && !is_cut(self.parts[0]) && !is_cut(self.parts[1])
    }
}

/// Steps 7 to 10 of [`super::sample`].
pub(super) fn kept(params: &Params<'_>, weights: &Weights, cells: &[u16], counts: &mut Vec<u32>) -> Kept {
    let (mut first, mut last) = (0, CELLS - 1);
    let mut parts = [Kept::NO_PART; 2];
    let is_counted = params.top_k > 0 || params.top_p < 1.0 || params.typical_p < 1.0;
    if !is_counted {
        if params.min_p > 0.0 {
            last = last.min(last_of_min_p(params.min_p));
        }
        return Kept { first: 0, last: last as u16, parts };
    }
    count(cells, counts);
    let mut left = Left { counts, weights, last, whole: None };
    if params.top_k > 0 {
        left.top_k(params.top_k as u64);
    }
    if params.top_p < 1.0 {
        left.top_p(f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        left.min_p(params.min_p);
    }
    last = left.last;
    let cut = left.cut();
    if params.typical_p < 1.0 {
        let Typical { cells: range, end } = left.typical(f64::from(params.typical_p));
        (first, last) = range;
        if let Some((cell, n)) = end {
            parts[1] = (cell as u16, token_of(cells, cell as u16, n));
        }
    }
    // Where both cut the same cell, the second left fewer.
    if let Some((cell, n)) = cut
        && parts[1].0 != cell as u16
    {
        parts[0] = (cell as u16, token_of(cells, cell as u16, n));
    }
    Kept { first: first as u16, last: last as u16, parts }
}

/// How many tokens are in each cell.
fn count(cells: &[u16], counts: &mut Vec<u32>) {
    counts.resize(COUNTERS, 0);
    counts.fill(0);
    let counts: &mut [u32; COUNTERS] = counts.as_mut_slice().try_into().expect("it has just been made as long");
    let (groups, rest) = cells.as_chunks::<GROUP>();
    assert!(rest.is_empty(), "cells are padded to whole groups");
    for group in groups {
        for cell in group {
            counts[*cell as usize % COUNTERS] += 1;
        }
    }
}

/// The `n`-th token of a cell, counted from 1.
fn token_of(cells: &[u16], cell: u16, n: u64) -> u32 {
    let mut left = n;
    for (index, group) in cells.chunks(GROUP).enumerate() {
        // At most as many as there are elements: no overflow.
        let mut here = 0_u16;
        for c in group {
            here += u16::from(*c == cell);
        }
        if u64::from(here) < left {
            left -= u64::from(here);
            continue;
        }
        for (within, c) in group.iter().enumerate() {
            left -= u64::from(*c == cell);
            if left == 0 {
                return (index * GROUP + within) as u32;
            }
        }
    }
    unreachable!("a cell has as many tokens as were counted in it")
}

/// The last cell whose weight is at least `min_p`.
fn last_of_min_p(min_p: f32) -> usize {
    (-noise::ln(f64::from(min_p).max(f64::MIN_POSITIVE)) * CELLS_PER_UNIT as f64) as usize
}

/// What the filters so far have left: the counts up to a cell.
struct Left<'a> {
    /// Behind `last` they still are what was counted.
    counts: &'a mut [u32],
    weights: &'a Weights,
    last: usize,
    /// A cell whose count was made smaller, and what it was.
    whole: Option<(usize, u32)>,
}

/// What typical-p leaves.
struct Typical {
    /// The first cell and the last one.
    cells: (usize, usize),
    /// The cell that was taken last, and how many tokens of it, where that is not all.
    end: Option<(usize, u64)>,
}

impl Left<'_> {
    /// Of `last` only the first `n` tokens are left, and nothing behind it.
    fn end_at(&mut self, last: usize, n: u64) {
        if n < u64::from(self.counts[last]) {
            let whole = match self.whole {
                Some((cell, count)) if cell == last => count,
                _ => self.counts[last],
            };
            self.whole = Some((last, whole));
            self.counts[last] = n as u32;
        }
        self.last = last;
    }

    /// The last cell and its tokens that are left, where some are not.
    fn cut(&self) -> Option<(usize, u64)> {
        let (cell, whole) = self.whole?;
        (cell == self.last && self.counts[cell] < whole).then_some((cell, u64::from(self.counts[cell])))
    }

    fn top_k(&mut self, k: u64) {
        let mut before = 0;
        for cell in 0..=self.last {
            let here = u64::from(self.counts[cell]);
            if before + here >= k {
                self.end_at(cell, k - before);
                return;
            }
            before += here;
        }
    }

    fn min_p(&mut self, min_p: f32) {
        self.last = self.last.min(last_of_min_p(min_p));
    }

    /// The sum of a stride's weights, in units of its own.
    fn stride(&self, stride: usize) -> u64 {
        let mut sum = 0;
        let cells = stride * STRIDE..((stride + 1) * STRIDE).min(self.last + 1);
        for (count, weight) in self.counts[cells].iter().zip(&self.weights.within) {
            sum += u64::from(*count) * weight;
        }
        sum
    }

    fn strides(&self) -> usize {
        self.last / STRIDE + 1
    }

    fn top_p(&mut self, p: f64) {
        let mut total = 0.0;
        for stride in 0..self.strides() {
            total += self.weights.strides[stride] * self.stride(stride) as f64;
        }
        let wanted = p * total;
        let mut before = 0.0;
        for stride in 0..self.strides() {
            let unit = self.weights.strides[stride];
            let mass = unit * self.stride(stride) as f64;
            if before + mass < wanted {
                before += mass;
                continue;
            }
            // The same sums again, cell by cell: the last of them is the one that was enough.
            let mut sum = 0;
            for within in 0..STRIDE {
                let cell = stride * STRIDE + within;
                let (count, weight) = (u64::from(self.counts[cell]), self.weights.within[within]);
                if count > 0 && before + unit * (sum + count * weight) as f64 >= wanted {
                    let n = fewest(count, |n| before + unit * (sum + n * weight) as f64 >= wanted);
                    self.end_at(cell, n);
                    return;
                }
                sum += count * weight;
            }
        }
    }

    fn typical(&self, p: f64) -> Typical {
        // The total, and the sum of the cells by their weights, in cells.
        let (mut total, mut moment) = (0.0, 0.0);
        for stride in 0..self.strides() {
            let mut within = 0;
            let cells = stride * STRIDE..((stride + 1) * STRIDE).min(self.last + 1);
            for (i, (count, weight)) in self.counts[cells].iter().zip(&self.weights.within).enumerate() {
                within += u64::from(*count) * weight * i as u64;
            }
            let (unit, sum) = (self.weights.strides[stride], self.stride(stride) as f64);
            total += unit * sum;
            moment += unit * ((stride * STRIDE) as f64 * sum + within as f64);
        }
        let (mean, wanted) = (moment / total, p * total);
        let mut found = Typical { cells: (usize::MAX, 0), end: None };
        // The cells below the mean from there down, and those above it from there up; the nearer one comes first.
        let is_filled = |cell: &usize| self.counts[*cell] > 0;
        let middle = (mean as usize).min(self.last);
        let mut below = (0..=middle).rev().filter(is_filled).peekable();
        let mut above = (middle + 1..=self.last).filter(is_filled).peekable();
        let mut mass = 0.0;
        loop {
            let cell = match (below.peek(), above.peek()) {
                (Some(low), Some(high)) if *high as f64 - mean < mean - *low as f64 => above.next(),
                (Some(_), _) => below.next(),
                (None, _) => above.next(),
            };
            // Roundings may leave the sum of all below what is wanted: then all are left.
            let Some(cell) = cell else { return found };
            found.cells = (found.cells.0.min(cell), found.cells.1.max(cell));
            let (unit, weight) = (self.weights.strides[cell / STRIDE], self.weights.within[cell % STRIDE]);
            let count = u64::from(self.counts[cell]);
            let with = |n: u64| mass + unit * (n * weight) as f64;
            if with(count) >= wanted {
                let n = fewest(count, |n| with(n) >= wanted);
                found.end = (n < count).then_some((cell, n));
                return found;
            }
            mass = with(count);
        }
    }
}

/// The least of `1..=most` that is enough, where `most` is and more is never less.
fn fewest(most: u64, is_enough: impl Fn(u64) -> bool) -> u64 {
    let (mut too_few, mut enough) = (0, most);
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if is_enough(middle) { enough = middle } else { too_few = middle }
    }
    enough
}
