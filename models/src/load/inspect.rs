//! A folder with a plain checkpoint goes in, a manifest for it comes out, with every file hashed. It reads
//! configuration and headers only, loads no weights and writes nothing.

use super::checkpoint::Checkpoint;
use super::gguf::{self, Gguf};
use super::sentence_transformers::{self, MODULES, PROMPTS, SENTENCE};
use super::{Error, safetensors};
use crate::arch::{self, Architecture, Bounds, has_head};
use crate::manifest::{self, File, Manifest, Task};
use crate::task::generate::language::{CHAT_TEMPLATE, GENERATION_CONFIG};
use serde_json::Value;
use sha2::Digest;
use std::io::Read;
use std::path::Path;

/// The model's configuration.
pub const CONFIG: &str = "config.json";
/// The model's tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Settings of the tokenizer, the longest sequence among them.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The readme, whose head names the licence.
const README: &str = "README.md";

/// Files of a checkpoint that are used besides weights.
const SIDE_FILES: &[&str] = &[
    CONFIG,
    TOKENIZER,
    MODULES,
    PROMPTS,
    SENTENCE,
    TOKENIZER_CONFIG,
    GENERATION_CONFIG,
    CHAT_TEMPLATE,
    README,
    safetensors::INDEX,
];
/// Where exporters put the graph. Variants beside it (`model_O2.onnx`, `model_quint8_avx2.onnx`, …) are left alone:
/// which one is wanted is not for us to guess.
const GRAPHS: &[&str] = &["model.onnx", "onnx/model.onnx"];
/// Endings of external data as exporters name it.
const EXTERNAL: &[&str] = &["model.onnx_data", "model.onnx.data", "onnx/model.onnx_data", "onnx/model.onnx.data"];

/// Whether a file of a checkpoint's repository belongs to the model: for sources that choose what to fetch.
pub fn is_wanted(path: &str) -> bool {
    let is_weights = (path.ends_with(".safetensors") || path.ends_with(".gguf")) && !path.contains('/');
    let is_side = SIDE_FILES.contains(&path) || sentence_transformers::is_pooling(path);
    is_weights || is_side || GRAPHS.contains(&path) || EXTERNAL.contains(&path)
}

/// What one GGUF file is called where there are several.
const GGUF: &str = "model.gguf";

/// Which of a model's files is its GGUF file, with all parts of it in their order: none where there are safetensors. Files of pictures'
/// encoders, which have names of their own, are left alone.
///
/// # Errors
/// When there are several, none of which is called `model.gguf`: how small the model shall be is not for us to guess. When a part is
/// missing.
pub fn choose_gguf<'p>(paths: impl IntoIterator<Item = &'p str>) -> Result<Vec<&'p str>, Error> {
    let paths: Vec<&str> = paths.into_iter().filter(|path| !path.contains('/')).collect();
    if paths.iter().any(|path| path.ends_with(".safetensors")) {
        return Ok(vec![]);
    }
    let is_text = |path: &&str| path.ends_with(".gguf") && !path.starts_with("mmproj");
    let found: Vec<&str> = paths.into_iter().filter(is_text).collect();
    match found.as_slice() {
        [] => Ok(vec![]),
        several if several.contains(&GGUF) => Ok(vec![GGUF]),
        [first, rest @ ..] if rest.iter().all(|path| gguf::are_one(first, path)) => gguf::in_order(&found),
        several => Err(Error::config("*.gguf", format!("{}: keep one, or call it {GGUF}", several.join(", ")))),
    }
}

