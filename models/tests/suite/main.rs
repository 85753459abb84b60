//! Real checkpoints are loaded on every backend and their answers compared with golden outputs of the f64 reference.
//! One process has one ONNX runtime, so the tests of the other one are skipped aloud where all share a process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]
#![expect(clippy::print_stdout, reason = "what is skipped is said aloud, and what was measured too")]

mod architectures;
mod bundled_language;
mod decoders;
mod digits;
mod encoders;
mod gguf;
mod gguf_file;
mod gguf_tokenizers;
mod hostile;
mod limits;
mod minilm;
mod prompts;
mod quantised;
mod support;

/// The same suite over every backend, one line each.
macro_rules! on_every_backend {
    ($($name:ident),* $(,)?) => {
        mod on_candle { $(#[test] fn $name() { super::$name(crate::support::On::Candle) })* }
        mod on_cuda { $(#[test] fn $name() { super::$name(crate::support::On::Cuda) })* }
        mod on_onnx_runtime { $(#[test] fn $name() { super::$name(crate::support::On::OnnxRuntime) })* }
        mod on_tract { $(#[test] fn $name() { super::$name(crate::support::On::Tract) })* }
    };
}
pub(crate) use on_every_backend;

/// The same for encoders, which run on our own ops too.
macro_rules! on_every_encoder_backend {
    ($($name:ident),* $(,)?) => {
        mod on_kernels { $(#[test] fn $name() { super::$name(crate::support::On::Kernels) })* }
        crate::on_every_backend!($($name),*);
    };
}
pub(crate) use on_every_encoder_backend;
