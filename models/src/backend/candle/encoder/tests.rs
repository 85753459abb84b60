//! The fused ops against Candle's own steps, which take no part in one another: a mistake in either shows. On the CPU, and on the
//! first CUDA device and the first Metal device where this build and this machine have one.

use super::*;
use crate::arch::encoder::{Heads, Reach};
use crate::backend::candle::ops_plain;
use kernels::pool::Kind;

/// Where the ops run.
fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    match Device::new_cuda(0) {
        Ok(device) if cfg!(feature = "cuda") => devices.push(device),
        _ => println!("skipped: CUDA: this build or this machine has none"),
    }
    match Device::new_metal(0) {
        Ok(device) if cfg!(feature = "metal") => devices.push(device),
        _ => println!("skipped: Metal: this build or this machine has none"),
    }
    devices
}

/// Numbers around zero that depend on the seed.
fn values(device: &Device, seed: usize, rows: usize, width: usize) -> Tensor {
    let value = |i: usize| (((i * 7919 + seed * 104_729) % 199) as f32 - 99.0) / 66.0;
    Tensor::from_vec((0..rows * width).map(value).collect::<Vec<_>>(), (rows, width), device).unwrap()
}

fn row(device: &Device, seed: usize, width: usize) -> Tensor {
    values(device, seed, 1, width).flatten_all().unwrap()
}

fn close(fused: &Tensor, plain: &Tensor, tolerance: f32) {
    assert_eq!(fused.dims(), plain.dims());
    let difference = (fused - plain).unwrap().abs().unwrap().flatten_all().unwrap();
    let worst: f32 = difference.max(0).unwrap().to_scalar().unwrap();
    assert!(worst <= tolerance, "off by {worst}");
}

/// Sequences of these lengths.
fn places(device: &Device, lengths: &[usize]) -> Places {
    let sequence = |length: &usize| Tokens { ids: vec![1; *length], type_ids: vec![] };
    let sequences: Vec<Tokens> = lengths.iter().map(sequence).collect();
    let packed = Packed::new(&sequences.iter().collect::<Vec<_>>(), 0);
    let on_device = |numbers: &[u32]| Tensor::from_slice(numbers, numbers.len(), device).unwrap();
    Places { cu_seqlens: on_device(&packed.cu_seqlens), positions: on_device(&packed.positions), packed }
}

#[test]
fn norms_agree() {
    for device in &devices() {
        for (kind, rows, width) in [(NormKind::Layer, 70, 33), (NormKind::Rms, 70, 33), (NormKind::Layer, 1, 4)] {
            let norm = Norm { kind, weight: row(device, 1, width), bias: row(device, 2, width), epsilon: 1e-5 };
            let (x, residual) = (values(device, 3, rows, width), values(device, 4, rows, width));
            assert!(ops::is_fused(&x));
            let shift = row(device, 5, width);
            for (shift, residual) in
                [(None, None), (None, Some(&residual)), (Some(&shift), None), (Some(&shift), Some(&residual))]
            {
                let plain = ops_plain::norm(&ops_plain::add(&x, shift).unwrap(), residual, &norm).unwrap();
                close(&ops::norm(&x, shift, residual, &norm).unwrap(), &plain, 2e-5);
            }
        }
    }
}

#[test]
fn activations_and_gates_agree() {
    for device in &devices() {
        use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
        let (x, bias) = (values(device, 1, 40, 66), row(device, 2, 66));
        for activation in [Activation::None, Gelu, GeluTanh, Silu, Relu, Tanh] {
            for bias in [None, Some(&bias)] {
                let plain = ops_plain::activate(&ops_plain::add(&x, bias).unwrap(), activation).unwrap();
                close(&ops::activate(x.copy().unwrap(), bias, activation).unwrap(), &plain, 2e-6);
            }
            close(&ops::glu(&x, activation).unwrap(), &ops_plain::glu(&x, activation).unwrap(), 5e-6);
        }
    }
}

#[test]
fn positions_agree() {
    for device in &devices() {
        let places = places(device, &[5, 1, 40]);
        let table = Table::plain(64, 8, 10_000.0);
        let on_device = |values: &[f32]| Tensor::from_slice(values, (64, 4), device).unwrap();
        let angles = Angles { cos: on_device(table.cos()), sin: on_device(table.sin()), table };
        let x = values(device, 1, 46, 40);
        let plain = ops_plain::rotary(&x, 24, &places.positions, &angles).unwrap();
        let turned = ops::rotary(x.copy().unwrap(), 24, &places, &angles).unwrap();
        close(&turned, &plain, 1e-6);
        close(&turned.narrow(1, 24, 16).unwrap(), &x.narrow(1, 24, 16).unwrap(), 0.0);
    }
}

#[test]
fn attention_agrees() {
    for device in &devices() {
        let places = places(device, &[5, 1, 33, 2]);
        for (queries, keys) in [(4, 4), (4, 2), (3, 1)] {
            let heads = Heads { queries, keys, dim: 8, scale: 0.35 };
            let qkv = values(device, 1, 41, heads.width());
            let shift = row(device, 2, heads.width());
            let relative =
                Relative::new(queries, 40, |head, distance| (head as f32 + 1.0) * 0.1 * distance as f32 / 9.0);
            let table = Tensor::from_slice(relative.table(), (queries, 81), device).unwrap();
            let biases = Biases { relative, table };
            for reach in [Reach::ALL, Reach::CAUSAL, Reach { behind: 3, ahead: 2 }] {
                for (shift, bias) in
                    [(None, None), (None, Some(&biases)), (Some(&shift), None), (Some(&shift), Some(&biases))]
                {
                    let fused = ops::attention(&qkv, shift, &places, &heads, reach, bias).unwrap();
                    let sum = ops_plain::add(&qkv, shift).unwrap();
                    let plain = ops_plain::attention(&sum, &places, &heads, reach, bias).unwrap();
                    close(&fused, &plain, 5e-6);
                }
            }
        }
    }
}

#[test]
fn pooling_agrees() {
    for device in &devices() {
        let places = places(device, &[3, 1, 50]);
        let x = values(device, 1, 54, 20);
        for kind in [Kind::Mean, Kind::Cls, Kind::Last] {
            close(&ops::pool(&x, &places, kind).unwrap(), &ops_plain::pool(&x, &places, kind).unwrap(), 2e-6);
        }
    }
}
