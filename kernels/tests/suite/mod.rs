//! What every form of an op for GPUs goes through: shapes and data come out of it, what a backend makes of them is held against the
//! op's oracle. Never here: a backend.

#![allow(dead_code, reason = "not every backend has every type and op")]

use half::{bf16, f16};
use kernels::linear::Activation;
use kernels::testing::{Fill, Tolerance, compare, normal};
use kernels::{gelu, glu, layer_norm, pool, rms_norm, rotary};

pub(crate) mod attention;
pub(crate) mod attention_paged;
pub(crate) mod sample;

/// A type that a backend computes with.
pub(crate) struct Type {
    /// What the names of its functions end with.
    pub(crate) ending: &'static str,
    /// To the nearest number of the type.
    pub(crate) round: fn(f32) -> f32,
    /// How far a result of the type may be off.
    pub(crate) tolerance: Tolerance,
}

/// 32 bits.
pub(crate) const F32: Type = Type { ending: "f32", round: |x| x, tolerance: Tolerance::F32 };
/// 16 bits, IEEE 754.
pub(crate) const F16: Type = Type { ending: "f16", round: |x| f16::from_f32(x).to_f32(), tolerance: Tolerance::F16 };
/// The upper half of 32.
pub(crate) const BF16: Type =
    Type { ending: "bf16", round: |x| bf16::from_f32(x).to_f32(), tolerance: Tolerance::BF16 };

impl Type {
    fn rounded(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|x| (self.round)(*x)).collect()
    }
}

/// A function's name, a scalar, whole numbers and arrays; what goes where is said at each op. `None` where the machine cannot.
pub(crate) type Run = fn(&str, f32, &[usize], &[&[f32]]) -> Option<Vec<f32>>;

/// Forms of the ops in one language.
pub(crate) struct Backend {
    /// The types that it computes with.
    pub(crate) types: &'static [Type],
    /// The data that it must agree on.
    pub(crate) fills: &'static [Fill],
    /// How it is called.
    pub(crate) run: Run,
}

const EPS: f32 = 1e-5;

impl Backend {
    /// Tries each type on each kind of data. `call` gets the type and the data, and gives what was found and what is expected.
    fn on_every_type_and_fill(
        &self,
        what: &str,
        n: usize,
        call: impl Fn(&Type, &[f32]) -> Option<(Vec<f32>, Vec<f32>, Tolerance)>,
    ) {
        for of in self.types {
            for fill in self.fills {
                let x = of.rounded(&fill.numbers(1, n));
                let Some((found, expected, tolerance)) = call(of, &x) else { return };
                let compared = compare(&found, &expected, tolerance);
                assert!(compared.is_ok(), "{what} in {}, {n} elements, {fill:?}: {compared:?}", of.ending);
            }
        }
    }

    /// Numbers: rows, dim, whether there is a bias. Arrays: x, bias. Gives x.
    pub(crate) fn gelu(&self) {
        for (rows, dim, fused) in [(1, 1, false), (5, 31, true), (3, 257, true), (3, 300, false), (3, 1032, true)] {
            self.on_every_type_and_fill("gelu", rows * dim, |of, x| {
                let bias = of.rounded(&normal(3, dim));
                let bias = if fused { bias.as_slice() } else { &[] };
                let found =
                    (self.run)(&format!("gelu_{}", of.ending), 0.0, &[rows, dim, usize::from(fused)], &[x, bias])?;
                // The sum is rounded to the type; the oracle knows f32 only, so it gets the rounded sum.
                let mut expected = sums(of, x, bias);
                gelu::cpu::gelu(&mut expected, None).unwrap();
                Some((found, expected, of.tolerance))
            });
        }
    }

