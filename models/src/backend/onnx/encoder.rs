//! Engine for encoder graphs: token sequences are grouped by length and padded; token vectors are pooled here, or
//! the graph's own vector or logits taken. One vector per item comes back.

use super::session::Opened;
use super::values;
use crate::backend::plan::{self, Costs, Group};
use crate::engine::{Engine, Error, Info, Item, Output, TensorSpec, Tokens};
use crate::load::{self, Source, inspect};
use crate::manifest::{Pooling, Task};
use crate::tensor::{DataType, Tensor};

/// Groups are larger than Candle's: the runtime splits one over its threads by itself and reuses its buffers.
const COSTS: Costs = Costs { group_tokens_max: 4_096, group_overhead: 8 };

/// An encoder graph.
pub(super) struct Encoder {
    opened: Opened,
    /// In the graph's order.
    inputs: Vec<(Input, TensorSpec)>,
    output: String,
    take: Take,
}

/// What an input of an encoder graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Ids,
    Mask,
    Types,
    Positions,
}

/// What becomes of the graph's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Take {
    /// `[b, l, h]`: token vectors, pooled here.
    Pooled(Pooling),
    /// `[b, v]`: a vector or logits as they are.
    Row,
}

impl Encoder {
    pub(super) fn new(source: Source<'_>, opened: Opened) -> Result<Self, load::Error> {
        let misfit = |detail: String| load::Error::Misfit { model: source.manifest.id(), detail };
        let inputs = inputs(&opened.info.inputs).map_err(misfit)?;
        let (output, take) =
            output(&opened.info.outputs, source.manifest.task, source.manifest.pooling).map_err(misfit)?;
        let mut encoder = Self { opened, inputs, output, take };
        let stated = source.config["max_position_embeddings"].as_u64().map(|n| n as usize);
        let max = match (source.manifest.max_tokens, stated) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b).ok_or_else(|| {
                let detail = "the longest sequence is unknown; put max_tokens into the manifest";
                load::Error::config(inspect::CONFIG, detail)
            })?,
        };
        encoder.opened.info.max_tokens = Some(max);
        // The graph may leave the width of its output open, and the first run would show what does not work anyway.
        let probe = encoder.run(&[Item::Tokens(Tokens { ids: vec![0, 0], type_ids: vec![] })]);
        let backend = encoder.opened.info.backend;
        match probe.map_err(|e| e.to_string()) {
            Ok(outputs) => match outputs.as_slice() {
                [Output::Vector(vector)] => encoder.opened.info.vector_len = Some(vector.len()),
                _ => return Err(misfit("it gives no vector".into())),
            },
            Err(detail) => {
                let detail = format!("a first run failed: {detail}");
                return Err(load::Error::Backend { backend, model: source.manifest.id(), detail });
            }
        }
        Ok(encoder)
    }

    fn run_group(&mut self, sequences: &[&Tokens], longest: usize) -> Result<Vec<Vec<f32>>, Error> {
        let backend = self.opened.info.backend;
        let broken = |detail: String| Error::Backend { backend, detail };
        let inputs = self.inputs.iter().map(|(input, spec)| {
            let tensor = fill(*input, spec.datatype, sequences, longest);
            tensor.map(|tensor| (spec.name.clone(), tensor)).map_err(|e| broken(e.to_string()))
        });
        let inputs = inputs.collect::<Result<_, _>>()?;
        let (take, output) = (self.take, self.output.as_str());
        self.opened.run(inputs, Some(output), |outputs| {
            let output = outputs.get(output).ok_or_else(|| format!("there is no output {output:?}"))?.view();
            let (shape, values) = values::floats(&output)?;
            match (take, shape.as_slice()) {
                (Take::Row, &[b, v]) if b == sequences.len() => {
                    Ok(values.chunks_exact(v).map(<[f32]>::to_vec).collect())
                }
                (Take::Pooled(pooling), &[b, l, h]) if b == sequences.len() && l == longest => {
                    let rows = values.chunks_exact(l * h).zip(sequences);
                    Ok(rows.map(|(rows, tokens)| pool(pooling, rows, tokens.ids.len(), h)).collect())
                }
                (_, shape) => Err(format!("the output has shape {shape:?} for {} × {longest}", sequences.len())),
            }
        })
    }
}

