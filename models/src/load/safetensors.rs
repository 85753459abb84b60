//! A model's safetensors files go in, tensors by name come out as views of the mapped files. Broken headers are
//! refused when a file is opened; no value is copied or converted here.

use super::Error;
use super::mmap::Mapped;
use crate::manifest::Manifest;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::collections::HashMap;
use std::path::Path;

/// File that says which shard holds which tensor, for models of several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// Length of the field before a file's header that holds the header's length.
const LENGTH_FIELD: usize = 8;

/// The tensors of one model, whether in one file or in several.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    /// Tensor to shard.
    names: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    bytes: Mapped,
    metadata: Metadata,
    data_start: usize,
}

/// One tensor as it is stored: little-endian, row-major.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its bytes. They fit type and shape, and may lie at any address.
    pub data: &'a [u8],
}

impl Checkpoint {
    /// Opens every safetensors file of a manifest.
    ///
    /// # Errors
    /// When a file cannot be read or its header is broken, when a tensor comes twice, or when the index names a shard
    /// that is not listed or does not hold the tensor.
    pub fn open(folder: &Path, manifest: &Manifest) -> Result<Self, Error> {
        let mut checkpoint = Self { shards: Vec::new(), names: HashMap::new() };
        let mut paths = Vec::new();
        for file in manifest.files.iter().filter(|file| file.path.ends_with(".safetensors")) {
            checkpoint.add(folder, &file.path)?;
            paths.push(file.path.as_str());
        }
        if manifest.files.iter().any(|file| file.path == INDEX) {
            checkpoint.check_index(folder, &paths)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, folder: &Path, path: &str) -> Result<(), Error> {
        let broken = |detail: String| Error::Safetensors { path: path.into(), detail };
        let bytes = Mapped::open(&folder.join(path)).map_err(|e| Error::io(path, &e))?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let shard = self.shards.len();
        for name in metadata.offset_keys() {
            if let Some(first) = self.names.insert(name.clone(), shard) {
                return Err(broken(format!("tensor {name} is also in shard {first}")));
            }
        }
        self.shards.push(Shard { bytes, metadata, data_start: LENGTH_FIELD + header });
        Ok(())
    }

    fn check_index(&self, folder: &Path, paths: &[&str]) -> Result<(), Error> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let broken = |detail: String| Error::Safetensors { path: INDEX.into(), detail };
        let text = std::fs::read(folder.join(INDEX)).map_err(|e| Error::io(INDEX, &e))?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
        for (tensor, path) in &index.weight_map {
            let shard = paths.iter().position(|listed| listed == path);
            let shard = shard.ok_or_else(|| broken(format!("shard {path:?} is not in the manifest")))?;
            if self.names.get(tensor) != Some(&shard) {
                return Err(broken(format!("tensor {tensor} is not in {path}")));
            }
        }
        Ok(())
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<View<'_>> {
        let shard = &self.shards[*self.names.get(name)?];
        let info = shard.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        let data = &shard.bytes[shard.data_start + start..shard.data_start + end];
        Some(View { dtype: info.dtype, shape: &info.shape, data })
    }

    /// `prefix` when the checkpoint has `name` under it, else nothing: a bare encoder saves `embeddings.…`, a model with a head
    /// saves the same tensor as `bert.embeddings.…`.
    pub fn prefix<'p>(&self, prefix: &'p str, name: &str) -> &'p str {
        if self.names.contains_key(&format!("{prefix}{name}")) { prefix } else { "" }
    }

    /// Rows of a tensor; 0 when it is missing.
    pub fn rows(&self, name: &str) -> usize {
        self.tensor(name).and_then(|view| view.shape.first().copied()).unwrap_or(0)
    }

    /// Bytes of a tensor as stored; 0 when it is missing.
    pub fn bytes(&self, name: &str) -> u64 {
        self.tensor(name).map_or(0, |view| view.data.len() as u64)
    }

    /// Every name, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// How precise the stored weights are: the type that most bytes have, as a manifest writes it.
    pub fn precision(&self) -> &'static str {
        let bytes_of = |wanted: Dtype| -> usize {
            self.names().filter_map(|name| self.tensor(name)).filter(|t| t.dtype == wanted).map(|t| t.data.len()).sum()
        };
        let kinds = [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16)];
        kinds.into_iter().rev().max_by_key(|(_, dtype)| bytes_of(*dtype)).map_or("f32", |(name, _)| name)
    }
}
