//! Encoders in int8: how near to f32 they are, that a result is the same in any company, and that nobody gets int8 who did not ask.

use crate::support::{On, data, embed, load_on, manifest};
use models::accuracy::{self, Accuracy};
use models::engine::Device;
use models::load::{Backend, memory_need_bytes};
use models::manifest::{Manifest, Quantization};
use std::path::{Path, PathBuf};

fn int8(folder: &Path) -> Manifest {
    Manifest { quantization: Some(Quantization::Int8), ..manifest(folder) }
}

fn measure(folder: &Path) -> Accuracy {
    let mut exact = load_on(On::Kernels, &manifest(folder), folder).unwrap();
    let mut quantised = load_on(On::Kernels, &int8(folder), folder).unwrap();
    accuracy::measure(&mut exact, &mut quantised, &accuracy::sample_texts()).unwrap()
}

fn check_embeddings(folder: &Path, cosine: f64, correlation: f64) {
    let found = measure(folder);
    println!("{}: {found:?}", folder.display());
    let Accuracy::Embeddings { cosine_least, rank_correlation, .. } = found else { panic!("{found:?}") };
    assert!(cosine_least >= cosine && rank_correlation >= correlation, "{found:?}");
    // Else nothing was quantised.
    assert!(cosine_least < 0.999_999, "{found:?}");
}

#[test]
fn the_bundled_encoder_is_near_itself_in_int8() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = models::bundled::all().iter().find(|bundled| bundled.name == "minilm-tiny").unwrap();
    bundled.write(folder.path()).unwrap();
    check_embeddings(folder.path(), 0.99, 0.99);
}

#[test]
fn minilm_is_near_itself_in_int8() {
    let Some(folder) = std::env::var_os("NEUROGRID_TEST_MINILM").map(PathBuf::from) else {
        println!("skipped: MiniLM in int8: NEUROGRID_TEST_MINILM does not name its folder; the test command sets it");
        return;
    };
    check_embeddings(&folder, 0.99, 0.99);
}

#[test]
fn heads_keep_their_order_in_int8() {
    for name in ["tiny-cross-encoder", "tiny-bert-classifier"] {
        let found = measure(&data(name));
        let Accuracy::Scores { rank_correlation, same_class, difference_most, .. } = found else { panic!("{found:?}") };
        assert!(rank_correlation > 0.97 && difference_most > 0.0, "{name}: {found:?}");
        assert!(same_class.is_none_or(|same| same > 0.9), "{name}: {found:?}");
    }
}

#[test]
fn int8_has_a_class_of_its_own_and_half_precision_files_do_too() {
    let folder = data("tiny-bert");
    let class = |manifest: &Manifest| {
        let model = load_on(On::Kernels, manifest, &folder).unwrap();
        (model.engine.info().execution_class.clone(), model.engine.info().weights_bytes)
    };
    let ((exact, exact_bytes), (quantised, quantised_bytes)) = (class(&manifest(&folder)), class(&int8(&folder)));
    assert!(exact.starts_with("kernels-cpu-f32-") && quantised.starts_with("kernels-cpu-int8-"), "{exact} {quantised}");
    assert!(quantised_bytes < exact_bytes, "{quantised_bytes} {exact_bytes}");
    assert_ne!(manifest(&folder).digest(), int8(&folder).digest());
    // What a manifest says survives being written and read; an unknown kind is refused.
    let written = int8(&folder).to_json();
    assert_eq!(Manifest::from_json(written.as_bytes()).unwrap().quantization, Some(Quantization::Int8));
    let unknown = written.replace("\"int8\"", "\"int3\"");
    assert!(Manifest::from_json(unknown.as_bytes()).unwrap_err().to_string().contains("int3"));
}

#[test]
fn memory_for_half_precision_is_counted_as_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = models::bundled::all().iter().find(|bundled| bundled.name == "minilm-tiny").unwrap();
    bundled.write(folder.path()).unwrap();
    let manifest = bundled.manifest();
    assert_eq!(manifest.precision, "f16");
    // The same for every model: what a batch takes.
    let beside = memory_need_bytes(&Manifest { files: vec![], ..manifest.clone() }, Backend::Kernels, Device::Cpu);
    for (on, backend) in [(On::Kernels, Backend::Kernels), (On::Candle, Backend::Candle)] {
        let need = memory_need_bytes(&manifest, backend, Device::Cpu) - beside;
        let taken = load_on(on, &manifest, folder.path()).unwrap().engine.info().weights_bytes;
        assert!(need >= taken && need <= taken / 10 * 11, "{on:?}: {need} for {taken}");
    }
}

#[test]
fn a_batch_in_int8_gives_every_text_what_it_gets_alone() {
    let folder = data("tiny-bert");
    let mut model = load_on(On::Kernels, &int8(&folder), &folder).unwrap();
    let texts = accuracy::sample_texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = embed(&mut model, &texts);
    for (text, together) in texts.iter().zip(together) {
        assert_eq!(embed(&mut model, &[text]).remove(0), together, "{text}");
    }
}