/// Makes a manifest for a checkpoint as sentence-transformers, transformers or an ONNX exporter writes it.
///
/// `name` defaults to the folder's name in lower case, for a GGUF file to the one that it states; `version` to `1`.
///
/// # Errors
/// When there are no weights that can be loaded, when the architecture is unknown and there is no ONNX graph, or when
/// a file is broken.
pub fn inspect(
    folder: &Path,
    name: Option<&str>,
    version: Option<&str>,
    source: Option<&str>,
) -> Result<Manifest, Error> {
    let mut manifest = Manifest {
        name: name.map_or_else(|| default_name(folder), str::to_string),
        version: version.unwrap_or("1").into(),
        task: Task::Infer,
        architecture: "onnx".into(),
        files: list(folder)?,
        precision: "f32".into(),
        quantization: None,
        license: license(folder),
        source: source.map(str::to_string),
        pooling: None,
        normalize: true,
        max_tokens: None,
        labels: vec![],
        prompts: Default::default(),
        default_prompt: None,
        matryoshka_dimensions: vec![],
    };
    refuse_without_weights(folder, &manifest)?;
    manifest.check()?;
    if manifest.gguf().is_some() {
        return describe_gguf(manifest, folder, name.is_none());
    }
    let checkpoint = Checkpoint::open(folder, &manifest)?;
    if manifest.has_safetensors() {
        manifest.precision = checkpoint.precision().into();
    }
    let config = optional_json(folder, CONFIG)?.unwrap_or(Value::Null);
    let mut bounds = None;
    match arch::ALL.iter().find(|architecture| (architecture.claims)(&config)) {
        Some(Architecture { name, decode: Some(decode), .. })
            if manifest.has_safetensors() && writes(&config, &manifest) =>
        {
            manifest.architecture = (*name).into();
            manifest.task = Task::Generate;
            let trained = decode(&config, &checkpoint)?.context;
            manifest.max_tokens = Some(longest(folder, trained)?);
            return Ok(manifest);
        }
        Some(Architecture { name, describe: None, decode: Some(_), .. }) if !manifest.has_onnx() => {
            let detail = format!("architecture {name:?} writes text, and this is no checkpoint of a model that does");
            return Err(Error::config(CONFIG, detail));
        }
        Some(Architecture { describe: None, decode: Some(_), .. }) => {}
        Some(architecture) => {
            manifest.architecture = architecture.name.into();
            let probe =
                Manifest { task: if has_head(&config) { Task::Classify } else { Task::Embed }, ..manifest.clone() };
            match architecture.describe.map(|describe| describe(&config, &probe, &checkpoint)).transpose() {
                Ok(encoder) => bounds = encoder.map(|encoder| encoder.bounds),
                // What we cannot run from its weights may have a graph that can be.
                Err(_) if manifest.has_onnx() => manifest.architecture = "onnx".into(),
                Err(error) => return Err(error),
            }
        }
        None if manifest.has_onnx() => {}
        None => return Err(unknown_architecture(&config)),
    }
    describe(&mut manifest, folder, &config, bounds)?;
    Ok(manifest)
}

/// What a GGUF file says of its model. That it has a tokenizer is seen here, and not when the model is loaded.
fn describe_gguf(mut manifest: Manifest, folder: &Path, is_unnamed: bool) -> Result<Manifest, Error> {
    let gguf = Gguf::open(folder, &manifest.ggufs())?;
    let config = gguf::config(&gguf)?;
    let architecture = arch::ALL.iter().find(|architecture| (architecture.claims)(&config));
    let Some(Architecture { name, decode: Some(decode), .. }) = architecture else {
        return Err(unknown_architecture(&config));
    };
    let checkpoint = Checkpoint::open(folder, &manifest)?;
    manifest.task = Task::Generate;
    manifest.architecture = (*name).into();
    manifest.precision = checkpoint.precision().into();
    manifest.max_tokens = Some(longest(folder, decode(&config, &checkpoint)?.context)?);
    manifest.license = manifest.license.or(gguf.text("general.license")?.map(str::to_owned));
    if let Some(stated) = gguf.text("general.name")?.map(as_name).filter(|_| is_unnamed).flatten() {
        manifest.name = stated;
    }
    if !manifest.files.iter().any(|file| file.path == TOKENIZER) {
        gguf::tokenizer(&gguf)?;
    }
    manifest.check()?;
    Ok(manifest)
}

/// Tokens of a sequence at most: as many as a model was trained with, unless its tokenizer is said to give fewer.
fn longest(folder: &Path, trained: usize) -> Result<usize, Error> {
    let stated = length(optional_json(folder, TOKENIZER_CONFIG)?, "model_max_length");
    Ok(stated.map_or(trained, |stated| trained.min(stated as usize)))
}

