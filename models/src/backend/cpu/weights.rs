//! An encoder's weights as the ops of `kernels` take them: a description and a checkpoint come in, packed layers go out. The
//! table of words stays in the mapped file, of which only the rows that occur are ever read.

use crate::arch::encoder::{Bias, Dense, Embeddings, Encoder, Head, Layer, Norm, NormKind, Slice};
use crate::load::Error;
use crate::load::checkpoint::{Checkpoint, Type, View};
use crate::manifest::Quantization;
use kernels::attention::Relative;
use kernels::launch::panels::Shape;
use kernels::layer_norm;
use kernels::linear::{Activation, Packed};
use kernels::linear_int8::Quantized;
use kernels::linear_quantized::{self, Blocks};
use kernels::rms_norm;
use kernels::rotary::Table;
use kernels::stored::Values;
use rayon::prelude::*;

/// What went wrong, in words.
pub(super) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// `x Wᵀ + b`
pub(super) struct PackedDense {
    pub(super) weights: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// Packed weights.
pub(super) enum Matrix {
    /// As they are stored.
    Stored(Packed),
    /// In 8 bits.
    Int8(Quantized),
    /// In the blocks in which they are stored.
    Blocks(linear_quantized::Quantized),
    /// Several, whose outputs lie side by side: a file may hold queries in one type and values in another.
    Joined(Vec<Matrix>),
}

impl Matrix {
    /// Those of which it is joined, or itself.
    pub(super) fn pieces(&self) -> &[Matrix] {
        match self {
            Self::Joined(pieces) => pieces,
            whole => std::slice::from_ref(whole),
        }
    }

    pub(super) fn outputs(&self) -> usize {
        match self {
            Self::Stored(weights) => weights.outputs(),
            Self::Int8(weights) => weights.outputs(),
            Self::Blocks(weights) => weights.outputs(),
            Self::Joined(pieces) => pieces.iter().map(Matrix::outputs).sum(),
        }
    }

