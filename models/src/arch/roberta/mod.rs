//! RoBERTa and XLM-RoBERTa (multilingual E5, BGE-M3, BGE rerankers): BERT's layers, positions that are counted around padding,
//! one segment, and a classifier of two products.
//!
//! # Source
//! Liu et al., "RoBERTa" (arXiv 1907.11692); Conneau et al., "XLM-R" (arXiv 1911.02116). Names are those of `transformers`.

use super::encoder::{Activation, Embeddings, Encoder, Positions, Slice};
use super::parts::{self, Names, Plain};
use super::settings::Settings;
use super::{Architecture, Bounds};
use crate::load::Error;
use crate::load::checkpoint::Checkpoint;
use crate::manifest::{Manifest, Pooling};
use serde_json::{Value, json};

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "roberta",
    claims: |config| matches!(config["model_type"].as_str(), Some("roberta" | "xlm-roberta" | "camembert")),
    describe: Some(describe),
    decode: None,
    #[cfg(feature = "candle")]
    build: None,
};

/// What a family that is built like RoBERTa has of its own.
pub(super) struct Family<'a> {
    /// What may stand before all names of a checkpoint.
    pub(super) prefix: &'a str,
    /// What is added to variances where the configuration does not say it.
    pub(super) epsilon: f64,
    /// The token around which positions are counted.
    pub(super) padding: u32,
    pub(super) names: &'a Names,
    /// Whether there is a table of segments.
    pub(super) has_types: bool,
}

impl Family<'_> {
    /// One of the family, without a bias of scores.
    pub(super) fn describe(
        &self,
        config: &Value,
        manifest: &Manifest,
        checkpoint: &Checkpoint,
    ) -> Result<Encoder, Error> {
        let settings = Settings(config);
        let (h, f) = (settings.size("hidden_size")?, settings.size("intermediate_size")?);
        let (queries, positions) = (settings.size("num_attention_heads")?, settings.size("max_position_embeddings")?);
        let eps = settings.positive_or("layer_norm_eps", self.epsilon)?;
        let activation = settings.activation("hidden_act", "gelu")?;
        let prefix = checkpoint.prefix(self.prefix, "embeddings.word_embeddings.weight");
        let at = |name: &str| format!("{prefix}{name}");
        let plain = Plain { checkpoint, prefix, hidden: h, inner: f, epsilon: eps, activation };
        let words = parts::table(checkpoint, at("embeddings.word_embeddings.weight"), h);
        let types = self.has_types.then(|| parts::table(checkpoint, at("embeddings.token_type_embeddings.weight"), h));
        let (head, vector) = parts::head(manifest, h, Pooling::Mean, || {
            parts::two_step_head(checkpoint, h, "classifier.dense", Activation::Tanh, "classifier.out_proj")
        });
        Ok(Encoder {
            bounds: Bounds {
                vocabulary: words.shape[0],
                types: 1,
                tokens: positions.saturating_sub(self.padding as usize + 1).max(1),
                vector,
            },
            hidden: h,
            embeddings: Embeddings {
                words,
                positions: Some(Positions {
                    table: Slice::whole(at("embeddings.position_embeddings.weight"), &[positions, h]),
                    padding: Some(self.padding),
                }),
                types,
                norm: Some(parts::layer_norm(checkpoint, &at("embeddings.LayerNorm"), h, eps)),
            },
            heads: parts::heads(queries, settings.head_dim(h, queries)?),
            bias: None,
            rotaries: vec![],
            layers: plain.layers(settings.layers("num_hidden_layers")?, self.names),
            norm: None,
            head,
        })
    }
}

fn describe(config: &Value, manifest: &Manifest, checkpoint: &Checkpoint) -> Result<Encoder, Error> {
    Settings(config).only(&[("position_embedding_type", json!("absolute"))])?;
    let padding = config["pad_token_id"].as_u64().unwrap_or(1) as u32;
    let family = Family { prefix: "roberta.", epsilon: 1e-5, padding, names: &parts::BERT, has_types: true };
    family.describe(config, manifest, checkpoint)
}