/// Whether a checkpoint is one of a model that writes text: it has a head that does, and nobody made an encoder of it.
fn writes(config: &Value, manifest: &Manifest) -> bool {
    let head = config["architectures"][0].as_str().unwrap_or_default();
    head.ends_with("ForCausalLM") && !manifest.files.iter().any(|file| file.path == MODULES)
}

/// A length that a file states; what is beyond any model's stands for none.
fn length(value: Option<Value>, key: &str) -> Option<u64> {
    value.and_then(|value| value[key].as_u64()).filter(|length| *length < 1 << 24)
}

/// Task, labels, pooling and the longest sequence. `bounds` are those of an encoder whose weights we can run.
fn describe(manifest: &mut Manifest, folder: &Path, config: &Value, bounds: Option<Bounds>) -> Result<(), Error> {
    let has = |path: &str| manifest.files.iter().any(|file| file.path == path);
    let has_head = has_head(config);
    let takes_tokens = has(TOKENIZER);
    let head_rows = bounds.filter(|_| has_head).map(|bounds| bounds.vector).filter(|rows| *rows > 0);
    // transformers leaves `id2label` out when there are two classes.
    let labels = labels(config, head_rows, if has_head { 2 } else { 0 });
    manifest.task = match (takes_tokens, has_head, labels.len()) {
        (true, true, 0 | 1) => Task::Rerank,
        (true, true, _) => Task::Classify,
        (true, false, _) => Task::Embed,
        (false, _, 2..) => Task::Classify,
        (false, ..) => Task::Infer,
    };
    if manifest.task == Task::Classify {
        manifest.labels = labels;
    }
    if !takes_tokens {
        return Ok(());
    }
    if manifest.task == Task::Embed {
        let settings = sentence_transformers::read(folder)?;
        manifest.pooling = Some(settings.pooling);
        manifest.normalize = settings.normalize;
        manifest.prompts = settings.prompts;
        manifest.default_prompt = settings.default_prompt;
        manifest.matryoshka_dimensions = matryoshka(config)?;
        manifest.check()?;
    }
    let limits = [
        length(optional_json(folder, SENTENCE)?, "max_seq_length"),
        length(optional_json(folder, TOKENIZER_CONFIG)?, "model_max_length"),
        bounds.map_or_else(
            || length(Some(config.clone()), "max_position_embeddings"),
            |bounds| Some(bounds.tokens as u64),
        ),
    ];
    manifest.max_tokens = limits.into_iter().flatten().min().map(|n| n as usize);
    Ok(())
}

/// The class names of `id2label`, by index: as many as the head has rows, where that is known.
fn labels(config: &Value, head_rows: Option<usize>, unnamed: usize) -> Vec<String> {
    let map = config["id2label"].as_object();
    let name = |index: usize| map?.get(&index.to_string())?.as_str().map(str::to_string);
    let count = head_rows.unwrap_or(map.map_or(unnamed, serde_json::Map::len));
    (0..count).map(|index| name(index).unwrap_or_else(|| default_label(index))).collect()
}

/// The name of a class that has none.
pub(crate) fn default_label(index: usize) -> String {
    format!("LABEL_{index}")
}

/// `matryoshka_dimensions`, with which authors say for which lengths they trained. Without it any length may be asked.
fn matryoshka(config: &Value) -> Result<Vec<usize>, Error> {
    const KEY: &str = "matryoshka_dimensions";
    let broken = || Error::config(CONFIG, format!("{KEY} is not a list of lengths"));
    let list = match &config[KEY] {
        Value::Null => return Ok(vec![]),
        list => list.as_array().ok_or_else(broken)?,
    };
    let lengths = list.iter().map(|length| length.as_u64().map(|length| length as usize));
    let mut lengths = lengths.collect::<Option<Vec<usize>>>().ok_or_else(broken)?;
    lengths.sort_unstable();
    lengths.dedup();
    Ok(lengths)
}

