//! The layers of BERT on Candle tensors: a padded batch goes in, one vector per sequence comes out. Padding never
//! changes a result: padded keys get no weight, and pooling leaves padded tokens out.
//!
//! Shapes: `b` sequences, `l` tokens, `t = b l`, `h` hidden, `a` heads of `d = h / a`, `f` feed-forward.

use super::{Activation, Config};
use crate::arch::ops;
use crate::arch::{Bounds, Encoder, Model, Padded, Weights};
use crate::load::{Error, inspect};
use crate::manifest::{Manifest, Pooling, Task};
use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;

/// Added to the attention scores of padded keys. Large enough that their weight is exactly 0 after the softmax
/// (scores of trained models stay within a few hundred), and finite in f16 (whose largest number is 65,504): minus
/// infinity, or a product that overflows to it, gives NaN in half precision.
const MASKED: f32 = -30_000.0;

/// `x W + b`, with `W` as a contiguous `[in, out]`.
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    fn get(weights: &Weights<'_>, name: &str, input: usize, output: usize) -> std::result::Result<Self, Error> {
        let weight = weights.transposed(&format!("{name}.weight"), input, output)?;
        Ok(Self { weight, bias: weights.get(&format!("{name}.bias"), &[output])? })
    }

    /// `[t, in]` to `[t, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }

    /// Several layers of one input as one: `[in, Σ out]`.
    fn joined(layers: &[&Dense]) -> Result<Self> {
        let join = |of: fn(&Dense) -> &Tensor, axis| {
            let parts: Vec<_> = layers.iter().map(|layer| of(layer)).collect();
            Tensor::cat(&parts, axis)?.contiguous()
        };
        Ok(Self { weight: join(|layer| &layer.weight, 1)?, bias: join(|layer| &layer.bias, 0)? })
    }

    fn scaled(&self, factor: f64) -> Result<Self> {
        Ok(Self { weight: (&self.weight * factor)?, bias: (&self.bias * factor)? })
    }
}

/// `γ (x − mean) / √(variance + ε) + β` over the last dimension.
struct LayerNorm {
    gamma: Tensor,
    beta: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    fn get(weights: &Weights<'_>, name: &str, config: &Config) -> std::result::Result<Self, Error> {
        // Checkpoints converted from TensorFlow call them gamma and beta.
        let is_old = weights.shape(&format!("{name}.gamma")).is_some();
        let (gamma, beta) = if is_old { ("gamma", "beta") } else { ("weight", "bias") };
        let gamma = weights.get(&format!("{name}.{gamma}"), &[config.hidden_size])?;
        let beta = weights.get(&format!("{name}.{beta}"), &[config.hidden_size])?;
        Ok(Self { gamma, beta, epsilon: config.layer_norm_eps as f32 })
    }

    /// The norm of `x + residual`, both `[t, h]`.
    fn of_sum(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        ops::layer_norm_residual(x, residual, &self.gamma, &self.beta, self.epsilon)
    }
}

struct Layer {
    /// Queries (already scaled by `1 / √d`), keys and values: `[h, 3h]`.
    qkv: Dense,
    attention_out: Dense,
    attention_norm: LayerNorm,
    up: Dense,
    down: Dense,
    out_norm: LayerNorm,
}

impl Layer {
    fn get(weights: &Weights<'_>, index: usize, config: &Config) -> std::result::Result<Self, Error> {
        let h = config.hidden_size;
        let dense = |name: &str, i, o| Dense::get(weights, &format!("encoder.layer.{index}.{name}"), i, o);
        let norm = |name: &str| LayerNorm::get(weights, &format!("encoder.layer.{index}.{name}.LayerNorm"), config);
        let [query, key, value] = ["query", "key", "value"].map(|part| dense(&format!("attention.self.{part}"), h, h));
        let (query, key, value) = (query?, key?, value?);
        let scale = 1.0 / ((h / config.num_attention_heads) as f64).sqrt();
        let qkv = query.scaled(scale).and_then(|query| Dense::joined(&[&query, &key, &value]));
        let name = format!("encoder.layer.{index}.attention.self");
        Ok(Self {
            qkv: qkv.map_err(|e| Error::Tensor { name, detail: e.to_string() })?,
            attention_out: dense("attention.output.dense", h, h)?,
            attention_norm: norm("attention.output")?,
            up: dense("intermediate.dense", h, config.intermediate_size)?,
            down: dense("output.dense", config.intermediate_size, h)?,
            out_norm: norm("output")?,
        })
    }

    /// `[t, h]` to `[t, h]`: `y = norm(x + attention(x))`, then `norm(y + down(act(up(y))))`.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, b: usize, l: usize, config: &Config) -> Result<Tensor> {
        let context = self.attention(x, mask, b, l, config.num_attention_heads)?;
        let y = self.attention_norm.of_sum(&self.attention_out.forward(&context)?, x)?;
        let inner = y.matmul(&self.up.weight)?;
        let inner = match config.hidden_act {
            Activation::Gelu => ops::gelu_bias(&inner, &self.up.bias)?,
            Activation::GeluTanh => inner.broadcast_add(&self.up.bias)?.gelu()?,
            Activation::Relu => inner.broadcast_add(&self.up.bias)?.relu()?,
        };
        self.out_norm.of_sum(&self.down.forward(&inner)?, &y)
    }

    /// `softmax(Q Kᵀ / √d + mask) V` per head; `[t, h]` to `[t, h]`.
    fn attention(&self, x: &Tensor, mask: Option<&Tensor>, b: usize, l: usize, a: usize) -> Result<Tensor> {
        let h = x.dim(1)?;
        let d = h / a;
        // [t, 3h] -> [3, b, a, l, d]
        let qkv = self.qkv.forward(x)?.reshape((b, l, 3, a, d))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let mut scores = q.matmul(&k.transpose(2, 3)?)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let context = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        context.transpose(1, 2)?.reshape((b * l, h))
    }
}

