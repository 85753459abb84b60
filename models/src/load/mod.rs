//! A manifest and the folder with its verified files go in, a loaded model comes out: an engine for the device
//! thread and a pipeline for the CPU threads. It never writes and never runs anything that a model file contains.
//!
//! # Which backend
//! With [`Backend::Auto`]:
//! - on the CPU, an encoder that has safetensors of a known architecture runs on our own ops (`kernels`);
//! - another model that takes tokens runs on ONNX Runtime when it has an ONNX graph and the library was found (measured
//!   twice as fast as Candle on CPUs), else on Candle when it has safetensors of a known architecture, else on
//!   whatever reads its ONNX graph (tract when there is no library);
//! - a model that takes tensors runs its ONNX graph when it has one, else on Candle;
//! - a model that writes text ([`load_text`]) runs on our own ops on the CPU, on Candle on a GPU.
//!
//! [`Loaded::choice`] says which rule decided, and the engine's `Info` what really runs.

pub mod checkpoint;
mod choose;
pub mod gguf;
pub mod inspect;
#[expect(unsafe_code, reason = "mapping a file is the one thing that needs it; see its SAFETY note")]
pub mod mmap;
pub mod onnx_check;
mod protobuf;
pub mod safetensors;
mod sentence_transformers;
mod text;

pub use inspect::{choose_gguf, inspect, is_wanted};
pub use text::{LoadedText, TextNeed, load_generator, load_language, load_text, text_need};

use crate::engine::{Device, Engine};
use crate::manifest::{self, Manifest, Task};
use crate::task::{Pipeline, Tokenizer};
use crate::{arch, backend};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which backend shall run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Backend {
    /// The fastest that can, by the rules of [the module](self).
    #[default]
    Auto,
    /// Our own ops, on the CPU: encoders with safetensors, and models that write text.
    Kernels,
    /// Candle, on safetensors; what writes text also on GGUF.
    Candle,
    /// ONNX Runtime, or tract where there is no library.
    Onnx,
    /// The fake, which needs no files. For tests and benches only.
    Fake,
}

impl Backend {
    /// Every backend with its name in settings.
    pub const ALL: &[(Backend, &'static str)] = &[
        (Backend::Auto, "auto"),
        (Backend::Kernels, "kernels"),
        (Backend::Candle, "candle"),
        (Backend::Onnx, "onnx"),
        (Backend::Fake, "fake"),
    ];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(b, _)| *b == self).map(|(_, n)| *n).expect("ALL lists every backend")
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Backend {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, n)| *n == name);
        found
            .map(|(b, _)| *b)
            .ok_or_else(|| format!("backend {name:?} is unknown; use auto, kernels, candle, onnx or fake"))
    }
}

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Which backend.
    pub backend: Backend,
    /// On which device.
    pub device: Device,
    /// CPU threads that one batch may use; 0 for as many as the process may run on.
    pub threads: usize,
    /// The ONNX Runtime library to use. Where absent, it is searched for as [`backend::onnx::runtime`] says.
    pub onnx_library: Option<PathBuf>,
    /// What a backend that keeps device memory for itself (ONNX Runtime on a GPU) may take there in all, in bytes; where absent, whatever
    /// there is.
    pub device_bytes_max: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { backend: Backend::Auto, device: Device::Cpu, threads: 0, onnx_library: None, device_bytes_max: None }
    }
}

