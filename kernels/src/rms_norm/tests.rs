//! The norm against its oracle, and what it refuses.

use super::*;
use crate::testing::{Fill, Outcome, Tolerance, normal, suite};

#[test]
fn every_isa_agrees_with_the_oracle() {
    suite(|case| {
        let weight: Vec<f32> = normal(3, case.dim).iter().map(|w| 1.0 + 0.1 * w).collect();
        let params = Params { weight: &weight, eps: 1e-6 };
        let mut found = case.fill.numbers(1, case.rows * case.dim);
        let mut expected = found.clone();
        rms_norm_on(case.isa, &mut found, &params).unwrap();
        cpu::rms_norm(&mut expected, &params).unwrap();
        Outcome { found, expected, tolerance: Tolerance::F32 }
    });
}

#[test]
fn the_oracle_agrees_with_a_row_worked_out_by_hand() {
    // The mean of 9 and 16 is 12.5.
    let mut x = [3.0, -4.0];
    cpu::rms_norm(&mut x, &Params { weight: &[1.0, 2.0], eps: 1e-12 }).unwrap();
    let root = 12.5_f32.sqrt();
    assert!((x[0] - 3.0 / root).abs() < 1e-6 && (x[1] + 8.0 / root).abs() < 1e-6, "{x:?}");
}

#[test]
fn a_bad_row_does_not_touch_its_neighbours() {
    for bad in [Fill::Nan, Fill::Infinite, Fill::Largest] {
        let params = Params { weight: &[1.0; 100], eps: 1e-6 };
        let mut alone = normal(1, 100);
        let mut beside = [alone.clone(), bad.numbers(2, 100), alone.clone()].concat();
        rms_norm(&mut alone, &params).unwrap();
        rms_norm(&mut beside, &params).unwrap();
        assert_eq!((&beside[..100], &beside[200..]), (&alone[..], &alone[..]));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let check = |elements: usize, dim: usize, eps: f32, want: Option<Error>| {
        let mut x = vec![9.0; elements];
        let answer = rms_norm(&mut x, &Params { weight: &vec![0.5; dim], eps });
        assert!(answer.is_ok() || x.iter().all(|x| *x == 9.0));
        assert_eq!(answer.err(), want);
    };
    check(6, 3, 1e-6, None);
    check(0, 3, 1e-6, None);
    check(6, 0, 1e-6, Some(Error::NoElements));
    check(7, 3, 1e-6, Some(Error::Rows { elements: 7, dim: 3 }));
    check(6, 3, 0.0, Some(Error::Eps(0.0)));
    check(6, 3, f32::INFINITY, Some(Error::Eps(f32::INFINITY)));
}