    /// How the outputs are divided between threads; nothing where that is for its pieces to say.
    pub(super) fn shape(&self) -> Option<&Shape> {
        match self {
            Self::Stored(weights) => Some(weights),
            Self::Int8(weights) => Some(weights),
            Self::Blocks(weights) => Some(weights),
            Self::Joined(_) => None,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Stored(weights) => weights.bytes(),
            Self::Int8(weights) => weights.bytes(),
            Self::Blocks(weights) => weights.bytes(),
            Self::Joined(pieces) => pieces.iter().map(Matrix::bytes).sum(),
        }
    }
}

/// A normalisation.
pub(super) struct NormWeights {
    kind: NormKind,
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl NormWeights {
    /// Normalises rows in place.
    pub(super) fn apply(&self, rows: &mut [f32]) -> Result<(), String> {
        let (weight, eps) = (self.weight.as_slice(), self.epsilon);
        match self.kind {
            NormKind::Layer => {
                let params = layer_norm::Params { weight, bias: &self.bias, eps };
                layer_norm::layer_norm_in_place(rows, &params).map_err(|e| e.to_string())
            }
            NormKind::Rms => rms_norm::rms_norm(rows, &rms_norm::Params { weight, eps }).map_err(|e| e.to_string()),
        }
    }
}

/// One layer, see [`Layer`].
pub(super) struct LayerWeights {
    pub(super) description: Layer,
    pub(super) attention_norm: Option<NormWeights>,
    pub(super) qkv: PackedDense,
    pub(super) head_norms: Option<(NormWeights, NormWeights)>,
    pub(super) attention_out: PackedDense,
    pub(super) attention_norm_after: Option<NormWeights>,
    pub(super) feed_forward_norm: Option<NormWeights>,
    pub(super) up: PackedDense,
    pub(super) down: PackedDense,
    pub(super) feed_forward_norm_after: Option<NormWeights>,
}

/// One step of a head.
pub(super) struct StepWeights {
    pub(super) dense: PackedDense,
    pub(super) activation: Activation,
    pub(super) norm: Option<NormWeights>,
}

/// All of an encoder but its tables.
pub(super) struct Weights {
    pub(super) embedding_norm: Option<NormWeights>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) norm: Option<NormWeights>,
    pub(super) steps: Vec<StepWeights>,
    pub(super) bias: Option<Relative>,
    pub(super) rotaries: Vec<Table>,
}

impl Weights {
    /// Packs them, the layers side by side on the pool that the caller installed.
    ///
    /// What is quantised are the products of the layers, which are nearly all of the work. Tables, norms and a classifier's
    /// head, on whose result the answer hangs directly, stay as they are.
    pub(super) fn load(
        encoder: &Encoder,
        checkpoint: &Checkpoint,
        tokens_max: usize,
        quantization: Option<Quantization>,
    ) -> Result<Self, Error> {
        check_tables(&encoder.embeddings, checkpoint)?;
        let norm = |norm: &Option<Norm>| norm.as_ref().map(|norm| load_norm(norm, 0.0, checkpoint)).transpose();
        let layer = |layer: &Layer| -> Result<LayerWeights, Error> {
            let head_norms = match &layer.head_norms {
                Some((q, k)) => Some((load_norm(q, 0.0, checkpoint)?, load_norm(k, 0.0, checkpoint)?)),
                None => None,
            };
            Ok(LayerWeights {
                attention_norm: norm(&layer.attention_norm)?,
                qkv: load_dense(&layer.qkv, checkpoint, quantization)?,
                head_norms,
                attention_out: load_dense(&layer.attention_out, checkpoint, quantization)?,
                attention_norm_after: norm(&layer.attention_norm_after)?,
                feed_forward_norm: norm(&layer.feed_forward_norm)?,
                up: load_dense(&layer.up, checkpoint, quantization)?,
                down: load_dense(&layer.down, checkpoint, quantization)?,
                feed_forward_norm_after: norm(&layer.feed_forward_norm_after)?,
                description: layer.clone(),
            })
        };
        Ok(Self {
            embedding_norm: norm(&encoder.embeddings.norm)?,
            layers: encoder.layers.par_iter().map(layer).collect::<Result<_, _>>()?,
            norm: norm(&encoder.norm)?,
            steps: load_steps(&encoder.head, checkpoint)?,
            bias: match &encoder.bias {
                Some(bias) => Some(load_bias(bias, encoder.heads.queries, tokens_max, checkpoint)?),
                None => None,
            },
            rotaries: encoder.rotaries.iter().map(|rotary| rotary.table(tokens_max)).collect(),
        })
    }

    /// Bytes of the packed weights.
    pub(super) fn bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.attention_out, &layer.up, &layer.down]);
        let steps = self.steps.iter().map(|step| &step.dense);
        layers.chain(steps).map(|dense| dense.weights.bytes() as u64).sum()
    }
}

fn load_steps(head: &Head, checkpoint: &Checkpoint) -> Result<Vec<StepWeights>, Error> {
    let step = |step: &crate::arch::encoder::Step| {
        Ok(StepWeights {
            dense: load_dense(&step.dense, checkpoint, None)?,
            activation: step.activation,
            norm: step.norm.as_ref().map(|norm| load_norm(norm, 0.0, checkpoint)).transpose()?,
        })
    };
    head.steps.iter().map(step).collect()
}

