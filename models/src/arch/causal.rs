//! Decoders of Llama's kind: a `config.json` and the names in a checkpoint go in, a description comes out. What a family differs in
//! beyond what its checkpoint shows (biases, norms of heads, joined matrices, further norms) is [`Family`].

use super::decoder::{Decoder, Dense, Heads, Layer, Longer, Norm, NormKind, Rotary, Slice};
use super::parts;
use super::scaling::{Lengths, Scaled};
use super::settings::Settings;
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use crate::load::inspect::CONFIG;
use serde_json::{Value, json};

/// What a family differs in.
pub(super) struct Family {
    /// What is added to the weights of its norms.
    pub(super) norm_offset: f32,
    /// Whether a token's vector is multiplied with the root of its width.
    pub(super) scales_words: bool,
    /// Where the configuration does not name an activation.
    pub(super) activation: &'static str,
    /// Which layers see a window only, where the configuration does not list them.
    pub(super) windows: fn(Settings<'_>, usize) -> bool,
    /// Whether the table of words is the output's too, where the configuration is silent.
    pub(super) is_tied: bool,
    /// Base of the angles, where the configuration is silent.
    pub(super) theta: f64,
}

/// Llama's own.
pub(super) const LLAMA: Family = Family {
    norm_offset: 0.0,
    scales_words: false,
    activation: "silu",
    windows: |_, _| false,
    is_tied: false,
    theta: 10_000.0,
};

/// Gemma's.
pub(super) const GEMMA: Family =
    Family { norm_offset: 1.0, scales_words: true, activation: "gelu_pytorch_tanh", is_tied: true, ..LLAMA };

/// Layers with a window where a configuration says from which layer on, and whether at all.
pub(super) fn upper_layers(settings: Settings<'_>, layer: usize) -> bool {
    let first = settings.0["max_window_layers"].as_u64().unwrap_or(u64::MAX);
    settings.0["use_sliding_window"] == true && layer as u64 >= first
}

/// The longest table of angles that is ever needed.
const CONTEXT_MAX: usize = 1 << 20;

/// Describes a decoder.
///
/// # Errors
/// When the configuration asks for what is not computed here.
pub(super) fn describe(config: &Value, checkpoint: &Checkpoint, family: &Family) -> Result<Decoder, Error> {
    let settings = Settings(config);
    settings.only(&[
        ("mlp_only_layers", json!([])),
        ("num_local_experts", Value::Null),
        ("num_experts", Value::Null),
    ])?;
    let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
    let queries = settings.size("num_attention_heads")?;
    let keys = settings.size_or("num_key_value_heads", queries)?;
    // Queries share keys in equal groups.
    settings.head_dim(queries, keys)?;
    let dim = match config["head_dim"].is_null() {
        true => settings.head_dim(h, queries)?,
        false => settings.size("head_dim")?,
    };
    let divisor = settings.positive_or("query_pre_attn_scalar", dim as f64)?;
    let heads = Heads { queries, keys, dim, scale: (1.0 / divisor.sqrt()) as f32 };
    let count = settings.layers("num_hidden_layers")?;
    let angles = Angles::read(settings, dim, family.theta)?;
    let prefix = checkpoint.prefix("model.", "embed_tokens.weight");
    if angles.rotated != dim && checkpoint.tensor(&format!("{prefix}layers.0.self_attn.q_norm.weight")).is_some() {
        return Err(Error::config(CONFIG, "heads of which a part is turned cannot have norms of their own here"));
    }
    let parts = Parts {
        checkpoint,
        epsilon: settings.positive_or("rms_norm_eps", 1e-6)? as f32,
        hidden: h,
        inner: f,
        heads,
        rotated: angles.rotated,
    };
    let activation = settings.activation(
        if config["hidden_activation"].is_null() { "hidden_act" } else { "hidden_activation" },
        family.activation,
    )?;
    let window = settings.size_or("sliding_window", usize::MAX)?;
    let layer = |index: usize| {
        let at = |name: &str| format!("{prefix}layers.{index}.{name}");
        // Where there is a norm before the feed-forward part of that name, the other two follow what they belong to.
        let has_four = checkpoint.tensor(&at("pre_feedforward_layernorm.weight")).is_some();
        let after = |name: &str| has_four.then(|| parts.norm(at(name), h));
        let is_windowed = match config["layer_types"][index].as_str() {
            Some(kind) => kind == "sliding_attention",
            None => (family.windows)(settings, index),
        };
        let before = if has_four { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Layer {
            attention_norm: parts.norm(at("input_layernorm"), h),
            qkv: parts.qkv(&at("self_attn.")),
            head_norms: parts.head_norms(&at("self_attn.")),
            rotary: if is_windowed { angles.of_windows } else { 0 },
            window: Some(window).filter(|window| is_windowed && *window != usize::MAX),
            attention_out: parts::dense(checkpoint, &at("self_attn.o_proj"), queries * dim, h),
            attention_norm_after: after("post_attention_layernorm"),
            feed_forward_norm: parts.norm(at(before), h),
            up: parts.up(&at("mlp.")),
            activation,
            down: parts::dense(checkpoint, &at("mlp.down_proj"), f, h),
            feed_forward_norm_after: after("post_feedforward_layernorm"),
        }
    };
    let words = parts::table(checkpoint, format!("{prefix}embed_tokens.weight"), h);
    let is_tied = config["tie_word_embeddings"].as_bool().unwrap_or(family.is_tied);
    let output = match is_tied || checkpoint.tensor("lm_head.weight").is_none() {
        true => Dense { weights: vec![words.clone()], biases: vec![], inputs: h, outputs: words.shape[0] },
        false => parts::dense(checkpoint, "lm_head", h, words.shape[0]),
    };
    let softcap = |key| match config[key].is_null() {
        true => Ok(None),
        false => settings.positive_or(key, 1.0).map(|cap| Some(cap as f32)),
    };
    Ok(Decoder {
        context: angles.context.min(CONTEXT_MAX),
        hidden: h,
        words,
        words_scale: if family.scales_words { (h as f32).sqrt() } else { 1.0 },
        heads,
        attention_softcap: softcap("attn_logit_softcapping")?,
        rotaries: angles.rotaries,
        longer: angles.longer,
        layers: (0..count).map(layer).collect(),
        norm: parts.norm(format!("{prefix}norm"), h),
        norm_offset: checkpoint.norm_offset(family.norm_offset),
        output,
        output_softcap: softcap("final_logit_softcapping")?,
    })
}

/// What the layers of a model share.
struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    epsilon: f32,
    hidden: usize,
    inner: usize,
    heads: Heads,
    rotated: usize,
}

impl Parts<'_> {
    fn norm(&self, name: String, width: usize) -> Norm {
        Norm { kind: NormKind::Rms, weight: name + ".weight", bias: None, width, epsilon: self.epsilon }
    }

