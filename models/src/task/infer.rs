//! Named tensors are checked against what the model takes and become one item; its named outputs come back. The
//! values are not looked at, but for NaN and infinity on the way in.

use super::pipeline::{Kind, Pipeline, Prepared, check_count, prepared};
use super::{Error, Reply, limits};
use crate::engine::{Item, Output, TensorSpec};
use crate::tensor::NamedTensor;

pub(super) fn prepare(pipeline: &Pipeline, inputs: Vec<NamedTensor>, outputs: Vec<String>) -> Result<Prepared, Error> {
    let inputs = check_inputs(pipeline, inputs)?;
    if let Some(name) = outputs.iter().find(|name| !pipeline.outputs.iter().any(|spec| spec.name == **name)) {
        let gives = describe(&pipeline.outputs);
        return Err(Error::Output { name: name.clone(), model: pipeline.model.clone(), gives });
    }
    Ok(prepared(vec![Item::Tensors(inputs)], Kind::Infer { outputs }))
}

pub(super) fn finish(pipeline: &Pipeline, outputs: Vec<Output>, names: &[String]) -> Result<Reply, Error> {
    let mut outputs = outputs;
    let (Some(Output::Tensors(tensors)), true) = (outputs.pop(), outputs.is_empty()) else {
        return Err(pipeline.broken("not one output of tensors for one item".into()));
    };
    if names.is_empty() {
        return Ok(Reply::Tensors(tensors));
    }
    let find = |name: &String| {
        let tensor = tensors.iter().find(|tensor| tensor.name == *name).cloned();
        tensor.ok_or_else(|| pipeline.broken(format!("there is no output {name:?}")))
    };
    names.iter().map(find).collect::<Result<_, _>>().map(Reply::Tensors)
}

/// The inputs in the model's order, each once, of the right type and shape, with as many rows as the others, and
/// without NaN or infinity.
pub(super) fn check_inputs(pipeline: &Pipeline, mut inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, Error> {
    let problem = |name: &str, problem| {
        let takes = describe(&pipeline.inputs);
        Err(Error::Name { name: name.into(), problem, model: pipeline.model.clone(), takes })
    };
    for (index, input) in inputs.iter().enumerate() {
        if !pipeline.inputs.iter().any(|spec| spec.name == input.name) {
            return problem(&input.name, "unknown");
        }
        if inputs[..index].iter().any(|earlier| earlier.name == input.name) {
            return problem(&input.name, "given twice");
        }
    }
    let mut ordered = Vec::with_capacity(pipeline.inputs.len());
    for spec in &pipeline.inputs {
        let Some(index) = inputs.iter().position(|input| input.name == spec.name) else {
            return problem(&spec.name, "missing");
        };
        let input = inputs.swap_remove(index);
        let rows = ordered.first().map(|first: &NamedTensor| first.tensor.rows());
        check_input(spec, &input, rows.filter(|_| pipeline.batches_rows))?;
        ordered.push(input);
    }
    Ok(ordered)
}

/// `rows` is how many the inputs before this one have, when all must have the same.
fn check_input(spec: &TensorSpec, input: &NamedTensor, rows: Option<usize>) -> Result<(), Error> {
    let (name, tensor) = (&input.name, &input.tensor);
    if tensor.datatype() != spec.datatype {
        let (have, want) = (tensor.datatype().name(), spec.datatype.name());
        return Err(Error::Type { name: name.clone(), have, want });
    }
    let shape = tensor.shape();
    let fits = |(have, want): (&usize, &Option<usize>)| *have > 0 && want.is_none_or(|want| want == *have);
    let same_rank = shape.len() == spec.shape.len();
    let same_rows = rows.is_none_or(|rows| rows == tensor.rows());
    if !same_rank || !shape.iter().zip(&spec.shape).all(fits) || !same_rows {
        let mut want = describe_shape(&spec.shape);
        if !same_rows {
            want.push_str(", with as many rows as the other inputs");
        }
        return Err(Error::Shape { name: name.clone(), have: shape.to_vec(), want });
    }
    if !shape.is_empty() {
        check_count("rows", tensor.rows(), limits::ROWS_MAX)?;
    }
    if !tensor.is_finite() {
        return Err(Error::NotFinite { name: name.clone() });
    }
    Ok(())
}

/// `pixels FP32 [n, 64], mask BOOL [n]`.
pub(super) fn describe(specs: &[TensorSpec]) -> String {
    let one = |spec: &TensorSpec| format!("{} {} {}", spec.name, spec.datatype.name(), describe_shape(&spec.shape));
    specs.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn describe_shape(shape: &[Option<usize>]) -> String {
    let dims = shape.iter().map(|dim| dim.map_or("n".into(), |dim| dim.to_string()));
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}
