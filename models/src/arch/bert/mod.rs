//! BERT: a `config.json` goes in, the encoder's description comes out. Checkpoints of `BertModel` and
//! `BertForSequenceClassification` (MiniLM, BGE, E5, GTE and their cross-encoders) fit; decoders do not.
//!
//! # Source
//! Devlin et al., "BERT" (arXiv 1810.04805), after Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762).
//! Names of tensors and settings are those of `transformers`.

mod describe;

use super::Architecture;
use super::settings::LAYERS_MAX;
use serde::Deserialize;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "bert",
    claims,
    describe: Some(describe::describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

fn claims(config: &Value) -> bool {
    if config["position_embedding_type"] == "alibi" {
        return false;
    }
    match config["architectures"][0].as_str() {
        Some(name) => matches!(name, "BertModel" | "BertForSequenceClassification"),
        None => config["model_type"] == "bert",
    }
}

/// The sizes and choices that a `config.json` states, in its own names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width of a token's vector, `h`.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads, `a`; they divide `h`.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part, `f`.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Segment ids are below this.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Added to the variance in layer normalisation.
    #[serde(default = "default_epsilon")]
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward part.
    #[serde(default)]
    pub hidden_act: Activation,
    /// Only learned absolute positions are known here.
    #[serde(default)]
    pub position_embedding_type: Positions,
}

fn two() -> usize {
    2
}

fn default_epsilon() -> f64 {
    1e-12
}

/// Activation of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Activation {
    /// `x Φ(x)` with the error function, exact.
    #[default]
    #[serde(rename = "gelu")]
    Gelu,
    /// The same by tanh.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// A learned vector per position, added to the embeddings.
    #[default]
    Absolute,
}

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported, in words.
    pub fn from_json(config: &Value) -> Result<Self, String> {
        let config: Self = serde_json::from_value(config.clone()).map_err(|e| e.to_string())?;
        let sizes = [
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.intermediate_size,
            config.max_position_embeddings,
            config.type_vocab_size,
        ];
        // A bound that no real model comes near keeps products of sizes far from overflow.
        if sizes.iter().any(|size| !(1..=1 << 24).contains(size)) {
            return Err("every size must be between 1 and 16777216".into());
        }
        if config.num_hidden_layers > LAYERS_MAX {
            let layers = config.num_hidden_layers;
            return Err(format!("num_hidden_layers is {layers}; at most {LAYERS_MAX} are supported"));
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                config.hidden_size, config.num_attention_heads
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> Value {
        json!({"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 4})
    }

    fn check(key: &str, value: Value, want: bool) {
        let mut config = config();
        config[key] = value;
        assert_eq!(Config::from_json(&config).is_ok(), want, "{config}");
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        check("hidden_act", json!("gelu_new"), true);
        check("hidden_act", json!("silu"), false);
        check("position_embedding_type", json!("absolute"), true);
        check("position_embedding_type", json!("relative_key"), false);
        check("num_attention_heads", json!(3), false);
        check("num_attention_heads", json!(0), false);
        check("vocab_size", json!(-1), false);
        check("num_hidden_layers", json!(16_000_000), false);
    }

    #[test]
    fn only_the_two_architectures_are_claimed() {
        assert!(claims(&json!({"architectures": ["BertModel"]})));
        assert!(claims(&json!({"model_type": "bert"})));
        assert!(!claims(&json!({"architectures": ["BertForMaskedLM"], "model_type": "bert"})));
        assert!(!claims(&json!({"architectures": ["RobertaModel"]})));
        assert!(!claims(&Value::Null));
    }
}
