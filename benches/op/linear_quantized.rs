//! Times the dense layer whose weights are GGUF's blocks, putting the rows into 8 bits included. Shapes of small language models come
//! in, a table goes out; its GB/s are those of the weights as the file has them, beside rows in and out.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use benches::candle;
use benches::op::{Bench, Ends, ROWS, Work, ours};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module as _};
use kernels::launch;
use kernels::linear_quantized::{Blocks, Epilogue, Quantized, Rows, cpu, linear_quantized, quantize};
use kernels::testing::{Tolerance, normal};

/// Rows of a step that writes one token for one caller and for a few.
const DECODED: &[usize] = &[1, 16];

/// Products above which plain Rust would take seconds a call.
const SCALAR_MAX: usize = 1 << 30;

fn main() {
    let mut bench = Bench::start("linear_quantized");
    for blocks in [Blocks::Q4_0, Blocks::Q5_0, Blocks::Q4_K, Blocks::Q6_K, Blocks::Q8_0] {
        let dtype = candle::dtype(blocks).expect("Candle has them");
        // Inputs and outputs of layers of SmolLM2-135M, Qwen2.5-0.5B and Llama-3.2-1B. What is not whole blocks of 256 such files hold
        // as Q5_0 or Q8_0.
        let shapes = [(576, 576), (576, 1536), (1536, 576), (896, 4864), (4864, 896), (2048, 8192), (8192, 2048)];
        for (k, n) in shapes.into_iter().filter(|(k, _)| k % blocks.elements() == 0) {
            for &rows in ROWS {
                shape(&mut bench, blocks, dtype, rows, (k, n), 1);
            }
        }
        // Each call with other weights, so that none of them are in a cache: a layer of a model that is larger.
        for (k, n) in [(1536, 576), (4864, 896), (2048, 8192), (8192, 2048)] {
            let copies = bench.rows_beyond_cache(blocks.row_bytes(n * k).expect("whole blocks")).max(2);
            for &rows in DECODED {
                shape(&mut bench, blocks, dtype, rows, (k, n), copies);
            }
        }
    }
    bench.finish();
}

fn shape(bench: &mut Bench, blocks: Blocks, dtype: GgmlDType, m: usize, (k, n): (usize, usize), copies: usize) {
    let x = normal(1, m * k);
    let weights: Vec<f32> = normal(2, n * k).iter().map(|w| w / (k as f32).sqrt()).collect();
    let bytes = quantize(blocks, &weights).expect("whole blocks");
    let work = Work {
        shape: format!("{blocks:?} {m}x{k}x{n}{}", if copies > 1 { " streamed" } else { "" }),
        // Operations on whole numbers count as those on f32.
        flops: (2 * m * k * n) as u64,
        bytes: (4 * m * k + bytes.len() + 4 * m * n) as u64,
        working_set: 4 * m * k + copies * bytes.len() + 4 * m * n,
    };
    let epilogue = Epilogue::default();
    let packed = |copies: usize| -> Vec<Quantized> {
        (0..copies).map(|_| Quantized::new(blocks, &[&bytes], k).expect("they fit")).collect()
    };

    let ends = Ends::new(m, n, 1, |part| {
        let (mut expected, mut rows, weights) = (vec![0.0; part.len() * n], Rows::default(), packed(1));
        rows.quantize(&x[part.start * k..part.end * k], &weights[0]).expect("the lengths fit");
        cpu::linear_quantized(&rows, &weights[0], &epilogue, &mut expected).expect("the lengths fit");
        expected
    });
    let mut turns = (0..copies).cycle();
    let fresh = || (packed(copies), Rows::default(), vec![0.0; m * n]);
    let mut call = |(weights, rows, y): &mut (Vec<Quantized>, Rows, Vec<f32>)| {
        let weights = &weights[turns.next().expect("it never ends")];
        rows.quantize(&x, weights).expect("the lengths fit");
        linear_quantized(rows, weights, &epilogue, y).expect("the lengths fit");
    };
    let check = |who: &str, y: &[f32]| ends.check(who, y, Tolerance::F32.at_scale(2.0));
    if m * k * n <= SCALAR_MAX {
        bench.time_ours(&work, fresh, call, |who, (_, _, y)| check(who, y));
    } else {
        let mut state = fresh();
        call(&mut state);
        check("the best", &state.2);
        bench.time(&work, &ours(launch::isa()), || call(&mut state));
    }

    // The same blocks, but rows in other 8 bits: results are near, and not the same.
    let near = |who: &str, y: &[f32]| ends.check(who, y, Tolerance { absolute: 0.1, relative: 0.1 });
    let product = || {
        let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, dtype).expect("blocks of this type");
        QMatMul::from_qtensor(QTensor::new(storage, (n, k)).expect("the lengths fit")).expect("it is a matrix")
    };
    let products: Vec<QMatMul> = (0..copies).map(|_| product()).collect();
    let mut turns = products.iter().cycle();
    let x = candle::tensor(&x, (m, k));
    candle::time(bench, &work, "quantized matmul", || turns.next().expect("it never ends").forward(&x), near);
}
