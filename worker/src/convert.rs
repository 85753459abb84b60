//! Between the wire and the worker: what a task asks on the wire becomes a request, a reply becomes what the wire
//! carries. Used by the HTTP routes and by the link. Checks shapes, knows no model.

use std::time::Duration;

use coordinator_client::api::{Code, Problem, text};
use coordinator_client::client::Outcome;
use coordinator_client::wire::task::{self as wire, TaskInput, TaskKind, TaskOutput};
use coordinator_client::wire::{Matrix, Usage, tensor};
use models::task::{Label, Prompt, Reply, Request, Score, Text};
use models::{DataType, NamedTensor, Tensor};

use crate::text::{Input, TextDone};
use crate::{Done, Error, Timings};

/// The request that a task's input asks.
///
/// # Errors
/// When a tensor is no tensor, or the input contradicts itself.
pub fn request_of(input: TaskInput) -> Result<Request, Problem> {
    Ok(match input {
        TaskInput::Embed(wire::EmbedInput { inputs, input_type, prompt_name, dimensions, normalize, truncate }) => {
            let prompt = prompt_of(input_type, prompt_name)?;
            let dimensions = dimensions.map(|n| n as usize);
            Request::Embed { inputs: texts_of(inputs), prompt, dimensions, normalize, truncate }
        }
        TaskInput::Rerank(wire::RerankInput { query, documents, top_n, truncate }) => {
            Request::Rerank { query, documents, top_n: top_n.map(|n| n as usize), truncate }
        }
        TaskInput::Classify(wire::ClassifyInput { inputs, tensors, top_n, truncate }) => {
            let top_n = top_n.map(|n| n as usize);
            match (inputs.is_empty(), tensors.is_empty()) {
                (false, true) => Request::ClassifyTexts { inputs: texts_of(inputs), top_n, truncate },
                (true, false) => Request::ClassifyTensors { inputs: tensors_of(tensors)?, top_n },
                (true, true) => {
                    return Err(Problem::new(Code::InvalidInput, "nothing to classify: give inputs or tensors"));
                }
                (false, false) => {
                    return Err(Problem::new(Code::InvalidInput, "give either inputs or tensors, not both"));
                }
            }
        }
        TaskInput::Infer(wire::InferInput { inputs, outputs }) => {
            Request::Infer { inputs: tensors_of(inputs)?, outputs }
        }
        TaskInput::Generate(_) | TaskInput::Chat(_) => {
            return Err(Problem::new(Code::WrongTask, "a text is written, which is no request for an answer"));
        }
    })
}

/// What the wire carries of a reply.
pub fn output_of(reply: Reply) -> TaskOutput {
    match reply {
        Reply::Embeddings { dimensions, values } => {
            TaskOutput::Embed { embeddings: Matrix { columns: dimensions, values } }
        }
        Reply::Ranking(scores) => {
            let score = |Score { index, score }| wire::Score { index: index as u32, score };
            TaskOutput::Rerank { results: scores.into_iter().map(score).collect() }
        }
        Reply::Labels(rankings) => {
            let label = |Label { label, score }| wire::Label { label, score };
            let ranking = |labels: Vec<Label>| labels.into_iter().map(label).collect();
            TaskOutput::Classify { results: rankings.into_iter().map(ranking).collect() }
        }
        Reply::Tensors(tensors) => TaskOutput::Infer { outputs: tensors.into_iter().map(tensor_to_wire).collect() },
    }
}

/// What a coordinator, or whoever asks for a task's result, is told of a task that was done.
pub fn outcome_of(done: Done) -> Outcome {
    let Done { reply, input_tokens, timings, model, model_digest, execution_class } = done;
    Outcome {
        output: output_of(reply),
        usage: Usage { input_tokens, ..Usage::default() },
        timings: timings_of(timings),
        model,
        model_digest,
        execution_class,
        batch_size: 0,
    }
}

/// The same of a text.
pub fn outcome_of_text(kind: TaskKind, done: TextDone) -> Outcome {
    let usage = usage_of(&done);
    let TextDone { written, timings, model, model_digest, execution_class, .. } = done;
    let output = match kind {
        TaskKind::Chat => TaskOutput::Chat(written),
        _ => TaskOutput::Generate(written),
    };
    Outcome { output, usage, timings: timings_of(timings), model, model_digest, execution_class, batch_size: 0 }
}

/// Tokens of a text.
pub fn usage_of(done: &TextDone) -> Usage {
    let TextDone { input_tokens, cached_tokens, .. } = *done;
    Usage { input_tokens, cached_tokens, output_tokens: done.written.tokens.len() as u64 }
}

/// What a task asks for.
pub enum Asked {
    /// A text.
    Text(Input),
    /// An answer.
    Answer(TaskInput),
}

/// Tells texts from answers.
///
/// # Errors
/// When a text is asked for that no model could write.
pub fn asked(input: TaskInput) -> Result<Asked, Problem> {
    text::check(&input)?;
    Ok(match input {
        TaskInput::Chat(input) => Asked::Text(Input::Chat(input)),
        TaskInput::Generate(input) => Asked::Text(Input::Generate(input)),
        other => Asked::Answer(other),
    })
}

fn timings_of(timings: Timings) -> coordinator_client::wire::Timings {
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let Timings { queue, prepare, device, finish } = timings;
    coordinator_client::wire::Timings {
        queue_us: us(queue),
        prepare_us: us(prepare),
        device_us: us(device),
        finish_us: us(finish),
        total_us: us(queue + prepare + device + finish),
    }
}

