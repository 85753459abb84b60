//! The Open Inference Protocol's bodies: JSON, or JSON followed by the raw bytes of tensors, go in; checked tensors come
//! out, and the same way back. Knows no model.

use std::time::Duration;

use axum::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use coordinator_client::api::Code;
use coordinator_client::wire::tensor;
use models::{DataType, NamedTensor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::body::{json_bytes, parse};
use super::super::error::Refusal;
use crate::convert::{check_json, tensor_from_wire, tensor_to_wire};

/// Says how many bytes of the body are JSON; raw tensors follow.
pub(super) const LENGTH_HEADER: &str = "inference-header-content-length";

/// Body of an inference.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = oip::InferRequest)]
pub(super) struct InferRequest {
    /// Comes back in the answer.
    #[serde(default)]
    id: Option<String>,
    /// `binary_data_output`: whether outputs come as raw bytes unless they say otherwise; `timeout`: microseconds.
    #[serde(default)]
    parameters: RequestParameters,
    /// The model's inputs.
    inputs: Vec<Input>,
    /// The wanted outputs; all when there are none.
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = oip::RequestParameters)]
struct RequestParameters {
    #[serde(default)]
    binary_data_output: bool,
    /// Microseconds; 0 is none.
    #[serde(default)]
    timeout: Option<u64>,
}

/// One input. The fields stand in any order, so the data is read after the type is known.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = oip::Input)]
struct Input {
    /// The model's name for it.
    name: String,
    /// Dimensions.
    shape: Vec<u64>,
    /// `FP32`, `INT64`, …
    datatype: String,
    /// `binary_data_size`: bytes of its data after the JSON.
    #[serde(default)]
    parameters: InputParameters,
    /// Values, flat or nested.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>)]
    data: Option<Box<serde_json::value::RawValue>>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = oip::InputParameters)]
struct InputParameters {
    #[serde(default)]
    binary_data_size: Option<usize>,
}

/// One wanted output.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = oip::Output)]
struct Output {
    /// The model's name for it.
    name: String,
    /// `binary_data`: whether it comes as raw bytes.
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = oip::OutputParameters)]
struct OutputParameters {
    #[serde(default)]
    binary_data: Option<bool>,
    /// Class labels instead of values: not served here.
    #[serde(default)]
    classification: Option<u64>,
}

/// An inference as it was asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: Option<String>,
    pub(super) inputs: Vec<NamedTensor>,
    pub(super) outputs: Outputs,
    pub(super) timeout: Option<Duration>,
}

/// How the outputs are wanted.
#[derive(Debug)]
pub(super) struct Outputs {
    named: Vec<(String, Option<bool>)>,
    binary: bool,
}

impl Outputs {
    pub(super) fn names(&self) -> Vec<String> {
        self.named.iter().map(|(name, _)| name.clone()).collect()
    }

    fn is_binary(&self, name: &str) -> bool {
        let said = self.named.iter().find(|(named, _)| named == name).and_then(|(_, binary)| *binary);
        said.unwrap_or(self.binary)
    }
}

fn bad(detail: String) -> Refusal {
    Refusal::new(Code::InvalidInput, detail)
}

/// How many bytes of the body are JSON, when raw tensors follow.
pub(super) fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(LENGTH_HEADER) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let wrong = || bad(format!("{LENGTH_HEADER} is {value:?}, it must be a number of bytes"));
    length.ok_or_else(wrong).map(Some)
}

/// Reads a body. The raw tensors are not copied.
pub(super) fn read(body: &Bytes, json_bytes: Option<usize>) -> Result<Asked, Refusal> {
    let length = json_bytes.unwrap_or(body.len());
    if length > body.len() {
        return Err(bad(format!("{LENGTH_HEADER} is {length}, the body has {} bytes", body.len())));
    }
    let request: InferRequest = parse(&body[..length])?;
    let mut rest = body.slice(length..);
    let inputs = request.inputs.into_iter().map(|input| input.read(&mut rest)).collect::<Result<_, _>>()?;
    if !rest.is_empty() {
        return Err(bad(format!("{} bytes follow the last tensor", rest.len())));
    }
    let output = |output: Output| match output.parameters.classification {
        Some(_) => Err(bad(format!("output {:?}: classification is not served here; use classify", output.name))),
        None => Ok((output.name, output.parameters.binary_data)),
    };
    let named = request.outputs.into_iter().map(output).collect::<Result<_, _>>()?;
    let parameters = request.parameters;
    Ok(Asked {
        id: request.id,
        inputs,
        outputs: Outputs { named, binary: parameters.binary_data_output },
        timeout: parameters.timeout.filter(|us| *us > 0).map(Duration::from_micros),
    })
}

