//! A file's metadata goes in, the `config.json` goes out that the same model has as a checkpoint of `transformers`, as far as
//! architectures read it. Never a value that the file does not state or its readers take for granted.
//!
//! # Source
//! The keys that the converter of llama.cpp writes (`conversion/` and `gguf-py` of llama-cpp-python 0.3.36), and what its models make of
//! keys that are absent (`src/models/`).

use super::{Family, Gguf, Heads, Value as Stored};
use crate::load::Error;
use crate::load::checkpoint::Type;
use kernels::stored::Values;
use serde_json::{Value, json};

/// What Llama 3 divides the frequencies of its angles by.
const LLAMA_3_FACTORS: &str = "rope_freqs.weight";
/// The same of LongRoPE, for sequences as long as the model was first trained on.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// The same for longer ones.
const LONG_FACTORS: &str = "rope_factors_long.weight";
/// Tensors that are settings, not weights.
pub(super) const SETTINGS: &[&str] = &[LLAMA_3_FACTORS, SHORT_FACTORS, LONG_FACTORS];

/// Settings of YaRN that have another name in a `config.json`.
const YARN: &[(&str, &str)] =
    &[("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")];

/// Sizes beyond this are no model's.
const SIZE_MAX: u64 = 1 << 30;

/// The metadata of one architecture: keys without its name before them.
pub(super) struct Settings<'a> {
    gguf: &'a Gguf,
    family: &'static Family,
}

impl<'a> Settings<'a> {
    pub(super) fn of(gguf: &'a Gguf, family: &'static Family) -> Self {
        Self { gguf, family }
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.name)
    }

    pub(super) fn wrong(&self, detail: impl Into<String>) -> Error {
        self.gguf.wrong(detail)
    }

    /// A size; 0 stands for none. One for each layer is one when they are all the same.
    pub(super) fn maybe_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let key = self.key(key);
        let size = match self.gguf.value(&key) {
            Some(Stored::List(_)) => {
                let sizes = self.gguf.list(&key, "a whole number for each layer", |size| size.whole())?;
                let sizes = sizes.unwrap_or_default();
                if sizes.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(self.wrong(format!("{key} differs from layer to layer, which is not supported")));
                }
                sizes.first().copied()
            }
            _ => self.gguf.whole(&key)?,
        };
        match size {
            Some(0) | None => Ok(None),
            Some(size) if size <= SIZE_MAX => Ok(Some(size as usize)),
            Some(size) => Err(self.wrong(format!("{key} is {size}, which no model has"))),
        }
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.maybe_size(key).map(|size| size.unwrap_or(default))
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, Error> {
        let missing = || self.wrong(format!("{} is missing; a whole number from 1 on is needed", self.key(key)));
        self.maybe_size(key)?.ok_or_else(missing)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let number = self.gguf.number(&self.key(key))?;
        match number.filter(|number| !number.is_finite()) {
            Some(number) => Err(self.wrong(format!("{} is {number}", self.key(key)))),
            None => Ok(number),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.gguf.text(&self.key(key))
    }

    /// The numbers of a tensor that is a setting.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        let Some(view) = self.gguf.tensor(name) else { return Ok(None) };
        let Type::Plain(stored) = view.stored else {
            return Err(self.wrong(format!("{name} is stored as {}, of which no setting is", view.stored)));
        };
        let factors = Values { bytes: view.data, stored }.to_f32();
        if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
            return Err(self.wrong(format!("{name} holds what no frequency can be divided by")));
        }
        Ok(Some(factors))
    }
}