fn unknown_architecture(config: &Value) -> Error {
    let name = config["architectures"][0].as_str().or(config["model_type"].as_str()).unwrap_or("none");
    let known: Vec<_> = arch::ALL.iter().map(|architecture| architecture.name).collect();
    let known = known.join(", ");
    Error::config(
        CONFIG,
        format!("architecture {name:?} is not one of {known}; add an ONNX export of the model as model.onnx"),
    )
}

fn refuse_without_weights(folder: &Path, manifest: &Manifest) -> Result<(), Error> {
    if manifest.has_safetensors() || manifest.has_onnx() || manifest.gguf().is_some() {
        return Ok(());
    }
    for pickle in ["pytorch_model.bin", "model.pt", "model.ckpt"] {
        if folder.join(pickle).exists() {
            return Err(Error::Unsafe { path: pickle.into(), kind: "a Python pickle" });
        }
    }
    Err(manifest::Error::NoWeights.into())
}

/// The folder's wanted files with their digests, in the paths' order. Any `.onnx` file at the top is taken when none
/// has the usual name, and so is the external data beside a graph that its own check accepts.
fn list(folder: &Path) -> Result<Vec<File>, Error> {
    let mut paths = Vec::new();
    walk(folder, "", &mut paths)?;
    paths.sort();
    let top_graphs: Vec<_> = paths.iter().filter(|p| p.ends_with(".onnx") && !p.contains('/')).cloned().collect();
    let usual = GRAPHS.iter().copied().find(|graph| paths.iter().any(|path| path == graph));
    let graph = match (usual, top_graphs.as_slice()) {
        (Some(usual), _) => Some(usual.to_string()),
        (None, [only]) => Some(only.clone()),
        (None, []) => None,
        (None, several) => {
            let names = several.join(", ");
            return Err(Error::config("*.onnx", format!("{names}: keep one graph, or call it model.onnx")));
        }
    };
    let beside = |path: &str| {
        let folder_of = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_string());
        graph.as_deref().is_some_and(|g| folder_of(g) == folder_of(path)) && is_external_data(path)
    };
    let ggufs: Vec<String> = choose_gguf(paths.iter().map(String::as_str))?.into_iter().map(str::to_owned).collect();
    paths.retain(|path| {
        let is_other_graph = path.ends_with(".onnx") && graph.as_ref() != Some(path);
        let is_other_gguf = path.ends_with(".gguf") && !ggufs.contains(path);
        !is_other_graph && !is_other_gguf && (is_wanted(path) || graph.as_ref() == Some(path) || beside(path))
    });
    paths.iter().map(|path| hash(folder, path)).collect()
}

/// Names that exporters give to external data.
fn is_external_data(path: &str) -> bool {
    [".onnx_data", ".onnx.data", ".data", ".weight", ".weights"].iter().any(|ending| path.ends_with(ending))
}

