//! The gated unit against its oracle, and what it refuses.

use super::*;
use crate::testing::{Fill, Outcome, Tolerance, suite};

#[test]
fn every_isa_agrees_with_the_oracle() {
    use Activation::{Gelu, GeluTanh, None, Relu, Silu, Tanh};
    for activation in [None, Gelu, GeluTanh, Silu, Relu, Tanh] {
        suite(|case| {
            // An infinite negative gate gives NaN or 0, as the formula is written; both are of no use to anybody.
            let fill = if case.fill == Fill::Infinite { Fill::Normal } else { case.fill };
            let x = fill.numbers(1, case.rows * 2 * case.dim);
            let (mut found, mut expected) = (vec![7.0; case.rows * case.dim], vec![0.0; case.rows * case.dim]);
            glu_on(case.isa, &x, case.dim, activation, &mut found).unwrap();
            cpu::glu(&x, case.dim, activation, &mut expected).unwrap();
            let largest = x.iter().copied().filter(|x| x.is_finite()).fold(1.0, f32::max);
            Outcome { found, expected, tolerance: Tolerance::F32.at_scale(largest) }
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let check = |input: usize, dim: usize, output: usize, same: bool| {
        let mut out = vec![9.0; output];
        let answer = glu(&vec![1.0; input], dim, Activation::Silu, &mut out);
        assert_eq!(answer, if same { Ok(()) } else { Err(Error::Length { input, output, dim }) });
        assert!(same || out.iter().all(|x| *x == 9.0));
    };
    check(12, 3, 6, true);
    check(0, 3, 0, true);
    check(12, 3, 5, false);
    check(12, 4, 6, false);
    check(0, 0, 0, false);
}
