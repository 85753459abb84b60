//! The dense layer against its oracle: shapes around every block size, types, activations, threads' parts, and what it refuses.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::launch::Isa;
use crate::stored::Values;
use crate::testing::{Fill, Tolerance, compare, isas_aloud, normal};

/// Weights of a size that keeps sums near 1.
fn weights(seed: u64, n: usize, k: usize) -> Vec<f32> {
    normal(seed, n * k).iter().map(|w| w / (k as f32).sqrt()).collect()
}

/// Sums of `k` products in f32: their rounding errors add up like a random walk.
fn tolerance(k: usize) -> Tolerance {
    Tolerance::F32.at_scale(1.0 + (k as f32).sqrt() / 8.0)
}

struct Case {
    isa: Isa,
    m: usize,
    n: usize,
    k: usize,
    fill: Fill,
    activation: Activation,
    with: bool,
}

fn check(case: &Case) {
    let &Case { isa, m, n, k, fill, activation, with } = case;
    let x = fill.numbers(1, m * k);
    let w = weights(2, n, k);
    let packed = Packed::new_on(isa, &[Values::of_f32(&w)], k).unwrap();
    let (bias, residual) = (normal(3, n), normal(4, m * n));
    let epilogue = Epilogue { bias: with.then_some(&bias), activation, residual: with.then_some(&residual) };
    let (mut found, mut expected) = (vec![7.0; m * n], vec![0.0; m * n]);
    linear(&x, &packed, &epilogue, &mut found).unwrap();
    cpu::linear(&x, &packed, &epilogue, &mut expected).unwrap();
    let scale = match fill {
        Fill::Offset => 1000.0,
        Fill::Large => 1e30,
        _ => 1.0,
    };
    let compared = compare(&found, &expected, tolerance(k).at_scale(scale));
    assert!(compared.is_ok(), "{isa} {m}x{k}x{n} {fill:?} {activation:?}: {compared:?}");
}

const PLAIN: Case =
    Case { isa: Isa::Scalar, m: 0, n: 0, k: 0, fill: Fill::Normal, activation: Activation::None, with: true };

#[test]
fn every_isa_agrees_with_the_oracle_on_shapes_around_every_block() {
    for isa in isas_aloud() {
        for m in [0, 1, 2, 5, 6, 7, 11, 12, 13, 24, 25, 31, 127, 128, 129] {
            for (n, k) in [(1, 1), (3, 5), (15, 16), (16, 384), (17, 385), (33, 7), (64, 769)] {
                check(&Case { isa, m, n, k, ..PLAIN });
            }
        }
    }
}

#[test]
fn every_isa_agrees_with_the_oracle_on_every_kind_of_data_and_activation() {
    use Activation::{Gelu, GeluTanh, None, Relu, Silu, Tanh};
    for isa in isas_aloud() {
        for fill in [Fill::Normal, Fill::Offset, Fill::Constant, Fill::Zero, Fill::Denormal, Fill::Nan] {
            for activation in [None, Gelu, GeluTanh, Silu, Relu, Tanh] {
                for with in [false, true] {
                    check(&Case { isa, m: 9, n: 37, k: 33, fill, activation, with });
                }
            }
        }
        check(&Case { isa, m: 3, n: 20, k: 8, fill: Fill::Large, ..PLAIN });
        check(&Case { isa, m: 3, n: 20, k: 8, fill: Fill::Infinite, ..PLAIN });
    }
}

#[test]
fn sixteen_bit_weights_are_computed_with_as_they_are() {
    for isa in isas_aloud() {
        for (m, n, k) in [(1, 20, 40), (130, 33, 390)] {
            let w = weights(2, n, k);
            let f16s: Vec<u8> = w.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect();
            let bf16s: Vec<u8> = w.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
            for (bytes, stored) in [(f16s, Stored::F16), (bf16s, Stored::Bf16)] {
                let packed = Packed::new_on(isa, &[Values { bytes: &bytes, stored }], k).unwrap();
                assert_eq!(packed.bytes(), n.next_multiple_of(packed.width()) * k * 2);
                let x = normal(1, m * k);
                let (mut found, mut expected) = (vec![0.0; m * n], vec![0.0; m * n]);
                linear(&x, &packed, &Epilogue::default(), &mut found).unwrap();
                cpu::linear(&x, &packed, &Epilogue::default(), &mut expected).unwrap();
                let rounded = packed.get(n - 1, k - 1);
                assert!((rounded - w[n * k - 1]).abs() <= w[n * k - 1].abs() / 128.0);
                let compared = compare(&found, &expected, tolerance(k));
                assert!(compared.is_ok(), "{isa} {stored:?} {m}x{k}x{n}: {compared:?}");
            }
        }
    }
}

