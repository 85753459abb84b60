//! The fused ops against Candle's own steps, which take no part in one another: a mistake in either shows. On the CPU, and on the
//! first CUDA device where this build and this machine have one.

use super::batch::{Arrays, Batch};
use super::cache::Cache;
use super::ops::{self, Scores, Step, Turn};
use super::ops_plain;
use crate::arch::encoder::{Heads, NormKind, Rotary};
use crate::backend::candle::encoder::{Angles, Norm};
use crate::engine::{Device as Where, GeneratorInfo};
use crate::generate::{Part, Plan};
use candle_core::{DType, Device, Tensor};
use kernels::rotary::frequencies;

/// Where the ops run, and in what.
fn places() -> Vec<(Device, DType)> {
    let mut places = vec![(Device::Cpu, DType::F32)];
    match Device::new_cuda(0) {
        Ok(device) if cfg!(feature = "cuda") => {
            places.extend([DType::F32, DType::F16, DType::BF16].map(|dtype| (device.clone(), dtype)));
        }
        _ => println!("skipped: CUDA: this build or this machine has none"),
    }
    places
}

/// Numbers around zero that depend on the seed.
fn values(place: &(Device, DType), seed: usize, rows: usize, width: usize) -> Tensor {
    let value = |i: usize| (((i * 7919 + seed * 104_729) % 199) as f32 - 99.0) / 66.0;
    let values: Vec<f32> = (0..rows * width).map(value).collect();
    Tensor::from_vec(values, (rows, width), &place.0).unwrap().to_dtype(place.1).unwrap()
}

