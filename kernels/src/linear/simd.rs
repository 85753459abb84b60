//! The dense layer in blocks that fit the caches. A checked call comes in, a rectangle of the result is written. Never the
//! arithmetic of a product: that is `launch::tile`.

use std::ops::Range;

use super::pack::Panels;
use super::{Activation, Epilogue, Packed};
use crate::launch::Isa;
use crate::launch::aligned::Aligned;
use crate::launch::columns::Columns;
use crate::launch::lanes::{self, Kernel, Lanes};
use crate::launch::tile::{Block, Element};

/// Elements of a panel at a time: 24 KB, which stay in the nearest cache while the rows go past them. Always the same on one
/// instruction set, so that a sum is the same to the last bit in any company.
const PANEL: usize = 6144;

/// Inputs at a time, for panels of so many columns.
const fn inputs_at_a_time(width: usize) -> usize {
    PANEL / width
}

/// Rows at a time: so much of `x` stays in the second cache (128 rows of 384 inputs: 196 KB) while the panels go past it.
const ROWS: usize = 128;

/// Rows that are so few that the panels are only streamed: each from its first byte to its last.
const ROWS_STREAMED: usize = 24;

/// `out`'s columns are those of `panels`.
pub(super) fn run(x: &[f32], weights: &Packed, panels: Range<usize>, epilogue: &Epilogue<'_>, mut out: Columns<'_>) {
    let k = weights.inputs();
    let m = x.len() / k;
    if m == 0 || panels.is_empty() {
        return;
    }
    let width = weights.width();
    let inputs = inputs_at_a_time(width);
    let first_column = weights.columns(panels.clone()).start;
    // Here a panel in a 16-bit type is widened where that is not done as it is read. Into the other goes the last panel's result, which
    // is wider than what is wanted of it.
    let is_widened = !matches!(weights.panels, Panels::F32(_)) && !widens_as_it_reads(weights.isa());
    let mut widened = Aligned::zeros(if is_widened { inputs.min(k) * width } else { 0 });
    let is_ragged = panels.end == weights.panels() && !weights.outputs().is_multiple_of(width);
    let mut ragged = Aligned::zeros(if is_ragged { ROWS.min(m) * width } else { 0 });
    let mut step = |rows: Range<usize>, first_input: usize, panel: usize| {
        let end_input = k.min(first_input + inputs);
        let columns = weights.columns(panel..panel + 1);
        let is_whole = columns.len() == width;
        let (c, c_stride) = if is_whole {
            let (first, stride) = out.raw();
            (first.wrapping_add(rows.start * stride + columns.start - first_column), stride)
        } else {
            (ragged.as_mut_ptr(), width)
        };
        let block = Block {
            a: x[rows.start * k + first_input..].as_ptr(),
            a_stride: k,
            rows: rows.len(),
            b: std::ptr::null::<f32>(),
            k: end_input - first_input,
            c,
            c_stride,
            accumulate: first_input > 0,
            next: std::ptr::null(),
        };
        let first = (panel * k + first_input) * width;
        let of_panel = first..first + block.k * width;
        // What is read after it: where there are few rows what lies behind it, else the same inputs of the next panel.
        let next = if m <= ROWS_STREAMED { of_panel.end } else { first + k * width };
        // SAFETY: `x` has m rows of k inputs; the range of a panel has a panel's row for each of the block's inputs; `c` is either
        // these rows of the panel's columns of `out`, which has them all (the caller checked), or the scratch, which has ROWS or m
        // rows of a panel. `out` and the scratch are borrowed alone.
        unsafe {
            let isa = weights.isa();
            match &weights.panels {
                Panels::F32(panels) => over(block, panels, of_panel, next).run(isa),
                Panels::F16(panels) if is_widened => {
                    lanes::run(isa, Widen { from: &panels[of_panel.clone()], to: &mut widened });
                    over(block, &widened, 0..of_panel.len(), 0).run(isa);
                }
                Panels::Bf16(panels) if is_widened => {
                    lanes::run(isa, Widen { from: &panels[of_panel.clone()], to: &mut widened });
                    over(block, &widened, 0..of_panel.len(), 0).run(isa);
                }
                Panels::F16(panels) => over(block, panels, of_panel, next).run(isa),
                Panels::Bf16(panels) => over(block, panels, of_panel, next).run(isa),
            }
        }
        if end_input == k {
            let ragged = (!is_whole).then_some(&*ragged);
            let outputs = weights.outputs();
            let out = out.reborrow();
            lanes::run(weights.isa(), Strip { ragged, rows, columns, first_column, outputs, epilogue, out });
        }
    };
    let first_inputs = || (0..k).step_by(inputs);
    if m <= ROWS_STREAMED {
        panels.for_each(|panel| first_inputs().for_each(|first_input| step(0..m, first_input, panel)));
        return;
    }
    for first_row in (0..m).step_by(ROWS) {
        let rows = first_row..m.min(first_row + ROWS);
        for first_input in first_inputs() {
            panels.clone().for_each(|panel| step(rows.clone(), first_input, panel));
        }
    }
}

