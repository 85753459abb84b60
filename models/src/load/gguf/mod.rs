//! GGUF: one file, or the parts of one, with a model's weights, its configuration and its tokenizer. What the file holds goes in; out go the same things as
//! a folder of `transformers` has them: tensors by the names of its checkpoints, a `config.json`, a `tokenizer.json` and what stands
//! beside it. So every architecture is described once, whatever its weights come in.

mod config;
mod file;
mod language;
mod parts;
mod splits;
mod tensors;
mod vocabulary;

pub use config::config;
pub use file::{Gguf, List, Value, View};
pub use language::{generation_config, tokenizer_config};
pub use parts::{are_one, in_order};
pub use tensors::Tensors;
pub use vocabulary::tokenizer;

use super::Error;

/// An architecture that a file may name in `general.architecture`.
struct Family {
    /// As the file has it.
    name: &'static str,
    /// `model_type` of its `config.json`.
    model_type: &'static str,
    /// Its class in `architectures`.
    class: &'static str,
    /// Whether queries and keys are stored in pairs: see [`Order::Pairs`](super::checkpoint::Order::Pairs).
    is_paired: bool,
    /// Whether norms stand before and after each part.
    has_four_norms: bool,
    /// Whether `attention.sliding_window` means something for it.
    has_windows: bool,
}

const FAMILIES: &[Family] = &[
    Family { name: "llama", model_type: "llama", class: "LlamaForCausalLM", is_paired: true, ..PLAIN },
    Family { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", ..PLAIN },
    Family { name: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", ..PLAIN },
    Family { name: "gemma2", model_type: "gemma2", class: "Gemma2ForCausalLM", ..GEMMA },
    Family { name: "gemma3", model_type: "gemma3_text", class: "Gemma3ForCausalLM", ..GEMMA },
    Family { name: "phi3", model_type: "phi3", class: "Phi3ForCausalLM", has_windows: true, ..PLAIN },
];

const PLAIN: Family =
    Family { name: "", model_type: "", class: "", is_paired: false, has_four_norms: false, has_windows: false };

const GEMMA: Family = Family { has_four_norms: true, has_windows: true, ..PLAIN };

impl Family {
    fn of(gguf: &Gguf) -> Result<&'static Family, Error> {
        let name = gguf.text("general.architecture")?.unwrap_or("none");
        FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
            gguf.wrong(format!("its architecture is {name:?}; {} are supported", known.join(", ")))
        })
    }
}

/// The heads of attention.
#[derive(Debug, Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
}

impl Heads {
    fn of(settings: &config::Settings<'_>) -> Result<Self, Error> {
        let queries = settings.size("attention.head_count")?;
        let keys = settings.size_or("attention.head_count_kv", queries)?;
        let dim = match settings.maybe_size("attention.key_length")? {
            Some(dim) => dim,
            None => settings.size("embedding_length")? / queries,
        };
        let of_values = settings.size_or("attention.value_length", dim)?;
        if of_values != dim {
            return Err(settings.wrong(format!("heads of keys have {dim} elements and those of values {of_values}")));
        }
        Ok(Self { queries, keys, dim })
    }
}
