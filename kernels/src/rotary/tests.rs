//! The rotation against its oracle, its defining property, and what it refuses.

use super::*;
use crate::testing::{Fill, Outcome, Tolerance, compare, normal, suite};

#[test]
fn every_isa_agrees_with_the_oracle() {
    suite(|case| {
        // A row of two heads and something behind them that is left alone.
        let (head_dim, width) = (2 * case.dim, 4 * case.dim);
        let stride = width + 3;
        let table = Table::plain(50, head_dim, 10_000.0);
        let positions: Vec<u32> = (0..case.rows as u32).map(|row| row * 31 % 50).collect();
        let fill = if case.fill == Fill::Largest { Fill::Normal } else { case.fill };
        let mut found = fill.numbers(1, case.rows * stride);
        let mut expected = found.clone();
        let largest = found.iter().copied().filter(|x| x.is_finite()).fold(1.0, f32::max);
        rotary_on(case.isa, &mut found, stride, width, &positions, &table).unwrap();
        cpu::rotary(&mut expected, stride, width, &positions, &table).unwrap();
        Outcome { found, expected, tolerance: Tolerance::F32.at_scale(largest) }
    });
}

#[test]
fn products_depend_on_the_distance_alone() {
    let table = Table::plain(100, 16, 10_000.0);
    let product = |p: u32, q: u32| -> f32 {
        let (mut a, mut b) = (normal(1, 16), normal(2, 16));
        rotary(&mut a, 16, 16, &[p], &table).unwrap();
        rotary(&mut b, 16, 16, &[q], &table).unwrap();
        a.iter().zip(&b).map(|(a, b)| a * b).sum()
    };
    let (near, far) = ([product(0, 7), product(20, 27), product(92, 99)], product(0, 8));
    assert!(near.iter().all(|p| (p - near[0]).abs() < 1e-4), "{near:?}");
    assert!((far - near[0]).abs() > 1e-2, "{far} {near:?}");
}

#[test]
fn position_0_turns_nothing() {
    let mut x = normal(1, 32);
    rotary(&mut x, 32, 32, &[0], &Table::plain(1, 8, 10_000.0)).unwrap();
    assert!(compare(&x, &normal(1, 32), Tolerance { absolute: 0.0, relative: 0.0 }).is_ok());
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let table = Table::plain(10, 4, 10_000.0);
    let check = |elements: usize, stride: usize, width: usize, positions: &[u32], want: Option<Error>| {
        let mut x = vec![9.0; elements];
        let answer = rotary(&mut x, stride, width, positions, &table);
        assert!(answer.is_ok() || x.iter().all(|x| *x == 9.0));
        assert_eq!(answer.err(), want);
    };
    check(24, 12, 8, &[0, 9], None);
    check(0, 12, 8, &[], None);
    check(24, 12, 6, &[0, 9], Some(Error::Heads { width: 6, stride: 12, head_dim: 4 }));
    check(24, 12, 16, &[0, 9], Some(Error::Heads { width: 16, stride: 12, head_dim: 4 }));
    check(23, 12, 8, &[0, 9], Some(Error::Rows { elements: 23, rows: 2, stride: 12 }));
    check(24, 12, 8, &[0, 10], Some(Error::Position { position: 10, positions: 10 }));
}
