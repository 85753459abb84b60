//! A model's safetensors files go in, tensors by name come out as views of the mapped files. Broken headers are
//! refused when a file is opened; no value is copied or converted here.

use super::Error;
use super::checkpoint::{Order, Type, View};
use super::mmap::Mapped;
use crate::manifest::Manifest;
use kernels::stored::Stored;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::collections::HashMap;
use std::path::Path;

/// File that says which shard holds which tensor, for models of several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// Length of the field before a file's header that holds the header's length.
const LENGTH_FIELD: usize = 8;

/// The tensors of one model, whether in one file or in several.
#[derive(Debug)]
pub struct Files {
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

impl Files {
    /// Opens every safetensors file of a manifest.
    ///
    /// # Errors
    /// When a file cannot be read or its header is broken, when a tensor comes twice, or when the index names a shard
    /// that is not listed or does not hold the tensor.
    pub fn open(folder: &Path, manifest: &Manifest) -> Result<Self, Error> {
        let mut all = Self { shards: Vec::new(), names: HashMap::new() };
        let mut paths = Vec::new();
        for file in manifest.files.iter().filter(|file| file.path.ends_with(".safetensors")) {
            all.add(folder, &file.path)?;
            paths.push(file.path.as_str());
        }
        if manifest.files.iter().any(|file| file.path == INDEX) {
            all.check_index(folder, &paths)?;
        }
        Ok(all)
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
        let stored = match info.dtype {
            Dtype::F32 => Type::Plain(Stored::F32),
            Dtype::F16 => Type::Plain(Stored::F16),
            Dtype::BF16 => Type::Plain(Stored::Bf16),
            Dtype::F64 => Type::F64,
            other => Type::Other(other),
        };
        Some(View { stored, shape: &info.shape, data, order: Order::Plain })
    }

    /// Every name, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }
}
