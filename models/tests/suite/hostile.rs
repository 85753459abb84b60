//! Hostile and damaged files, listed with their faults, are offered as models; each must be refused for its own
//! reason before any runtime sees it.

use crate::support::{data, json};
use models::load::{Backend, Error, onnx_check};
use models::manifest::{self, File, Manifest, Task};
use models::{Options, load};
use std::path::Path;

fn manifest(folder: &Path, paths: &[&str]) -> Manifest {
    let bytes = |path: &str| std::fs::metadata(folder.join(path)).map_or(0, |metadata| metadata.len());
    let file = |path: &&str| File { path: (*path).into(), sha256: "0".repeat(64), bytes: bytes(path) };
    let digits = models::bundled::all().iter().find(|bundled| bundled.name == "digits").unwrap();
    Manifest { files: paths.iter().map(file).collect(), task: Task::Infer, ..digits.manifest() }
}

/// The fault that a refusal names, in the words of the list.
fn fault(error: &Error) -> &'static str {
    match error {
        Error::Unsafe { .. } | Error::Manifest(manifest::Error::Format(_)) => "pickle",
        Error::Onnx { reason: onnx_check::Error::Domain(_), .. } => "domain",
        Error::Onnx { reason: onnx_check::Error::Operator(_), .. } => "program",
        Error::Onnx { reason: onnx_check::Error::External(_), .. } => "external",
        Error::Onnx { reason: onnx_check::Error::Depth, .. } => "depth",
        Error::Onnx { reason: onnx_check::Error::Malformed, .. } => "damaged",
        Error::Safetensors { .. } | Error::Io { .. } | Error::Length { .. } => "damaged",
        _ => "accepted",
    }
}

#[test]
fn each_hostile_file_is_refused_for_its_own_reason() {
    let folder = data("hostile");
    let cases = json("hostile/index.json");
    let mut checked = 0;
    for case in cases.as_array().unwrap() {
        let path = case["file"].as_str().unwrap();
        let want = case["fault"].as_str().unwrap_or("accepted");
        let is_onnx = case["kind"] == "onnx";
        let mut paths = vec![path];
        if is_onnx {
            paths.push("weights.bin");
        }
        let mut manifest = manifest(&folder, &paths);
        if is_onnx {
            // External data of the honest file lies in weights.bin, an ending that no file of weights may have.
            let data = manifest.files.pop().unwrap();
            let graph = std::fs::read(folder.join(path)).unwrap();
            let listed = Manifest { files: [manifest.files.clone(), vec![data]].concat(), ..manifest.clone() };
            let checked = onnx_check::check(&graph, path, &listed);
            let is_pickle = want == "pickle";
            let refused = checked.err().map(|reason| fault(&Error::Onnx { path: path.into(), reason }));
            let want = if is_pickle { "damaged" } else { want };
            assert_eq!(refused.unwrap_or("accepted"), want, "check of {case}");
        }
        let options = Options { backend: Backend::Candle, threads: 1, ..Options::default() };
        let error = load(&manifest, &folder, &options).unwrap_err();
        let have = fault(&error);
        // Without its data the honest file with external data is refused for that.
        let want = if path == "external_inside.onnx" { "external" } else { want };
        assert_eq!(have, want, "{case}: {error}");
        checked += 1;
    }
    assert!(checked >= 40, "only {checked} cases were listed");
}

#[test]
fn a_file_of_another_length_is_refused() {
    let folder = data("hostile");
    let mut manifest = manifest(&folder, &["good.safetensors"]);
    manifest.files[0].bytes += 1;
    let error = load(&manifest, &folder, &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Length { .. }), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&manifest(&data("hostile"), &["nowhere.safetensors"]), &data("hostile"), &Options::default());
    assert!(error.as_ref().is_err_and(|e| e.to_string().contains("nowhere.safetensors")), "{error:?}");
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data("tiny-bert")).unwrap().flatten().filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let changed = config.replace("\"intermediate_size\": 64", "\"intermediate_size\": 63");
    assert_ne!(config, changed);
    std::fs::write(folder.path().join("config.json"), changed).unwrap();
    let manifest = models::load::inspect(folder.path(), Some("m"), None, None).unwrap();
    let options = Options { backend: Backend::Candle, ..Options::default() };
    let error = load(&manifest, folder.path(), &options).unwrap_err();
    assert!(matches!(error, Error::Tensor { .. }), "{error}");
}