fn close(found: &Tensor, wanted: &Tensor, what: &str) {
    let tolerance = match found.dtype() {
        DType::F16 => 0.01,
        DType::BF16 => 0.06,
        // Sums of up to 256 products, in another order.
        _ if found.device().is_cuda() => 5e-5,
        _ => 1e-5,
    };
    assert_eq!(found.dims(), wanted.dims());
    let exact = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let worst = exact(found).iter().zip(exact(wanted)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

fn norm(place: &(Device, DType), seed: usize, width: usize) -> Norm {
    let weight = values(place, seed, 1, width).flatten_all().unwrap();
    Norm { kind: NormKind::Rms, bias: weight.zeros_like().unwrap(), weight, epsilon: 1e-5 }
}

fn info() -> GeneratorInfo {
    GeneratorInfo {
        backend: "candle",
        provider: String::new(),
        device: Where::Cpu,
        execution_class: String::new(),
        weights_bytes: 0,
        vocabulary: 10,
        context: 512,
        block_tokens: 16,
        blocks: 100,
        block_bytes: 0,
    }
}

/// Steps of three texts with the tokens that each has then: prompts at once and in parts, and single tokens beside them.
const STEPS: &[&[(usize, usize)]] = &[&[(0, 40), (1, 5)], &[(1, 1), (0, 30), (2, 301)], &[(0, 1), (1, 1), (2, 1)]];

/// The blocks of a text, scattered.
fn table(text: usize, tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(16)).map(|block| (3 * (block * 7 % 29) + text) as u32).collect()
}

fn batch(done: &mut [usize; 3], parts: &[(usize, usize)], device: &Device) -> (Batch, Arrays) {
    let mut plan = Plan::default();
    for &(text, count) in parts {
        let position = done[text];
        done[text] += count;
        let (tokens, blocks) = (vec![1; count], table(text, done[text]));
        plan.push(Part { sequence: text as u64, tokens: &tokens, position, blocks: &blocks, is_sampled: true });
    }
    let batch = Batch::new(&plan, &info()).unwrap();
    let arrays = batch.arrays(device).unwrap();
    (batch, arrays)
}

#[test]
fn keys_that_are_kept_and_attention_to_them_agree() {
    for place in &places() {
        let (device, dtype) = place;
        for (queries, keys, dim) in [(4, 4, 8), (6, 2, 16), (9, 1, 72), (2, 1, 256), (3, 3, 12)] {
            let heads = Heads { queries, keys, dim, scale: 0.35 };
            let angles = Angles::new(&Rotary::new(frequencies(dim, 10_000.0)), 512, device).unwrap();
            let norms = (norm(place, 1, dim), norm(place, 2, dim));
            for (norms, softcap, window) in [
                (None, None, None),
                (Some(&norms), None, Some(20)),
                (None, Some(1.5), Some(1)),
                (Some(&norms), Some(9.0), Some(300)),
            ] {
                let what = format!("{heads:?} on {device:?} in {dtype:?}, {softcap:?} {window:?}");
                let fused = Cache::new(&heads, 100, device, *dtype).unwrap();
                let plain = Cache::on_device(&heads, 100, device, *dtype).unwrap();
                let Cache::Device(tensor) = &plain else { panic!("it was asked for") };
                let (turn, scores) = (Turn { norms, angles: &angles }, Scores { softcap, window });
                let mut done = [0; 3];
                for (seed, parts) in STEPS.iter().enumerate() {
                    let (batch, arrays) = batch(&mut done, parts, device);
                    let qkv = values(place, seed, batch.positions.len(), heads.width());
                    let on = |cache| Step { heads: &heads, batch: &batch, arrays: &arrays, cache };
                    let wanted_queries = ops_plain::keep(&qkv, turn, on(&plain), tensor).unwrap();
                    let wanted = ops_plain::attention(&wanted_queries, scores, on(&plain), tensor).unwrap();
                    let queries = ops::keep(qkv.copy().unwrap(), turn, on(&fused)).unwrap();
                    let found = ops::attention(&queries, scores, on(&fused)).unwrap();
                    close(&queries.narrow(1, 0, heads.query_width()).unwrap(), &wanted_queries, &what);
                    close(&found, &wanted, &what);
                }
            }
        }
    }
}

#[test]
fn half_precision_gives_what_single_gives() {
    let heads = Heads { queries: 6, keys: 2, dim: 16, scale: 0.35 };
    let exact = (Device::Cpu, DType::F32);
    let angles = Angles::new(&Rotary::new(frequencies(16, 10_000.0)), 512, &Device::Cpu).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let half = (Device::Cpu, dtype);
        let [wide, narrow] = [&exact, &half].map(|place| Cache::new(&heads, 100, &place.0, place.1).unwrap());
        let (turn, scores) = (Turn { norms: None, angles: &angles }, Scores { softcap: None, window: Some(20) });
        let mut done = [0; 3];
        for (seed, parts) in STEPS.iter().enumerate() {
            let (batch, arrays) = batch(&mut done, parts, &Device::Cpu);
            let run = |place: &(Device, DType), cache: &Cache| {
                let step = Step { heads: &heads, batch: &batch, arrays: &arrays, cache };
                let qkv = values(place, seed, batch.positions.len(), heads.width());
                ops::attention(&ops::keep(qkv, turn, step).unwrap(), scores, step).unwrap()
            };
            let wanted = run(&exact, &wide).to_dtype(dtype).unwrap();
            close(&run(&half, &narrow), &wanted, dtype.as_str());
        }
    }
}