/// Packs a product's weights. What is stored in blocks stays in them.
pub(super) fn load_dense(
    dense: &Dense,
    checkpoint: &Checkpoint,
    quantization: Option<Quantization>,
) -> Result<PackedDense, Error> {
    let mut pieces = Vec::new();
    for slices in dense.weights.chunk_by(|a, b| blocks(a, checkpoint) == blocks(b, checkpoint)) {
        pieces.push(match (blocks(&slices[0], checkpoint), quantization) {
            (None, _) => load_plain(slices, dense.inputs, checkpoint, quantization)?,
            (Some(blocks), None) => load_blocks(blocks, slices, dense.inputs, checkpoint)?,
            (Some(blocks), Some(quantization)) => {
                let detail = format!("is stored in {blocks:?} already; no {} is made of it", quantization.name());
                return Err(Error::Tensor { name: slices[0].name.clone(), detail });
            }
        });
    }
    let mut bias = Vec::new();
    for slice in &dense.biases {
        bias.extend(numbers(slice, checkpoint)?);
    }
    let weights = if pieces.len() > 1 { None } else { pieces.pop() };
    Ok(PackedDense { weights: weights.unwrap_or(Matrix::Joined(pieces)), bias: (!bias.is_empty()).then_some(bias) })
}

/// The blocks of a tensor that is stored in some.
fn blocks(slice: &Slice, checkpoint: &Checkpoint) -> Option<Blocks> {
    match checkpoint.tensor(&slice.name)?.stored {
        Type::Blocks(blocks) => Some(blocks),
        _ => None,
    }
}

fn load_blocks(blocks: Blocks, slices: &[Slice], inputs: usize, checkpoint: &Checkpoint) -> Result<Matrix, Error> {
    let mut parts = Vec::new();
    for slice in slices {
        parts.extend(view(slice, checkpoint)?.rows(slice.rows.clone()));
    }
    let packed = linear_quantized::Quantized::new(blocks, &parts, inputs).map(Matrix::Blocks);
    packed.map_err(|e| Error::Tensor { name: slices[0].name.clone(), detail: e.to_string() })
}

fn load_plain(
    slices: &[Slice],
    inputs: usize,
    checkpoint: &Checkpoint,
    quantization: Option<Quantization>,
) -> Result<Matrix, Error> {
    let mut wide = Vec::new();
    for slice in slices {
        if is_f64(slice, checkpoint) {
            wide.push(numbers(slice, checkpoint)?);
        }
    }
    // Only what the ops cannot read is copied first.
    let mut widened = wide.iter();
    let mut parts = Vec::new();
    for slice in slices {
        match is_f64(slice, checkpoint) {
            true => parts.push(Values::of_f32(widened.next().expect("every f64 part was widened"))),
            false => parts.extend(parts_of(slice, checkpoint)?),
        }
    }
    let weights = match quantization {
        None => Packed::new(&parts, inputs).map(Matrix::Stored),
        Some(Quantization::Int8) => Quantized::new(&parts, inputs).map(Matrix::Int8),
    };
    weights.map_err(|e| Error::Tensor { name: slices[0].name.clone(), detail: e.to_string() })
}

/// A norm's weights, with `offset` added to them.
pub(super) fn load_norm(norm: &Norm, offset: f32, checkpoint: &Checkpoint) -> Result<NormWeights, Error> {
    let vector = |name: &String| numbers(&Slice::whole(name, &[norm.width]), checkpoint);
    let bias = norm.bias.as_ref().map_or_else(|| Ok(vec![0.0; norm.width]), vector)?;
    let weight = vector(&norm.weight)?.into_iter().map(|weight| weight + offset).collect();
    Ok(NormWeights { kind: norm.kind, weight, bias, epsilon: norm.epsilon })
}

pub(in crate::backend) fn load_bias(
    bias: &Bias,
    heads: usize,
    tokens_max: usize,
    checkpoint: &Checkpoint,
) -> Result<Relative, Error> {
    let span = tokens_max - 1;
    match bias {
        Bias::Alibi => Ok(Relative::alibi(heads, span)),
        Bias::Buckets { table, distance_max } => {
            let values = numbers(table, checkpoint)?;
            let buckets = table.shape[0];
            Ok(Relative::new(heads, span, |head, distance| {
                values[bucket(distance, buckets, *distance_max) * heads + head]
            }))
        }
    }
}

