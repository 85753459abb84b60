//! Models that write text: a manifest and the folder with its verified files go in, what turns requests into prompts and what writes come
//! out. How much memory that takes is known before.

use super::gguf::{self, Gguf};
use super::{Backend, Error, Options, Source, architecture, check_files, inspect, must_read_tokenizer, read_config};
use crate::arch::Decode;
use crate::backend;
use crate::backend::cpu::decoder;
use crate::engine::{Device, Generator};
use crate::load::checkpoint::Checkpoint;
use crate::manifest::{Manifest, Task};
use crate::task::generate::language::{self, Language};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A model that is ready to write.
pub struct LoadedText {
    /// Requests to prompts, and the tokenizer; shared by the CPU threads.
    pub language: Arc<Language>,
    /// What the device thread drives.
    pub generator: Box<dyn Generator>,
    /// Why this backend, in words.
    pub choice: String,
}

impl std::fmt::Debug for LoadedText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedText").field("generator", self.generator.info()).field("choice", &self.choice).finish()
    }
}

/// What a model that writes text takes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextNeed {
    /// Weights, and what a step computes with, in bytes. An estimate from the sizes of the files.
    pub weights_bytes: u64,
    /// A block of the KV cache, in bytes.
    pub block_bytes: u64,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Tokens of a sequence at most, as the model was trained.
    pub context: usize,
}

/// Counts what a model needs, before anything of it is loaded.
///
/// # Errors
/// As [`load_text`], as far as the configuration shows it.
pub fn text_need(manifest: &Manifest, folder: &Path, options: &Options) -> Result<TextNeed, Error> {
    if options.backend == Backend::Fake {
        return Ok(backend::fake_generator::NEED);
    }
    let (decode, runs) = check(manifest, options)?;
    let checkpoint = Checkpoint::open(folder, manifest)?;
    let described = decode(&read_config(folder, manifest)?, &checkpoint)?.for_sequences_of(manifest.max_tokens);
    let need = match runs {
        Runs::Kernels => decoder::block_bytes(&described).map(|block_bytes| TextNeed {
            weights_bytes: super::memory_need_bytes(manifest, Backend::Kernels, Device::Cpu),
            block_bytes,
            block_tokens: decoder::BLOCK_TOKENS,
            context: manifest.max_tokens.map_or(described.context, |most| most.min(described.context)),
        }),
        Runs::Candle => backend::candle_text_need(&described, &checkpoint, manifest, options.device),
    };
    need.ok_or_else(|| Error::Backend {
        backend: runs.name(),
        model: manifest.id(),
        detail: "a block of its KV cache is larger than memory can be".into(),
    })
}

/// Loads a model that writes text from files that the cache has verified against the manifest, with a KV cache of at most so many bytes.
///
/// # Errors
/// See [`Error`]; [`Error::NoBackend`] also where the model does not write text, or is to run on what has no text here.
pub fn load_text(manifest: &Manifest, folder: &Path, options: &Options, cache_bytes: u64) -> Result<LoadedText, Error> {
    if options.backend == Backend::Fake {
        return Ok(backend::fake_generator::loaded(cache_bytes));
    }
    let (_, runs) = check(manifest, options)?;
    let generator = load_generator(manifest, folder, options, cache_bytes)?;
    let language = Arc::new(load_language(manifest, folder)?);
    let choice = match (runs, options.backend) {
        (Runs::Candle, Backend::Candle) => "Candle was asked for",
        (Runs::Candle, _) => "Candle writes text on a GPU",
        (Runs::Kernels, Backend::Kernels) => "kernels was asked for",
        (Runs::Kernels, _) => "our own ops write text on a CPU",
    };
    Ok(LoadedText { language, generator, choice: choice.into() })
}

/// The part of [`load_text`] that takes and gives tokens.
///
/// # Errors
/// As [`load_text`].
pub fn load_generator(
    manifest: &Manifest,
    folder: &Path,
    options: &Options,
    cache_bytes: u64,
) -> Result<Box<dyn Generator>, Error> {
    check_files(manifest, folder)?;
    let (decode, runs) = check(manifest, options)?;
    let config = read_config(folder, manifest)?;
    let source = Source { manifest, folder, config: &config, options };
    let generator = match runs {
        Runs::Kernels => decoder::load(source, decode, cache_bytes),
        Runs::Candle => backend::load_candle_text(source, decode, cache_bytes),
    };
    generator.map_err(|error| error.or_out_of_memory(manifest, options.device))
}

