//! Implementations of [`Engine`], one line and one feature each. Checked model files
//! go in, engines come out. Which one is used is decided in [`load`](crate::load).

#[cfg(feature = "candle")]
pub mod candle;
pub mod fake;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod plan;
#[cfg(feature = "candle")]
pub mod speed;

use crate::engine::Engine;
use crate::load::{Error, Options, Source, onnx_check::Graph};
use std::path::Path;

/// The instruction set that decides how sums are rounded, as it stands in execution classes.
pub(crate) fn cpu_class() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2";
        }
        "x86-64"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH
    }
}

/// Loads a model's safetensors into Candle.
#[cfg(feature = "candle")]
pub(crate) fn load_candle(source: Source<'_>) -> Result<Box<dyn Engine>, Error> {
    candle::load(source)
}

/// Without the feature there is nothing to load into; the choice of a backend has said so before.
#[cfg(not(feature = "candle"))]
pub(crate) fn load_candle(source: Source<'_>) -> Result<Box<dyn Engine>, Error> {
    let why = "this build has no Candle".into();
    Err(Error::NoBackend { model: source.manifest.id(), asked: source.options.backend, why })
}

/// Loads a model's ONNX graph.
#[cfg(feature = "onnx")]
pub(crate) fn load_onnx(source: Source<'_>, path: &Path, graph: &Graph) -> Result<Box<dyn Engine>, Error> {
    onnx::load(source, path, graph)
}

/// Without the feature there is nothing to load into; the choice of a backend has said so before.
#[cfg(not(feature = "onnx"))]
pub(crate) fn load_onnx(source: Source<'_>, _: &Path, _: &Graph) -> Result<Box<dyn Engine>, Error> {
    let why = "this build has no ONNX".into();
    Err(Error::NoBackend { model: source.manifest.id(), asked: source.options.backend, why })
}

/// Whether an ONNX Runtime library is there and works. Searches for it at the first call.
pub(crate) fn onnx_runtime_found(options: &Options) -> bool {
    #[cfg(feature = "onnx")]
    return onnx::runtime(options.onnx_library.as_deref()).kind == onnx::Kind::OnnxRuntime;
    #[cfg(not(feature = "onnx"))]
    return options.onnx_library.is_some() && false;
}
