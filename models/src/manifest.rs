//! The description of one model version: what it does, which files it is made of and how they are used.
//! Read from and written to `manifest.json`; checked before anything else is done with it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// File name of a manifest in a model's folder.
pub const FILE_NAME: &str = "manifest.json";

/// One version of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Lower-case letters, digits, `.`, `_`, `-`; starts with a letter or digit; at most 128.
    pub name: String,
    /// The same characters. Versions are compared as wholes; the newest is the one registered last.
    pub version: String,
    /// What it is for.
    pub task: Task,
    /// Architecture folder in `arch/` (`bert`, `mlp`), or `onnx` when only the graph knows.
    pub architecture: String,
    /// Every file, the tokenizer and configuration included. Paths are relative and stay inside the folder.
    pub files: Vec<File>,
    /// Type of most of the weights as stored: `f32`, `f16`, `bf16`, `q4_0`, `q4_1`, `q5_0`, `q5_1`, `q8_0`, `iq4_nl`, `q4_k`,
    /// `q5_k`, `q6_k`.
    #[serde(default = "f32_name")]
    pub precision: String,
    /// What the weights are turned into when they are loaded, where that is not what is stored. Another model in everything but
    /// its files: its results differ a little, so that it is asked for by a name or a version of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// SPDX expression, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Where it came from, e.g. `hf:org/name@revision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How token vectors become one vector, for encoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Whether embeddings are scaled to length 1 unless a request says otherwise.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Longest sequence in tokens, special tokens included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Class names by index, for classifiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Texts that stand before an input, by the names under which requests choose them: `query` → `"query: "`. A prompt
    /// may be empty: then the input stands bare. For embeddings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, String>,
    /// Name of the prompt of requests that choose none. Where absent, those inputs stand bare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// Lengths for which the embedding was trained, ascending: requests may cut to these and to the full length only.
    /// Where empty, to any. For embeddings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matryoshka_dimensions: Vec<usize>,
}

fn f32_name() -> String {
    "f32".into()
}

fn yes() -> bool {
    true
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Texts to vectors.
    Embed,
    /// A query and documents to scores.
    Rerank,
    /// Texts or tensors to labels.
    Classify,
    /// Named tensors to named tensors.
    Infer,
    /// A prompt to the text behind it; a conversation to its next message, where the model has a template for it.
    Generate,
}

impl Task {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Task::Embed => "embed",
            Task::Rerank => "rerank",
            Task::Classify => "classify",
            Task::Infer => "infer",
            Task::Generate => "generate",
        }
    }
}

/// How an encoder's token vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
}

/// How weights are made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// The layers' products in 8 bits, with a scale for each output and each token: see [`kernels::linear_int8`].
    Int8,
}