    /// What is behind a product. Numbers: rows, dim, whether there is a bias, activation. Arrays: x, bias. Gives the result.
    pub(crate) fn linear(&self) {
        for (rows, dim, fused, activation) in [
            (1, 1, false, Activation::Gelu),
            (5, 31, true, Activation::None),
            (3, 257, true, Activation::Gelu),
            (3, 300, false, Activation::GeluTanh),
            (2, 33, true, Activation::Silu),
            (2, 64, true, Activation::Relu),
            (2, 40, true, Activation::Tanh),
            (3, 1032, true, Activation::Gelu),
        ] {
            self.on_every_type_and_fill("linear", rows * dim, |of, x| {
                if x.iter().any(|x| x.is_infinite()) && matches!(activation, Activation::GeluTanh | Activation::Silu) {
                    // Minus infinity gives NaN or 0; neither is of use to anybody.
                    return Some((vec![], vec![], of.tolerance));
                }
                let bias = of.rounded(&normal(3, dim));
                let bias = if fused { bias.as_slice() } else { &[] };
                let numbers = [rows, dim, usize::from(fused), activation as usize];
                let found = (self.run)(&format!("linear_{}", of.ending), 0.0, &numbers, &[x, bias])?;
                // A gated unit whose other half is ones. The sum is rounded to the type; the oracle knows f32 only, so it gets the rounded sum.
                let sums = sums(of, x, bias);
                let gated: Vec<f32> = sums.iter().flat_map(|x| [*x, 1.0]).collect();
                let mut expected = vec![0.0; rows * dim];
                glu::cpu::glu(&gated, 1, activation, &mut expected).unwrap();
                Some((found, expected, of.tolerance))
            });
        }
    }

    /// Norms of rows that something is added to, as a product's bias is. Otherwise as [`Backend::layer_norm`] and [`Backend::rms_norm`].
    pub(crate) fn norms_behind_a_bias(&self) {
        for (rows, dim) in [(5, 31), (3, 264)] {
            let shift = normal(6, dim);
            let (residual, weight, bias) = (normal(2, rows * dim), weight(dim), normal(4, dim));
            self.on_every_type_and_fill("layer_norm behind a bias", rows * dim, |of, x| {
                let [shift, residual, weight, bias] =
                    [&shift, &residual, &weight, &bias].map(|values| of.rounded(values));
                let function = format!("layer_norm_{}", of.ending);
                let found = (self.run)(&function, EPS, &[rows, dim, 1, 1], &[x, &residual, &shift, &weight, &bias])?;
                let sum = sums(of, &sums(of, x, &shift), &residual);
                let mut expected = vec![0.0; rows * dim];
                let params = layer_norm::Params { weight: &weight, bias: &bias, eps: EPS };
                layer_norm::cpu::layer_norm(&sum, None, &params, &mut expected).unwrap();
                Some((found, expected, of.tolerance))
            });
            self.on_every_type_and_fill("rms_norm behind a bias", rows * dim, |of, x| {
                let [shift, residual, weight] = [&shift, &residual, &weight].map(|values| of.rounded(values));
                let function = format!("rms_norm_{}", of.ending);
                let found = (self.run)(&function, EPS, &[rows, dim, 1, 1], &[x, &residual, &shift, &weight])?;
                let sum = sums(of, &sums(of, x, &shift), &residual);
                let mut expected = sum.clone();
                rms_norm::cpu::rms_norm(&mut expected, &rms_norm::Params { weight: &weight, eps: EPS }).unwrap();
                expected.extend(sum);
                Some((found, expected, of.tolerance))
            });
        }
    }

    /// Numbers: rows, dim, activation. Arrays: x. Gives the result.
    pub(crate) fn glu(&self) {
        for (rows, dim, activation) in [
            (1, 1, Activation::None),
            (5, 31, Activation::Gelu),
            (3, 257, Activation::GeluTanh),
            (2, 300, Activation::Silu),
            (4, 33, Activation::Relu),
            (3, 64, Activation::Tanh),
            (3, 1032, Activation::Gelu),
        ] {
            self.on_every_type_and_fill("glu", 2 * rows * dim, |of, x| {
                if x.iter().any(|x| x.is_infinite()) {
                    // An infinite negative gate gives NaN or 0; neither is of use to anybody.
                    return Some((vec![], vec![], of.tolerance));
                }
                let found = (self.run)(&format!("glu_{}", of.ending), 0.0, &[rows, dim, activation as usize], &[x])?;
                let mut expected = vec![0.0; rows * dim];
                glu::cpu::glu(x, dim, activation, &mut expected).unwrap();
                Some((found, of.rounded(&expected), of.tolerance))
            });
        }
    }