impl Options {
    /// The number of threads, counted where `threads` is 0. The count honours affinity and cgroup quotas.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// A model that is ready to answer.
pub struct Loaded {
    /// What it is.
    pub manifest: Manifest,
    /// Preparation and finishing, shared by the CPU threads.
    pub pipeline: Arc<Pipeline>,
    /// What the device thread drives.
    pub engine: Box<dyn Engine>,
    /// Why this backend, in words.
    pub choice: String,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("model", &self.manifest.id())
            .field("engine", self.engine.info())
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

/// Why a model is not loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// A file is missing or cannot be read.
    #[error("{path} cannot be read: {detail}; fetch the model again")]
    Io {
        /// The file.
        path: String,
        /// The system's words.
        detail: String,
    },
    /// A file's length is not the manifest's.
    #[error("{path} has {have} bytes, the manifest says {want}; fetch the model again")]
    Length {
        /// The file.
        path: String,
        /// Its length.
        have: u64,
        /// The manifest's.
        want: u64,
    },
    /// A pickle or another format that can run code, whatever its name says.
    #[error("{path} is {kind}, which can run code when loaded; convert it to safetensors or ONNX")]
    Unsafe {
        /// The file.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A broken safetensors file or index.
    #[error("{path} is not valid safetensors: {detail}; fetch or convert it again")]
    Safetensors {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A broken GGUF file, or one with what is not supported.
    #[error("{path} is not a GGUF file that can be used: {detail}")]
    Gguf {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// An ONNX file that is refused.
    #[error("{path} is refused: {reason}")]
    Onnx {
        /// The file.
        path: String,
        /// Why.
        reason: onnx_check::Error,
    },
    /// A configuration file that is missing, broken, or asks for what is not supported.
    #[error("{path}: {detail}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong and what would do.
        detail: String,
    },
    /// A tensor that is missing or has another shape or type.
    #[error("tensor {name}: {detail}; the weights do not belong to this configuration")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// No backend of this build can run the model as asked.
    #[error("{model} cannot run on backend {asked}: {why}")]
    NoBackend {
        /// `name@version`.
        model: String,
        /// The asked backend.
        asked: Backend,
        /// What is missing and what to do.
        why: String,
    },
    /// The device is not there, or this build cannot use it.
    #[error("{device} cannot be used: {detail}")]
    Device {
        /// The asked device.
        device: Device,
        /// Why, and what to do.
        detail: String,
    },
    /// The device has no room for the model, now.
    #[error("{device} has no room for {model}: {detail}; unload a model, or load this one elsewhere")]
    OutOfMemory {
        /// Where.
        device: Device,
        /// `name@version`.
        model: String,
        /// The backend's own words.
        detail: String,
    },
    /// The backend refused the model.
    #[error("{backend} cannot load {model}: {detail}")]
    Backend {
        /// Which backend.
        backend: &'static str,
        /// `name@version`.
        model: String,
        /// Its own words.
        detail: String,
    },
    /// What the model gives does not fit what the manifest says it is for.
    #[error("{model} does not fit its manifest: {detail}")]
    Misfit {
        /// `name@version`.
        model: String,
        /// What does not fit.
        detail: String,
    },
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        Error::Io { path: path.as_ref().display().to_string(), detail: error.to_string() }
    }

    /// The same, or [`Error::OutOfMemory`] where a backend's words say that: at whatever tensor or step it ran out, the model is not at
    /// fault.
    pub(crate) fn or_out_of_memory(self, manifest: &Manifest, device: Device) -> Self {
        let (Error::Tensor { detail, .. } | Error::Backend { detail, .. } | Error::Device { detail, .. }) = &self
        else {
            return self;
        };
        match backend::says_out_of_memory(detail) {
            true => Error::OutOfMemory { device, model: manifest.id(), detail: detail.clone() },
            false => self,
        }
    }

    pub(crate) fn config(path: &str, detail: impl std::fmt::Display) -> Self {
        Error::Config { path: path.into(), detail: detail.to_string() }
    }
}

/// What every backend is given: checked files and how to use them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) folder: &'a Path,
    pub(crate) config: &'a serde_json::Value,
    pub(crate) options: &'a Options,
}

/// Whether a backend of this build can run a model, before anything of it is read.
///
/// # Errors
/// [`Error::NoBackend`], with what is missing.
pub fn check_backend(manifest: &Manifest, options: &Options) -> Result<(), Error> {
    if manifest.task == Task::Generate {
        return text::check(manifest, options).map(|_| ());
    }
    let runtime_found = || backend::onnx_runtime_found(options);
    choose::choose(manifest, options.backend, options.device, &runtime_found).map(|_| ())
}

/// Loads a model that answers requests from files that the cache has verified against the manifest. One that writes text is loaded
/// with [`load_text`].
///
/// # Errors
/// See [`Error`]; each says what to do.
pub fn load(manifest: &Manifest, folder: &Path, options: &Options) -> Result<Loaded, Error> {
    if manifest.task == Task::Generate {
        return Err(Error::Misfit { model: manifest.id(), detail: "it writes text and answers nothing else".into() });
    }
    if options.backend == Backend::Fake {
        return Ok(backend::fake::loaded_as(manifest.clone()));
    }
    check_files(manifest, folder)?;
    let graph = check_graphs(folder, manifest)?;
    let config = read_config(folder, manifest)?;
    let source = Source { manifest, folder, config: &config, options };
    let (chosen, choice) =
        choose::choose(manifest, options.backend, options.device, &|| backend::onnx_runtime_found(options))?;
    let engine = match chosen {
        choose::Chosen::Kernels(describe) => backend::cpu::load(source, describe),
        choose::Chosen::Candle => backend::load_candle(source),
        choose::Chosen::Onnx => {
            let (path, graph) = graph.ok_or(manifest::Error::NoWeights)?;
            backend::load_onnx(source, &path, &graph)
        }
    };
    let mut engine = engine.map_err(|error| error.or_out_of_memory(manifest, options.device))?;
    let tokenizer = read_tokenizer(folder, manifest)?;
    let vocabulary = config.get("vocab_size").and_then(serde_json::Value::as_u64).map(|n| n as usize);
    let pipeline = Pipeline::new(manifest, engine.info(), tokenizer, vocabulary)?;
    warm_up(&mut *engine, manifest).map_err(|error| error.or_out_of_memory(manifest, options.device))?;
    tracing::info!(model = %manifest.id(), backend = engine.info().backend, provider = %engine.info().provider,
        device = %engine.info().device, "loaded: {choice}");
    Ok(Loaded { manifest: manifest.clone(), pipeline: Arc::new(pipeline), engine, choice })
}

/// Runs one tiny sequence, so that what only fails at the first run (a missing kernel, a wrong shape inside the
/// graph) fails the loading and not a caller, and so that the first caller does not pay for first allocations.
fn warm_up(engine: &mut dyn Engine, manifest: &Manifest) -> Result<(), Error> {
    use crate::engine::{Item, Tokens};
    if engine.info().vector_len.is_none() {
        return Ok(());
    }
    let result = engine.run(&[Item::Tokens(Tokens { ids: vec![0, 0], type_ids: vec![] })]);
    let refused = |e: crate::engine::Error, backend| Error::Backend {
        backend,
        model: manifest.id(),
        detail: format!("a first run failed: {e}"),
    };
    result.map(|_| ()).map_err(|e| refused(e, engine.info().backend))
}

/// Whether a model takes tokens, not tensors.
pub(crate) fn takes_tokens(manifest: &Manifest) -> bool {
    match manifest.task {
        Task::Embed | Task::Rerank | Task::Generate => true,
        Task::Classify => manifest.files.iter().any(|file| file.path == inspect::TOKENIZER),
        Task::Infer => false,
    }
}

/// Memory that a model needs of a device once it is loaded, in bytes: for deciding whether it fits before anything is tried. On
/// the high side, for the working memory of a batch depends on the batch. An estimate from the sizes of the files, not a
/// measurement.
pub fn memory_need_bytes(manifest: &Manifest, backend: Backend, device: Device) -> u64 {
    /// What a batch of the default token budget needs beside the weights.
    const WORKSPACE: u64 = 64 << 20;
    let sum =
        |ending: &str| -> u64 { manifest.files.iter().filter(|f| f.path.ends_with(ending)).map(|f| f.bytes).sum() };
    let is_half = matches!(manifest.precision.as_str(), "f16" | "bf16");
    // Blocks are packed as they are, with scales of 6 bits in 8.
    let gguf = sum(".gguf") / 32 * 33;
    // Our own ops keep weights as they are stored, packed.
    let kernels = sum(".safetensors");
    // Candle computes in f32 on a CPU, so half-precision weights double there.
    let candle = sum(".safetensors") * if is_half && device == Device::Cpu { 2 } else { 1 };
    // The graph's file is parsed into one copy and packed for the processor into another. External data has any
    // ending, so everything that is not safetensors counts.
    let onnx = (manifest.total_bytes() - sum(".safetensors") - sum(".gguf")) * 2;
    let is_described = architecture(&manifest.architecture).is_some_and(|known| known.describe.is_some());
    let weights = match backend {
        Backend::Fake => return 0,
        Backend::Kernels if manifest.has_safetensors() => kernels,
        Backend::Candle if manifest.has_safetensors() => candle,
        Backend::Candle | Backend::Kernels => gguf,
        Backend::Onnx => onnx,
        // What there is a description of is never anything else there.
        Backend::Auto if device == Device::Cpu && is_described && manifest.has_safetensors() => kernels,
        Backend::Auto => match (manifest.has_onnx(), manifest.has_safetensors()) {
            (true, true) => candle.max(onnx),
            (true, false) => onnx,
            (false, true) => candle,
            (false, false) => gguf,
        },
    };
    weights + WORKSPACE
}

fn check_files(manifest: &Manifest, folder: &Path) -> Result<(), Error> {
    manifest.check()?;
    manifest.files.iter().try_for_each(|file| check_file(folder, file))
}

fn check_file(folder: &Path, file: &manifest::File) -> Result<(), Error> {
    use std::io::Read;
    let mut reader = std::fs::File::open(folder.join(&file.path)).map_err(|e| Error::io(&file.path, &e))?;
    let have = reader.metadata().map_err(|e| Error::io(&file.path, &e))?.len();
    if have != file.bytes {
        return Err(Error::Length { path: file.path.clone(), have, want: file.bytes });
    }
    let mut head = [0u8; 16];
    let mut filled = 0;
    while filled < head.len() {
        match reader.read(&mut head[filled..]).map_err(|e| Error::io(&file.path, &e))? {
            0 => break,
            n => filled += n,
        }
    }
    match code_format(&head[..filled], file.path.ends_with(".safetensors")) {
        Some(kind) => Err(Error::Unsafe { path: file.path.clone(), kind }),
        None => Ok(()),
    }
}

/// Recognises formats that can run code by their first bytes, whatever the file is called.
fn code_format(head: &[u8], named_safetensors: bool) -> Option<&'static str> {
    // A safetensors header of 512 to 1,407 bytes starts like a pickle (0x80, then 2 to 5); what tells them apart is
    // the brace after the eight bytes of its length. A pickle made to look so is then refused as broken safetensors.
    let is_header = named_safetensors && head.get(8) == Some(&b'{');
    match head {
        [0x80, 2..=5, ..] if !is_header => Some("a Python pickle"),
        [b'P', b'K', 3 | 5, 4 | 6, ..] => Some("a zip archive (PyTorch and Keras keep pickles in one)"),
        [0x89, b'H', b'D', b'F', ..] => Some("an HDF5 file"),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Some("a NumPy file"),
        [0x1f, 0x8b, ..] if !is_header => Some("a gzip archive (joblib keeps pickles in one)"),
        _ => None,
    }
}

