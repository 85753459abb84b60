//! A model version as the registry sees it: name, task and files with their digests. The fields that only a worker
//! reads are kept as they are, so that the coordinator needs no code that knows models.

use super::digest;
use super::task::TaskKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most files of one version; more than the largest sharded checkpoints have.
pub const FILES_MAX: usize = 4_096;

/// Endings of weight formats that can run code when they are loaded.
const REFUSED_ENDINGS: &[&str] = &[".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".keras", ".joblib"];

/// One version of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Manifest {
    /// 1 to 128 of a-z 0-9 . _ - starting with a letter or digit.
    pub name: String,
    /// The same characters.
    pub version: String,
    /// What it does.
    pub task: TaskKind,
    /// Every file.
    pub files: Vec<File>,
    /// What only workers read: architecture, precision, pooling, labels, …
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct File {
    /// Relative path with `/`, never `..`, never absolute.
    pub path: String,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name or version with other characters than allowed.
    #[error("{field} {value:?} must be 1 to 128 of a-z 0-9 . _ - and start with a letter or digit")]
    Name {
        /// `name` or `version`.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// No files, or too many.
    #[error("{0} files are listed, 1 to {FILES_MAX} are allowed")]
    Count(usize),
    /// A path that leaves the folder, or comes twice.
    #[error("file path {0:?} must be relative, without `..` and listed once")]
    Path(String),
    /// Not 64 lower-case hex digits.
    #[error("{path}: sha256 must be 64 lower-case hex digits")]
    Digest {
        /// The file.
        path: String,
    },
    /// A format that can run code.
    #[error("{0}: only safetensors and ONNX weights are accepted; convert it first")]
    Format(String),
}

impl Manifest {
    /// Checks every rule that the fields' descriptions state.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Error> {
        check_name("name", &self.name)?;
        check_name("version", &self.version)?;
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return Err(Error::Count(self.files.len()));
        }
        let mut seen = std::collections::HashSet::new();
        for File { path, sha256, .. } in &self.files {
            if !is_inside(path) || !seen.insert(path) {
                return Err(Error::Path(path.clone()));
            }
            if !digest::is_sha256_hex(sha256) {
                return Err(Error::Digest { path: path.clone() });
            }
            let lower = path.to_ascii_lowercase();
            if REFUSED_ENDINGS.iter().any(|ending| lower.ends_with(ending)) {
                return Err(Error::Format(path.clone()));
            }
        }
        Ok(())
    }

    /// `name@version`.
    pub fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Sum of the files' lengths.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// The file of a digest.
    pub fn file(&self, sha256: &str) -> Option<&File> {
        self.files.iter().find(|file| file.sha256 == sha256)
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
fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, paths: &[&str], want: Result<(), Error>) {
        let files = paths.iter().map(|path| File { path: (*path).into(), sha256: "0".repeat(64), bytes: 1 }).collect();
        let manifest =
            Manifest { name: name.into(), version: "1".into(), task: TaskKind::Embed, files, rest: Default::default() };
        assert_eq!(manifest.check(), want, "{name} {paths:?}");
    }

    #[test]
    fn rules_are_enforced() {
        check("all-minilm-l6-v2", &["model.safetensors", "1_Pooling/config.json"], Ok(()));
        check("A", &["m.onnx"], Err(Error::Name { field: "name", value: "A".into() }));
        check("a", &[], Err(Error::Count(0)));
        check("a", &["m.onnx", "m.onnx"], Err(Error::Path("m.onnx".into())));
        check("a", &["x/pytorch_model.BIN"], Err(Error::Format("x/pytorch_model.BIN".into())));
        for path in ["../m.onnx", "/m.onnx", "a//m.onnx", "a\\m.onnx", "c:m.onnx", "./m.onnx", ""] {
            check("a", &[path], Err(Error::Path(path.into())));
        }
    }

    #[test]
    fn what_the_registry_does_not_read_comes_back_as_it_was() {
        let text = r#"{"name":"a","version":"1","task":"embed","files":[],"pooling":"mean","max_tokens":512}"#;
        let manifest: Manifest = serde_json::from_str(text).unwrap();
        let again = serde_json::to_value(&manifest).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert_eq!(manifest.rest["pooling"], "mean");
    }
}
