//! Times GELU with the bias addition in front of it, as a BERT layer's first feed-forward half ends. Shapes come in, a table
//! goes out.

#![forbid(unsafe_code)]

use benches::op::{Bench, ROWS, Work, assert_parity, ours};
use candle_core::{Device, Tensor};
use kernels::gelu::{cpu, gelu};
use kernels::launch::{self, Isa};
use kernels::testing::{Tolerance, normal};

fn main() {
    let mut bench = Bench::start("gelu");
    // Four times the width of small, base and large encoders.
    for dim in [1536, 3072, 4096] {
        for &rows in ROWS {
            shape(&mut bench, rows, dim, rows < 128);
        }
    }
    let beyond = bench.rows_beyond_cache(4 * 3072);
    shape(&mut bench, beyond, 3072, false);
    bench.finish();
}

fn shape(bench: &mut Bench, rows: usize, dim: usize, with_oracle: bool) {
    let n = rows * dim;
    let (x, bias) = (normal(1, n), normal(2, dim));
    let work = Work {
        shape: format!("{rows}x{dim}"),
        // Bias 1, polynomial 18, squarings 3, the rest 5: |u|, min, half, division, max and subtraction, less one for |u|.
        flops: 27 * n as u64,
        // x read and written, bias read.
        bytes: 4 * (2 * n + dim) as u64,
        working_set: 4 * (n + dim),
    };

    // The rows are independent: the first ones and the last ones speak for all.
    let some = rows.min(16) * dim;
    let parts = [0..some, n - some..n];
    let expected = parts.clone().map(|part| {
        let mut expected = x[part].to_vec();
        cpu::gelu(&mut expected, Some(&bias)).expect("the lengths fit");
        expected
    });
    let check = |who: &str, found: &[f32], tolerance: Tolerance| {
        for (part, expected) in parts.iter().zip(&expected) {
            assert_parity(who, &found[part.clone()], expected, tolerance);
        }
    };

    let mut y = x.clone();
    for isa in [launch::detect(), Isa::Scalar] {
        launch::force(Some(isa)).expect("it was detected");
        y.copy_from_slice(&x);
        gelu(&mut y, Some(&bias)).expect("the lengths fit");
        check(isa.name(), &y, Tolerance { absolute: kernels::gelu::ERROR_MAX, relative: f32::EPSILON });
        // In place again and again: the values wander, but no step of the code depends on them.
        bench.time(&work, &ours(isa), || gelu(&mut y, Some(&bias)).expect("the lengths fit"));
    }
    launch::force(None).expect("the best is there");
    if with_oracle {
        bench.time(&work, "oracle", || {
            // Its series is as long as the values need; so it gets the same ones each time, for a copy that is cheap beside it.
            y.copy_from_slice(&x);
            cpu::gelu(&mut y, Some(&bias)).expect("the lengths fit");
        });
    }

    let x = Tensor::from_slice(&x, &[rows, dim][..], &Device::Cpu).expect("the lengths fit");
    let bias = Tensor::from_slice(&bias, &[dim][..], &Device::Cpu).expect("the lengths fit");
    let candle = || x.broadcast_add(&bias).and_then(|u| u.gelu_erf()).expect("the shapes fit");
    let found = candle().flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("it is f32");
    check("candle", &found, Tolerance { absolute: 1e-6, relative: 1e-6 });
    bench.time(&work, "candle: broadcast_add, gelu_erf", || {
        std::hint::black_box(candle());
    });
}