/// The configuration of a model.
///
/// # Errors
/// When the architecture is not one of those that are known, or a value is missing, of another type, or beyond what any model has.
pub fn config(gguf: &Gguf) -> Result<Value, Error> {
    let family = Family::of(gguf)?;
    let settings = Settings::of(gguf, family);
    if gguf.has(&settings.key("pooling_type")) {
        return Err(gguf.wrong("it is a model for embeddings, which are loaded from safetensors or ONNX"));
    }
    let heads = Heads::of(&settings)?;
    let (hidden, layers) = (settings.size("embedding_length")?, settings.size("block_count")?);
    let context = settings.size("context_length")?;
    let epsilon = settings.number("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| settings.wrong("attention.layer_norm_rms_epsilon is missing"))?;
    let mut config = json!({
        "model_type": family.model_type,
        "architectures": [family.class],
        "hidden_size": hidden,
        "intermediate_size": settings.size("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads.queries,
        "num_key_value_heads": heads.keys,
        "head_dim": heads.dim,
        "rms_norm_eps": epsilon,
        "max_position_embeddings": context,
        "rope_theta": settings.number("rope.freq_base")?.unwrap_or(10_000.0),
        "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
        "num_local_experts": settings.maybe_size("expert_count")?,
        "eos_token_id": super::language::ends(gguf)?,
    });
    turning(&settings, heads, context, &mut config)?;
    windows(&settings, layers, context, &mut config)?;
    scores(&settings, heads, hidden, layers, &mut config)?;
    Ok(config)
}

/// How queries and keys are turned by their positions.
fn turning(settings: &Settings<'_>, heads: Heads, context: usize, config: &mut Value) -> Result<(), Error> {
    let turned = settings.size_or("rope.dimension_count", heads.dim)?;
    if turned != heads.dim {
        if settings.family.is_paired {
            let detail = format!("{turned} of the {} elements of a head are turned, which is not supported", heads.dim);
            return Err(settings.wrong(detail));
        }
        config["partial_rotary_factor"] = json!(turned as f64 / heads.dim as f64);
    }
    let original = settings.maybe_size("rope.scaling.original_context_length")?;
    config["original_max_position_embeddings"] = json!(original);
    let factor = match settings.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => settings.number("rope.scale_linear")?,
    };
    let attention = settings.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let by_table = |short: Vec<f32>, long: Option<Vec<f32>>| json!({"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention});
    let kind = settings.text("rope.scaling.type")?;
    let is_plain = matches!((kind, factor), (Some("none"), _) | (None | Some("linear"), None));
    if let Some(factors) = settings.factors(LLAMA_3_FACTORS)? {
        if !is_plain {
            let kind = kind.unwrap_or("linear");
            return Err(settings.wrong(format!("rope.scaling.type {kind:?} beside {LLAMA_3_FACTORS} is not supported")));
        }
        // The file has Llama 3's scaling worked out for each frequency: a table as LongRoPE's, for every length.
        config["rope_scaling"] = by_table(factors, None);
        config["original_max_position_embeddings"] = json!(context);
        return Ok(());
    }
    if let Some(factors) = settings.factors(SHORT_FACTORS)? {
        config["rope_scaling"] = by_table(factors, settings.factors(LONG_FACTORS)?);
        return Ok(());
    }
    config["rope_scaling"] = match kind.unwrap_or("linear") {
        "yarn" => yarn(settings, factor, attention)?,
        _ if attention != 1.0 => {
            return Err(
                settings.wrong(format!("rope.scaling.attn_factor is {attention}; only YaRN and LongRoPE have one"))
            );
        }
        _ if is_plain => Value::Null,
        kind => json!({"rope_type": kind, "factor": factor}),
    };
    Ok(())
}

/// YaRN's settings. What queries and keys are multiplied with is the usual factor times what the file states.
fn yarn(settings: &Settings<'_>, factor: Option<f64>, attention: f64) -> Result<Value, Error> {
    for (key, usual) in [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)] {
        if let Some(other) = settings.number(key)?.filter(|number| *number != usual) {
            return Err(settings.wrong(format!("{key} is {other}; {usual} is supported")));
        }
    }
    let factor = factor.ok_or_else(|| settings.wrong("rope.scaling.factor is missing, which YaRN needs"))?;
    let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
    let attention = attention * settings.number("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
    let mut scaling = json!({"rope_type": "yarn", "factor": factor, "attention_factor": attention * usual});
    for (key, name) in YARN {
        scaling[*name] = json!(settings.number(key)?);
    }
    Ok(scaling)
}

/// Which layers see the last tokens only.
fn windows(settings: &Settings<'_>, layers: usize, context: usize, config: &mut Value) -> Result<(), Error> {
    let family = settings.family;
    let window = settings.maybe_size("attention.sliding_window")?;
    let window = window.or((family.name == "gemma2").then_some(4096));
    if family.name == "llama" && window.is_some() {
        config["model_type"] = json!("mistral");
    } else if let Some(window) = window.filter(|window| !family.has_windows && *window < context) {
        let name = family.name;
        return Err(settings.wrong(format!("a window of {window} tokens is not supported for architecture {name:?}")));
    }
    config["sliding_window"] = json!(window);
    if family.name != "gemma3" {
        return Ok(());
    }
    config["rope_local_base_freq"] = json!(settings.number("rope.freq_base_swa")?.unwrap_or(10_000.0));
    let key = settings.key("attention.sliding_window_pattern");
    match settings.gguf.value(&key) {
        // Every layer sees everything.
        _ if window.is_none() => config["sliding_window_pattern"] = json!(1),
        Some(Stored::List(_)) => {
            let flag = |value: Stored| match value {
                Stored::Bool(flag) => Some(flag),
                other => other.whole().map(|number| number != 0),
            };
            let kinds = settings.gguf.list(&key, "true or false for each layer", flag)?.unwrap_or_default();
            if kinds.len() != layers {
                return Err(settings.wrong(format!("{key} has {} entries for {layers} layers", kinds.len())));
            }
            let name = |is_windowed: bool| if is_windowed { "sliding_attention" } else { "full_attention" };
            config["layer_types"] = kinds.into_iter().map(name).collect();
        }
        _ => config["sliding_window_pattern"] = json!(settings.gguf.whole(&key)?.unwrap_or(6)),
    }
    Ok(())
}

/// What scores and logits are multiplied with and bounded by.
fn scores(
    settings: &Settings<'_>,
    heads: Heads,
    hidden: usize,
    layers: usize,
    config: &mut Value,
) -> Result<(), Error> {
    let is_gemma_2 = settings.family.name == "gemma2";
    let cap = |key: &str, default: f64| -> Result<Option<f64>, Error> {
        Ok(settings.number(key)?.or(is_gemma_2.then_some(default)).filter(|cap| *cap != 0.0))
    };
    config["attn_logit_softcapping"] = json!(cap("attn_logit_softcapping", 50.0)?);
    config["final_logit_softcapping"] = json!(cap("final_logit_softcapping", 30.0)?);
    // Files do not state by what Gemma divides its scores. Its two largest models, which their layers tell, have another number there.
    let is_largest = matches!((settings.family.name, layers), ("gemma2", 46) | ("gemma3", 62));
    let divisor = match settings.number("attention.scale")?.filter(|scale| *scale != 0.0) {
        Some(scale) => (scale * scale).recip(),
        None if is_largest => (hidden / heads.queries) as f64,
        None => heads.dim as f64,
    };
    config["query_pre_attn_scalar"] = json!(divisor);
    Ok(())
}
