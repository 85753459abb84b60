//! Times layer normalisation with the residual addition in front of it, as a BERT layer does it twice. Shapes come in, a
//! table goes out.

#![forbid(unsafe_code)]

use benches::op::{Bench, ROWS, Work, assert_parity, ours};
use candle_core::{Device, Tensor};
use kernels::launch::{self, Isa};
use kernels::layer_norm::{Params, cpu, layer_norm};
use kernels::testing::{Tolerance, normal};

const EPS: f32 = 1e-12;

fn main() {
    let mut bench = Bench::start("layer_norm");
    for dim in [384, 768, 1024] {
        for &rows in ROWS {
            shape(&mut bench, rows, dim, true);
        }
    }
    let beyond = bench.rows_beyond_cache(12 * 768);
    shape(&mut bench, beyond, 768, false);
    bench.finish();
}

fn shape(bench: &mut Bench, rows: usize, dim: usize, with_oracle: bool) {
    let n = rows * dim;
    let (x, residual) = (normal(1, n), normal(2, n));
    let weight: Vec<f32> = normal(3, dim).iter().map(|w| 1.0 + 0.1 * w).collect();
    let bias = normal(4, dim);
    let params = Params { weight: &weight, bias: &bias, eps: EPS };
    let mut out = vec![0.0; n];
    let work = Work {
        shape: format!("{rows}x{dim}"),
        // Residual 1, mean 1, deviations 4, scaling 5.
        flops: 11 * n as u64,
        // x and residual read, out written, weight and bias read.
        bytes: 4 * (3 * n + 2 * dim) as u64,
        working_set: 4 * (3 * n + 2 * dim),
    };

    // The rows are independent: the first ones and the last ones speak for all.
    let some = rows.min(64) * dim;
    let parts = [0..some, n - some..n];
    let expected = parts.clone().map(|part| {
        let mut expected = vec![0.0; some];
        cpu::layer_norm(&x[part.clone()], Some(&residual[part]), &params, &mut expected).expect("the lengths fit");
        expected
    });
    let check = |who: &str, found: &[f32]| {
        for (part, expected) in parts.iter().zip(&expected) {
            assert_parity(who, &found[part.clone()], expected, Tolerance::F32);
        }
    };

    for isa in [launch::detect(), Isa::Scalar] {
        launch::force(Some(isa)).expect("it was detected");
        layer_norm(&x, Some(&residual), &params, &mut out).expect("the lengths fit");
        check(isa.name(), &out);
        bench.time(&work, &ours(isa), || layer_norm(&x, Some(&residual), &params, &mut out).expect("the lengths fit"));
    }
    launch::force(None).expect("the best is there");
    if with_oracle {
        bench.time(&work, "oracle", || {
            cpu::layer_norm(&x, Some(&residual), &params, &mut out).expect("the lengths fit");
        });
    }

    let tensor =
        |data: &[f32], shape: &[usize]| Tensor::from_slice(data, shape, &Device::Cpu).expect("the lengths fit");
    let (x, residual) = (tensor(&x, &[rows, dim]), tensor(&residual, &[rows, dim]));
    let (weight, bias) = (tensor(&weight, &[dim]), tensor(&bias, &[dim]));
    let candle = || {
        let sum = (&x + &residual).expect("the shapes fit");
        candle_nn::ops::layer_norm(&sum, &weight, &bias, EPS).expect("the shapes fit")
    };
    // Candle takes the variance as the mean of squares less the square of the mean, all in f32.
    let found = candle().flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("it is f32");
    for (part, expected) in parts.iter().zip(&expected) {
        assert_parity("candle", &found[part.clone()], expected, Tolerance { absolute: 1e-4, relative: 1e-4 });
    }
    bench.time(&work, "candle: add, layer_norm", || {
        std::hint::black_box(candle());
    });
}
