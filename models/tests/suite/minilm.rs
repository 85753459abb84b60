//! all-MiniLM-L6-v2 on 200 texts of 1 to 400 tokens against the f64 reference, in mixed batches and alone. Skipped
//! aloud where the checkpoint is not there.

use crate::support::{On, assert_close, cosine, data, embed, json, load_on, manifest, numbers};
use std::path::PathBuf;

/// Every other way to answer the same texts must come this near.
const COSINE_MIN: f64 = 0.99999;

#[test]
fn minilm_on_kernels_is_the_reference() {
    check(On::Kernels, "NEUROGRID_TEST_MINILM");
}

#[test]
fn minilm_on_candle_is_the_reference() {
    check(On::Candle, "NEUROGRID_TEST_MINILM");
}

#[test]
fn minilm_on_onnx_runtime_is_the_reference() {
    check(On::OnnxRuntime, "NEUROGRID_TEST_MINILM_ONNX");
}

/// The bundled encoder, on what it was distilled to.
#[test]
fn the_bundled_encoder_is_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = models::bundled::all().iter().find(|bundled| bundled.name == "minilm-tiny").unwrap();
    bundled.write(folder.path()).unwrap();
    for on in [On::Kernels, On::Candle] {
        let mut model = load_on(on, &bundled.manifest(), folder.path()).unwrap();
        let golden = json("minilm-tiny.golden.json");
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 20);
        for case in cases {
            let found = embed(&mut model, &[case["text"].as_str().unwrap()]).remove(0);
            assert_close(&found, &numbers(&case["mean"]), 1e-5, &format!("{on:?} {}", case["text"]));
        }
    }
}

fn check(on: On, variable: &str) {
    let Some(folder) = std::env::var_os(variable).map(PathBuf::from) else {
        println!("skipped: MiniLM on {on:?}: {variable} does not name its folder; the test command sets it");
        return;
    };
    let mut manifest = manifest(&folder);
    // sentence-transformers cuts at 256, the weights take 512.
    manifest.max_tokens = Some(512);
    let Some(mut model) = load_on(on, &manifest, &folder) else { return };
    let texts = json("texts_200.json");
    let texts: Vec<&str> = texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let golden = golden();
    assert_eq!((texts.len(), golden.len()), (200, 200));
    let mut worst = 1f64;
    for (chunk, golden) in texts.chunks(32).zip(golden.chunks(32)) {
        for (have, want) in embed(&mut model, chunk).iter().zip(golden) {
            worst = worst.min(cosine(have, want));
        }
    }
    println!("{on:?}: smallest cosine in mixed batches {worst:.9}, {:?}", model.engine.info().provider);
    assert!(worst >= COSINE_MIN, "in batches: {worst}");
    let mut worst = 1f64;
    for (text, golden) in texts.iter().zip(&golden) {
        worst = worst.min(cosine(&embed(&mut model, &[text])[0], golden));
    }
    println!("{on:?}: smallest cosine alone {worst:.9}");
    assert!(worst >= COSINE_MIN, "alone: {worst}");
}

/// `embeddings: [200, 384]` of the reference.
fn golden() -> Vec<Vec<f32>> {
    let bytes = std::fs::read(data("minilm_golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = tensors.tensor("embeddings").unwrap();
    let values = embeddings.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    values.collect::<Vec<_>>().chunks_exact(embeddings.shape()[1]).map(<[f32]>::to_vec).collect()
}
