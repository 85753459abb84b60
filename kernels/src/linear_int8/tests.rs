//! The dense layer in 8 bits: rows and weights are rounded as the formula says, sums are exact on every instruction set, and what
//! does not fit is refused.

use half::f16;
use proptest::prelude::*;

use super::pack::INPUTS_MAX;
use super::*;
use crate::launch::Isa;
use crate::stored::{Stored, Values};
use crate::testing::{Fill, Tolerance, compare, isas_aloud, normal};

/// Weights of a size that keeps sums near 1.
fn weights(seed: u64, n: usize, k: usize) -> Vec<f32> {
    normal(seed, n * k).iter().map(|w| w / (k as f32).sqrt()).collect()
}

fn quantized(isa: Isa, w: &[f32], k: usize) -> Quantized {
    Quantized::new_on(isa, &[Values::of_f32(w)], k).unwrap()
}

fn rows(x: &[f32], weights: &Quantized) -> Rows {
    let mut rows = Rows::default();
    rows.quantize(x, weights).unwrap();
    rows
}

/// Found and expected of one product.
fn both(isa: Isa, x: &[f32], w: &[f32], k: usize, activation: Activation, with: bool) -> (Vec<f32>, Vec<f32>) {
    let weights = quantized(isa, w, k);
    let (m, n) = (x.len() / k, w.len() / k);
    let (bias, residual) = (normal(3, n), normal(4, m * n));
    let epilogue = Epilogue { bias: with.then_some(&bias), activation, residual: with.then_some(&residual) };
    let (mut found, mut expected) = (vec![7.0; m * n], vec![0.0; m * n]);
    let x = rows(x, &weights);
    linear_int8(&x, &weights, &epilogue, &mut found).unwrap();
    cpu::linear_int8(&x, &weights, &epilogue, &mut expected).unwrap();
    (found, expected)
}

#[test]
fn every_isa_agrees_with_the_oracle_on_shapes_around_every_block() {
    for isa in isas_aloud() {
        for m in [0, 1, 2, 5, 6, 7, 11, 12, 13, 63, 64, 65] {
            for (n, k) in [(1, 1), (3, 5), (15, 16), (16, 384), (17, 385), (33, 7), (64, 771)] {
                let (found, expected) = both(isa, &normal(1, m * k), &weights(2, n, k), k, Activation::None, true);
                let compared = compare(&found, &expected, Tolerance::F32);
                assert!(compared.is_ok(), "{isa} {m}x{k}x{n}: {compared:?}");
            }
        }
    }
}