fn prompt_of(input_type: Option<String>, prompt_name: Option<String>) -> Result<Option<Prompt>, Problem> {
    match (input_type, prompt_name) {
        (Some(_), Some(_)) => Err(Problem::new(
            Code::InvalidInput,
            "give either input_type or prompt_name, not both: each chooses a prompt",
        )),
        (Some(name), None) => Ok(Some(Prompt::InputType(name))),
        (None, Some(name)) => Ok(Some(Prompt::Name(name))),
        (None, None) => Ok(None),
    }
}

fn texts_of(texts: Vec<wire::Text>) -> Vec<Text> {
    let text = |text| match text {
        wire::Text::Words(words) => Text::Words(words),
        wire::Text::Ids(ids) => Text::Ids(ids),
    };
    texts.into_iter().map(text).collect()
}

fn tensors_of(tensors: Vec<tensor::Tensor>) -> Result<Vec<NamedTensor>, Problem> {
    tensors.into_iter().map(tensor_from_wire).collect()
}

/// A checked tensor.
///
/// # Errors
/// When the type is unknown or the data does not fit the type and shape.
pub fn tensor_from_wire(wire: tensor::Tensor) -> Result<NamedTensor, Problem> {
    let tensor::Tensor { name, datatype, shape, data } = wire;
    let known = DataType::from_name(&datatype).ok_or_else(|| {
        let names: Vec<&str> = DataType::ALL.iter().map(|(_, name)| *name).collect();
        let names = names.join(", ");
        Problem::new(Code::WrongType, format!("tensor {name:?}: type {datatype:?} is none of {names}"))
    })?;
    // A dimension beyond the address space is too large whatever it is.
    let shape = shape.into_iter().map(|dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
    let checked = Tensor::new(known, shape, data);
    let tensor = checked.map_err(|error| Problem::new(Code::WrongShape, format!("tensor {name:?}: {error}")))?;
    Ok(NamedTensor { name, tensor })
}

/// Refuses a tensor that JSON cannot carry: it has no number for NaN and infinity.
///
/// # Errors
/// When it holds such values.
pub fn check_json(named: &NamedTensor) -> Result<(), Error> {
    if named.tensor.is_finite() { Ok(()) } else { Err(Error::NotJson { output: named.name.clone() }) }
}

/// A tensor as the wire carries it.
pub fn tensor_to_wire(NamedTensor { name, tensor }: NamedTensor) -> tensor::Tensor {
    tensor::Tensor {
        name,
        datatype: tensor.datatype().name().into(),
        shape: tensor.shape().iter().map(|&dim| dim as u64).collect(),
        data: tensor.data().clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, want: Result<&str, Code>) {
        let input: TaskInput = serde_json::from_str(json).unwrap();
        let request = request_of(input);
        match (&request, want) {
            (Ok(request), Ok(start)) => assert!(format!("{request:?}").starts_with(start), "{request:?}"),
            (Err(problem), Err(code)) => assert_eq!(problem.code, code),
            _ => panic!("{request:?}"),
        }
    }

    #[test]
    fn inputs_become_requests_or_are_refused_with_the_reason() {
        let tensor = |datatype: &str, shape: &str, data: &str| {
            format!(r#"{{"name": "x", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}"#)
        };
        let infer = |tensor: String| format!(r#"{{"kind": "infer", "input": {{"inputs": [{tensor}]}}}}"#);
        check(r#"{"kind": "embed", "input": {"inputs": ["a", [1, 2]]}}"#, Ok("Embed"));
        check(r#"{"kind": "embed", "input": {"inputs": ["a"], "input_type": "query"}}"#, Ok("Embed"));
        let two = r#"{"kind": "embed", "input": {"inputs": ["a"], "input_type": "query", "prompt_name": "query"}}"#;
        check(two, Err(Code::InvalidInput));
        check(r#"{"kind": "rerank", "input": {"query": "q", "documents": []}}"#, Ok("Rerank"));
        check(r#"{"kind": "classify", "input": {"inputs": ["a"]}}"#, Ok("ClassifyTexts"));
        check(r#"{"kind": "classify", "input": {}}"#, Err(Code::InvalidInput));
        check(&infer(tensor("FP32", "[2]", "[1, 2]")), Ok("Infer"));
        check(&infer(tensor("FP32", "[3]", "[1, 2]")), Err(Code::WrongShape));
        check(&infer(tensor("FP32", "[18446744073709551615, 3]", "[1, 2]")), Err(Code::WrongShape));
        check(&infer(tensor("FP99", "[0]", "[]")), Err(Code::WrongType));
        let both = format!(
            r#"{{"kind": "classify", "input": {{"inputs": ["a"], "tensors": [{}]}}}}"#,
            tensor("FP32", "[1]", "[1]")
        );
        check(&both, Err(Code::InvalidInput));
    }

    #[test]
    fn a_tensor_comes_back_as_it_went_in() {
        let wire = tensor::Tensor {
            name: "x".into(),
            datatype: "INT16".into(),
            shape: vec![1, 2],
            data: vec![1, 0, 2, 0].into(),
        };
        assert_eq!(tensor_to_wire(tensor_from_wire(wire.clone()).unwrap()), wire);
    }
}
