//! GELU over vectors of any width. A checked call comes in, elements are replaced. Never unsafe: the instructions are in
//! `launch::lanes`.

use crate::launch::lanes::{Kernel, Lanes};
use crate::launch::math;

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
        l.store(math::gelu(l, l.add(l.load(x), l.load(bias))), x);
    }
    let (tail, bias) = (row.into_remainder(), bias.remainder());
    if !tail.is_empty() {
        l.store_partial(math::gelu(l, l.add(l.load_partial(tail), l.load_partial(bias))), tail);
    }
}

#[inline(always)]
fn without_bias<L: Lanes>(l: L, x: &mut [f32]) {
    let mut x = x.chunks_exact_mut(L::WIDTH);
    for x in &mut x {
        l.store(math::gelu(l, l.load(x)), x);
    }
    let tail = x.into_remainder();
    if !tail.is_empty() {
        l.store_partial(math::gelu(l, l.load_partial(tail)), tail);
    }
}