#[test]
fn every_isa_agrees_with_the_oracle_on_every_kind_of_data_and_activation() {
    use Activation::{Gelu, GeluTanh, None, Relu, Silu, Tanh};
    let (m, n, k) = (9, 37, 33);
    for isa in isas_aloud() {
        let fills = [Fill::Normal, Fill::Offset, Fill::Constant, Fill::Zero, Fill::Denormal, Fill::Large, Fill::Nan];
        for fill in fills.into_iter().chain([Fill::Infinite]) {
            for activation in [None, Gelu, GeluTanh, Silu, Relu, Tanh] {
                for with in [false, true] {
                    let x = fill.numbers(1, m * k);
                    let (found, expected) = both(isa, &x, &weights(2, n, k), k, activation, with);
                    let scale = x.iter().filter(|x| x.is_finite()).fold(1.0_f32, |most, x| most.max(x.abs()));
                    let compared = compare(&found, &expected, Tolerance::F32.at_scale(scale));
                    assert!(compared.is_ok(), "{isa} {fill:?} {activation:?}: {compared:?}");
                    for (x, y) in x.chunks(k).zip(found.chunks(n)) {
                        let is_finite = x.iter().all(|x| x.is_finite());
                        assert!(y.iter().all(|y| is_finite || y.is_nan()), "{isa} {fill:?}: {y:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_and_weights_are_at_most_half_a_step_off() {
    for isa in isas_aloud() {
        for fill in [Fill::Normal, Fill::Offset, Fill::Constant, Fill::Large] {
            let (m, n, k) = (5, 6, 67);
            let (x, w) = (fill.numbers(1, m * k), weights(2, n, k));
            let weights = quantized(isa, &w, k);
            let rows = rows(&x, &weights);
            for (row, x) in x.chunks(k).enumerate() {
                let (least, most) = x
                    .iter()
                    .fold((0.0_f64, 0.0_f64), |(least, most), x| (least.min(f64::from(*x)), most.max(f64::from(*x))));
                let step = (most - least) / 255.0;
                assert!((f64::from(rows.scales[row]) / step - 1.0).abs() < 1e-6, "{isa} {fill:?}");
                for (p, x) in x.iter().enumerate() {
                    // The zero is rounded, too, and with it what is at either end.
                    let off = (f64::from(rows.get(row, p)) * step - f64::from(*x)).abs();
                    let is_end = f64::from(*x) <= least + step || f64::from(*x) >= most - step;
                    assert!(off <= step * if is_end { 1.001 } else { 0.501 }, "{isa} {fill:?}: {x} is {off} off");
                }
            }
            for (j, w) in w.chunks(k).enumerate() {
                let step = w.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / 127.0;
                for (p, w) in w.iter().enumerate() {
                    assert!((f32::from(weights.get(j, p)) * step - w).abs() <= step * 0.501);
                }
                assert!(w.iter().enumerate().any(|(p, _)| weights.get(j, p).unsigned_abs() == 127));
            }
        }
    }
}

#[test]
fn numbers_that_have_a_form_in_8_bits_give_exact_results() {
    for isa in isas_aloud() {
        // From −100 to 155: the step is 1. Weights up to 127: so is theirs.
        let (n, k) = (3, 130);
        let mut x: Vec<f32> = (0..k).map(|p| (p * 2 % 256) as f32 - 100.0).collect();
        (x[0], x[1]) = (-100.0, 155.0);
        let mut w: Vec<f32> = (0..n * k).map(|i| ((i * 31 % 255) as f32) - 127.0).collect();
        w.chunks_mut(k).for_each(|w| w[7] = -127.0);
        let (found, _) = both(isa, &x, &w, k, Activation::None, false);
        let expected = w.chunks(k).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>());
        assert_eq!(found, expected.collect::<Vec<_>>(), "{isa}");
    }
}

#[test]
fn the_greatest_sums_do_not_overflow() {
    for isa in isas_aloud() {
        let k = INPUTS_MAX;
        let (found, expected) =
            both(isa, &vec![3.0; k], &[vec![1.0; k], vec![-1.0; k]].concat(), k, Activation::None, false);
        compare(&found, &expected, Tolerance::F32).unwrap();
        assert!((found[0] / (3.0 * k as f32) - 1.0).abs() < 1e-5 && found[1] == -found[0], "{isa}: {found:?}");
    }
}

#[test]
fn every_isa_gives_the_same_bits() {
    let (m, n, k) = (7, 40, 99);
    let (x, w) = (normal(1, m * k), weights(2, n, k));
    let on = |isa| both(isa, &x, &w, k, Activation::None, false).0;
    let scalar = on(Isa::Scalar);
    isas_aloud().into_iter().for_each(|isa| assert_eq!(on(isa), scalar, "{isa}"));
}

#[test]
fn a_row_is_the_same_in_any_company_and_so_are_parts_of_the_outputs() {
    for isa in isas_aloud() {
        let (m, n, k) = (70, 75, 50);
        let (x, w, bias, residual) = (normal(1, m * k), weights(2, n, k), normal(3, n), normal(4, m * n));
        let weights = quantized(isa, &w, k);
        let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Gelu, residual: Some(&residual) };
        let (mut whole, mut parts) = (vec![0.0; m * n], vec![0.0; m * n]);
        let all = rows(&x, &weights);
        linear_int8(&all, &weights, &epilogue, &mut whole).unwrap();
        let middle = weights.panels() / 2;
        let (left, right) = Columns::whole(&mut parts, n).split_columns(weights.columns(0..middle).end);
        linear_int8_columns(&all, &weights, middle..weights.panels(), &epilogue, right).unwrap();
        linear_int8_columns(&all, &weights, 0..middle, &epilogue, left).unwrap();
        assert_eq!(parts, whole, "{isa}");
        for row in [0, 33, m - 1] {
            let mut one = vec![0.0; n];
            let epilogue = Epilogue { residual: Some(&residual[row * n..][..n]), ..epilogue };
            linear_int8(&rows(&x[row * k..][..k], &weights), &weights, &epilogue, &mut one).unwrap();
            assert_eq!(one, whole[row * n..][..n], "{isa} row {row}");
        }
    }
}

#[test]
fn parts_lie_side_by_side_and_stored_types_are_read() {
    let (k, a, b) = (61, weights(1, 3, 61), weights(2, 20, 61));
    let half: Vec<u8> = b.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect();
    let parts = [Values::of_f32(&a), Values { bytes: &half, stored: Stored::F16 }];
    let joined = Quantized::new(&parts, k).unwrap();
    assert_eq!((joined.outputs(), joined.inputs()), (23, 61));
    assert!(joined.bytes() <= 32 * 64 + 32 * 8);
    let alone = Quantized::new(&parts[1..], k).unwrap();
    for p in 0..k {
        (0..20).for_each(|j| assert_eq!(joined.get(3 + j, p), alone.get(j, p)));
    }
    assert_eq!(joined.scales[3..23], alone.scales[..20]);
}

#[test]
fn memory_of_rows_is_used_again() {
    let weights = quantized(Isa::Scalar, &weights(1, 4, 6), 6);
    let mut kept = rows(&normal(1, 60), &weights);
    assert_eq!(kept.len(), 10);
    let fresh = rows(&normal(2, 12), &weights);
    kept.quantize(&normal(2, 12), &weights).unwrap();
    assert_eq!((kept.len(), &kept.words, &kept.scales, &kept.zeros), (2, &fresh.words, &fresh.scales, &fresh.zeros));
    kept.quantize(&[], &weights).unwrap();
    assert!(kept.is_empty());
}

#[test]
fn what_does_not_fit_is_refused() {
    let w = weights(1, 4, 6);
    let refused = |parts: &[f32], inputs| Quantized::new(&[Values::of_f32(parts)], inputs).unwrap_err().to_string();
    assert!(refused(&w[..23], 6).contains("not rows of 6"), "{}", refused(&w[..23], 6));
    assert!(refused(&[], 6).contains("at least 1"));
    assert!(refused(&vec![0.0; INPUTS_MAX + 1], INPUTS_MAX + 1).contains("at most 65536"));
    let mut bad = w.clone();
    bad[13] = f32::NAN;
    assert_eq!(Quantized::new(&[Values::of_f32(&bad)], 6).unwrap_err(), Error::NotFinite { output: 2 });
    let weights = quantized(Isa::Scalar, &w, 6);
    let x = rows(&normal(1, 12), &weights);
    assert_eq!(Rows::default().quantize(&[0.0; 13], &weights), Err(Error::Input { elements: 13, inputs: 6 }));
    let none = Epilogue::default();
    let error = linear_int8(&x, &weights, &none, &mut [0.0; 7]).unwrap_err();
    assert_eq!(error, Error::Length { what: "output", found: 7, wanted: 8 });
    let bias = Epilogue { bias: Some(&[0.0; 3]), ..none };
    let error = linear_int8(&x, &weights, &bias, &mut [0.0; 8]).unwrap_err();
    assert_eq!(error, Error::Length { what: "bias", found: 3, wanted: 4 });
    let out = &mut [0.0; 8];
    let error = linear_int8_columns(&x, &weights, 0..9, &none, Columns::whole(out, 4)).unwrap_err();
    assert_eq!(error, Error::Panels { first: 0, end: 9, panels: weights.panels() });
    let other = quantized(Isa::Scalar, &w, 8);
    let error = linear_int8(&x, &other, &none, &mut [0.0; 6]).unwrap_err();
    assert!(error.to_string().contains("rows of 6 inputs for scalar meet weights of 8 inputs"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against the product in f32: the error that rounding both operands allows, and no more.
    #[test]
    fn rounding_is_all_that_is_lost(m in 1_usize..9, n in 1_usize..40, k in 1_usize..200, seed in 0_u64..1000) {
        let (x, w) = (normal(seed, m * k), weights(seed + 1, n, k));
        for isa in isas_aloud() {
            let weights = quantized(isa, &w, k);
            let mut found = vec![0.0; m * n];
            linear_int8(&rows(&x, &weights), &weights, &Epilogue::default(), &mut found).unwrap();
            for (index, found) in found.iter().enumerate() {
                let (x, w) = (&x[index / n * k..][..k], &w[index % n * k..][..k]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let most = |v: &[f32]| v.iter().fold(0.0_f64, |most, v| most.max(f64::from(v.abs())));
                let (x_step, w_step) = (2.0 * most(x) / 255.0, most(w) / 127.0);
                let bound: f64 = x.iter().zip(w).map(|(x, w)| {
                    x_step * f64::from(w.abs()) + w_step / 2.0 * f64::from(x.abs()) + x_step * w_step
                }).sum();
                prop_assert!((f64::from(*found) - exact).abs() <= bound * 1.001 + 1e-6, "{isa}: {found} is not {exact} ± {bound}");
            }
        }
    }
}
