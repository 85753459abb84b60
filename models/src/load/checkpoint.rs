//! A model's weights by the names under which `transformers` saves them, whatever files they lie in: a manifest goes in, tensors by
//! name come out as views of the mapped files. No value is copied or converted here.

use super::{Error, gguf, safetensors};
use crate::manifest::Manifest;
use ::safetensors::tensor::Dtype;
use kernels::linear_quantized::Blocks;
use kernels::stored::Stored;
use std::ops::Range;
use std::path::Path;

/// The tensors of one model.
#[derive(Debug)]
pub struct Checkpoint(Files);

#[derive(Debug)]
enum Files {
    Safetensors(safetensors::Files),
    Gguf(Box<gguf::Tensors>),
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// One by one, in a type that ops read.
    Plain(Stored),
    /// 64 bits.
    F64,
    /// In blocks of few bits.
    Blocks(Blocks),
    /// What weights are not.
    Other(Dtype),
}

/// Types that most of a model's weights may have, by their names in manifests.
const PRECISIONS: &[(&str, Type)] = &[
    ("f32", Type::Plain(Stored::F32)),
    ("f16", Type::Plain(Stored::F16)),
    ("bf16", Type::Plain(Stored::Bf16)),
    ("q4_0", Type::Blocks(Blocks::Q4_0)),
    ("q4_1", Type::Blocks(Blocks::Q4_1)),
    ("q5_0", Type::Blocks(Blocks::Q5_0)),
    ("q5_1", Type::Blocks(Blocks::Q5_1)),
    ("q8_0", Type::Blocks(Blocks::Q8_0)),
    ("iq4_nl", Type::Blocks(Blocks::IQ4_NL)),
    ("q4_k", Type::Blocks(Blocks::Q4_K)),
    ("q5_k", Type::Blocks(Blocks::Q5_K)),
    ("q6_k", Type::Blocks(Blocks::Q6_K)),
];

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Plain(stored) => write!(f, "{stored:?}"),
            Type::F64 => f.write_str("F64"),
            Type::Blocks(blocks) => write!(f, "{blocks:?}"),
            Type::Other(dtype) => write!(f, "{dtype:?}"),
        }
    }
}

/// One tensor as it is stored: little-endian, row-major.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// How.
    pub stored: Type,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its bytes. They fit type and shape, and may lie at any address.
    pub data: &'a [u8],
    /// Where its rows lie.
    pub order: Order,
}

/// In which order rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the checkpoint's names promise.
    Plain,
    /// Those of a head that are turned together lie side by side, while `transformers` has them half a head apart.
    Pairs {
        /// Rows of a head.
        head: usize,
        /// Rows of all heads. Those after them are in plain order.
        of_heads: usize,
    },
}

impl Order {
    /// Where a row lies.
    fn place(self, row: usize) -> usize {
        match self {
            Order::Pairs { head, of_heads } if row < of_heads => {
                let (first, at, half) = (row / head * head, row % head, head / 2);
                first + at % half * 2 + at / half
            }
            _ => row,
        }
    }
}

impl<'a> View<'a> {
    /// The bytes of some rows in plain order, in as few parts as they lie in.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn rows(&self, rows: Range<usize>) -> Vec<&'a [u8]> {
        let count = self.shape.first().copied().unwrap_or(1).max(1);
        let bytes = self.data.len() / count;
        let of = |rows: Range<usize>| &self.data[rows.start * bytes..rows.end * bytes];
        match self.order {
            Order::Plain => vec![of(rows)],
            Order::Pairs { .. } => rows.map(|row| self.order.place(row)).map(|place| of(place..place + 1)).collect(),
        }
    }
}

impl Checkpoint {
    /// Opens the safetensors files of a manifest, or where there are none, its GGUF file or files.
    ///
    /// # Errors
    /// When a file cannot be read or is broken, or does not belong to the others.
    pub fn open(folder: &Path, manifest: &Manifest) -> Result<Self, Error> {
        let ggufs = manifest.ggufs();
        Ok(Self(match ggufs.is_empty() {
            false => Files::Gguf(Box::new(gguf::Tensors::open(folder, &ggufs)?)),
            true => Files::Safetensors(safetensors::Files::open(folder, manifest)?),
        }))
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<View<'_>> {
        match &self.0 {
            Files::Safetensors(files) => files.tensor(name),
            Files::Gguf(tensors) => tensors.tensor(name),
        }
    }

    /// What is to be added to the weights of norms, in a family that trains them less some number: that number, unless who made the
    /// file has added it.
    pub fn norm_offset(&self, of_family: f32) -> f32 {
        match &self.0 {
            Files::Safetensors(_) => of_family,
            Files::Gguf(_) => 0.0,
        }
    }

    /// `prefix` when the checkpoint has `name` under it, else nothing: a bare encoder saves `embeddings.…`, a model with a head
    /// saves the same tensor as `bert.embeddings.…`.
    pub fn prefix<'p>(&self, prefix: &'p str, name: &str) -> &'p str {
        if self.tensor(&format!("{prefix}{name}")).is_some() { prefix } else { "" }
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
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.0 {
            Files::Safetensors(files) => Box::new(files.names()),
            Files::Gguf(tensors) => Box::new(tensors.names()),
        }
    }

    /// How precise the stored weights are: the type that most bytes have, as a manifest writes it.
    pub fn precision(&self) -> &'static str {
        let bytes_of = |wanted: Type| -> usize {
            let tensors = self.names().filter_map(|name| self.tensor(name));
            tensors.filter(|tensor| tensor.stored == wanted).map(|tensor| tensor.data.len()).sum()
        };
        PRECISIONS.iter().rev().max_by_key(|(_, stored)| bytes_of(*stored)).map_or("f32", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one byte each, which are their numbers in the file.
    fn check(order: Order, rows: Range<usize>, want: &[&[u8]]) {
        let data: Vec<u8> = (0..12).collect();
        let view = View { stored: Type::F64, shape: &[12], data: &data, order };
        assert_eq!(view.rows(rows.clone()), want, "{order:?} {rows:?}");
    }

    #[test]
    fn rows_come_in_the_order_that_names_promise() {
        check(Order::Plain, 2..5, &[&[2, 3, 4]]);
        let order = Order::Pairs { head: 4, of_heads: 8 };
        check(order, 0..8, &[&[0], &[2], &[1], &[3], &[4], &[6], &[5], &[7]]);
        check(order, 6..10, &[&[5], &[7], &[8], &[9]]);
        check(Order::Pairs { head: 6, of_heads: 12 }, 6..12, &[&[6], &[8], &[10], &[7], &[9], &[11]]);
    }
}
