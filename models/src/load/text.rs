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
    let decode = check(manifest, options)?;
    let checkpoint = Checkpoint::open(folder, manifest)?;
    let described = decode(&read_config(folder, manifest)?, &checkpoint)?.for_sequences_of(manifest.max_tokens);
    let context = manifest.max_tokens.map_or(described.context, |most| most.min(described.context));
    let block_bytes = decoder::block_bytes(&described).ok_or_else(|| Error::Backend {
        backend: "kernels",
        model: manifest.id(),
        detail: "a block of its KV cache is larger than memory can be".into(),
    })?;
    let weights_bytes = super::memory_need_bytes(manifest, Backend::Kernels);
    Ok(TextNeed { weights_bytes, block_bytes, block_tokens: decoder::BLOCK_TOKENS, context })
}

/// Loads a model that writes text from files that the cache has verified against the manifest, with a KV cache of at most so many bytes.
///
/// # Errors
/// See [`Error`]; [`Error::NoBackend`] also where the model does not write text, or is to run elsewhere than on the CPU.
pub fn load_text(manifest: &Manifest, folder: &Path, options: &Options, cache_bytes: u64) -> Result<LoadedText, Error> {
    if options.backend == Backend::Fake {
        return Ok(backend::fake_generator::loaded(cache_bytes));
    }
    let generator = load_generator(manifest, folder, options, cache_bytes)?;
    let language = Arc::new(load_language(manifest, folder)?);
    Ok(LoadedText { language, generator, choice: "our own ops write text on a CPU".into() })
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
    let decode = check(manifest, options)?;
    let config = read_config(folder, manifest)?;
    decoder::load(Source { manifest, folder, config: &config, options }, decode, cache_bytes)
}

/// How a model that writes text is described, when a backend of this build can run it as asked.
pub(super) fn check(manifest: &Manifest, options: &Options) -> Result<Decode, Error> {
    let refuse = |why: String| Error::NoBackend { model: manifest.id(), asked: options.backend, why };
    if manifest.task != Task::Generate {
        return Err(refuse(format!("its task is {}, it does not write text", manifest.task.name())));
    }
    let name = &manifest.architecture;
    let decode = architecture(name).and_then(|architecture| architecture.decode);
    let decode = decode.ok_or_else(|| refuse(format!("architecture {name:?} is not one that writes text here")))?;
    if options.device != Device::Cpu || !matches!(options.backend, Backend::Auto | Backend::Kernels) {
        return Err(refuse(format!(
            "text is written on the CPU only, with backend auto or kernels; this is {}",
            options.device
        )));
    }
    Ok(decode)
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