/// T5's bucket of a distance from query to key, for encoders: half of the buckets for either direction; half of those exact,
/// the others wider and wider up to `distance_max`.
fn bucket(distance: isize, buckets: usize, distance_max: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let far = distance.unsigned_abs();
    let within = if far < exact {
        far
    } else {
        let share = (far as f32 / exact as f32).ln() / (distance_max as f32 / exact as f32).ln();
        (exact + (share * (half - exact) as f32) as usize).min(half - 1)
    };
    if distance > 0 { half + within } else { within }
}

fn check_tables(embeddings: &Embeddings, checkpoint: &Checkpoint) -> Result<(), Error> {
    let positions = embeddings.positions.iter().map(|positions| &positions.table);
    for slice in std::iter::once(&embeddings.words).chain(positions).chain(&embeddings.types) {
        values(slice, checkpoint)?;
    }
    Ok(())
}

fn is_f64(slice: &Slice, checkpoint: &Checkpoint) -> bool {
    checkpoint.tensor(&slice.name).is_some_and(|view| view.stored == Type::F64)
}

/// The tensor of a slice.
///
/// # Errors
/// When it is missing, or of another shape.
pub(super) fn view<'a>(slice: &Slice, checkpoint: &'a Checkpoint) -> Result<View<'a>, Error> {
    let wrong = |detail: String| Error::Tensor { name: slice.name.clone(), detail };
    let view = checkpoint.tensor(&slice.name).ok_or_else(|| wrong("is missing".into()))?;
    if view.shape != slice.shape || slice.rows.end > slice.shape[0] {
        return Err(wrong(format!("has shape {:?}, the configuration says {:?}", view.shape, slice.shape)));
    }
    Ok(view)
}

/// The numbers of a slice, where they lie in the mapped file.
///
/// # Errors
/// When the tensor is missing, of another shape, or of a type that the ops do not read.
pub(super) fn values<'a>(slice: &Slice, checkpoint: &'a Checkpoint) -> Result<Values<'a>, Error> {
    let mut parts = parts_of(slice, checkpoint)?;
    match (parts.pop(), parts.is_empty()) {
        (Some(values), true) => Ok(values),
        _ => Err(Error::Tensor { name: slice.name.clone(), detail: "is not in one piece".into() }),
    }
}

/// The same in as many parts as they lie in.
fn parts_of<'a>(slice: &Slice, checkpoint: &'a Checkpoint) -> Result<Vec<Values<'a>>, Error> {
    let view = view(slice, checkpoint)?;
    let Type::Plain(stored) = view.stored else {
        let detail = format!("is stored as {}; f16, bf16 and f32 are supported here", view.stored);
        return Err(Error::Tensor { name: slice.name.clone(), detail });
    };
    Ok(view.rows(slice.rows.clone()).into_iter().map(|bytes| Values { bytes, stored }).collect())
}

/// The numbers of a slice as f32.
fn numbers(slice: &Slice, checkpoint: &Checkpoint) -> Result<Vec<f32>, Error> {
    if !is_f64(slice, checkpoint) {
        return Ok(parts_of(slice, checkpoint)?.iter().flat_map(Values::to_f32).collect());
    }
    let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("chunks of eight")) as f32;
    let parts = view(slice, checkpoint)?.rows(slice.rows.clone());
    Ok(parts.into_iter().flat_map(|bytes| bytes.chunks_exact(size_of::<f64>())).map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn distances_fall_into_the_buckets_of_t5() {
        // 32 buckets up to a distance of 128: 8 exact ones in either direction, then wider and wider ones.
        let check = |distance, want| assert_eq!(bucket(distance, 32, 128), want, "{distance}");
        for (distance, want) in [(0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-127, 15), (-5000, 15)] {
            check(distance, want);
        }
        for (distance, want) in [(1, 17), (7, 23), (8, 24), (5000, 31)] {
            check(distance, want);
        }
    }
}