    /// Scalar: eps. Numbers: rows, dim, whether there is a residual. Arrays: x, residual, weight, bias. Gives the result.
    pub(crate) fn layer_norm(&self) {
        for (rows, dim, fused) in NORMS {
            self.on_every_type_and_fill("layer_norm", rows * dim, |of, x| {
                let residual = of.rounded(&normal(2, rows * dim));
                let residual = if fused { residual.as_slice() } else { &[] };
                let weight = of.rounded(&weight(dim));
                let bias = of.rounded(&normal(4, dim));
                let function = format!("layer_norm_{}", of.ending);
                let numbers = [rows, dim, usize::from(fused)];
                let found = (self.run)(&function, EPS, &numbers, &[x, residual, &weight, &bias])?;
                let mut expected = vec![0.0; rows * dim];
                let params = layer_norm::Params { weight: &weight, bias: &bias, eps: EPS };
                layer_norm::cpu::layer_norm(&sums(of, x, residual), None, &params, &mut expected).unwrap();
                Some((found, expected, of.tolerance))
            });
        }
    }

    /// Scalar: eps. Numbers: tokens, dim, how many tables, rows of each, whether it is normalised, which rows of each. Arrays: tables, weight and bias.
    /// Gives the sums.
    pub(crate) fn embed(&self) {
        for (tokens, dim, terms, normed) in [
            (1, 1, 1, false),
            (5, 31, 3, true),
            (6, 385, 2, true),
            (9, 40, 1, true),
            (7, 264, 3, false),
            (5, 520, 3, true),
        ] {
            let rows = 4;
            self.on_every_type_and_fill("embed", rows * dim, |of, first| {
                let others: Vec<Vec<f32>> =
                    (1..terms).map(|seed| of.rounded(&normal(seed as u64, rows * dim))).collect();
                let tables: Vec<&[f32]> = std::iter::once(first).chain(others.iter().map(Vec::as_slice)).collect();
                let indices = |term: usize| (0..tokens).map(move |token| (token * (term + 2) + 1) % rows);
                let (weight, bias) = (of.rounded(&weight(dim)), of.rounded(&normal(4, dim)));
                let mut numbers = vec![tokens, dim, terms, rows, usize::from(normed)];
                numbers.extend((0..terms).flat_map(indices));
                let mut arrays = tables.clone();
                arrays.extend(normed.then_some([weight.as_slice(), &bias]).into_iter().flatten());
                let found = (self.run)(&format!("embed_{}", of.ending), EPS, &numbers, &arrays)?;
                // One table after the other, each sum rounded.
                let taken = |term: usize| -> Vec<f32> {
                    indices(term).flat_map(|row| tables[term][row * dim..(row + 1) * dim].to_vec()).collect()
                };
                let sum = (1..terms).fold(taken(0), |sum, term| sums(of, &sum, &taken(term)));
                let mut expected = sum.clone();
                if normed {
                    let params = layer_norm::Params { weight: &weight, bias: &bias, eps: EPS };
                    layer_norm::cpu::layer_norm(&sum, None, &params, &mut expected).unwrap();
                }
                Some((found, expected, of.tolerance))
            });
        }
    }

    /// Scalar: eps. Numbers: rows, dim, whether there is a residual. Arrays: x, residual, weight. Gives the result, and with a residual the
    /// sums behind it.
    pub(crate) fn rms_norm(&self) {
        for (rows, dim, fused) in NORMS {
            self.on_every_type_and_fill("rms_norm", rows * dim, |of, x| {
                let residual = of.rounded(&normal(2, rows * dim));
                let residual = if fused { residual.as_slice() } else { &[] };
                let weight = of.rounded(&weight(dim));
                let numbers = [rows, dim, usize::from(fused)];
                let found = (self.run)(&format!("rms_norm_{}", of.ending), EPS, &numbers, &[x, residual, &weight])?;
                let sums = sums(of, x, residual);
                let mut expected = sums.clone();
                rms_norm::cpu::rms_norm(&mut expected, &rms_norm::Params { weight: &weight, eps: EPS }).unwrap();
                if fused {
                    expected.extend(sums);
                }
                Some((found, expected, of.tolerance))
            });
        }
    }

