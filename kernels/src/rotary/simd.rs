//! The rotation over vectors of any width. A checked call comes in, heads are turned. Never unsafe: the instructions are in
//! `launch::lanes`.

use super::Table;
use crate::launch::lanes::{Kernel, Lanes};

/// A call whose lengths have been checked.
pub(super) struct Rotary<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) positions: &'a [u32],
    pub(super) table: &'a Table,
}

impl Kernel for Rotary<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (row, position) in self.x.chunks_exact_mut(self.stride).zip(self.positions) {
            let (cos, sin) = self.table.at(*position);
            for head in row[..self.width].chunks_exact_mut(self.table.head_dim()) {
                let (first, second) = head.split_at_mut(cos.len());
                turn(l, first, second, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn turn<L: Lanes>(l: L, first: &mut [f32], second: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (mut first, mut second) = (first.chunks_exact_mut(L::WIDTH), second.chunks_exact_mut(L::WIDTH));
    let (mut cos, mut sin) = (cos.chunks_exact(L::WIDTH), sin.chunks_exact(L::WIDTH));
    for (((first, second), cos), sin) in (&mut first).zip(&mut second).zip(&mut cos).zip(&mut sin) {
        let (a, b) = (l.load(first), l.load(second));
        let (cos, sin) = (l.load(cos), l.load(sin));
        l.store(l.sub(l.mul(a, cos), l.mul(b, sin)), first);
        l.store(l.mul_add(b, cos, l.mul(a, sin)), second);
    }
    let (first, second) = (first.into_remainder(), second.into_remainder());
    for (i, (first, second)) in first.iter_mut().zip(second).enumerate() {
        let (a, b) = (*first, *second);
        let (cos, sin) = (cos.remainder()[i], sin.remainder()[i]);
        *first = a * cos - b * sin;
        *second = b * cos + a * sin;
    }
}