impl Engine for Encoder {
    fn info(&self) -> &Info {
        &self.opened.info
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error> {
        let max = self.opened.info.max_tokens.unwrap_or(usize::MAX);
        let sequences = items.iter().map(|item| match item {
            Item::Tokens(tokens) if tokens.ids.is_empty() || tokens.ids.len() > max => {
                Err(Error::Input(format!("a sequence has {} tokens, 1 to {max} are allowed", tokens.ids.len())))
            }
            Item::Tokens(tokens) if !tokens.type_ids.is_empty() && tokens.type_ids.len() != tokens.ids.len() => {
                Err(Error::Input(format!("{} tokens with {} segment ids", tokens.ids.len(), tokens.type_ids.len())))
            }
            Item::Tokens(tokens) => Ok(tokens),
            Item::Tensors(_) => Err(Error::Input("this model takes tokens, not tensors".into())),
        });
        let sequences = sequences.collect::<Result<Vec<_>, _>>()?;
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.ids.len()).collect();
        let mut outputs = vec![Output::Vector(vec![]); items.len()];
        for Group { members, longest } in plan::plan(&lengths, COSTS) {
            let group: Vec<_> = members.iter().map(|index| sequences[*index]).collect();
            for (index, vector) in members.iter().zip(self.run_group(&group, longest)?) {
                outputs[*index] = Output::Vector(vector);
            }
        }
        Ok(outputs)
    }
}

/// What each input is for. Names are those of transformers' exporters.
fn inputs(specs: &[TensorSpec]) -> Result<Vec<(Input, TensorSpec)>, String> {
    let known = specs.iter().map(|spec| {
        let input = match spec.name.as_str() {
            "input_ids" => Input::Ids,
            "attention_mask" => Input::Mask,
            "token_type_ids" => Input::Types,
            "position_ids" => Input::Positions,
            other => return Err(format!("input {other:?} is not one that a text encoder has")),
        };
        if !matches!(spec.datatype, DataType::I64 | DataType::I32) {
            return Err(format!("input {:?} is {}, it must be INT64 or INT32", spec.name, spec.datatype.name()));
        }
        if spec.shape.len() != 2 || spec.shape.iter().any(Option::is_some) {
            return Err(format!("input {:?} has a fixed size; export the graph with dynamic axes", spec.name));
        }
        Ok((input, spec.clone()))
    });
    let known = known.collect::<Result<Vec<_>, _>>()?;
    for needed in [Input::Ids, Input::Mask] {
        if !known.iter().any(|(input, _)| *input == needed) {
            return Err("a text encoder needs the inputs input_ids and attention_mask".into());
        }
    }
    Ok(known)
}

/// Which output is taken, and how. Token vectors are preferred to a vector that the graph pooled, for then the
/// manifest's pooling holds.
fn output(specs: &[TensorSpec], task: Task, pooling: Option<Pooling>) -> Result<(String, Take), String> {
    let floats = |rank: usize| {
        let is_float = |t: DataType| matches!(t, DataType::F32 | DataType::F16 | DataType::BF16);
        specs.iter().filter(move |spec| is_float(spec.datatype) && (spec.shape.len() == rank || spec.shape.is_empty()))
    };
    let named = |rank, names: &[&str]| floats(rank).find(|spec| names.contains(&spec.name.as_str()));
    let only = |rank| match (floats(rank).next(), floats(rank).nth(1)) {
        (Some(spec), None) => Some(spec),
        _ => None,
    };
    let tokens = named(3, &["last_hidden_state", "token_embeddings"]).or_else(|| only(3));
    let found = match task {
        Task::Embed => match (named(2, &["sentence_embedding"]), pooling, tokens) {
            (Some(vector), None, _) | (Some(vector), _, None) => Some((vector, Take::Row)),
            (_, pooling, Some(tokens)) => Some((tokens, Take::Pooled(pooling.unwrap_or(Pooling::Mean)))),
            (None, _, None) => only(2).map(|vector| (vector, Take::Row)),
        },
        _ => named(2, &["logits"]).or_else(|| only(2)).map(|logits| (logits, Take::Row)),
    };
    let wanted = if task == Task::Embed { "last_hidden_state [b, l, h]" } else { "logits [b, classes]" };
    found.map(|(spec, take)| (spec.name.clone(), take)).ok_or_else(|| format!("it has no output {wanted}"))
}

