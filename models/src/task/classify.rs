//! Texts or tensor rows become items; logits become labels with probabilities, best first.

use super::pipeline::{Kind, Pipeline, Prepared, check_top_n, prepared};
use super::rerank::sigmoid;
use super::{Error, Label, Reply, Text, infer};
use crate::engine::{Item, Output, TensorSpec};
use crate::load::inspect::default_label;
use crate::tensor::{DataType, NamedTensor};

/// Which output of a tensor model holds the scores of the classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scores {
    name: String,
    /// Logits, or already probabilities.
    is_logits: bool,
    /// How many, when the graph states it.
    pub(super) classes: Option<usize>,
}

impl Scores {
    /// The output called `logits` or `probabilities`, else the only one that is `FP32 [n, classes]`, which is then
    /// taken for logits.
    pub(super) fn find(outputs: &[TensorSpec]) -> Result<Self, String> {
        let mut fitting = outputs.iter().filter(|spec| spec.datatype == DataType::F32 && spec.shape.len() == 2);
        let by_name = |name: &str| fitting.clone().find(|spec| spec.name == name);
        let (spec, is_logits) = match (by_name("logits"), by_name("probabilities")) {
            (Some(spec), _) => (spec, true),
            (None, Some(spec)) => (spec, false),
            (None, None) => match (fitting.next(), fitting.next()) {
                (Some(spec), None) => (spec, true),
                _ => {
                    let gives = infer::describe(outputs);
                    return Err(format!("a classifier gives FP32 [n, classes], called logits; this gives {gives}"));
                }
            },
        };
        Ok(Self { name: spec.name.clone(), is_logits, classes: spec.shape[1] })
    }
}

pub(super) fn prepare_texts(
    pipeline: &Pipeline,
    inputs: Vec<Text>,
    top_n: Option<usize>,
    truncate: bool,
) -> Result<Prepared, Error> {
    let top_n = check_top_n(top_n, pipeline.vector_len)?;
    let items = pipeline.tokenize_all(inputs, "", truncate)?;
    let pending = Kind::ClassifyTexts { count: items.len(), top_n };
    Ok(prepared(items, pending))
}

pub(super) fn prepare_tensors(
    pipeline: &Pipeline,
    inputs: Vec<NamedTensor>,
    top_n: Option<usize>,
) -> Result<Prepared, Error> {
    let top_n = check_top_n(top_n, usize::MAX)?;
    let inputs = infer::check_inputs(pipeline, inputs)?;
    let rows = inputs.first().map_or(1, |input| input.tensor.rows());
    Ok(prepared(vec![Item::Tensors(inputs)], Kind::ClassifyTensors { rows, top_n }))
}

pub(super) fn finish_tensors(
    pipeline: &Pipeline,
    outputs: Vec<Output>,
    rows: usize,
    top_n: usize,
) -> Result<Reply, Error> {
    let scores = pipeline.scores.as_ref().expect("a pipeline that classifies tensors found its scores when made");
    let [Output::Tensors(tensors)] = outputs.as_slice() else {
        return Err(pipeline.broken(format!("{} outputs for one item of tensors", outputs.len())));
    };
    let tensor = tensors.iter().find(|t| t.name == scores.name).map(|t| &t.tensor);
    let tensor = tensor.ok_or_else(|| pipeline.broken(format!("there is no output {:?}", scores.name)))?;
    let values = tensor.to_f32().map_err(|e| pipeline.broken(e.to_string()))?;
    let classes = match *tensor.shape() {
        [n, classes] if n == rows && classes > 0 => classes,
        ref shape => return Err(pipeline.broken(format!("{} has shape {shape:?} for {rows} rows", scores.name))),
    };
    if !values.iter().all(|v| v.is_finite()) {
        return Err(pipeline.broken(format!("{} has values that are not finite", scores.name)));
    }
    if !pipeline.labels.is_empty() && pipeline.labels.len() != classes {
        return Err(pipeline.broken(format!("{classes} classes for {} labels", pipeline.labels.len())));
    }
    Ok(Reply::Labels(values.chunks_exact(classes).map(|row| pipeline.rank(row, scores.is_logits, top_n)).collect()))
}

impl Pipeline {
    /// Labels of one row, best first; ties by index.
    pub(super) fn rank(&self, row: &[f32], is_logits: bool, top_n: usize) -> Vec<Label> {
        let scores = match row {
            // One class alone has nothing to be weighed against: its logit is that of yes against no.
            [logit] if is_logits => vec![sigmoid(*logit)],
            _ if is_logits => softmax(row),
            _ => row.to_vec(),
        };
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(top_n);
        let name = |index: usize| self.labels.get(index).cloned().unwrap_or_else(|| default_label(index));
        order.into_iter().map(|index| Label { label: name(index), score: scores[index] }).collect()
    }
}

/// See [`kernels::softmax`].
fn softmax(logits: &[f32]) -> Vec<f32> {
    let mut scores = logits.to_vec();
    // No logits are no row of one.
    let row = kernels::softmax::Params::whole(scores.len().max(1));
    kernels::softmax(&mut scores, &row).expect("the logits are one row");
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, datatype: DataType, shape: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.into(), datatype, shape: shape.to_vec() }
    }

    fn check(outputs: &[TensorSpec], want: Option<(&str, bool)>) {
        let found = Scores::find(outputs).ok();
        assert_eq!(found.as_ref().map(|s| (s.name.as_str(), s.is_logits)), want, "{outputs:?}");
    }

    #[test]
    fn the_output_with_the_scores_is_found_or_the_model_refused() {
        let rows = [None, Some(3)];
        let label = || spec("label", DataType::I64, &[None]);
        check(&[label(), spec("probabilities", DataType::F32, &rows)], Some(("probabilities", false)));
        check(&[spec("a", DataType::F32, &rows), spec("logits", DataType::F32, &rows)], Some(("logits", true)));
        check(&[label(), spec("output", DataType::F32, &rows)], Some(("output", true)));
        check(&[spec("a", DataType::F32, &rows), spec("b", DataType::F32, &rows)], None);
        check(&[label()], None);
        check(&[spec("logits", DataType::F32, &[None, None, None])], None);
    }

    #[test]
    fn the_softmax_is_right_for_large_and_small_logits() {
        assert_eq!(softmax(&[1000.0, 1000.0]), [0.5, 0.5]);
        assert_eq!(softmax(&[f32::MAX, f32::MIN]), [1.0, 0.0]);
        let three = softmax(&[1.0, 2.0, 3.0]);
        assert!((three[2] - 0.665_240_9).abs() < 2e-7 && (three.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(softmax(&[]), [0.0; 0]);
    }
}