impl Input {
    fn read(self, rest: &mut Bytes) -> Result<NamedTensor, Refusal> {
        let Self { name, shape, datatype, parameters, data } = self;
        let data = match (parameters.binary_data_size, data) {
            (Some(size), None) if size <= rest.len() => rest.split_to(size),
            (Some(size), None) => {
                return Err(bad(format!("input {name:?} has {size} raw bytes, {} are left in the body", rest.len())));
            }
            (None, Some(data)) => return from_json(name, shape, datatype, data.get()),
            (Some(_), Some(_)) => return Err(bad(format!("input {name:?} has both data and raw bytes"))),
            (None, None) => return Err(bad(format!("input {name:?} has neither data nor raw bytes"))),
        };
        Ok(tensor_from_wire(tensor::Tensor { name, datatype, shape, data })?)
    }
}

fn from_json(name: String, shape: Vec<u64>, datatype: String, data: &str) -> Result<NamedTensor, Refusal> {
    if datatype == "FP16" || datatype == "BF16" {
        return Err(bad(format!("input {name:?}: {datatype} travels as raw bytes only")));
    }
    if DataType::from_name(&datatype).is_none() {
        // Said before its values are found to be none of its own.
        return Ok(tensor_from_wire(tensor::Tensor { name, datatype, shape, data: Bytes::new() })?);
    }
    // The wire's tensor is read as a whole: put together again, now that its type is known to stand before its data.
    let head = serde_json::json!({ "name": name, "datatype": datatype, "shape": shape }).to_string();
    let whole = format!("{},\"data\":{data}}}", head.trim_end_matches('}'));
    Ok(tensor_from_wire(parse(whole.as_bytes())?)?)
}

/// Answer to an inference.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = oip::InferResponse)]
pub(super) struct InferResponse {
    /// The request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Its name.
    model_name: String,
    /// Its version.
    model_version: String,
    /// The outputs, in the order in which they were asked.
    outputs: Vec<OutputTensor>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = oip::OutputTensor)]
enum OutputTensor {
    Json(tensor::Tensor),
    Binary { name: String, datatype: String, shape: Vec<u64>, parameters: BinarySize },
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = oip::BinarySize)]
struct BinarySize {
    binary_data_size: usize,
}

/// A body to be sent.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) body: Bytes,
    /// How many bytes of it are JSON, when raw tensors follow.
    pub(super) json_bytes: Option<usize>,
}