#[test]
fn sums_and_their_norms_agree() {
    for place in &places() {
        let of = norm(place, 1, 33);
        let (x, y) = (values(place, 2, 70, 33), values(place, 3, 70, 33));
        let (sum, normed) = ops::add_norm(&x, &y, &of).unwrap();
        let wanted = (&x + &y).unwrap();
        close(&sum, &wanted, "sum");
        close(&normed, &candle_nn::ops::rms_norm(&wanted, &of.weight, of.epsilon).unwrap(), "norm");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn steps_of_single_tokens_are_replayed_and_give_what_their_launches_give() {
    use crate::engine::Generator as _;
    use crate::load::{Options, Source};

    if crate::backend::cuda::count().is_ok_and(|count| count > 0) {
        let carried = std::env::var_os("NEUROGRID_TEST_DATA").map(std::path::PathBuf::from);
        let data = carried.unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"));
        let folder = data.join("decoder/smollm2");
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut manifest = crate::backend::fake::manifest_for("decoder", crate::manifest::Task::Generate);
        let path = "model.safetensors".to_owned();
        manifest.files = vec![crate::manifest::File { path, sha256: String::new(), bytes: 0 }];
        let options = Options { device: Where::Cuda(0), ..Options::default() };
        let decode = crate::arch::llama::ARCHITECTURE.decode.unwrap();
        let source = || Source { manifest: &manifest, folder: &folder, config: &config, options: &options };
        let [mut replaying, mut launching] = [(); 2].map(|()| super::writer(source(), decode, 4 << 20).unwrap());
        launching.graphs = None;
        // Rows come and go, and texts outgrow the shortest length for which attention is laid out.
        let mut done = [0; 3];
        for (round, parts) in [&[0, 1, 2][..], &[0, 1, 2], &[1, 2], &[2], &[2, 0], &[0, 1, 2]].iter().enumerate() {
            let mut plan = Plan::default();
            let tables = [0, 1, 2].map(|text| table(text, 64));
            for &text in *parts {
                // Not the token of rows without a text.
                let tokens = [(7 * round + text + 1) as u32];
                let (position, blocks) = (done[text], &tables[text][..done[text] / 16 + 1]);
                plan.push(Part { sequence: text as u64, tokens: &tokens, position, blocks, is_sampled: true });
                done[text] += 1;
            }
            let logits = |of: &mut super::Writer| {
                let mut all = vec![];
                of.step(&plan, &mut |_, logits| {
                    all.push(Tensor::from_slice(logits, logits.len(), &Device::Cpu).unwrap())
                })
                .unwrap();
                all
            };
            for (found, wanted) in logits(&mut replaying).iter().zip(logits(&mut launching)) {
                close(found, &wanted, &format!("round {round}"));
            }
        }
        // For one, two and four rows.
        assert_eq!(replaying.graphs.unwrap().count(), Some(3));
    } else {
        println!("skipped: CUDA: this machine has none");
    }
}

/// A CPU's matrix tiles belong to a thread, and Candle's products use them as ours do.
#[test]
fn candles_products_of_blocks_and_ours_take_turns_on_a_thread() {
    use candle_core::Module as _;
    use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
    use kernels::linear_quantized::{Blocks, Epilogue, Quantized, Rows, linear_quantized, quantize};
    use kernels::testing::normal;

    let turns = || {
        let (m, k, n) = (32, 512, 64);
        let (x, weights) = (normal(1, m * k), normal(2, n * k));
        for (blocks, dtype) in [(Blocks::Q4_K, GgmlDType::Q4K), (Blocks::Q8_0, GgmlDType::Q8_0)] {
            let bytes = quantize(blocks, &weights).unwrap();
            let ours = Quantized::new(blocks, &[&bytes], k).unwrap();
            let storage = QStorage::from_data(bytes.into(), &candle_core::Device::Cpu, dtype).unwrap();
            let theirs = QMatMul::from_qtensor(QTensor::new(storage, (n, k)).unwrap()).unwrap();
            let there = candle_core::Tensor::from_slice(&x, (m, k), &candle_core::Device::Cpu).unwrap();
            let (mut rows, mut y) = (Rows::default(), vec![0.0; m * n]);
            for _ in 0..3 {
                let found = theirs.forward(&there).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                rows.quantize(&x, &ours).unwrap();
                linear_quantized(&rows, &ours, &Epilogue::default(), &mut y).unwrap();
                let off = found.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 3.0, "{blocks:?}: {off} off of sums of 512 products");
            }
        }
    };
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(turns);
}
