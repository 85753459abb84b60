//! A file's tensors by the names of checkpoints of `transformers`. A tensor that has no such name is refused: a model that is computed
//! without one of its weights is another model.

use super::config::{SETTINGS, Settings};
use super::{Family, Gguf, Heads};
use crate::load::Error;
use crate::load::checkpoint::{Order, View};
use std::collections::HashMap;
use std::path::Path;

/// The weights of one file.
#[derive(Debug)]
pub struct Tensors {
    gguf: Gguf,
    /// By the names of checkpoints.
    names: HashMap<String, Named>,
}

#[derive(Debug)]
struct Named {
    /// In the file.
    name: String,
    order: Order,
}

/// Parts of a model outside of its layers, in the file and in checkpoints.
const OUTSIDE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Parts of a layer, in the file and in checkpoints.
const OF_LAYERS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The norms of a layer's feed-forward part.
const TWO_NORMS: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
/// The same where norms stand before and after each part.
const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

impl Tensors {
    /// Opens a file, or all parts of one.
    ///
    /// # Errors
    /// When it cannot be read, is broken or not whole, of an architecture that is not known, or has tensors that the architecture has not.
    pub fn open(folder: &Path, paths: &[&str]) -> Result<Self, Error> {
        let gguf = Gguf::open(folder, paths)?;
        let family = Family::of(&gguf)?;
        let settings = Settings::of(&gguf, family);
        let (heads, layers) = (Heads::of(&settings)?, settings.size("block_count")?);
        let mut names = HashMap::new();
        for name in gguf.names().filter(|name| !SETTINGS.contains(name)) {
            let stated = checkpoint_name(name, family, layers, |other| gguf.tensor(other).is_some());
            let stated = stated.ok_or_else(|| {
                let architecture = family.name;
                gguf.wrong(format!(
                    "tensor {name} belongs to no model of architecture {architecture:?} with {layers} layers"
                ))
            })?;
            let order = order(&gguf, name, family, heads)?;
            if let Some(other) = names.insert(stated, Named { name: name.into(), order }) {
                return Err(gguf.wrong(format!("tensors {name} and {} are one", other.name)));
            }
        }
        Ok(Self { gguf, names })
    }

    /// A tensor, by its name in checkpoints.
    pub fn tensor(&self, name: &str) -> Option<View<'_>> {
        let named = self.names.get(name)?;
        let super::View { stored, shape, data } = self.gguf.tensor(&named.name)?;
        Some(View { stored, shape, data, order: named.order })
    }

    /// Every name, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }
}

/// What a tensor is called in checkpoints. `has` says whether the file has another.
fn checkpoint_name(name: &str, family: &Family, layers: usize, has: impl Fn(&str) -> bool) -> Option<String> {
    let (part, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    if kind == "bias" && part.ends_with("norm") {
        return None;
    }
    let find = |list: &[(&str, &'static str)], part: &str| {
        list.iter().find(|(stored, _)| *stored == part).map(|(_, stated)| *stated)
    };
    if let Some(stated) = find(OUTSIDE, part) {
        return (kind == "weight").then(|| format!("{stated}.{kind}"));
    }
    let (layer, part) = part.strip_prefix("blk.")?.split_once('.')?;
    let layer = layer.parse().ok().filter(|layer: &usize| *layer < layers)?;
    let norms = if family.has_four_norms { FOUR_NORMS } else { TWO_NORMS };
    let stated = match part {
        // Gate and up in one.
        "ffn_up" if !has(&format!("blk.{layer}.ffn_gate.weight")) => "mlp.gate_up_proj",
        part => find(OF_LAYERS, part).or_else(|| find(norms, part))?,
    };
    Some(format!("model.layers.{layer}.{stated}.{kind}"))
}

/// How the rows of a tensor lie.
fn order(gguf: &Gguf, name: &str, family: &Family, heads: Heads) -> Result<Order, Error> {
    let part = name.rsplit('.').nth(1).unwrap_or_default();
    let rows = gguf.tensor(name).and_then(|view| view.shape.first().copied()).unwrap_or(0);
    let of_heads = match part {
        "attn_q" | "attn_k" => rows,
        "attn_qkv" => (heads.queries + heads.keys) * heads.dim,
        _ => return Ok(Order::Plain),
    };
    if !family.is_paired {
        return Ok(Order::Plain);
    }
    let Heads { dim, .. } = heads;
    if dim == 0 || dim % 2 != 0 || !of_heads.is_multiple_of(dim) || of_heads > rows {
        return Err(gguf.wrong(format!("tensor {name} has {rows} rows, which are no heads of {dim} in pairs")));
    }
    Ok(Order::Pairs { head: dim, of_heads })
}