#[test]
fn parts_lie_side_by_side() {
    let (k, a, b) = (5, weights(1, 3, 5), weights(2, 20, 5));
    let half: Vec<u8> = b.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect();
    let joined = Packed::new(&[Values::of_f32(&a), Values { bytes: &half, stored: Stored::F16 }], k).unwrap();
    assert_eq!((joined.outputs(), joined.inputs()), (23, 5));
    for p in 0..k {
        (0..3).for_each(|j| assert_eq!(joined.get(j, p), a[j * k + p]));
        (0..20).for_each(|j| assert_eq!(joined.get(3 + j, p), f16::from_f32(b[j * k + p]).to_f32()));
    }
}

#[test]
fn parts_of_the_outputs_are_what_the_whole_has_there() {
    for isa in isas_aloud() {
        let (m, n, k) = (7, 75, 20);
        let (x, w, bias, residual) = (normal(1, m * k), weights(2, n, k), normal(3, n), normal(4, m * n));
        let packed = Packed::new_on(isa, &[Values::of_f32(&w)], k).unwrap();
        let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Silu, residual: Some(&residual) };
        let mut whole = vec![0.0; m * n];
        linear(&x, &packed, &epilogue, &mut whole).unwrap();
        let mut parts = vec![0.0; m * n];
        let middle = packed.panels() / 2;
        let (left, right) = Columns::whole(&mut parts, n).split_columns(packed.columns(0..middle).end);
        linear_columns(&x, &packed, middle..packed.panels(), &epilogue, right).unwrap();
        linear_columns(&x, &packed, 0..middle, &epilogue, left).unwrap();
        assert_eq!(parts, whole, "{isa}");
    }
}

#[test]
fn a_row_is_the_same_to_the_last_bit_alone_and_among_others() {
    for isa in isas_aloud() {
        let (m, n, k) = (31, 40, 800);
        let (x, w) = (normal(1, m * k), weights(2, n, k));
        let packed = Packed::new_on(isa, &[Values::of_f32(&w)], k).unwrap();
        let mut together = vec![0.0; m * n];
        linear(&x, &packed, &Epilogue::default(), &mut together).unwrap();
        for (x, together) in x.chunks(k).zip(together.chunks(n)) {
            let mut alone = vec![0.0; n];
            linear(x, &packed, &Epilogue::default(), &mut alone).unwrap();
            assert_eq!(alone, together, "{isa}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let packed = Packed::new(&[Values::of_f32(&[1.0; 6])], 3).unwrap();
    let check = |x: usize, bias: Option<usize>, residual: Option<usize>, out: usize, want: Option<Error>| {
        let (x, bias, residual) = (vec![1.0; x], bias.map(|n| vec![1.0; n]), residual.map(|n| vec![1.0; n]));
        let epilogue = Epilogue { bias: bias.as_deref(), activation: Activation::None, residual: residual.as_deref() };
        let mut y = vec![9.0; out];
        let answer = linear(&x, &packed, &epilogue, &mut y);
        assert!(answer.is_ok() || y.iter().all(|y| *y == 9.0));
        assert_eq!(answer.err(), want);
    };
    check(6, Some(2), Some(4), 4, None);
    check(0, None, None, 0, None);
    check(7, None, None, 4, Some(Error::Input { elements: 7, inputs: 3 }));
    check(6, Some(3), None, 4, Some(Error::Length { what: "bias", found: 3, wanted: 2 }));
    check(6, None, Some(3), 4, Some(Error::Length { what: "residual", found: 3, wanted: 4 }));
    check(6, None, None, 5, Some(Error::Length { what: "output", found: 5, wanted: 4 }));

    let mut out = vec![0.0; 4];
    let columns = Columns::whole(&mut out, 2);
    let answer = linear_columns(&[1.0; 6], &packed, 0..2, &Epilogue::default(), columns);
    assert_eq!(answer, Err(Error::Panels { first: 0, end: 2, panels: 1 }));
    let weights = |n: usize, k| Packed::new(&[Values::of_f32(&vec![1.0; n])], k).err();
    assert_eq!(weights(7, 3), Some(Error::Weights { bytes: 28, inputs: 3, stored: Stored::F32 }));
    assert_eq!(weights(0, 3), Some(Error::Empty { outputs: 0, inputs: 3 }));
}

proptest! {
    #[test]
    fn any_shape_agrees_with_the_oracle(
        isa in prop::sample::select(crate::launch::available()),
        (m, n, k) in (0_usize..140, 1_usize..70, 1_usize..500),
        with: bool,
    ) {
        check(&Case { isa, m, n, k, with, ..PLAIN });
    }
}
