//! What a core can do at most: the loops that a roofline is measured with. Buffers and counts come in, work is done and
//! counted. Never here: a clock; the caller has one.

use super::Isa;
use super::lanes::{Kernel, Lanes, run};

/// How many independent chains of multiply-adds [`multiply_add`] keeps going: two units times a latency of four, and a
/// few to spare, and with the two operands still within 16 registers.
const CHAINS: usize = 12;

/// Does `rounds` rounds of independent vector multiply-adds in registers, on `isa`. Gives the floating-point operations done
/// (two per multiply-add and lane) and a value that depends on all of them.
pub fn multiply_add(isa: Isa, rounds: u64) -> (u64, f32) {
    run(isa, MultiplyAdd { rounds })
}

/// `a[i] = b[i] + scale · c[i]` on `isa`, over the shortest of the three: 12 bytes of traffic and 2 operations per element,
/// as the STREAM triad counts them.
pub fn triad(isa: Isa, a: &mut [f32], b: &[f32], c: &[f32], scale: f32) {
    run(isa, Triad { a, b, c, scale });
}

struct MultiplyAdd {
    rounds: u64,
}

impl Kernel for MultiplyAdd {
    type Output = (u64, f32);

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> (u64, f32) {
        // Factors that keep the values near 1 however long it runs.
        let (factor, addend) = (l.splat(0.5), l.splat(0.5));
        let mut chains = [l.splat(1.25); CHAINS];
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = l.mul_add(*chain, factor, addend);
            }
        }
        let mut total = l.splat(0.0);
        for chain in chains {
            total = l.add(total, chain);
        }
        (self.rounds * (CHAINS * L::WIDTH * 2) as u64, l.sum(total))
    }
}

struct Triad<'a> {
    a: &'a mut [f32],
    b: &'a [f32],
    c: &'a [f32],
    scale: f32,
}

impl Kernel for Triad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let scale = l.splat(self.scale);
        let n = self.a.len().min(self.b.len()).min(self.c.len());
        let mut a = self.a[..n].chunks_exact_mut(L::WIDTH);
        let (mut b, mut c) = (self.b[..n].chunks_exact(L::WIDTH), self.c[..n].chunks_exact(L::WIDTH));
        for ((a, b), c) in (&mut a).zip(&mut b).zip(&mut c) {
            l.store(l.mul_add(scale, l.load(c), l.load(b)), a);
        }
        for ((a, b), c) in a.into_remainder().iter_mut().zip(b.remainder()).zip(c.remainder()) {
            *a = b + self.scale * c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn multiply_adds_are_counted_and_done() {
        for isa in testing::isas_aloud() {
            let (operations, value) = multiply_add(isa, 100);
            let lanes = operations as f32 / (100.0 * 24.0);
            // Each chain goes from 1.25 to the fixed point of x/2 + 1/2, which is 1.
            assert!((value / (CHAINS as f32 * lanes) - 1.0).abs() < 1e-6, "{isa}: {value}");
        }
    }

    #[test]
    fn the_triad_computes_every_element() {
        for isa in testing::isas_aloud() {
            for n in [0, 1, 3, 4, 8, 15, 16, 17, 100] {
                let (b, c) = (testing::normal(1, n), testing::normal(2, n));
                let mut a = vec![f32::NAN; n];
                triad(isa, &mut a, &b, &c, 0.5);
                for i in 0..n {
                    assert!((a[i] - (b[i] + 0.5 * c[i])).abs() <= 1e-6, "{isa}, n = {n}, element {i}");
                }
            }
        }
    }
}
