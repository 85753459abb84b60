//! The suite that every op goes through: shapes, data and tolerances come out of it, differences are found by it. Never
//! here: an op; each op's `tests.rs` brings its own call and its oracle.

use crate::launch::{self, Isa};

/// Row lengths: one, odd ones, one beside each vector width, and those of real models.
pub const DIMS: &[usize] = &[1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 384, 385, 768, 1024];

/// Numbers of rows, none among them.
pub const ROWS: &[usize] = &[0, 1, 2, 3, 4, 5, 7, 17];

/// How far a result may be from the oracle: `|found − expected| ≤ absolute + relative · |expected|`. Where NaN or an infinity
/// is expected, that is what must be found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// In units of the values.
    pub absolute: f32,
    /// In units of the expected value.
    pub relative: f32,
}

impl Tolerance {
    /// For f32 with f32 sums: some tens of units in the last place at 1.
    pub const F32: Self = Self { absolute: 4e-6, relative: 4e-6 };
    /// For f16 with f32 sums: two units in the last place at 1 (2⁻¹⁰ each).
    pub const F16: Self = Self { absolute: 2e-3, relative: 2e-3 };
    /// For bf16 with f32 sums: two units in the last place at 1 (2⁻⁷ each).
    pub const BF16: Self = Self { absolute: 1.6e-2, relative: 1.6e-2 };

    /// The same with the absolute part for values that are `scale` large.
    pub fn at_scale(self, scale: f32) -> Self {
        Self { absolute: self.absolute * scale, ..self }
    }
}

/// Where a result is too far from the oracle's.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Difference {
    /// The lengths are not the same.
    #[error("{found} elements where the oracle has {expected}")]
    Length {
        /// How many were found.
        found: usize,
        /// How many the oracle has.
        expected: usize,
    },
    /// An element is too far off.
    #[error("element {index} is {found:e}, the oracle has {expected:e}; {tolerance:?} allows less")]
    Element {
        /// Which one.
        index: usize,
        /// What was found.
        found: f32,
        /// What the oracle has.
        expected: f32,
        /// What would have been allowed.
        tolerance: Tolerance,
    },
}

/// Compares a result with the oracle's. Gives the largest difference of the finite elements.
///
/// # Errors
/// [`Difference`]: the first element that is too far off.
pub fn compare(found: &[f32], expected: &[f32], tolerance: Tolerance) -> Result<f32, Difference> {
    if found.len() != expected.len() {
        return Err(Difference::Length { found: found.len(), expected: expected.len() });
    }
    let mut largest = 0.0_f32;
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let same = if expected.is_nan() {
            found.is_nan()
        } else if expected.is_infinite() {
            found == expected
        } else {
            // In f64, so that the difference of two large values is finite.
            let difference = (f64::from(found) - f64::from(expected)).abs();
            largest = largest.max(difference as f32);
            difference <= f64::from(tolerance.absolute) + f64::from(tolerance.relative) * f64::from(expected).abs()
        };
        if !same {
            return Err(Difference::Element { index, found, expected, tolerance });
        }
    }
    Ok(largest)
}

/// Numbers that are the same on every machine for the same seed: splitmix64.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 even bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u32 << 24) as f32
    }

    /// Nearly normal, mean 0, deviation 1: the sum of twelve even numbers.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// `n` nearly normal numbers, mean 0, deviation 1.
pub fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    (0..n).map(|_| numbers.normal()).collect()
}

/// Kinds of data that ops are tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Mean 0, deviation 1.
    Normal,
    /// Mean 1000, deviation 1: sums lose digits.
    Offset,
    /// All the same: no variance.
    Constant,
    /// All zero.
    Zero,
    /// Around 1e-40: denormal, and squares vanish.
    Denormal,
    /// Around 1e30: squares overflow.
    Large,
    /// The largest finite numbers: sums overflow.
    Largest,
    /// Normal with some NaN.
    Nan,
    /// Normal with some infinities of both signs.
    Infinite,
}

impl Fill {
    /// All of them.
    pub const ALL: &[Fill] = &[
        Fill::Normal,
        Fill::Offset,
        Fill::Constant,
        Fill::Zero,
        Fill::Denormal,
        Fill::Large,
        Fill::Largest,
        Fill::Nan,
        Fill::Infinite,
    ];