/// Checks every ONNX file, and gives the one that is run: the first of the list.
fn check_graphs(folder: &Path, manifest: &Manifest) -> Result<Option<(PathBuf, onnx_check::Graph)>, Error> {
    let mut first = None;
    for file in manifest.files.iter().filter(|file| file.path.ends_with(".onnx")) {
        let path = folder.join(&file.path);
        let bytes = mmap::Mapped::open(&path).map_err(|e| Error::io(&file.path, &e))?;
        let graph = onnx_check::check(&bytes, &file.path, manifest)
            .map_err(|reason| Error::Onnx { path: file.path.clone(), reason })?;
        first.get_or_insert((path, graph));
    }
    Ok(first)
}

/// `config.json`, or null when the model has none; that of a GGUF file stands in it.
fn read_config(folder: &Path, manifest: &Manifest) -> Result<serde_json::Value, Error> {
    let ggufs = manifest.ggufs();
    if !ggufs.is_empty() {
        return gguf::config(&gguf::Gguf::open(folder, &ggufs)?);
    }
    if !manifest.files.iter().any(|file| file.path == inspect::CONFIG) {
        return Ok(serde_json::Value::Null);
    }
    inspect::read_json(folder, inspect::CONFIG)
}

fn read_tokenizer(folder: &Path, manifest: &Manifest) -> Result<Option<Tokenizer>, Error> {
    if takes_tokens(manifest) { must_read_tokenizer(folder, manifest).map(Some) } else { Ok(None) }
}

