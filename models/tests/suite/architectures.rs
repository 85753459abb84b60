//! Every family of encoders on our own ops and on Candle: small checkpoints with random weights, laid out as the published ones, against what
//! the reference implementation makes of them. Alone and in one batch.

use crate::support::{On, assert_close, cosine, data, load_on, manifest, numbers, vectors};
use models::engine::{Item, Tokens};
use models::manifest::{Pooling, Quantization, Task};
use models::{Loaded, Manifest};
use serde_json::Value;
use std::path::Path;

/// Of a golden's largest value. The reference in f32 differs from itself in f64 by a tenth of the first; logits are small sums
/// of many terms.
const EMBEDDING: f64 = 1e-5;
const LOGITS: f64 = 5e-5;
/// The same in int8, of the largest of all cases: errors of rounding do not average out over these checkpoints' 32 to 64 inputs as
/// they do over real ones' hundreds. ModernBERT's first token has the largest, 0.17.
const INT8: f64 = 0.2;

/// Embeddings, pooled in every way.
fn embeds(name: &str, architecture: &str) {
    for (pooling, key) in [(Pooling::Mean, "mean"), (Pooling::Cls, "cls"), (Pooling::Last, "last")] {
        let (mut model, golden, folder) = load(name, architecture, Some(pooling));
        assert_eq!(model.manifest.task, Task::Embed);
        check(&mut model, &golden, key, EMBEDDING);
        check(&mut load_on(On::Candle, &model.manifest, folder.path()).unwrap(), &golden, key, EMBEDDING);
        check_int8(&model, folder.path(), &golden, key);
    }
}

/// Logits of a classifier of so many labels.
fn classifies(name: &str, architecture: &str, labels: usize) {
    let (mut model, golden, folder) = load(name, architecture, None);
    let manifest = &model.manifest;
    let task = if labels == 1 { Task::Rerank } else { Task::Classify };
    assert_eq!((manifest.task, model.engine.info().vector_len), (task, Some(labels)));
    check(&mut model, &golden, "logits", LOGITS);
    check(&mut load_on(On::Candle, &model.manifest, folder.path()).unwrap(), &golden, "logits", LOGITS);
    check_int8(&model, folder.path(), &golden, "logits");
}

/// A checkpoint and what the reference makes of it. Its tokenizer is another model's: the goldens are of token ids.
fn load(name: &str, architecture: &str, pooling: Option<Pooling>) -> (Loaded, Value, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, file: &str| std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    let source = data("arch").join(name);
    copy(&source, "config.json");
    copy(&source, "model.safetensors");
    copy(&data("tiny-bert"), "tokenizer.json");
    let mut manifest = manifest(folder.path());
    assert_eq!(manifest.architecture, architecture);
    if pooling.is_some() {
        // A checkpoint that could write text is an encoder by what stands beside it, which here is nothing.
        (manifest.task, manifest.pooling) = (Task::Embed, pooling);
    }
    let golden = std::fs::read(data("arch").join(format!("{name}.golden.json"))).unwrap();
    let model = load_on(On::Kernels, &manifest, folder.path()).unwrap();
    (model, serde_json::from_slice(&golden).unwrap(), folder)
}

/// The tokens of a golden's cases, and what the reference makes of them.
fn cases(golden: &Value, key: &str) -> (Vec<Item>, Vec<Vec<f64>>) {
    let cases: Vec<&Value> = golden["cases"].as_array().unwrap().iter().chain(golden.get("pad_inside")).collect();
    assert!(cases.len() >= 5, "{} cases", cases.len());
    let ids = |list: &Value| numbers(list).into_iter().map(|id| id as u32).collect::<Vec<_>>();
    let item = |case: &&Value| {
        let type_ids = case.get("type_ids").map(ids).unwrap_or_default();
        Item::Tokens(Tokens { ids: ids(&case["ids"]), type_ids })
    };
    (cases.iter().map(item).collect(), cases.iter().map(|case| numbers(&case[key])).collect())
}