    fn head_norms(&self, at: &str) -> Option<(Norm, Norm)> {
        let norm = |name: &str| self.norm(format!("{at}{name}"), self.heads.dim);
        self.checkpoint.tensor(&format!("{at}q_norm.weight")).map(|_| (norm("q_norm"), norm("k_norm")))
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Queries, keys and values, in one tensor or three. Where a part of each head is turned only, its elements are put so that
    /// those that are turned together are half a head apart.
    fn qkv(&self, at: &str) -> Dense {
        let Heads { queries, keys, dim, .. } = self.heads;
        let widths = [queries * dim, keys * dim, keys * dim];
        let total = widths.iter().sum();
        let joined = format!("{at}qkv_proj");
        let is_joined = self.has(&format!("{joined}.weight"));
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (width, name) in widths.into_iter().zip(["q_proj", "k_proj", "v_proj"]) {
            let (name, start, all) =
                if is_joined { (joined.clone(), first, total) } else { (format!("{at}{name}"), 0, width) };
            let is_turned = first < widths[0] + widths[1];
            for rows in self.in_order(start, width, is_turned) {
                let slice =
                    |part: &str, shape: Vec<usize>| Slice { name: format!("{name}.{part}"), shape, rows: rows.clone() };
                weights.push(slice("weight", vec![all, self.hidden]));
                if self.has(&format!("{name}.bias")) {
                    biases.push(slice("bias", vec![all]));
                }
            }
            first += width;
        }
        Dense { weights, biases, inputs: self.hidden, outputs: total }
    }

    /// The rows of heads, in the order in which they are computed.
    fn in_order(&self, start: usize, width: usize, is_turned: bool) -> Vec<std::ops::Range<usize>> {
        let (dim, rotated) = (self.heads.dim, self.rotated);
        if !is_turned || rotated == dim {
            return std::iter::once(start..start + width).collect();
        }
        let (half, rest) = (rotated / 2, (dim - rotated) / 2);
        let of_head = |first: usize| {
            let bounds = [(0, half), (rotated, rest), (half, half), (rotated + rest, rest)];
            bounds.map(|(from, count)| first + from..first + from + count)
        };
        (start..start + width).step_by(dim).flat_map(of_head).collect()
    }

    /// Gate and up, in one tensor or two.
    fn up(&self, at: &str) -> Dense {
        let (h, f) = (self.hidden, self.inner);
        let joined = format!("{at}gate_up_proj");
        if self.has(&format!("{joined}.weight")) {
            return parts::dense(self.checkpoint, &joined, h, 2 * f);
        }
        let biased = self.has(&format!("{at}gate_proj.bias"));
        Dense::joined(&[&format!("{at}gate_proj"), &format!("{at}up_proj")], h, &[f, f], biased)
    }
}

/// The angles of a model.
struct Angles {
    /// That of layers that see everything, and where it is another one, that of layers with a window.
    rotaries: Vec<Rotary>,
    of_windows: usize,
    /// Elements of a head that are turned.
    rotated: usize,
    /// Tokens of a sequence at most.
    context: usize,
    longer: Option<Longer>,
}

impl Angles {
    /// `transformers` 4 states `rope_theta` and `rope_scaling`, 5 states `rope_parameters`, for each kind of layer where they
    /// differ; both are read.
    fn read(settings: Settings<'_>, dim: usize, theta: f64) -> Result<Self, Error> {
        let config = settings.0;
        let positions = settings.size_or("max_position_embeddings", 2048)?;
        let share = settings.positive_or("partial_rotary_factor", 1.0)?;
        let of_rope = settings.under("rope_parameters");
        let by_kind = !of_rope.0["full_attention"].is_null();
        let full = if by_kind { of_rope.under("full_attention") } else { of_rope };
        let share = full.positive_or("partial_rotary_factor", share)?;
        let rotated = (dim as f64 * share) as usize;
        if rotated < 2 || rotated > dim || !rotated.is_multiple_of(2) || !(dim - rotated).is_multiple_of(2) {
            return Err(Error::config(
                CONFIG,
                format!("{share} of a head of {dim} elements cannot be turned in pairs"),
            ));
        }
        let scaling = if full.0.is_null() { settings.under("rope_scaling") } else { full };
        let theta = full.positive_or("rope_theta", settings.positive_or("rope_theta", theta)?)?;
        // Phi 3 states it beside the scaling.
        let original = settings.size_or("original_max_position_embeddings", positions)?;
        let lengths = Lengths { positions, original };
        let Scaled { rotary, context, longer } = Scaled::read(scaling, dim, rotated, theta, lengths)?;
        let mut angles = Self { rotaries: vec![rotary], of_windows: 0, rotated, context, longer: None };
        let local = match by_kind {
            true => Some(of_rope.under("sliding_attention")),
            false => (!config["rope_local_base_freq"].is_null()).then_some(settings),
        };
        if let Some(local) = local {
            let theta = match by_kind {
                true => local.positive_or("rope_theta", 10_000.0)?,
                false => local.positive_or("rope_local_base_freq", 10_000.0)?,
            };
            let plain = if by_kind { local } else { Settings(&Value::Null) };
            angles.of_windows = angles.rotaries.len();
            angles.rotaries.push(Scaled::read(plain, dim, rotated, theta, lengths)?.rotary);
        }
        angles.longer = longer.map(|(rotary, context)| {
            let mut rotaries = angles.rotaries.clone();
            rotaries[0] = rotary;
            Longer { context, rotaries }
        });
        Ok(angles)
    }
}