/// Writes an answer.
///
/// # Errors
/// When an output that is wanted as JSON holds what JSON cannot carry.
pub(super) fn write(
    id: Option<String>,
    model: &str,
    tensors: Vec<NamedTensor>,
    wanted: &Outputs,
) -> Result<Written, Refusal> {
    let (name, version) = models::manifest::split_id(model);
    let mut raw: Vec<Bytes> = Vec::new();
    let output = |named: NamedTensor| {
        // Half precision has no JSON form in the protocol.
        let is_half = matches!(named.tensor.datatype(), DataType::F16 | DataType::BF16);
        if !is_half && !wanted.is_binary(&named.name) {
            check_json(&named)?;
            return Ok(OutputTensor::Json(tensor_to_wire(named)));
        }
        let tensor::Tensor { name, datatype, shape, data } = tensor_to_wire(named);
        let parameters = BinarySize { binary_data_size: data.len() };
        raw.push(data);
        Ok(OutputTensor::Binary { name, datatype, shape, parameters })
    };
    let outputs = tensors.into_iter().map(output).collect::<Result<_, crate::Error>>()?;
    let (model_name, model_version) = (name.to_owned(), version.unwrap_or_default().to_owned());
    let json = json_bytes(&InferResponse { id, model_name, model_version, outputs });
    if raw.is_empty() {
        return Ok(Written { body: json, json_bytes: None });
    }
    let mut body = BytesMut::with_capacity(json.len() + raw.iter().map(Bytes::len).sum::<usize>());
    body.extend_from_slice(&json);
    raw.iter().for_each(|data| body.extend_from_slice(data));
    Ok(Written { body: body.freeze(), json_bytes: Some(json.len()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::Tensor;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// A body of JSON with raw bytes behind it.
    fn read_with(json: &str, raw: &[u8]) -> Result<Asked, Refusal> {
        let body: Bytes = [json.as_bytes(), raw].concat().into();
        read(&body, (!raw.is_empty()).then_some(json.len()))
    }

    fn check(json: &str, raw: &[u8], want: Result<&[f32], Code>) {
        let asked = read_with(json, raw).map_err(|refusal| refusal.0.code);
        let values = asked.map(|asked| asked.inputs[0].tensor.to_f32().unwrap());
        assert_eq!(values.as_deref().map_err(|code| *code), want, "{json}");
    }

    fn input(fields: &str) -> String {
        format!(r#"{{"inputs": [{{"name": "x", {fields}}}]}}"#)
    }

    #[test]
    fn tensors_are_read_from_json_and_from_raw_bytes() {
        let head = r#""shape": [1, 2], "datatype": "FP32""#;
        check(&input(&format!(r#"{head}, "data": [1, 2.5]"#)), &[], Ok(&[1.0, 2.5]));
        check(&input(&format!(r#""data": [[1, 2.5]], {head}"#)), &[], Ok(&[1.0, 2.5]));
        let binary = input(&format!(r#"{head}, "parameters": {{"binary_data_size": 8}}"#));
        check(&binary, &f32s(&[1.0, -1.0]), Ok(&[1.0, -1.0]));
        check(&binary, &f32s(&[1.0]), Err(Code::InvalidInput));
        check(&binary, &f32s(&[1.0, 2.0, 3.0]), Err(Code::InvalidInput));
        check(&input(head), &[], Err(Code::InvalidInput));
        check(&input(&format!(r#"{head}, "data": [1]"#)), &[], Err(Code::WrongShape));
        check(&input(&format!(r#"{head}, "data": ["a", "b"]"#)), &[], Err(Code::InvalidJson));
        check(&input(r#""shape": [1], "datatype": "FP8", "data": [1]"#), &[], Err(Code::WrongType));
        check("{", &[], Err(Code::InvalidJson));
        check("\"\u{0}", &[], Err(Code::InvalidJson));
    }

    #[test]
    fn a_header_longer_than_the_body_is_refused() {
        assert!(read(&Bytes::from_static(b"{}"), Some(3)).is_err());
        let mut headers = HeaderMap::new();
        headers.insert(LENGTH_HEADER, "-1".parse().unwrap());
        assert!(json_length(&headers).is_err());
    }

    #[test]
    fn outputs_come_as_they_are_wanted() {
        let asked = |outputs: &str, parameters: &str| {
            let data = r#""shape": [1], "datatype": "FP32", "data": [1]"#;
            let json = format!(
                r#"{{"id": "7", "parameters": {parameters}, "inputs": [{{"name": "x", {data}}}], "outputs": {outputs}}}"#
            );
            read_with(&json, &[]).unwrap()
        };
        let tensors = || {
            let tensor = Tensor::from_f32(vec![2], &[0.5, 2.0]).unwrap();
            vec![NamedTensor { name: "y".into(), tensor }]
        };
        let written = |asked: &Asked| write(asked.id.clone(), "m@3", tensors(), &asked.outputs).unwrap();

        let plain = written(&asked("[]", "{}"));
        let json: serde_json::Value = serde_json::from_slice(&plain.body).unwrap();
        assert_eq!(plain.json_bytes, None);
        assert_eq!((&json["id"], &json["model_name"], &json["model_version"]), (&"7".into(), &"m".into(), &"3".into()));
        assert_eq!(json["outputs"][0]["data"], serde_json::json!([0.5, 2.0]));

        for asked in [
            asked(r#"[{"name": "y", "parameters": {"binary_data": true}}]"#, "{}"),
            asked("[]", r#"{"binary_data_output": true}"#),
        ] {
            let binary = written(&asked);
            let length = binary.json_bytes.unwrap();
            assert_eq!(&binary.body[length..], f32s(&[0.5, 2.0]));
            let json: serde_json::Value = serde_json::from_slice(&binary.body[..length]).unwrap();
            assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
        }
    }
}