fn check(model: &mut Loaded, golden: &Value, key: &str, tolerance: f64) {
    let (items, wanted) = cases(golden, key);
    let longest = items.iter().map(Item::cost).max().unwrap();
    assert_eq!(Some(longest), model.engine.info().max_tokens, "one case is as long as the model takes");
    for ((item, want), found) in items.iter().zip(wanted).zip(run(model, &items)) {
        let largest = want.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        assert_close(&found, &want, tolerance * largest, &format!("{key} of {} tokens", item.cost()));
    }
}

/// In one batch; each alone gives the same, on our own ops to the last bit.
fn run(model: &mut Loaded, items: &[Item]) -> Vec<Vec<f32>> {
    let is_exact = model.engine.info().backend == "kernels";
    let together = vectors(model, items);
    for (item, together) in items.iter().zip(&together) {
        let alone = vectors(model, std::slice::from_ref(item)).remove(0);
        assert!(cosine(&alone, together) >= 0.999_999);
        assert!(!is_exact || &alone == together, "to the last bit");
    }
    together
}

/// The same checkpoint in int8 is near, and not the same.
fn check_int8(model: &Loaded, folder: &Path, golden: &Value, key: &str) {
    let manifest = Manifest { quantization: Some(Quantization::Int8), ..model.manifest.clone() };
    let mut model = load_on(On::Kernels, &manifest, folder).unwrap();
    let (items, wanted) = cases(golden, key);
    let found = run(&mut model, &items);
    let largest = wanted.iter().flatten().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let pairs = found.iter().flatten().zip(wanted.iter().flatten());
    let off = pairs.map(|(found, want)| (f64::from(*found) - want).abs()).fold(0.0, f64::max) / largest;
    assert!((1e-4..INT8).contains(&off), "{key}: {off} off of the largest");
}

/// One line a checkpoint.
macro_rules! checkpoints {
    ($($test:ident: $check:ident($name:literal, $architecture:literal $(, $labels:literal)?);)*) => {
        $(#[test] fn $test() { $check($name, $architecture $(, $labels)?) })*
    };
}

checkpoints! {
    bert_with_gelu_by_tanh: embeds("bert-gelu-new", "bert");
    bert_with_relu: embeds("bert-relu", "bert");
    bert_classifier: classifies("bert-classifier-3", "bert", 3);
    roberta: embeds("roberta", "roberta");
    roberta_in_f16: embeds("roberta-f16", "roberta");
    roberta_in_bf16: embeds("roberta-bf16", "roberta");
    roberta_reranker: classifies("roberta-classifier-1", "roberta", 1);
    roberta_classifier: classifies("roberta-classifier-3", "roberta", 3);
    xlm_roberta: embeds("xlm-roberta", "roberta");
    xlm_roberta_reranker: classifies("xlm-roberta-classifier-1", "roberta", 1);
    xlm_roberta_classifier: classifies("xlm-roberta-classifier-3", "roberta", 3);
    distilbert: embeds("distilbert", "distilbert");
    distilbert_reranker: classifies("distilbert-classifier-1", "distilbert", 1);
    distilbert_classifier: classifies("distilbert-classifier-3", "distilbert", 3);
    mpnet: embeds("mpnet", "mpnet");
    mpnet_reranker: classifies("mpnet-classifier-1", "mpnet", 1);
    mpnet_classifier: classifies("mpnet-classifier-3", "mpnet", 3);
    nomic_bert: embeds("nomic-bert", "nomic_bert");
    modernbert: embeds("modernbert", "modernbert");
    modernbert_reranker: classifies("modernbert-classifier-1", "modernbert", 1);
    modernbert_classifier: classifies("modernbert-classifier-3", "modernbert", 3);
    gte: embeds("gte", "gte");
    gte_stretched_by_ntk: embeds("gte-ntk", "gte");
    gte_multilingual: embeds("gte-multilingual", "gte");
    gte_reranker: classifies("gte-classifier-1", "gte", 1);
    gte_classifier: classifies("gte-classifier-3", "gte", 3);
    jina_bert: embeds("jina-bert", "jina_bert");
    qwen3: embeds("qwen3", "qwen3");
    qwen3_reranker: classifies("qwen3-classifier-1", "qwen3", 1);
    qwen3_classifier: classifies("qwen3-classifier-3", "qwen3", 3);
}
