//! Models inside the executable, so that a machine without a network answers at once. Nothing goes in; manifests and
//! files come out, which the cache writes to disk like any other model's.

use crate::manifest::{File, Manifest, Pooling, Task};
use sha2::Digest;

/// A model inside the executable.
#[derive(Debug)]
pub struct Bundled {
    /// Its name.
    pub name: &'static str,
    /// Its version; raised whenever a byte of its files changes.
    pub version: &'static str,
    /// What it is for.
    pub task: Task,
    /// Its architecture.
    pub architecture: &'static str,
    /// Type of the weights as stored.
    pub precision: &'static str,
    /// How token vectors become one, for encoders, whose vectors are then scaled to length 1.
    pub pooling: Option<Pooling>,
    /// Longest sequence in tokens, for models that take text.
    pub max_tokens: Option<usize>,
    /// Class names by index.
    pub labels: &'static [&'static str],
    /// SPDX expression.
    pub license: &'static str,
    /// Paths in the model's folder, and contents.
    pub files: &'static [(&'static str, &'static [u8])],
}

/// A file of a model: its path in the model's folder, and its content.
macro_rules! file {
    ($model:literal, $path:literal) => {
        ($path, include_bytes!(concat!("../bundled/", $model, "/", $path)))
    };
}

/// A classifier of 8×8 images of handwritten digits: input `pixels`, `FP32 [n, 64]`, 0 to 16; output `logits`.
/// `models/scripts/train_digits.py` makes it.
const DIGITS: Bundled = Bundled {
    name: "digits",
    version: "1",
    task: Task::Classify,
    architecture: "mlp",
    precision: "f32",
    pooling: None,
    max_tokens: None,
    labels: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    license: "Apache-2.0",
    files: &[
        file!("digits", "README.md"),
        file!("digits", "config.json"),
        file!("digits", "model.onnx"),
        file!("digits", "model.safetensors"),
    ],
};

/// An encoder of English texts, distilled from all-MiniLM-L6-v2. `models/scripts/distill_encoder.py` makes it; its readme says
/// how well it stands for its teacher.
const MINILM_TINY: Bundled = Bundled {
    name: "minilm-tiny",
    version: "1",
    task: Task::Embed,
    architecture: "bert",
    precision: "f16",
    pooling: Some(Pooling::Mean),
    max_tokens: Some(512),
    labels: &[],
    license: "Apache-2.0",
    files: &[
        file!("minilm-tiny", "1_Pooling/config.json"),
        file!("minilm-tiny", "README.md"),
        file!("minilm-tiny", "config.json"),
        file!("minilm-tiny", "model.safetensors"),
        file!("minilm-tiny", "modules.json"),
        file!("minilm-tiny", "sentence_bert_config.json"),
        file!("minilm-tiny", "tokenizer.json"),
        file!("minilm-tiny", "tokenizer_config.json"),
    ],
};

/// A model that says in a line what a Debian package or a command is for. `models/scripts/train_language_model.py` makes it; its readme
/// says what it is worth.
const DEBIAN_TINY_CHAT: Bundled = Bundled {
    name: "debian-tiny-chat",
    version: "1",
    task: Task::Generate,
    architecture: "llama",
    precision: "f16",
    pooling: None,
    max_tokens: Some(512),
    labels: &[],
    license: "Apache-2.0",
    files: &[
        file!("debian-tiny-chat", "README.md"),
        file!("debian-tiny-chat", "config.json"),
        file!("debian-tiny-chat", "generation_config.json"),
        file!("debian-tiny-chat", "model.safetensors"),
        file!("debian-tiny-chat", "tokenizer.json"),
        file!("debian-tiny-chat", "tokenizer_config.json"),
    ],
};

/// A static, because of a constant every crate that uses it would hold a copy, files and all.
static ALL: [Bundled; 3] = [DEBIAN_TINY_CHAT, DIGITS, MINILM_TINY];

/// Every bundled model.
pub fn all() -> &'static [Bundled] {
    &ALL
}

impl Bundled {
    /// Its manifest.
    pub fn manifest(&self) -> Manifest {
        let file = |(path, content): &(&str, &[u8])| File {
            path: (*path).into(),
            sha256: data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(content)),
            bytes: content.len() as u64,
        };
        Manifest {
            name: self.name.into(),
            version: self.version.into(),
            task: self.task,
            architecture: self.architecture.into(),
            files: self.files.iter().map(file).collect(),
            precision: self.precision.into(),
            quantization: None,
            license: Some(self.license.into()),
            source: Some("bundled".into()),
            pooling: self.pooling,
            normalize: self.pooling.is_some() || self.task == Task::Generate,
            max_tokens: self.max_tokens,
            labels: self.labels.iter().map(|label| (*label).into()).collect(),
            prompts: Default::default(),
            default_prompt: None,
            matryoshka_dimensions: vec![],
        }
    }

    /// Writes its files into a folder, which is made if it is missing.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &std::path::Path) -> std::io::Result<()> {
        for (path, content) in self.files {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bundled_model_has_a_valid_manifest() {
        for bundled in all() {
            assert_eq!(bundled.manifest().check(), Ok(()));
        }
    }

    #[test]
    fn what_inspect_finds_in_the_files_is_what_the_manifest_says() {
        for bundled in all() {
            let folder = tempfile::tempdir().unwrap();
            bundled.write(folder.path()).unwrap();
            let found = crate::load::inspect(folder.path(), Some(bundled.name), Some(bundled.version), None).unwrap();
            let manifest = bundled.manifest();
            assert_eq!((&found.files, found.task), (&manifest.files, manifest.task));
            assert_eq!((found.pooling, found.max_tokens), (manifest.pooling, manifest.max_tokens));
            assert_eq!(found.precision, manifest.precision);
            assert_eq!((&found.labels, &found.architecture), (&manifest.labels, &manifest.architecture));
        }
    }
}