fn must_read_tokenizer(folder: &Path, manifest: &Manifest) -> Result<Tokenizer, Error> {
    if !manifest.files.iter().any(|file| file.path == inspect::TOKENIZER) {
        return Err(Error::config(inspect::TOKENIZER, "is missing; a model that takes text needs one"));
    }
    let bytes = std::fs::read(folder.join(inspect::TOKENIZER)).map_err(|e| Error::io(inspect::TOKENIZER, &e))?;
    Tokenizer::from_json(&bytes).map_err(|e| Error::config(inspect::TOKENIZER, e))
}

/// The architecture of this name.
pub(crate) fn architecture(name: &str) -> Option<&'static arch::Architecture> {
    arch::ALL.iter().find(|architecture| architecture.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &[u8], named_safetensors: bool, want: bool) {
        assert_eq!(code_format(head, named_safetensors).is_some(), want, "{head:x?}");
    }

    #[test]
    fn what_ran_out_of_memory_says_so_in_its_type_whatever_step_it_was() {
        let manifest = backend::fake::manifest("m");
        let device = Device::Cuda(1);
        let words = [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
            "Failed to allocate memory for requested buffer of size 4096",
            "Available memory of 1024 is smaller than requested bytes of 4096",
        ];
        for detail in words.map(str::to_owned) {
            for error in [
                Error::Tensor { name: "w".into(), detail: detail.clone() },
                Error::Backend { backend: "onnxruntime", model: "m@1".into(), detail: detail.clone() },
                Error::Device { device, detail: detail.clone() },
            ] {
                let expected = Error::OutOfMemory { device, model: manifest.id(), detail: detail.clone() };
                assert_eq!(error.or_out_of_memory(&manifest, device), expected);
            }
        }
        let broken = Error::Tensor { name: "w".into(), detail: "is missing".into() };
        assert_eq!(broken.clone().or_out_of_memory(&manifest, device), broken);
    }

    #[test]
    fn formats_that_run_code_are_known_by_their_first_bytes() {
        check(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", false, true);
        check(b"\x80\x04\x95\x17\0\0\0\0", true, true);
        check(b"PK\x03\x04archive/data.pkl", true, true);
        check(b"\x89HDF\r\n\x1a\n", false, true);
        check(b"\x93NUMPY\x01\0", false, true);
        check(b"{\"model_type\"", false, false);
        check(b"", false, false);
    }

    #[test]
    fn a_safetensors_header_of_640_bytes_is_not_taken_for_a_pickle() {
        check(b"\x80\x02\0\0\0\0\0\0{\"a\":", true, false);
        check(b"\x80\x02\0\0\0\0\0\0{\"a\":", false, true);
    }

    #[test]
    fn backends_go_by_their_names() {
        for (backend, name) in Backend::ALL {
            assert_eq!(name.parse(), Ok(*backend));
            assert_eq!(backend.to_string(), *name);
        }
        assert!("torch".parse::<Backend>().is_err());
    }

    #[test]
    fn half_precision_doubles_only_where_it_is_computed_in_f32() {
        const GPU: Device = Device::Cuda(0);
        let need = |architecture: &str, precision: &str, files: &[&str], backend, device| {
            let file = |path: &&str| manifest::File { path: (*path).into(), sha256: "0".repeat(64), bytes: 1 << 30 };
            let manifest = Manifest {
                architecture: architecture.into(),
                precision: precision.into(),
                files: files.iter().map(file).collect(),
                ..backend::fake::manifest("m")
            };
            // Whole files; what a batch takes beside them is less than one.
            memory_need_bytes(&manifest, backend, device) >> 30
        };
        let both = &["model.safetensors", "model.onnx"][..];
        let weights = &both[..1];
        for (precision, on_candles_cpu) in [("f32", 1), ("f16", 2), ("bf16", 2)] {
            assert_eq!(need("bert", precision, weights, Backend::Kernels, Device::Cpu), 1);
            assert_eq!(need("bert", precision, both, Backend::Auto, Device::Cpu), 1);
            assert_eq!(need("bert", precision, weights, Backend::Candle, Device::Cpu), on_candles_cpu);
            assert_eq!(need("mlp", precision, weights, Backend::Auto, Device::Cpu), on_candles_cpu);
            assert_eq!(need("bert", precision, weights, Backend::Candle, GPU), 1);
            assert_eq!(need("bert", precision, weights, Backend::Auto, GPU), 1);
            assert_eq!(need("bert", precision, both, Backend::Auto, GPU), 2);
        }
    }
}
