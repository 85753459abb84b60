//! Implementations of [`Engine`], one line and one feature each. Checked model files
//! go in, engines come out. Which one is used is decided in [`load`](crate::load).

#[cfg(feature = "candle")]
pub mod candle;
pub(crate) mod cpu;
pub mod cuda;
pub mod fake;
pub mod fake_generator;
#[cfg(feature = "onnx")]
pub mod onnx;
mod packed;
#[cfg(feature = "onnx")]
pub mod plan;
#[cfg(feature = "candle")]
pub mod speed;

use crate::arch::decoder::Decoder;
use crate::arch::{Bounds, Decode};
use crate::engine::{self, Device, Engine, Generator, Item, Tokens};
use crate::load::checkpoint::Checkpoint;
use crate::load::{Error, Options, Source, TextNeed, onnx_check::Graph};
use crate::manifest::Manifest;
use rayon::ThreadPool;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

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

/// The ops that models run on on this CPU, by the instruction set that each of them uses in this process.
pub fn ops() -> BTreeMap<String, Vec<String>> {
    let mut ops: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (op, isa) in kernels::launch::isa_by_op() {
        ops.entry(isa.to_string()).or_default().push(op.to_owned());
    }
    ops
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

/// Loads what writes text into Candle, with a KV cache of at most so many bytes.
#[cfg(feature = "candle")]
pub(crate) fn load_candle_text(source: Source<'_>, decode: Decode, cache: u64) -> Result<Box<dyn Generator>, Error> {
    candle::load_text(source, decode, cache)
}

/// Without the feature there is nothing to load into; the choice of a backend has said so before.
#[cfg(not(feature = "candle"))]
pub(crate) fn load_candle_text(source: Source<'_>, _: Decode, _: u64) -> Result<Box<dyn Generator>, Error> {
    let why = "this build has no Candle".into();
    Err(Error::NoBackend { model: source.manifest.id(), asked: source.options.backend, why })
}

/// What a model that writes text takes of a device when Candle runs it; nothing where a block of its KV cache is larger than memory can be.
pub(crate) fn candle_text_need(
    of: &Decoder,
    in_: &Checkpoint,
    manifest: &Manifest,
    device: Device,
) -> Option<TextNeed> {
    #[cfg(feature = "candle")]
    return candle::text_need(of, in_, manifest, device);
    #[cfg(not(feature = "candle"))]
    return None;
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

/// Whether a library's words mean that memory has run out: those of CUDA, cuBLAS, Metal, ONNX Runtime and the C++ library.
pub(crate) fn says_out_of_memory(words: &str) -> bool {
    const PHRASES: [&str; 7] = [
        "out of memory",
        "out_of_memory",
        "failed to allocate memory",
        "available memory of",
        "bad_alloc",
        "cudaerrormemoryallocation",
        "alloc_failed",
    ];
    let words = words.to_ascii_lowercase();
    PHRASES.iter().any(|phrase| words.contains(phrase))
}

/// Whether an ONNX Runtime library is there and works. Searches for it at the first call.
pub(crate) fn onnx_runtime_found(options: &Options) -> bool {
    #[cfg(feature = "onnx")]
    return onnx::runtime(options.onnx_library.as_deref()).kind == onnx::Kind::OnnxRuntime;
    #[cfg(not(feature = "onnx"))]
    return options.onnx_library.is_some() && false;
}

/// The process's pool of this many threads.
fn pool(threads: usize) -> Result<Arc<ThreadPool>, String> {
    static POOLS: OnceLock<Mutex<HashMap<usize, Arc<ThreadPool>>>> = OnceLock::new();
    let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads) {
        return Ok(pool.clone());
    }
    let name = |index| format!("compute-{index}");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
    let pool = Arc::new(pool.map_err(|e| format!("{threads} threads cannot be started: {e}"))?);
    pools.insert(threads, pool.clone());
    Ok(pool)
}

/// Tokens of a sequence at most, whatever a configuration says: angles and biases are tables of so many positions, and no
/// encoder was trained on more.
const TOKENS_MAX: usize = 1 << 17;

/// Lowers an encoder's longest sequence to what the manifest says and tables can hold, and gives it. What is longer is then
/// refused as the caller's mistake, and not by an op.
fn bound_tokens(bounds: &mut Bounds, manifest: &Manifest) -> usize {
    let bound = bounds.tokens.min(TOKENS_MAX);
    bounds.tokens = manifest.max_tokens.unwrap_or(bound).clamp(1, bound);
    bounds.tokens
}

/// An item as tokens that an encoder takes.
fn check_tokens<'a>(bounds: &Bounds, item: &'a Item) -> Result<&'a Tokens, engine::Error> {
    let refuse = |detail: String| Err(engine::Error::Input(detail));
    let Item::Tokens(tokens) = item else { return refuse("this model takes tokens, not tensors".into()) };
    let length = tokens.ids.len();
    if !(1..=bounds.tokens).contains(&length) {
        return refuse(format!("a sequence has {length} tokens, 1 to {} are allowed", bounds.tokens));
    }
    if !tokens.type_ids.is_empty() && tokens.type_ids.len() != length {
        return refuse(format!("{length} tokens with {} segment ids", tokens.type_ids.len()));
    }
    if let Some(id) = tokens.ids.iter().find(|id| **id as usize >= bounds.vocabulary) {
        return refuse(format!("token id {id} is not below the vocabulary's {}", bounds.vocabulary));
    }
    if let Some(id) = tokens.type_ids.iter().find(|id| bounds.types > 1 && **id as usize >= bounds.types) {
        return refuse(format!("segment id {id} is not below {}", bounds.types));
    }
    Ok(tokens)
}