/// What becomes of the token vectors.
enum Head {
    /// One vector by pooling.
    Pool(Pooling),
    /// `classifier(tanh(pooler(first token)))`.
    Classify { pooler: Dense, classifier: Dense, labels: usize },
}

struct Bert {
    config: Config,
    words: Tensor,
    /// Positions plus the first segment's vector, `[positions, h]`: what is added when all segment ids are 0.
    positions: Tensor,
    /// Each segment's vector less the first one's, `[types, h]`.
    types: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    head: Head,
    device: Device,
    dtype: DType,
}

/// Makes the model of a checkpoint, with or without the prefix `bert.` before its tensors' names.
pub(super) fn build(config: &Value, manifest: &Manifest, weights: &Weights<'_>) -> std::result::Result<Model, Error> {
    let config = Config::from_json(config).map_err(|e| Error::config(inspect::CONFIG, e))?;
    let body = weights.under("bert.", "embeddings.word_embeddings.weight");
    let h = config.hidden_size;
    let head = match manifest.task {
        Task::Embed => Head::Pool(manifest.pooling.unwrap_or(Pooling::Mean)),
        _ => {
            let labels = weights.shape("classifier.weight").map_or(0, |shape| shape[0]);
            let pooler = Dense::get(&body, "pooler.dense", h, h)?;
            Head::Classify { pooler, classifier: Dense::get(weights, "classifier", h, labels)?, labels }
        }
    };
    let words = body.get("embeddings.word_embeddings.weight", &[config.vocab_size, h])?;
    let positions = body.get("embeddings.position_embeddings.weight", &[config.max_position_embeddings, h])?;
    let types = body.get("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, h])?;
    let fold = || -> Result<_> {
        let first = types.narrow(0, 0, 1)?;
        Ok((positions.broadcast_add(&first)?, types.broadcast_sub(&first)?))
    };
    let name = "embeddings.token_type_embeddings.weight".to_string();
    let (positions, types) = fold().map_err(|e| Error::Tensor { name, detail: e.to_string() })?;
    let layers = (0..config.num_hidden_layers).map(|index| Layer::get(&body, index, &config)).collect();
    Ok(Model::Encoder(Box::new(Bert {
        norm: LayerNorm::get(&body, "embeddings.LayerNorm", &config)?,
        layers: std::result::Result::<_, Error>::from_iter::<Vec<_>>(layers)?,
        words,
        positions,
        types,
        head,
        device: weights.device().clone(),
        dtype: weights.dtype(),
        config,
    })))
}

impl Bert {
    /// Words plus positions plus segments, normalised: `[t, h]`.
    fn embed(&self, batch: &Padded) -> Result<Tensor> {
        let (b, l, h) = (batch.lengths.len(), batch.longest, self.config.hidden_size);
        let ids = Tensor::from_slice(&batch.ids, b * l, &self.device)?;
        let words = self.words.index_select(&ids, 0)?;
        let mut rest = self.positions.narrow(0, 0, l)?.broadcast_as((b, l, h))?.reshape((b * l, h))?;
        if batch.type_ids.iter().any(|id| *id != 0) {
            let type_ids = Tensor::from_slice(&batch.type_ids, b * l, &self.device)?;
            rest = (rest + self.types.index_select(&type_ids, 0)?)?;
        }
        self.norm.of_sum(&words, &rest)
    }

    /// What is added to the scores, `[b, 1, 1, l]`; nothing when no sequence is padded.
    fn mask(&self, batch: &Padded) -> Result<Option<Tensor>> {
        if batch.lengths.iter().all(|length| *length == batch.longest) {
            return Ok(None);
        }
        let row = |length: &usize| {
            let length = *length;
            (0..batch.longest).map(move |token| if token < length { 0.0 } else { MASKED })
        };
        let mask: Vec<f32> = batch.lengths.iter().flat_map(row).collect();
        let mask = Tensor::from_vec(mask, (batch.lengths.len(), 1, 1, batch.longest), &self.device)?;
        mask.to_dtype(self.dtype).map(Some)
    }
}

impl Encoder for Bert {
    fn bounds(&self) -> Bounds {
        Bounds {
            vocabulary: self.config.vocab_size,
            types: self.config.type_vocab_size,
            tokens: self.config.max_position_embeddings,
            vector: match &self.head {
                Head::Pool(_) => self.config.hidden_size,
                Head::Classify { labels, .. } => *labels,
            },
        }
    }

    fn forward(&self, batch: &Padded) -> Result<Tensor> {
        let (b, l) = (batch.lengths.len(), batch.longest);
        let mask = self.mask(batch)?;
        let mut x = self.embed(batch)?;
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), b, l, &self.config)?;
        }
        let x = x.reshape((b, l, self.config.hidden_size))?;
        let out = match &self.head {
            Head::Pool(Pooling::Mean) => ops::mean_pool(&x, &batch.lengths)?,
            Head::Pool(Pooling::Cls) => first_tokens(&x)?,
            Head::Pool(Pooling::Last) => {
                let last: Vec<u32> = (0..b).map(|row| (row * l + batch.lengths[row] - 1) as u32).collect();
                let last = Tensor::from_vec(last, b, &self.device)?;
                x.flatten_to(1)?.index_select(&last, 0)?
            }
            Head::Classify { pooler, classifier, .. } => {
                classifier.forward(&pooler.forward(&first_tokens(&x)?)?.tanh()?)?
            }
        };
        out.to_dtype(DType::F32)
    }
}

/// `[b, l, h]` to `[b, h]`.
fn first_tokens(x: &Tensor) -> Result<Tensor> {
    x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
}