    /// Numbers: dim, kind, whether to normalise, cu_seqlens. Arrays: x. Gives the result, which is f32.
    pub(crate) fn pool(&self) {
        use pool::{Kind, Norm};
        for (cu_seqlens, dim, kind, norm) in [
            (&[0, 1][..], 1, Kind::Mean, Norm::L2),
            (&[0, 1, 8, 40], 33, Kind::Mean, Norm::None),
            (&[0, 9, 10], 300, Kind::Mean, Norm::L2),
            (&[0, 1, 8, 40], 33, Kind::Cls, Norm::None),
            (&[0, 9, 10], 300, Kind::Cls, Norm::L2),
            (&[0, 1, 8, 40], 33, Kind::Last, Norm::L2),
            (&[0, 9, 10], 300, Kind::Last, Norm::None),
            (&[0, 3, 90], 520, Kind::Mean, Norm::L2),
        ] {
            let (sequences, tokens) = (cu_seqlens.len() - 1, cu_seqlens[cu_seqlens.len() - 1] as usize);
            self.on_every_type_and_fill("pool", tokens * dim, |of, x| {
                let mut numbers = vec![dim, kind as usize, usize::from(norm == Norm::L2)];
                numbers.extend(cu_seqlens.iter().map(|at| *at as usize));
                let found = (self.run)(&format!("pool_{}", of.ending), 0.0, &numbers, &[x])?;
                let mut expected = vec![0.0; sequences * dim];
                pool::cpu::pool(x, &pool::Params { cu_seqlens, dim, kind, norm }, &mut expected).unwrap();
                Some((found, expected, Tolerance::F32))
            });
        }
    }

    /// Numbers: stride, width, half a head's elements, positions in the tables, each row's position. Arrays: x, cos, sin. Gives x.
    pub(crate) fn rotary(&self) {
        for (head_dim, heads, behind, positions) in [
            (2, 1, 0, &[0][..]),
            (64, 3, 0, &[0, 1, 2, 40]),
            (24, 2, 5, &[49, 3, 0]),
            (128, 5, 128, &[7, 30, 31, 32, 49]),
        ] {
            let (width, stride) = (heads * head_dim, heads * head_dim + behind);
            let table = rotary::Table::plain(50, head_dim, 10_000.0);
            self.on_every_type_and_fill("rotary", positions.len() * stride, |of, x| {
                let mut numbers = vec![stride, width, head_dim / 2, 50];
                numbers.extend(positions.iter().map(|at| *at as usize));
                let function = format!("rotary_{}", of.ending);
                let found = (self.run)(&function, 0.0, &numbers, &[x, table.cos(), table.sin()])?;
                let mut expected = x.to_vec();
                rotary::cpu::rotary(&mut expected, stride, width, positions, &table).unwrap();
                // Two products that may cancel.
                let largest = x.iter().copied().filter(|x| x.is_finite()).fold(1.0, f32::max);
                Some((found, expected, of.tolerance.at_scale(largest)))
            });
        }
    }
}

/// Rows, numbers of each, whether something is added before.
const NORMS: [(usize, usize, bool); 6] =
    [(1, 1, false), (5, 31, true), (4, 33, false), (6, 385, true), (3, 385, false), (5, 776, true)];

/// `x + other`, rounded to the type; `other` is added row by row if it is shorter, and not at all if it is empty.
fn sums(of: &Type, x: &[f32], other: &[f32]) -> Vec<f32> {
    if other.is_empty() {
        return x.to_vec();
    }
    x.iter().zip(other.iter().cycle()).map(|(x, other)| (of.round)(x + other)).collect()
}

/// Around 1, as a trained norm's is.
fn weight(dim: usize) -> Vec<f32> {
    normal(3, dim).iter().map(|w| 1.0 + 0.1 * w).collect()
}