/// What can write text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runs {
    /// Our own ops, on the CPU.
    Kernels,
    /// Candle, on any of its devices.
    Candle,
}

impl Runs {
    fn name(self) -> &'static str {
        match self {
            Runs::Kernels => "kernels",
            Runs::Candle => "candle",
        }
    }
}

/// How a model that writes text is described, and what runs it: what was asked for, else our own ops on the CPU and Candle on a GPU.
pub(super) fn check(manifest: &Manifest, options: &Options) -> Result<(Decode, Runs), Error> {
    let refuse = |why: String| Error::NoBackend { model: manifest.id(), asked: options.backend, why };
    if manifest.task != Task::Generate {
        return Err(refuse(format!("its task is {}, it does not write text", manifest.task.name())));
    }
    let name = &manifest.architecture;
    let decode = architecture(name).and_then(|architecture| architecture.decode);
    let decode = decode.ok_or_else(|| refuse(format!("architecture {name:?} is not one that writes text here")))?;
    let runs = match (options.backend, options.device) {
        (Backend::Auto | Backend::Kernels, Device::Cpu) => Runs::Kernels,
        (Backend::Auto | Backend::Candle, _) if cfg!(feature = "candle") => Runs::Candle,
        (Backend::Auto | Backend::Candle, _) => {
            return Err(refuse("this build has no Candle; use backend kernels".into()));
        }
        (Backend::Kernels, device) => {
            return Err(refuse(format!("it runs on the CPU, not on {device}; use backend auto or candle")));
        }
        (Backend::Onnx | Backend::Fake, _) => {
            return Err(refuse("text is written with backend auto, kernels or candle only".into()));
        }
    };
    if let (Runs::Candle, Some(quantization)) = (runs, manifest.quantization) {
        let name = quantization.name();
        return Err(refuse(format!(
            "it is to run in {name}, which only our own ops do, on the CPU with backend auto or kernels"
        )));
    }
    Ok((decode, runs))
}

/// What a model that writes text has beside its weights, from files that the cache has verified.
///
/// # Errors
/// When the tokenizer is missing or a file is broken.
pub fn load_language(manifest: &Manifest, folder: &Path) -> Result<Language, Error> {
    let has = |path: &str| manifest.files.iter().any(|file| file.path == path);
    let ggufs = manifest.ggufs();
    let gguf = if ggufs.is_empty() { None } else { Some(Gguf::open(folder, &ggufs)?) };
    // What lies beside a GGUF file is there because somebody wants it so.
    let tokenizer = match &gguf {
        Some(gguf) if !has(inspect::TOKENIZER) => gguf::tokenizer(gguf)?,
        _ => must_read_tokenizer(folder, manifest)?,
    };
    let json = |path: &str, of_gguf: fn(&Gguf) -> Result<Value, Error>| -> Result<Value, Error> {
        let mut all = gguf.as_ref().map_or(Ok(Value::Null), of_gguf)?;
        let beside = if has(path) { inspect::read_json(folder, path)? } else { Value::Null };
        match (&mut all, beside) {
            (Value::Object(all), Value::Object(beside)) => all.extend(beside),
            (_, Value::Null) => {}
            (all, beside) => *all = beside,
        }
        Ok(all)
    };
    let file = language::CHAT_TEMPLATE;
    let template = match has(file) {
        true => Some(std::fs::read_to_string(folder.join(file)).map_err(|e| Error::io(file, &e))?),
        false => None,
    };
    let config = gguf.as_ref().map_or_else(|| read_config(folder, manifest), gguf::config)?;
    let generation = json(language::GENERATION_CONFIG, gguf::generation_config)?;
    let tokenizer_config = json(inspect::TOKENIZER_CONFIG, gguf::tokenizer_config)?;
    let files = language::Files {
        config: &config,
        generation: &generation,
        tokenizer: &tokenizer_config,
        template: template.as_deref(),
    };
    Language::new(tokenizer, files)
}
