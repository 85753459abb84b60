//! GELU against its oracle, its error measured, and what it refuses.

use proptest::prelude::*;

use super::*;
use crate::launch::lanes::{Kernel, Lanes, Scalar};
use crate::testing::{Case, Outcome, Tolerance, compare, isas_aloud, normal, suite};

/// What the module's head promises between the vector code and the oracle's f32: [`ERROR_MAX`], and half a unit in the last place for the
/// rounding of each, which together is at most 2⁻²³ of the value.
const PROMISED: Tolerance = Tolerance { absolute: ERROR_MAX, relative: f32::EPSILON };

fn both(case: Case, bias: Option<&[f32]>, run: impl Fn(&mut [f32])) -> Outcome {
    let mut found = case.fill.numbers(1, case.rows * case.dim);
    let mut expected = found.clone();
    run(&mut found);
    cpu::gelu(&mut expected, bias).unwrap();
    Outcome { found, expected, tolerance: PROMISED }
}

#[test]
fn every_isa_agrees_with_the_oracle() {
    suite(|case| both(case, None, |x| gelu_on(case.isa, x, None).unwrap()));
    suite(|case| {
        let bias = normal(3, case.dim);
        both(case, Some(&bias), |x| gelu_on(case.isa, x, Some(&bias)).unwrap())
    });
}

#[test]
fn widths_that_this_cpu_has_not_agree_too() {
    fn at_width(lanes: impl Lanes) {
        suite(|case| {
            let bias = normal(3, case.dim);
            both(case, Some(&bias), |x| simd::Gelu { x, bias: Some(&bias) }.run(lanes))
        });
    }
    at_width(Scalar::<8>);
    at_width(Scalar::<16>);
}

#[test]
fn the_error_is_at_most_what_is_promised_over_all_magnitudes() {
    // Every 1009th of all positive and negative finite floats, and closely where the function bends.
    let all = (0..f32::INFINITY.to_bits()).step_by(1009).map(f32::from_bits).flat_map(|x| [x, -x]);
    let close = (-700_000..=700_000).map(|i| i as f32 * 1e-5);
    let inputs: Vec<f32> = all.chain(close).collect();
    let mut expected = inputs.clone();
    cpu::gelu(&mut expected, None).unwrap();
    for isa in isas_aloud() {
        let mut found = inputs.clone();
        gelu_on(isa, &mut found, None).unwrap();
        let mut worst = (0.0, 0.0);
        for i in 0..inputs.len() {
            // Beside the rounding of y itself.
            let half_unit = f64::from(expected[i].abs().next_up() - expected[i].abs()) / 2.0;
            let error = (f64::from(found[i]) - cpu::point(f64::from(inputs[i]))).abs() - half_unit;
            if error > worst.0 {
                worst = (error, inputs[i]);
            }
        }
        println!("{isa}: at most {:.2e} beside the last rounding, at x = {}", worst.0, worst.1);
        assert!(worst.0 <= f64::from(ERROR_MAX), "{isa}: {worst:?}");
    }
}

#[test]
fn instruction_sets_with_fused_multiply_add_give_the_same_bits() {
    let inputs: Vec<f32> = normal(5, 10_007).iter().map(|x| 3.0 * x).collect();
    let results: Vec<Vec<u32>> = isas_aloud()
        .into_iter()
        .filter(|isa| *isa != Isa::Scalar)
        .map(|isa| {
            let mut x = inputs.clone();
            gelu_on(isa, &mut x, None).unwrap();
            x.iter().map(|y| y.to_bits()).collect()
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_oracle_agrees_with_known_values() {
    // x · Φ(x), rounded from a computation with 40 digits.
    #[rustfmt::skip]
    let table = [
        (-12.0, -2.1317785344932147e-32), (-5.0, -1.4332578593959695e-6), (-3.0, -0.0040496940948902835),
        (-1.0, -0.15865525393145705), (-0.5, -0.15426876936299344), (0.0, 0.0), (0.5, 0.34573123063700656),
        (1.0, 0.8413447460685429), (3.0, 2.99595030590511), (5.0, 4.999998566742141),
    ];
    for (x, expected) in table {
        let found = cpu::point(x);
        assert!((found - expected).abs() <= 1e-12 * expected.abs(), "gelu({x}) = {found:e}, not {expected:e}");
    }
    assert_eq!(cpu::point(f64::INFINITY), f64::INFINITY);
    assert_eq!(cpu::point(f64::NEG_INFINITY), 0.0);
    assert!(cpu::point(f64::NAN).is_nan());
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let check = |elements: usize, dim: usize, same: bool| {
        let mut x = vec![9.0; elements];
        let answer = gelu(&mut x, Some(&vec![0.5; dim]));
        assert_eq!(answer, if same { Ok(()) } else { Err(Error::Rows { elements, dim }) });
        assert!(same || x.iter().all(|x| *x == 9.0));
    };
    check(0, 0, true);
    check(0, 3, true);
    check(6, 3, true);
    check(7, 3, false);
    check(2, 3, false);
    check(1, 0, false);
}

proptest! {
    #[test]
    fn any_shape_and_data_agree_with_the_oracle(
        isa in prop::sample::select(crate::launch::available()),
        rows in 0_usize..6,
        bias in prop::collection::vec(-8.0_f32..8.0, 1..200),
        spread in 1e-6_f32..1e3,
        seed: u64,
        fused: bool,
    ) {
        let mut found: Vec<f32> = normal(seed, rows * bias.len()).iter().map(|x| spread * x).collect();
        let mut expected = found.clone();
        let bias = fused.then_some(bias.as_slice());
        gelu_on(isa, &mut found, bias).unwrap();
        cpu::gelu(&mut expected, bias).unwrap();
        prop_assert!(compare(&found, &expected, PROMISED).is_ok(), "{:?}", compare(&found, &expected, PROMISED));
    }
}
