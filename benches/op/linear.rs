//! Times the dense layer with bias and GELU behind it. Shapes of small, base and large encoders come in, a table goes out.

#![forbid(unsafe_code)]

use benches::op::{Bench, ROWS, Work, assert_parity, ours};
use candle_core::{Device, Tensor};
use kernels::launch::{self, Isa};
use kernels::linear::{Activation, Epilogue, Packed, cpu, linear};
use kernels::stored::Values;
use kernels::testing::{Tolerance, normal};

fn main() {
    let mut bench = Bench::start("linear");
    // Inputs and outputs of the feed-forward layers of MiniLM, BERT-base and BGE-large, and MiniLM's joined q, k, v.
    for (k, n) in [(384, 1152), (384, 1536), (1536, 384), (768, 3072), (3072, 768), (1024, 4096)] {
        for &rows in ROWS {
            shape(&mut bench, rows, k, n);
        }
    }
    bench.finish();
}

fn shape(bench: &mut Bench, m: usize, k: usize, n: usize) {
    let (x, bias) = (normal(1, m * k), normal(3, n));
    let weights: Vec<f32> = normal(2, n * k).iter().map(|w| w / (k as f32).sqrt()).collect();
    let work = Work {
        shape: format!("{m}x{k}x{n}"),
        // Beside the products, bias and GELU: 27 an output.
        flops: (2 * m * k * n + 27 * m * n) as u64,
        bytes: 4 * (m * k + n * k + m * n) as u64,
        working_set: 4 * (m * k + n * k + m * n),
    };
    let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Gelu, residual: None };
    let mut y = vec![0.0; m * n];

    // The rows are independent: the first and the last speak for all.
    let parts: Vec<usize> = if m == 1 { vec![0] } else { vec![0, m - 1] };
    let mut expected = vec![vec![0.0; n]; parts.len()];
    let packed = Packed::new(&[Values::of_f32(&weights)], k).expect("the lengths fit");
    for (row, expected) in parts.iter().zip(&mut expected) {
        cpu::linear(&x[row * k..(row + 1) * k], &packed, &epilogue, expected).expect("the lengths fit");
    }
    let check = |who: &str, found: &[f32]| {
        for (row, expected) in parts.iter().zip(&expected) {
            assert_parity(who, &found[row * n..(row + 1) * n], expected, Tolerance::F32.at_scale(8.0));
        }
    };

    for isa in [launch::detect(), Isa::Scalar] {
        launch::force(Some(isa)).expect("it was detected");
        let packed = Packed::new(&[Values::of_f32(&weights)], k).expect("the lengths fit");
        linear(&x, &packed, &epilogue, &mut y).expect("the lengths fit");
        check(isa.name(), &y);
        bench.time(&work, &ours(isa), || linear(&x, &packed, &epilogue, &mut y).expect("the lengths fit"));
    }
    launch::force(None).expect("the best is there");

    let x = Tensor::from_slice(&x, (m, k), &Device::Cpu).expect("the lengths fit");
    let weights = Tensor::from_slice(&weights, (n, k), &Device::Cpu).and_then(|w| w.t()).expect("the lengths fit");
    let weights = weights.contiguous().expect("there is room");
    let bias = Tensor::from_slice(&bias, n, &Device::Cpu).expect("the lengths fit");
    let candle =
        || x.matmul(&weights).and_then(|y| y.broadcast_add(&bias)).and_then(|y| y.gelu_erf()).expect("the shapes fit");
    check("candle", &candle().flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("it is f32"));
    bench.time(&work, "candle: matmul, broadcast_add, gelu_erf", || {
        std::hint::black_box(candle());
    });
}