impl Quantization {
    /// Its name in manifests and settings.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Int8 => "int8",
        }
    }
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Relative path with `/`, never `..`, never absolute.
    pub path: String,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// What a model is to be called and given, where that is not what its files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Another name.
    pub name: Option<String>,
    /// Another version.
    pub version: Option<String>,
    /// What its weights are turned into when they are loaded.
    pub quantization: Option<Quantization>,
    /// Prompts beside those that there are; one of the same name takes the other's place.
    pub prompts: BTreeMap<String, String>,
    /// Another default, one of the prompts.
    pub default_prompt: Option<String>,
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not JSON of this shape.
    #[error("manifest is not valid: {0}")]
    Json(String),
    /// A name or version with other characters than allowed.
    #[error("{field} {value:?} must be 1 to 128 of a-z 0-9 . _ - and start with a letter or digit")]
    Name {
        /// `name` or `version`.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// A path that leaves the folder, or comes twice.
    #[error("file path {0:?} must be relative, without `..` and listed once")]
    Path(String),
    /// Not 64 lower-case hex digits.
    #[error("{path}: sha256 must be 64 lower-case hex digits")]
    Digest {
        /// The file.
        path: String,
    },
    /// A format that could run code, or that nothing here reads.
    #[error("{0}: only safetensors, GGUF and ONNX weights are accepted; convert it first")]
    Format(String),
    /// A prompt without a name, too long, or chosen by default and not there.
    #[error("prompt {name:?} {problem}")]
    Prompt {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Lengths of embeddings that cannot be.
    #[error("matryoshka_dimensions {0:?} must be ascending and start at 1 or more")]
    Dimensions(Vec<usize>),
    /// A field that means nothing for the model's task.
    #[error("{field} is for models that embed; this one does {task}")]
    NotEmbed {
        /// `prompts` or `matryoshka_dimensions`.
        field: &'static str,
        /// The model's task.
        task: &'static str,
    },
    /// Nothing to load.
    #[error("manifest lists no weights (*.safetensors, *.gguf or *.onnx)")]
    NoWeights,
}

/// Bytes of one prompt. Instructions of models that were trained with some are a few hundred; what takes thousands of
/// tokens leaves no room for the text.
const PROMPT_BYTES_MAX: usize = 16 << 10;

/// Endings of weight formats that can run code when loaded, or that are not read here.
const REFUSED_ENDINGS: &[&str] =
    &[".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".keras", ".joblib", ".npy", ".npz", ".msgpack"];

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is not JSON of this shape, or breaks a rule.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let manifest: Self = serde_json::from_slice(json).map_err(|e| Error::Json(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The same with changes.
    ///
    /// # Errors
    /// The first rule that is then broken.
    pub fn changed(mut self, changes: Changes) -> Result<Self, Error> {
        let Changes { name, version, quantization, prompts, default_prompt } = changes;
        self.name = name.unwrap_or(self.name);
        self.version = version.unwrap_or(self.version);
        self.quantization = quantization.or(self.quantization);
        self.prompts.extend(prompts);
        self.default_prompt = default_prompt.or(self.default_prompt);
        self.check()?;
        Ok(self)
    }

    /// Its JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest has no maps with odd keys")
    }

    /// Checks every rule that the fields' descriptions state.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Error> {
        check_name("name", &self.name)?;
        check_name("version", &self.version)?;
        let mut seen = std::collections::HashSet::new();
        for file in &self.files {
            if !is_inside(&file.path) || !seen.insert(&file.path) {
                return Err(Error::Path(file.path.clone()));
            }
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if file.sha256.len() != 64 || !file.sha256.bytes().all(hex) {
                return Err(Error::Digest { path: file.path.clone() });
            }
            if REFUSED_ENDINGS.iter().any(|ending| file.path.to_ascii_lowercase().ends_with(ending)) {
                return Err(Error::Format(file.path.clone()));
            }
        }
        if !self.has_safetensors() && !self.has_onnx() && self.gguf().is_none() {
            return Err(Error::NoWeights);
        }
        self.check_embedding()
    }

    /// The rules of prompts and dimensions.
    fn check_embedding(&self) -> Result<(), Error> {
        let only_embed = |field, is_empty: bool| match (self.task, is_empty) {
            (Task::Embed, _) | (_, true) => Ok(()),
            (task, false) => Err(Error::NotEmbed { field, task: task.name() }),
        };
        only_embed("prompts", self.prompts.is_empty())?;
        only_embed("matryoshka_dimensions", self.matryoshka_dimensions.is_empty())?;
        let refuse = |name: &str, problem: String| Err(Error::Prompt { name: name.into(), problem });
        for (name, text) in &self.prompts {
            if name.is_empty() || name.len() > 128 {
                return refuse(name, "must have a name of 1 to 128 bytes".into());
            }
            if text.len() > PROMPT_BYTES_MAX {
                return refuse(name, format!("has {} bytes, {PROMPT_BYTES_MAX} are allowed", text.len()));
            }
        }
        match &self.default_prompt {
            Some(name) if !self.prompts.contains_key(name) => {
                return refuse(name, "is the default and not one of the prompts".into());
            }
            _ => {}
        }
        let dimensions = &self.matryoshka_dimensions;
        if dimensions.first() == Some(&0) || !dimensions.is_sorted_by(|a, b| a < b) {
            return Err(Error::Dimensions(dimensions.clone()));
        }
        Ok(())
    }

    /// `name@version`.
    pub fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Whether there are safetensors weights.
    pub fn has_safetensors(&self) -> bool {
        self.files.iter().any(|f| f.path.ends_with(".safetensors"))
    }

    /// Whether there is an ONNX graph.
    pub fn has_onnx(&self) -> bool {
        self.files.iter().any(|f| f.path.ends_with(".onnx"))
    }

    /// The GGUF file that has the weights, of several parts the one that is listed first: none where there are safetensors.
    pub fn gguf(&self) -> Option<&str> {
        self.ggufs().first().copied()
    }

    /// The GGUF files that have the weights, one or the parts of one: none where there are safetensors.
    pub fn ggufs(&self) -> Vec<&str> {
        if self.has_safetensors() {
            return vec![];
        }
        self.files.iter().map(|file| file.path.as_str()).filter(|path| path.ends_with(".gguf")).collect()
    }

    /// Sum of the files' lengths.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// SHA-256 over the files' digests and paths in the paths' order, over what the weights are turned into and over the prompts, as
    /// hex: the same for what computes the same, whatever the manifest's other fields say.
    pub fn digest(&self) -> String {
        use sha2::Digest;
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut hash = sha2::Sha256::new();
        for file in files {
            hash.update(format!("{}  {}\n", file.sha256, file.path));
        }
        if let Some(quantization) = self.quantization {
            hash.update(quantization.name());
        }
        if !self.prompts.is_empty() {
            let prompts = serde_json::to_string(&(&self.prompts, &self.default_prompt));
            hash.update(prompts.expect("texts can be written as JSON"));
        }
        data_encoding::HEXLOWER.encode(&hash.finalize())
    }
}

/// Splits `name` or `name@version`.
pub fn split_id(id: &str) -> (&str, Option<&str>) {
    match id.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (id, None),
    }
}

