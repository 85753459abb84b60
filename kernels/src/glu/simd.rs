//! The gated unit over vectors of any width. A checked call comes in, rows are written. Never unsafe: the instructions are
//! in `launch::lanes`.

use crate::launch::lanes::{Kernel, Lanes};
use crate::linear::Activation;

/// A call whose lengths have been checked.
pub(super) struct Glu<'a> {
    pub(super) x: &'a [f32],
    pub(super) dim: usize,
    pub(super) activation: Activation,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Glu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        // The choice is made once a call, not once a vector.
        match self.activation {
            Activation::None => rows(l, self, Activation::None),
            Activation::Gelu => rows(l, self, Activation::Gelu),
            Activation::GeluTanh => rows(l, self, Activation::GeluTanh),
            Activation::Silu => rows(l, self, Activation::Silu),
            Activation::Relu => rows(l, self, Activation::Relu),
            Activation::Tanh => rows(l, self, Activation::Tanh),
        }
    }
}

#[inline(always)]
fn rows<L: Lanes>(l: L, call: Glu<'_>, activation: Activation) {
    for (x, out) in call.x.chunks_exact(2 * call.dim).zip(call.out.chunks_exact_mut(call.dim)) {
        let (a, b) = x.split_at(call.dim);
        let (mut a, mut b) = (a.chunks_exact(L::WIDTH), b.chunks_exact(L::WIDTH));
        let mut out = out.chunks_exact_mut(L::WIDTH);
        for ((a, b), out) in (&mut a).zip(&mut b).zip(&mut out) {
            l.store(l.mul(activation.vector(l, l.load(a)), l.load(b)), out);
        }
        let (a, b, out) = (a.remainder(), b.remainder(), out.into_remainder());
        if !out.is_empty() {
            l.store_partial(l.mul(activation.vector(l, l.load_partial(a)), l.load_partial(b)), out);
        }
    }
}
