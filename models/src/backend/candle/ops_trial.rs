//! A small calculation by every fused op on a device: a device and a type come in, nothing or what is wrong goes out. The ops run against
//! Candle's own steps in f32 on the CPU. Never a time.

use super::encoder::{Angles, Biases, Norm, Places};
use super::ops::{ActivateOp, AttentionOp, Fused, GluOp, NormOp, Op, PoolOp, RotaryOp};
use super::ops_plain;
use crate::arch::encoder::{Activation, Heads, NormKind, Reach};
use crate::backend::packed::Packed;
use crate::engine::Tokens;
use candle_core::{DType, Device, InplaceOp1, Result, Tensor};
use kernels::attention::Relative;
use kernels::pool::Kind;
use kernels::rotary::Table;

/// Tokens of the sequences: more and fewer than the code takes at a time.
const LENGTHS: [usize; 3] = [5, 1, 70];
/// Elements of a row: more than a SIMD-group has threads, and no multiple of them.
const WIDTH: usize = 76;
/// Elements of a head, for each width that attention is compiled for, or a little less.
const HEADS: [usize; 4] = [32, 56, 128, 256];
/// How far a result may be off, to one of about 1: what rounding makes of sums of some hundred products.
const TOLERANCE_F32: f32 = 1e-3;
const TOLERANCE_F16: f32 = 3e-2;

/// Tries every op in a type.
///
/// # Errors
/// In words, when one fails there or the numbers differ.
pub(super) fn try_ops(device: &Device, dtype: DType) -> std::result::Result<(), String> {
    let fused = Trial { device, dtype, computes_in: dtype, is_fused: true };
    let plain = Trial { device: &Device::Cpu, dtype, computes_in: DType::F32, is_fused: false };
    let found = fused.run().map_err(|error| format!("in {dtype:?}: {error}"))?;
    let expected = plain.run().map_err(|error| format!("on the CPU: {error}"))?;
    let tolerance = if dtype == DType::F32 { TOLERANCE_F32 } else { TOLERANCE_F16 };
    for ((what, found), (_, expected)) in found.iter().zip(&expected) {
        let worst = worst(found, expected).map_err(|error| format!("{what} in {dtype:?}: {error}"))?;
        // NaN is not within it either.
        if !worst.is_some_and(|worst| worst <= tolerance) {
            return Err(format!("{what} in {dtype:?}: a result is off by {worst:?}"));
        }
    }
    Ok(())
}

/// The largest distance of two elements, to their size where that is above 1; `None` where one is no number.
fn worst(found: &Tensor, expected: &Tensor) -> Result<Option<f32>> {
    let values = |of: &Tensor| of.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (found, expected) = (values(found)?, values(expected)?);
    let distance = |(found, expected): (&f32, &f32)| (found - expected).abs() / expected.abs().max(1.0);
    let distances = found.iter().zip(&expected).map(distance);
    let add = |worst: f32, distance: f32| distance.is_finite().then(|| worst.max(distance));
    Ok(distances.into_iter().try_fold(0.0, add).filter(|_| found.len() == expected.len()))
}

/// One way to compute the ops' results.
struct Trial<'a> {
    device: &'a Device,
    /// What inputs are rounded to.
    dtype: DType,
    computes_in: DType,
    /// By the fused forms.
    is_fused: bool,
}