/// Collects regular files, two levels deep: enough for `1_Pooling/config.json` and `onnx/model.onnx`.
fn walk(folder: &Path, prefix: &str, paths: &mut Vec<String>) -> Result<(), Error> {
    let directory = folder.join(prefix);
    let entries = std::fs::read_dir(&directory).map_err(|e| Error::io(&directory, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(&directory, &e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let metadata = std::fs::metadata(entry.path()).map_err(|e| Error::io(entry.path(), &e))?;
        if metadata.is_dir() && prefix.is_empty() {
            walk(folder, &path, paths)?;
        } else if metadata.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

/// A file of a manifest, read once from beginning to end.
fn hash(folder: &Path, path: &str) -> Result<File, Error> {
    let mut reader = std::fs::File::open(folder.join(path)).map_err(|e| Error::io(path, &e))?;
    let mut digest = sha2::Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer).map_err(|e| Error::io(path, &e))? {
            0 => break,
            n => {
                digest.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    Ok(File { path: path.into(), sha256: data_encoding::HEXLOWER.encode(&digest.finalize()), bytes })
}

/// A JSON file that must be there.
pub(crate) fn read_json(folder: &Path, path: &str) -> Result<Value, Error> {
    let text = std::fs::read(folder.join(path)).map_err(|e| Error::io(path, &e))?;
    serde_json::from_slice(&text).map_err(|e| Error::config(path, format!("is not JSON: {e}")))
}

pub(super) fn optional_json(folder: &Path, path: &str) -> Result<Option<Value>, Error> {
    if folder.join(path).exists() { read_json(folder, path).map(Some) } else { Ok(None) }
}

/// The folder's name with what a model's name may hold; `model` when nothing is left.
fn default_name(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    folder.file_name().and_then(|name| as_name(&name.to_string_lossy())).unwrap_or_else(|| "model".into())
}

/// A text as a model's name; nothing when nothing is left of it.
fn as_name(text: &str) -> Option<String> {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.to_ascii_lowercase().chars().map(allowed).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    (!name.is_empty()).then(|| name.chars().take(128).collect())
}

/// `license: …` of the readme's head (YAML between two lines of dashes).
fn license(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(README)).ok()?;
    let mut lines = text.lines();
    lines.next().filter(|line| line.trim_end() == "---")?;
    let head = lines.take_while(|line| line.trim_end() != "---");
    let value = head.filter_map(|line| line.strip_prefix("license:")).next()?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_matryoshka(config: Value, want: Option<&[usize]>) {
        assert_eq!(matryoshka(&config).ok().as_deref(), want, "{config}");
    }

    #[test]
    fn lengths_of_embeddings_are_read_in_any_order() {
        check_matryoshka(serde_json::json!({}), Some(&[]));
        check_matryoshka(serde_json::json!({"matryoshka_dimensions": [256, 64, 128, 64]}), Some(&[64, 128, 256]));
        for broken in
            [serde_json::json!(64), serde_json::json!([64.5]), serde_json::json!([-1]), serde_json::json!("64")]
        {
            check_matryoshka(serde_json::json!({"matryoshka_dimensions": broken}), None);
        }
    }

    #[test]
    fn what_is_fetched_of_a_repository_is_what_is_used() {
        for path in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "a-Q8_0.gguf",
            "config.json",
            "onnx/model.onnx",
            "1_Pooling/config.json",
            "config_sentence_transformers.json",
        ] {
            assert!(is_wanted(path), "{path}");
        }
        for path in [
            "pytorch_model.bin",
            "2_Dense/config.json",
            "x/1_Pooling/config.json",
            "onnx/model_O3.onnx",
            "openvino/openvino_model.bin",
            "vocab.txt",
            "a/x.safetensors",
        ] {
            assert!(!is_wanted(path), "{path}");
        }
    }

    #[test]
    fn one_gguf_file_is_chosen_or_none() {
        let check = |paths: &[&str], want: Result<&[&str], &str>| match (choose_gguf(paths.iter().copied()), want) {
            (Ok(found), Ok(want)) => assert_eq!(found, want, "{paths:?}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, want) => panic!("{found:?} is not {want:?}"),
        };
        check(&["README.md"], Ok(&[]));
        check(&["README.md", "a-Q4_K_M.gguf", "mmproj-a.gguf", "old/b.gguf"], Ok(&["a-Q4_K_M.gguf"]));
        check(&["a.gguf", "model.gguf"], Ok(&["model.gguf"]));
        check(&["a.gguf", "model.safetensors"], Ok(&[]));
        check(&["a.gguf", "b.gguf"], Err("a.gguf, b.gguf"));
        let parts = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"];
        check(&[parts[1], "mmproj-a.gguf", parts[0]], Ok(&parts));
        check(&[parts[0]], Err("a-00002-of-00002.gguf"));
        check(&[parts[0], parts[1], "a.gguf"], Err("keep one"));
    }

    #[test]
    fn names_are_made_from_folders() {
        assert_eq!(default_name(Path::new("/nowhere/All MiniLM_L6")), "all-minilm_l6");
        assert_eq!(default_name(Path::new("/nowhere/__")), "model");
        assert_eq!(default_name(Path::new("/")), "model");
    }
}