/// Whether vectors of 16-bit elements are widened as they are loaded, in the shadow of the multiply-adds. Else widening would take
/// longer than they do, and a part of a panel is widened once for all rows.
const fn widens_as_it_reads(isa: Isa) -> bool {
    match isa {
        Isa::Avx2Fma | Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Amx => true,
        Isa::Scalar | Isa::Neon | Isa::NeonDotprod => false,
    }
}

/// The block over part of some panels; `next` is the index of what is read after it.
fn over<T: Element>(block: Block, panels: &[T], part: Range<usize>, next: usize) -> Block<T> {
    let Block { a, a_stride, rows, k, c, c_stride, accumulate, .. } = block;
    let next = panels.as_ptr().wrapping_add(next);
    Block { a, a_stride, rows, b: panels[part].as_ptr(), k, c, c_stride, accumulate, next }
}

/// 16-bit elements to f32; whole vectors.
struct Widen<'a, T> {
    from: &'a [T],
    to: &'a mut [f32],
}

impl Kernel for Widen<'_, half::f16> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (from, to) in self.from.chunks_exact(L::WIDTH).zip(self.to.chunks_exact_mut(L::WIDTH)) {
            l.store(l.load_f16(from), to);
        }
    }
}

impl Kernel for Widen<'_, half::bf16> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (from, to) in self.from.chunks_exact(L::WIDTH).zip(self.to.chunks_exact_mut(L::WIDTH)) {
            l.store(l.load_bf16(from), to);
        }
    }
}

/// What follows the sums of one panel, which are still in the cache.
pub(crate) struct Strip<'a> {
    /// The sums of a panel that is wider than its outputs; else they are in `out`.
    pub(crate) ragged: Option<&'a [f32]>,
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
    /// The output that `out` begins with.
    pub(crate) first_column: usize,
    pub(crate) outputs: usize,
    pub(crate) epilogue: &'a Epilogue<'a>,
    pub(crate) out: Columns<'a>,
}

impl Kernel for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        if let Some(sums) = self.ragged {
            let width = 2 * L::WIDTH;
            for (row, sums) in self.rows.clone().zip(sums.chunks_exact(width)) {
                let place = self.columns.start - self.first_column..self.columns.end - self.first_column;
                self.out.row(row)[place].copy_from_slice(&sums[..self.columns.len()]);
            }
        }
        // The choice is made once a strip, not once a vector.
        match self.epilogue.activation {
            Activation::None if self.epilogue.bias.is_none() && self.epilogue.residual.is_none() => {}
            Activation::None => self.each(l, Activation::None),
            Activation::Gelu => self.each(l, Activation::Gelu),
            Activation::GeluTanh => self.each(l, Activation::GeluTanh),
            Activation::Silu => self.each(l, Activation::Silu),
            Activation::Relu => self.each(l, Activation::Relu),
            Activation::Tanh => self.each(l, Activation::Tanh),
        }
    }
}

impl Strip<'_> {
    #[inline(always)]
    fn each<L: Lanes>(&mut self, l: L, activation: Activation) {
        let zero = l.splat(0.0);
        for row in self.rows.clone() {
            let place = self.columns.start - self.first_column..self.columns.end - self.first_column;
            let bias = self.epilogue.bias.map(|bias| &bias[self.columns.clone()]);
            let residual = self.epilogue.residual.map(|all| &all[row * self.outputs..][self.columns.clone()]);
            let y = &mut self.out.row(row)[place];
            let whole = y.len() - y.len() % L::WIDTH;
            for at in (0..whole).step_by(L::WIDTH) {
                let bias = bias.map_or(zero, |bias| l.load(&bias[at..]));
                let mut value = activation.vector(l, l.add(l.load(&y[at..]), bias));
                if let Some(residual) = residual {
                    value = l.add(value, l.load(&residual[at..]));
                }
                l.store(value, &mut y[at..]);
            }
            if whole < y.len() {
                let bias = bias.map_or(zero, |bias| l.load_partial(&bias[whole..]));
                let mut value = activation.vector(l, l.add(l.load_partial(&y[whole..]), bias));
                if let Some(residual) = residual {
                    value = l.add(value, l.load_partial(&residual[whole..]));
                }
                l.store_partial(value, &mut y[whole..]);
            }
        }
    }
}
