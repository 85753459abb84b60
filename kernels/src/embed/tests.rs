//! The sum of rows against its oracle, and what it refuses.

use half::{bf16, f16};

use super::*;
use crate::stored::Stored;
use crate::testing::{Fill, Outcome, Tolerance, normal, suite};

const ROWS: usize = 11;

fn bytes<const N: usize>(values: &[f32], of: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    // At an odd address, as a file may have it.
    std::iter::once(0).chain(values.iter().flat_map(|x| of(*x))).collect()
}

#[test]
fn every_isa_agrees_with_the_oracle() {
    for with_norm in [false, true] {
        suite(|case| {
            // Sums of the largest numbers are not a sum of word vectors.
            let fill = if case.fill == Fill::Largest { Fill::Normal } else { case.fill };
            let words = fill.numbers(1, ROWS * case.dim);
            let positions = bytes(&normal(2, ROWS * case.dim), |x| f16::from_f32(x).to_le_bytes());
            let types = bytes(&normal(3, 2 * case.dim), |x| bf16::from_f32(x).to_le_bytes());
            let indices = |step: u32, rows: u32| (0..case.rows as u32).map(|t| t * step % rows).collect::<Vec<_>>();
            let (of_words, of_positions, of_types) = (indices(7, 11), indices(1, 11), indices(1, 2));
            let terms = [
                Term { table: Values::of_f32(&words), indices: &of_words },
                Term { table: Values { bytes: &positions[1..], stored: Stored::F16 }, indices: &of_positions },
                Term { table: Values { bytes: &types[1..], stored: Stored::Bf16 }, indices: &of_types },
            ];
            let (weight, bias) = (normal(4, case.dim), normal(5, case.dim));
            let norm = layer_norm::Params { weight: &weight, bias: &bias, eps: 1e-5 };
            let norm = with_norm.then_some(&norm);
            let (mut found, mut expected) = (vec![7.0; case.rows * case.dim], vec![0.0; case.rows * case.dim]);
            embed_on(case.isa, &terms, case.dim, norm, &mut found).unwrap();
            cpu::embed(&terms, case.dim, norm, &mut expected).unwrap();
            // The sums differ in their last digits, which a row whose values are all alike but for those makes large.
            let scale = match (with_norm, fill) {
                (true, Fill::Offset) => 1000.0,
                (true, _) => 20.0,
                (false, Fill::Offset) => 1000.0,
                (false, _) => 1.0,
            };
            Outcome { found, expected, tolerance: Tolerance::F32.at_scale(scale) }
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let table = [1.0; 6];
    let check = |indices: &[u32], dim: usize, len: usize, want: Option<Error>| {
        let mut out = vec![9.0; len];
        let answer = embed(&[Term { table: Values::of_f32(&table), indices }], dim, None, &mut out);
        assert!(answer.is_ok() || out.iter().all(|x| *x == 9.0));
        assert_eq!(answer.err(), want);
    };
    check(&[0, 2], 2, 4, None);
    check(&[], 2, 0, None);
    check(&[0, 3], 2, 4, Some(Error::Index { term: 0, index: 3, rows: 3 }));
    check(&[0], 2, 4, Some(Error::Indices { term: 0, indices: 1, elements: 4, dim: 2 }));
    check(&[], 0, 0, Some(Error::Nothing { terms: 1, dim: 0 }));
    assert_eq!(embed(&[], 2, None, &mut []), Err(Error::Nothing { terms: 0, dim: 2 }));
    let norm = layer_norm::Params { weight: &[1.0; 3], bias: &[1.0; 3], eps: 1e-5 };
    let terms = [Term { table: Values::of_f32(&table), indices: &[0, 1] }];
    assert!(matches!(embed(&terms, 2, Some(&norm), &mut [9.0; 4]), Err(Error::Norm(_))));
}