    /// `n` numbers of this kind, the same ones for the same seed.
    pub fn numbers(self, seed: u64, n: usize) -> Vec<f32> {
        let mut numbers = Numbers::new(seed);
        let mut one = || {
            let x = numbers.normal();
            let rare = numbers.unit() < 0.02;
            match self {
                Fill::Normal => x,
                Fill::Offset => 1000.0 + x,
                Fill::Constant => 0.7,
                Fill::Zero => 0.0,
                Fill::Denormal => x * 1e-40,
                Fill::Large => x * 1e30,
                Fill::Largest => f32::MAX.copysign(x),
                Fill::Nan if rare => f32::NAN,
                Fill::Infinite if rare => f32::INFINITY.copysign(x),
                Fill::Nan | Fill::Infinite => x,
            }
        };
        (0..n).map(|_| one()).collect()
    }
}

/// The instruction sets that this machine can be tested on; says which ones it cannot be.
pub fn isas_aloud() -> Vec<Isa> {
    #[expect(clippy::print_stderr, reason = "what is not tested is said")]
    for missing in Isa::ALL.iter().filter(|isa| !isa.is_available()) {
        eprintln!("skipped: {missing}, which this CPU has not");
    }
    launch::available().to_vec()
}

/// One call of an op in the suite.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it runs on.
    pub isa: Isa,
    /// Rows of the input.
    pub rows: usize,
    /// Elements of a row.
    pub dim: usize,
    /// The input's data.
    pub fill: Fill,
}

/// A result, the oracle's, and how far apart they may be.
pub struct Outcome {
    /// What the op gave.
    pub found: Vec<f32>,
    /// What the oracle gave.
    pub expected: Vec<f32>,
    /// How far apart they may be.
    pub tolerance: Tolerance,
}

/// Puts an op through every available instruction set, shape and kind of data.
///
/// # Panics
/// With the first case in which the op and its oracle differ.
pub fn suite(op: impl Fn(Case) -> Outcome) {
    for isa in isas_aloud() {
        for &rows in ROWS {
            for &dim in DIMS {
                for &fill in Fill::ALL {
                    let case = Case { isa, rows, dim, fill };
                    let outcome = op(case);
                    if let Err(difference) = compare(&outcome.found, &outcome.expected, outcome.tolerance) {
                        panic!("{case:?}: {difference}");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0 };

    #[test]
    fn a_comparison_finds_what_differs() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let check = |found: &[f32], expected: &[f32], same: bool| {
            assert_eq!(compare(found, expected, EXACT).is_ok(), same, "{found:?} and {expected:?}");
        };
        check(&[1.0, nan, inf], &[1.0, nan, inf], true);
        check(&[0.0], &[-0.0], true);
        check(&[1.0], &[1.0, 2.0], false);
        check(&[1.0], &[1.0 + f32::EPSILON], false);
        check(&[nan], &[1.0], false);
        check(&[1.0], &[nan], false);
        check(&[inf], &[1.0], false);
        check(&[1.0], &[inf], false);
        check(&[-inf], &[inf], false);
        check(&[-f32::MAX], &[f32::MAX], false);
    }

    #[test]
    fn a_tolerance_is_kept_to() {
        let within = Tolerance { absolute: 0.5, relative: 0.25 };
        assert!(compare(&[4.0], &[2.0], within).is_err());
        assert_eq!(compare(&[3.0], &[2.0], within), Ok(1.0));
    }

    #[test]
    #[should_panic(expected = "element 0 is 1e0, the oracle has 0e0")]
    fn the_suite_fails_when_an_op_is_wrong() {
        suite(|case| Outcome {
            found: vec![1.0; case.rows],
            expected: vec![0.0; case.rows],
            tolerance: Tolerance::F32,
        });
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1_and_are_the_same_each_time() {
        let numbers = normal(7, 100_000);
        let mean = numbers.iter().sum::<f32>() / 1e5;
        let var = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
        assert_eq!(numbers[..10], normal(7, 10));
        assert_ne!(numbers[..10], normal(8, 10));
    }

    #[test]
    fn every_kind_of_data_is_what_it_says() {
        for fill in Fill::ALL {
            let numbers = fill.numbers(3, 1000);
            assert_eq!(numbers.iter().any(|x| x.is_nan()), *fill == Fill::Nan, "{fill:?}");
            assert_eq!(numbers.iter().any(|x| x.is_infinite()), *fill == Fill::Infinite, "{fill:?}");
            assert_eq!(numbers.iter().any(|x| x.is_subnormal()), *fill == Fill::Denormal, "{fill:?}");
        }
    }
}