impl Trial<'_> {
    fn tensor(&self, rows: usize, width: usize) -> Result<Tensor> {
        let numbers: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
        let rounded = Tensor::from_vec(numbers, (rows, width), &Device::Cpu)?.to_dtype(self.dtype)?;
        rounded.to_dtype(self.computes_in)?.to_device(self.device)
    }

    fn row(&self, width: usize) -> Result<Tensor> {
        self.tensor(1, width)?.flatten_all()
    }

    fn table(&self, values: &[f32], width: usize) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / width, width), self.device)
    }

    /// By the fused form, or by what it is held against.
    fn by<O: Op>(&self, x: &Tensor, op: O, plain: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if self.is_fused { x.apply_op1_no_bwd(&Fused(op)) } else { plain() }
    }

    fn in_place<O: InplaceOp1>(&self, x: &Tensor, op: O, plain: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if !self.is_fused {
            return plain();
        }
        let x = x.copy()?;
        x.inplace_op1(&op)?;
        Ok(x)
    }

    /// Every op's result, with its name.
    fn run(&self) -> Result<Vec<(String, Tensor)>> {
        let places = self.places()?;
        let rows = places.packed.positions.len();
        let x = self.tensor(rows, WIDTH)?;
        let mut results = vec![];
        let mut add = |what: &str, result: Tensor| results.push((what.to_owned(), result));

        for (kind, name) in [(NormKind::Layer, "layer_norm"), (NormKind::Rms, "rms_norm")] {
            let norm = Norm { kind, weight: self.row(WIDTH)?, bias: self.row(WIDTH)?, epsilon: 1e-5 };
            for residual in [None, Some(&x)] {
                let op = NormOp { shift: None, residual, norm: &norm };
                add(name, self.by(&x, op, || ops_plain::norm(&x, residual, &norm))?);
            }
        }

        let bias = self.row(WIDTH)?;
        let op = ActivateOp { bias: Some(&bias), activation: Activation::Gelu, width: WIDTH };
        add("gelu", self.in_place(&x, op, || x.broadcast_add(&bias)?.gelu_erf())?);

        use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
        for activation in [Gelu, GeluTanh, Silu, Relu, Tanh] {
            add("glu", self.by(&x, GluOp { activation }, || ops_plain::glu(&x, activation))?);
        }

        for kind in [Kind::Mean, Kind::Cls, Kind::Last] {
            let op = PoolOp { places: &places, kind };
            add("pool", self.by(&x, op, || ops_plain::pool(&x, &places, kind))?);
        }

        let table = Table::plain(rows, 12, 10_000.0);
        let angles = Angles { cos: self.table(table.cos(), 6)?, sin: self.table(table.sin(), 6)?, table };
        let op = RotaryOp { width: 60, stride: WIDTH, places: &places, angles: &angles };
        add("rotary", self.in_place(&x, op, || ops_plain::rotary(&x, 60, &places.positions, &angles))?);

        let slope = |head: usize, distance: isize| (head as f32 + 1.0) * 0.1 * distance as f32 / rows as f32;
        let relative = Relative::new(4, rows, slope);
        let biases = Biases { table: self.table(relative.table(), 2 * rows + 1)?, relative };
        for dim in HEADS {
            let heads = Heads { queries: 4, keys: 2, dim, scale: 1.0 / (dim as f32).sqrt() };
            let qkv = self.tensor(rows, heads.width())?;
            for (reach, bias) in [(Reach::ALL, None), (Reach { behind: 30, ahead: 0 }, Some(&biases))] {
                let op = AttentionOp { shift: None, places: &places, heads: &heads, reach, bias };
                let plain = || ops_plain::attention(&qkv, &places, &heads, reach, bias);
                add(&format!("attention of heads of {dim}"), self.by(&qkv, op, plain)?);
            }
        }
        Ok(results)
    }

    fn places(&self) -> Result<Places> {
        let sequences = LENGTHS.map(|length| Tokens { ids: vec![1; length], type_ids: vec![] });
        let packed = Packed::new(&sequences.iter().collect::<Vec<_>>(), 0);
        let on_device = |numbers: &[u32]| Tensor::from_slice(numbers, numbers.len(), self.device);
        Ok(Places { cu_seqlens: on_device(&packed.cu_seqlens)?, positions: on_device(&packed.positions)?, packed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_passes_where_the_ops_are_right() {
        assert_eq!(try_ops(&Device::Cpu, DType::F32), Ok(()));
        match Device::new_cuda(0) {
            Ok(device) if cfg!(feature = "cuda") => assert_eq!(try_ops(&device, DType::F16), Ok(())),
            _ => println!("skipped: CUDA: this build or this machine has none"),
        }
        match Device::new_metal(0) {
            Ok(device) if cfg!(feature = "metal") => assert_eq!(try_ops(&device, DType::F16), Ok(())),
            _ => println!("skipped: Metal: this build or this machine has none"),
        }
    }

    #[test]
    fn what_fails_or_is_far_off_or_no_number_does_not_pass() {
        // The vector code is for f32.
        assert!(try_ops(&Device::Cpu, DType::F16).unwrap_err().contains("F16"));
        let of = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let check = |found: &[f32], want| assert_eq!(worst(&of(found), &of(&[1.0, -10.0])).unwrap(), want);
        check(&[1.0, -10.0], Some(0.0));
        check(&[1.5, -10.0], Some(0.5));
        check(&[1.0, -15.0], Some(0.5));
        check(&[f32::NAN, -10.0], None);
        check(&[1.0, f32::INFINITY], None);
        check(&[1.0], None);
    }
}