/// One input of a padded group, `[b, l]`.
fn fill(
    input: Input,
    datatype: DataType,
    sequences: &[&Tokens],
    longest: usize,
) -> Result<Tensor, crate::tensor::Error> {
    let mut values = vec![0i64; sequences.len() * longest];
    for (row, tokens) in values.chunks_exact_mut(longest).zip(sequences) {
        for (position, value) in row.iter_mut().enumerate() {
            let is_token = position < tokens.ids.len();
            *value = match input {
                Input::Ids => tokens.ids.get(position).copied().unwrap_or(0).into(),
                Input::Types => tokens.type_ids.get(position).copied().unwrap_or(0).into(),
                Input::Mask => is_token.into(),
                // Padded positions repeat 0: any valid one does.
                Input::Positions => {
                    if is_token {
                        position as i64
                    } else {
                        0
                    }
                }
            };
        }
    }
    let shape = vec![sequences.len(), longest];
    if datatype == DataType::I64 {
        return Tensor::from_i64(shape, &values);
    }
    let data: Vec<u8> = values.iter().flat_map(|value| (*value as i32).to_le_bytes()).collect();
    Tensor::new(datatype, shape, data.into())
}

/// Token vectors `[l, h]` of which the first `tokens` count, to one `[h]`. Sums in f64.
fn pool(pooling: Pooling, rows: &[f32], tokens: usize, h: usize) -> Vec<f32> {
    let row = |token: usize| &rows[token * h..(token + 1) * h];
    match pooling {
        Pooling::Cls => row(0).to_vec(),
        Pooling::Last => row(tokens - 1).to_vec(),
        Pooling::Mean => {
            let mut sums = vec![0f64; h];
            for token in 0..tokens {
                sums.iter_mut().zip(row(token)).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            sums.iter().map(|sum| (sum / tokens as f64) as f32).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, rank: usize) -> TensorSpec {
        TensorSpec { name: name.into(), datatype: DataType::F32, shape: vec![None; rank] }
    }

    fn check(specs: &[TensorSpec], task: Task, pooling: Option<Pooling>, want: Option<(&str, Take)>) {
        let found = output(specs, task, pooling).ok();
        assert_eq!(found.as_ref().map(|(name, take)| (name.as_str(), *take)), want, "{specs:?} {task:?}");
    }

    #[test]
    fn the_output_is_found_by_name_or_by_being_the_only_one() {
        let tokens = || spec("last_hidden_state", 3);
        let vector = || spec("sentence_embedding", 2);
        let (mean, cls) = (Take::Pooled(Pooling::Mean), Take::Pooled(Pooling::Cls));
        check(&[tokens(), spec("pooler_output", 2)], Task::Embed, None, Some(("last_hidden_state", mean)));
        check(&[tokens(), vector()], Task::Embed, Some(Pooling::Cls), Some(("last_hidden_state", cls)));
        check(&[tokens(), vector()], Task::Embed, None, Some(("sentence_embedding", Take::Row)));
        check(&[spec("y", 3)], Task::Embed, None, Some(("y", mean)));
        check(&[spec("y", 2)], Task::Embed, None, Some(("y", Take::Row)));
        check(&[spec("a", 3), spec("b", 3)], Task::Embed, None, None);
        check(&[spec("logits", 2), spec("other", 2)], Task::Rerank, None, Some(("logits", Take::Row)));
        check(&[tokens()], Task::Classify, None, None);
    }

    #[test]
    fn inputs_that_an_encoder_does_not_have_are_refused() {
        let ids = |name: &str| TensorSpec { datatype: DataType::I64, ..spec(name, 2) };
        assert!(inputs(&[ids("input_ids"), ids("attention_mask"), ids("token_type_ids")]).is_ok());
        assert!(inputs(&[ids("input_ids")]).is_err());
        assert!(inputs(&[ids("input_ids"), ids("attention_mask"), ids("pixel_values")]).is_err());
        assert!(inputs(&[spec("input_ids", 2), ids("attention_mask")]).is_err());
        let fixed = TensorSpec { shape: vec![Some(1), Some(128)], ..ids("input_ids") };
        assert!(inputs(&[fixed, ids("attention_mask")]).is_err());
    }

    #[test]
    fn pooling_leaves_padding_out() {
        let rows = [1.0, 2.0, 3.0, 4.0, 100.0, 100.0];
        assert_eq!(pool(Pooling::Mean, &rows, 2, 2), [2.0, 3.0]);
        assert_eq!(pool(Pooling::Cls, &rows, 2, 2), [1.0, 2.0]);
        assert_eq!(pool(Pooling::Last, &rows, 2, 2), [3.0, 4.0]);
    }
}
