//! A tiny BERT with weights from a formula is run in every type; its outputs are compared with one another. No files
//! but those that it writes into a temporary folder.

use super::*;
use crate::engine::Tokens;
use crate::load::{Backend, Options};
use crate::manifest::{File, Manifest, Pooling, Task};
use std::path::Path;

const HIDDEN: usize = 8;

fn write_tiny_bert(folder: &Path) {
    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_string(), vec![20, HIDDEN]),
        ("embeddings.position_embeddings.weight".to_string(), vec![16, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".to_string(), vec![2, HIDDEN]),
        ("embeddings.LayerNorm.weight".to_string(), vec![HIDDEN]),
        ("embeddings.LayerNorm.bias".to_string(), vec![HIDDEN]),
    ];
    let dense = |name: &str, input: usize, output: usize| {
        let name = format!("encoder.layer.0.{name}");
        [(format!("{name}.weight"), vec![output, input]), (format!("{name}.bias"), vec![output])]
    };
    for part in ["query", "key", "value"] {
        shapes.extend(dense(&format!("attention.self.{part}"), HIDDEN, HIDDEN));
    }
    shapes.extend(dense("attention.output.dense", HIDDEN, HIDDEN));
    shapes.extend(dense("intermediate.dense", HIDDEN, 16));
    shapes.extend(dense("output.dense", 16, HIDDEN));
    for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
        shapes.push((format!("encoder.layer.0.{norm}.weight"), vec![HIDDEN]));
        shapes.push((format!("encoder.layer.0.{norm}.bias"), vec![HIDDEN]));
    }
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .enumerate()
        .map(|(seed, (_, shape))| {
            let value = |i: usize| (((i * 7919 + seed * 104_729) % 199) as f32 - 99.0) / 99.0;
            (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect()
        })
        .collect();
    let views = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn encoder(folder: &Path, dtype: candle::DType, pooling: Pooling) -> Candle {
    let bytes = std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    let manifest = Manifest {
        task: Task::Embed,
        architecture: "bert".into(),
        files: vec![File { path: "model.safetensors".into(), sha256: "0".repeat(64), bytes }],
        pooling: Some(pooling),
        ..crate::backend::fake::manifest("tiny")
    };
    let config = serde_json::json!({"vocab_size": 20, "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16});
    let options = Options { backend: Backend::Candle, threads: 2, ..Options::default() };
    let checkpoint = Checkpoint::open(folder, &manifest).unwrap();
    let describe = arch::bert::ARCHITECTURE.describe.unwrap();
    let description = describe(&config, &manifest, &checkpoint).unwrap();
    let encoder = Encoder::load(description, &checkpoint, &candle::Device::Cpu, dtype).unwrap();
    let model = Model::Encoder(Box::new(encoder));
    let source = Source { manifest: &manifest, folder, config: &config, options: &options };
    let info = info(&model, source, 0, dtype);
    Candle {
        model,
        info,
        device: candle::Device::Cpu,
        pool: pool(2).unwrap(),
        #[cfg(feature = "cuda")]
        pipe: None,
    }
}

fn item(ids: &[u32]) -> Item {
    Item::Tokens(Tokens { ids: ids.to_vec(), type_ids: vec![] })
}

fn vectors(engine: &mut Candle, items: &[Item]) -> Vec<Vec<f32>> {
    let vector = |output| if let Output::Vector(v) = output { v } else { panic!("tensors") };
    engine.run(items).unwrap().into_iter().map(vector).collect()
}

fn check_close(a: &[f32], b: &[f32], tolerance: f32) {
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance && a.len() == b.len() && a.iter().all(|v| v.is_finite()), "{a:?} {b:?}");
}

#[test]
fn half_precision_gives_numbers_and_not_nan() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_bert(folder.path());
    let batch = [item(&[1, 2, 3, 4, 5, 6]), item(&[7]), item(&[8, 9])];
    let exact = vectors(&mut encoder(folder.path(), candle::DType::F32, Pooling::Mean), &batch);
    for (dtype, tolerance) in [(candle::DType::F16, 0.02), (candle::DType::BF16, 0.15)] {
        let half = vectors(&mut encoder(folder.path(), dtype, Pooling::Mean), &batch);
        for (half, exact) in half.iter().zip(&exact) {
            check_close(half, exact, tolerance);
        }
    }
}

#[test]
fn neighbours_and_order_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_bert(folder.path());
    for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
        let mut engine = encoder(folder.path(), candle::DType::F32, pooling);
        let items = [item(&[7]), item(&[1, 2, 3, 4, 5, 6]), item(&[8, 9]), item(&[6, 5, 4, 3, 2, 1, 0, 1, 2])];
        let together = vectors(&mut engine, &items);
        for (item, together) in items.iter().zip(&together) {
            check_close(together, &vectors(&mut engine, std::slice::from_ref(item))[0], 2e-6);
        }
        assert_ne!(together[0], together[2], "{pooling:?}");
    }
}

#[test]
fn segment_ids_matter() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_bert(folder.path());
    let mut engine = encoder(folder.path(), candle::DType::F32, Pooling::Mean);
    let with = |type_ids: &[u32]| Item::Tokens(Tokens { ids: vec![1, 2, 3], type_ids: type_ids.to_vec() });
    let out = vectors(&mut engine, &[with(&[]), with(&[0, 0, 0]), with(&[0, 1, 1])]);
    check_close(&out[0], &out[1], 2e-6);
    assert_ne!(out[0], out[2]);
}

#[test]
fn what_the_model_cannot_take_is_the_callers_fault() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_bert(folder.path());
    let mut engine = encoder(folder.path(), candle::DType::F32, Pooling::Mean);
    let segments = |type_ids: &[u32]| Item::Tokens(Tokens { ids: vec![1, 2], type_ids: type_ids.to_vec() });
    for bad in [item(&[]), item(&[20]), item(&[1; 17]), segments(&[0]), segments(&[0, 2]), Item::Tensors(vec![])] {
        assert!(matches!(engine.run(&[item(&[1]), bad.clone()]), Err(Error::Input(_))), "{bad:?}");
    }
    assert!(engine.run(&[item(&[1; 16])]).is_ok());
}

#[test]
fn a_device_that_this_build_lacks_is_refused_in_words() {
    if cfg!(feature = "cuda") {
        return println!("skipped: this build has CUDA");
    }
    let refused = open(Device::Cuda(0)).unwrap_err().to_string();
    assert!(refused.contains("use the CUDA binary"), "{refused}");
}