fn check_name(field: &'static str, value: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let starts = value.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if starts && value.len() <= 128 && value.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::Name { field, value: value.into() })
}

/// Whether a relative path stays inside its folder on every system.
pub fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, version: &str, paths: &[&str]) -> Manifest {
        let file = |path: &&str| File { path: (*path).into(), sha256: "0".repeat(64), bytes: 1 };
        Manifest {
            name: name.into(),
            version: version.into(),
            task: Task::Embed,
            architecture: "bert".into(),
            files: paths.iter().map(file).collect(),
            precision: "f32".into(),
            quantization: None,
            license: None,
            source: None,
            pooling: None,
            normalize: true,
            max_tokens: None,
            labels: vec![],
            prompts: BTreeMap::new(),
            default_prompt: None,
            matryoshka_dimensions: vec![],
        }
    }

    fn check(name: &str, version: &str, paths: &[&str], want: Result<(), Error>) {
        assert_eq!(manifest(name, version, paths).check(), want);
    }

    #[test]
    fn rules_are_enforced() {
        let good = ["model.safetensors", "1_Pooling/config.json"];
        check("all-minilm-l6-v2", "1", &good, Ok(()));
        check("", "1", &good, Err(Error::Name { field: "name", value: "".into() }));
        check("a/b", "1", &good, Err(Error::Name { field: "name", value: "a/b".into() }));
        check("a", "-1", &good, Err(Error::Name { field: "version", value: "-1".into() }));
        check("a", "1", &["model.gguf"], Ok(()));
        check("a", "1", &["config.json"], Err(Error::NoWeights));
        check("a", "1", &["m.onnx", "m.onnx"], Err(Error::Path("m.onnx".into())));
        for path in ["../m.onnx", "/m.onnx", "a//m.onnx", "a\\m.onnx", "c:m.onnx", "./m.onnx", ""] {
            check("a", "1", &[path], Err(Error::Path(path.into())));
        }
        check("a", "1", &["pytorch_model.bin"], Err(Error::Format("pytorch_model.bin".into())));
    }

    #[test]
    fn prompts_and_dimensions_are_checked() {
        let with = |prompts: &[(&str, &str)], default: Option<&str>, dimensions: &[usize], task| {
            let prompts = prompts.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
            let default_prompt = default.map(str::to_owned);
            let plain = manifest("a", "1", &["m.onnx"]);
            Manifest { prompts, default_prompt, matryoshka_dimensions: dimensions.to_vec(), task, ..plain }.check()
        };
        let embed = |prompts: &[(&str, &str)], default: Option<&str>, dimensions: &[usize]| {
            with(prompts, default, dimensions, Task::Embed)
        };
        assert_eq!(embed(&[("query", "query: "), ("document", "")], Some("query"), &[1, 64, 384]), Ok(()));
        assert!(matches!(embed(&[("query", "q")], Some("Query"), &[]), Err(Error::Prompt { .. })));
        assert!(matches!(embed(&[], Some("query"), &[]), Err(Error::Prompt { .. })));
        assert!(matches!(embed(&[("", "q")], None, &[]), Err(Error::Prompt { .. })));
        assert!(matches!(embed(&[("q", &"x".repeat(PROMPT_BYTES_MAX + 1))], None, &[]), Err(Error::Prompt { .. })));
        for dimensions in [&[0, 1][..], &[64, 32], &[64, 64]] {
            assert_eq!(embed(&[], None, dimensions), Err(Error::Dimensions(dimensions.to_vec())));
        }
        for task in [Task::Rerank, Task::Classify, Task::Infer] {
            assert!(matches!(with(&[("q", "")], None, &[], task), Err(Error::NotEmbed { field: "prompts", .. })));
            assert!(matches!(with(&[], None, &[1], task), Err(Error::NotEmbed { .. })));
            assert_eq!(with(&[], None, &[], task), Ok(()));
        }
    }

    #[test]
    fn changes_stand_beside_or_in_place_of_what_is_there_and_are_checked() {
        let text = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let mut plain = manifest("a", "1", &["m.onnx"]);
        plain.prompts = [text("query", "q: "), text("document", "")].into();
        assert_eq!(plain.clone().changed(Changes::default()), Ok(plain.clone()));
        let changes = Changes {
            name: Some("b".into()),
            version: None,
            quantization: Some(Quantization::Int8),
            prompts: [text("query", "find: "), text("clustering", "c: ")].into(),
            default_prompt: Some("query".into()),
        };
        let changed = plain.clone().changed(changes.clone()).unwrap();
        assert_eq!((changed.id().as_str(), changed.default_prompt.as_deref()), ("b@1", Some("query")));
        assert_eq!((changed.quantization, plain.quantization), (Some(Quantization::Int8), None));
        assert_eq!(changed.prompts, [text("query", "find: "), text("clustering", "c: "), text("document", "")].into());
        let wrong = Changes { default_prompt: Some("none".into()), ..changes.clone() };
        assert!(matches!(plain.clone().changed(wrong), Err(Error::Prompt { .. })));
        assert!(matches!(Manifest { task: Task::Rerank, ..plain }.changed(changes), Err(Error::NotEmbed { .. })));
    }

    #[test]
    fn json_comes_back_as_it_went_in() {
        let mut manifest = manifest("a", "1", &["m.onnx"]);
        assert!(!manifest.to_json().contains("prompt"), "what a model lacks is left out");
        manifest.prompts = [("query".into(), "Instruct: find\nQuery:".into())].into();
        manifest.default_prompt = Some("query".into());
        manifest.matryoshka_dimensions = vec![64, 128];
        assert_eq!(Manifest::from_json(manifest.to_json().as_bytes()), Ok(manifest));
    }

    #[test]
    fn the_digest_follows_what_decides_the_answers_and_nothing_else() {
        let a = manifest("a", "1", &["m.onnx", "config.json"]);
        let same = manifest("b", "2", &["config.json", "m.onnx"]);
        let mut other = a.clone();
        other.files[0].sha256 = "1".repeat(64);
        assert_eq!(a.digest(), same.digest());
        assert_ne!(a.digest(), other.digest());
        let prompts = [("query".to_owned(), "q: ".to_owned())];
        let asks = Manifest { prompts: prompts.into(), ..a.clone() };
        let by_default = Manifest { default_prompt: Some("query".into()), ..asks.clone() };
        let small = Manifest { quantization: Some(Quantization::Int8), ..a.clone() };
        let mut digests = [a, other, asks, by_default, small].map(|manifest| manifest.digest()).to_vec();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 5);
    }
}
