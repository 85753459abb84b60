//! Layer normalisation against its oracle, and what it refuses.

use proptest::prelude::*;

use super::*;
use crate::launch::lanes::{Kernel, Lanes, Scalar};
use crate::testing::{Case, Fill, Outcome, Tolerance, compare, isas_aloud, normal, suite};

/// Weight and bias of a trained layer's kind: around 1, around 0.
fn weight_and_bias(dim: usize) -> (Vec<f32>, Vec<f32>) {
    (normal(11, dim).iter().map(|w| 1.0 + 0.1 * w).collect(), normal(12, dim).iter().map(|b| 0.1 * b).collect())
}

fn both(case: Case, residual: Option<&[f32]>, eps: f32, run: impl Fn(&[f32], &Params<'_>, &mut [f32])) -> Outcome {
    let x = case.fill.numbers(1, case.rows * case.dim);
    let (weight, bias) = weight_and_bias(case.dim);
    let params = Params { weight: &weight, bias: &bias, eps };
    let (mut found, mut expected) = (vec![9.0; x.len()], vec![9.0; x.len()]);
    run(&x, &params, &mut found);
    cpu::layer_norm(&x, residual, &params, &mut expected).unwrap();
    Outcome { found, expected, tolerance: Tolerance::F32 }
}

#[test]
fn every_isa_agrees_with_the_oracle() {
    for eps in [1e-12, 1e-5] {
        suite(|case| both(case, None, eps, |x, params, out| layer_norm_on(case.isa, x, None, params, out).unwrap()));
        suite(|case| {
            let residual = case.fill.numbers(2, case.rows * case.dim);
            let residual = Some(residual.as_slice());
            both(case, residual, eps, |x, params, out| layer_norm_on(case.isa, x, residual, params, out).unwrap())
        });
        suite(|case| {
            both(case, None, eps, |x, params, out| {
                out.copy_from_slice(x);
                layer_norm_in_place_on(case.isa, out, params).unwrap();
            })
        });
    }
}

#[test]
fn widths_that_this_cpu_has_not_agree_too() {
    fn at_width(lanes: impl Lanes) {
        suite(|case| {
            let residual = Fill::Normal.numbers(2, case.rows * case.dim);
            both(case, Some(&residual), 1e-12, |x, params, out| {
                simd::LayerNorm { x, residual: Some(&residual), params, out }.run(lanes);
            })
        });
    }
    at_width(Scalar::<8>);
    at_width(Scalar::<16>);
}

#[test]
fn the_oracle_agrees_with_a_row_worked_out_by_hand() {
    // Mean 3, variance 4 with eps: (1, 3, 3, 5) has variance 2.
    let params = Params { weight: &[1.0, 2.0, 3.0, 4.0], bias: &[0.0, 1.0, 0.0, -1.0], eps: 2.0 };
    let mut out = [0.0; 4];
    cpu::layer_norm(&[1.0, 2.0, 4.0, 5.0], Some(&[0.0, 1.0, -1.0, 0.0]), &params, &mut out).unwrap();
    assert_eq!(out, [-1.0, 1.0, 0.0, 3.0]);
}

#[test]
fn a_row_is_the_same_to_the_last_bit_alone_and_among_others() {
    let (rows, dim) = (9, 385);
    let (weight, bias) = weight_and_bias(dim);
    let params = Params { weight: &weight, bias: &bias, eps: 1e-12 };
    let (x, residual) = (normal(1, rows * dim), normal(2, rows * dim));
    for isa in isas_aloud() {
        let mut together = vec![0.0; x.len()];
        layer_norm_on(isa, &x, Some(&residual), &params, &mut together).unwrap();
        for r in 0..rows {
            let range = r * dim..(r + 1) * dim;
            let mut alone = vec![0.0; dim];
            layer_norm_on(isa, &x[range.clone()], Some(&residual[range.clone()]), &params, &mut alone).unwrap();
            assert_eq!(alone, together[range], "{isa}, row {r}");
        }
    }
}

#[test]
fn a_bad_row_does_not_touch_its_neighbours() {
    let dim = 64;
    let (weight, bias) = weight_and_bias(dim);
    let params = Params { weight: &weight, bias: &bias, eps: 1e-12 };
    let clean = normal(1, 3 * dim);
    let mut dirty = clean.clone();
    dirty[dim + 5] = f32::NAN;
    let (mut expected, mut found) = (vec![0.0; 3 * dim], vec![0.0; 3 * dim]);
    layer_norm(&clean, None, &params, &mut expected).unwrap();
    layer_norm(&dirty, None, &params, &mut found).unwrap();
    assert!(found[dim..2 * dim].iter().all(|y| y.is_nan()));
    assert_eq!(found[..dim], expected[..dim]);
    assert_eq!(found[2 * dim..], expected[2 * dim..]);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let four = [1.0; 4];
    let check = |x: &[f32], residual: Option<&[f32]>, weight: &[f32], bias: &[f32], eps: f32, n: usize, why: Error| {
        let mut out = vec![9.0; n];
        let refused = layer_norm(x, residual, &Params { weight, bias, eps }, &mut out).unwrap_err();
        assert_eq!(format!("{refused:?}"), format!("{why:?}"));
        assert!(out.iter().all(|y| *y == 9.0));
    };
    check(&four, None, &[], &[], 1e-5, 4, Error::NoElements);
    check(&four, None, &four, &four[..3], 1e-5, 4, Error::Bias { weight: 4, bias: 3 });
    check(&four, None, &four[..3], &four[..3], 1e-5, 4, Error::Rows { elements: 4, dim: 3 });
    check(&four, None, &four, &four, 1e-5, 8, Error::Length { what: "output", found: 8, elements: 4 });
    check(&four, Some(&[]), &four, &four, 1e-5, 4, Error::Length { what: "residual", found: 0, elements: 4 });
    for eps in [0.0, -1e-5, f32::NAN, f32::INFINITY] {
        check(&four, None, &four, &four, eps, 4, Error::Eps(eps));
    }
}

proptest! {
    #[test]
    fn any_shape_and_data_agree_with_the_oracle(
        isa in prop::sample::select(crate::launch::available()),
        rows in 0_usize..6,
        dim in 1_usize..300,
        centre in -1e4_f32..1e4,
        spread in 1e-3_f32..1e4,
        seed: u64,
        fused: bool,
    ) {
        let x: Vec<f32> = normal(seed, rows * dim).iter().map(|x| centre + spread * x).collect();
        let residual = fused.then(|| normal(seed ^ 1, rows * dim));
        let (weight, bias) = weight_and_bias(dim);
        let params = Params { weight: &weight, bias: &bias, eps: 1e-12 };
        let (mut found, mut expected) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        layer_norm_on(isa, &x, residual.as_deref(), &params, &mut found).unwrap();
        cpu::layer_norm(&x, residual.as_deref(), &params, &mut expected).unwrap();
        prop_assert!(compare(&found, &expected, Tolerance::F32).is_ok(), "{:?}", compare(&found, &expected, Tolerance::F32));
    }
}
