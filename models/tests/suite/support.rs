//! Loads a test model on a backend and sends requests through pipeline and engine. The only file here that knows the
//! API; tests are data.

use models::backend::cuda;
use models::backend::onnx::{Kind, runtime};
use models::engine::{Device, Item, Output};
use models::load::{Backend, inspect};
use models::task::{Error, Reply, Request, Text};
use models::{Loaded, Manifest, Options, load};
use std::path::{Path, PathBuf};

/// Where a suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Kernels,
    Candle,
    /// Candle on the first CUDA device.
    Cuda,
    OnnxRuntime,
    Tract,
}

/// A folder of the test data: beside this suite, or in `NEUROGRID_TEST_DATA` where the program was carried elsewhere.
pub(crate) fn data(name: &str) -> PathBuf {
    let carried = std::env::var_os("NEUROGRID_TEST_DATA").map(PathBuf::from);
    carried.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")).join(name)
}

pub(crate) fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap()
}

/// Two threads, so that splitting is tested too.
pub(crate) fn options(on: On) -> Options {
    let (backend, onnx_library) = match on {
        On::Kernels => (Backend::Kernels, None),
        On::Candle | On::Cuda => (Backend::Candle, None),
        On::OnnxRuntime => (Backend::Onnx, onnx_library()),
        // A library that is asked for and missing is not replaced by another, so tract runs.
        On::Tract => (Backend::Onnx, Some(PathBuf::from("no-library-here"))),
    };
    let device = if on == On::Cuda { Device::Cuda(0) } else { Device::Cpu };
    Options { backend, onnx_library, device, threads: 2, ..Options::default() }
}

/// The library that the tests were given, or the one of the environment that the test command made.
fn onnx_library() -> Option<PathBuf> {
    if let Some(library) = std::env::var_os("NEUROGRID_TEST_ORT") {
        return Some(library.into());
    }
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let pythons = std::fs::read_dir(environment).ok()?.flatten();
    pythons.map(|python| python.path().join("site-packages/onnxruntime/capi")).find(|folder| folder.is_dir())
}

/// Whether this process can run on it; says why not.
pub(crate) fn is_there(on: On) -> bool {
    let wanted = match on {
        On::Kernels | On::Candle => return true,
        On::Cuda => match cuda::count() {
            Ok(1..) => return true,
            Ok(_) => return skipped(on, "there is no CUDA device"),
            Err(why) => return skipped(on, &why.to_string()),
        },
        On::OnnxRuntime => Kind::OnnxRuntime,
        On::Tract => Kind::Tract,
    };
    let runtime = runtime(options(on).onnx_library.as_deref());
    if runtime.kind == wanted {
        return true;
    }
    skipped(on, runtime.why_not.as_deref().unwrap_or("another test of this process loaded ONNX Runtime; use nextest"))
}

fn skipped(on: On, why: &str) -> bool {
    println!("skipped: {on:?} cannot be tested here: {why}");
    false
}

/// A manifest for a folder.
pub(crate) fn manifest(folder: &Path) -> Manifest {
    inspect(folder, None, None, None).unwrap()
}

/// Loads a folder; nothing when this process cannot.
pub(crate) fn load_on(on: On, manifest: &Manifest, folder: &Path) -> Option<Loaded> {
    is_there(on).then(|| load(manifest, folder, &options(on)).unwrap())
}

/// One request through pipeline and engine.
pub(crate) fn ask(model: &mut Loaded, request: Request) -> Result<Reply, Error> {
    let prepared = model.pipeline.prepare(request)?;
    let outputs = model.engine.run(&prepared.items).unwrap();
    model.pipeline.finish(prepared.pending, outputs)
}

/// The engine's vectors of items.
pub(crate) fn vectors(model: &mut Loaded, items: &[Item]) -> Vec<Vec<f32>> {
    let vector = |output| if let Output::Vector(v) = output { v } else { panic!("tensors") };
    model.engine.run(items).unwrap().into_iter().map(vector).collect()
}

/// Embeddings of texts, normalised.
pub(crate) fn embed(model: &mut Loaded, texts: &[&str]) -> Vec<Vec<f32>> {
    let inputs = texts.iter().map(|text| Text::Words((*text).into())).collect();
    let request = Request::Embed { inputs, prompt: None, dimensions: None, normalize: Some(true), truncate: false };
    match ask(model, request) {
        Ok(Reply::Embeddings { dimensions, values }) => values.chunks_exact(dimensions).map(<[f32]>::to_vec).collect(),
        other => panic!("{other:?}"),
    }
}

/// Numbers of a JSON list.
pub(crate) fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
}

/// Every value within `tolerance` of the reference.
pub(crate) fn assert_close(have: &[f32], want: &[f64], tolerance: f64, of: &str) {
    assert_eq!(have.len(), want.len(), "{of}");
    let worst = have.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "{of}: off by {worst}: {have:?} {want:?}");
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
