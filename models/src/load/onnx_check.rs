//! The bytes of an ONNX file and the manifest's file list go in; what the graph takes and gives comes out, or why it
//! is refused. It reads the file itself, before any runtime sees it, and never follows a path.
//!
//! Refused is whatever could make a runtime load code or read a file that is not the model's: operators of foreign
//! domains, operators that carry compiled programs, and external data anywhere but in a listed file. Every
//! occurrence of a field is looked at, not only the last: parsers merge repeated messages, so a rule that trusted
//! one occurrence could be tricked with a second.

use super::protobuf::{Fields, Malformed, Value};
use crate::manifest::{self, Manifest};
use std::collections::HashSet;

/// Operator domains that are accepted. The first two name the same standard set; `ai.onnx.ml` is the standard's
/// classical models; `com.microsoft` holds the fused and quantised operators that exporters write for ONNX Runtime
/// (`BiasGelu`, `QAttention`, `DynamicQuantizeMatMul`, …), which are compiled into that library and load nothing.
/// Any other domain needs a plug-in, that is, somebody's code.
pub const DOMAINS: &[&str] = &["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Operators of accepted domains that carry or name a compiled program, or call into another language.
const CODE_OPERATORS: &[&str] = &["EPContext", "PythonOp", "PythonOpGrad", "ATen", "Snpe"];

/// ONNX Runtime's mark for "the data lies at this address of the process". Never valid in a file.
const IN_MEMORY: &str = "_ORT_MEM_ADDR_";

/// Subgraphs inside subgraphs. Exporters stay below 5; the bound keeps a hostile file from exhausting the stack.
const DEPTH_MAX: usize = 32;

/// Why an ONNX file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a protobuf message of the ONNX schema.
    #[error("it is not an ONNX model (protobuf), or it is damaged; export it again")]
    Malformed,
    /// An operator or function of a domain that needs somebody's code.
    #[error("operator domain {0:?} is not accepted; only ai.onnx, ai.onnx.ml and com.microsoft are")]
    Domain(String),
    /// An operator that carries a program.
    #[error("operator {0:?} carries or calls compiled code; export the model without it")]
    Operator(String),
    /// External data elsewhere than in a file of the manifest.
    #[error("external data {0:?} is not a file of this model; keep it beside the graph and list it in the manifest")]
    External(String),
    /// Too deep.
    #[error("subgraphs are nested more than {DEPTH_MAX} deep")]
    Depth,
}

impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Error::Malformed
    }
}

/// What a graph takes and gives, as the file states it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// Inputs that a caller must give (those with an initializer are left out).
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Bytes of weights inside the file and outside of it, as far as the file states them.
    pub weights_bytes: u64,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its dimensions, outermost first; `None` when the file states no shape.
    pub dims: Option<Vec<Dim>>,
}

/// One dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this long.
    Fixed(u64),
    /// Differs from call to call; dimensions of the same non-empty name are equal within one call.
    Named(String),
}

impl Graph {
    /// Whether rows of different requests may be joined: every input and output has an outermost dimension, and all
    /// these go by one name. Dimensions without a name are taken to be the same.
    pub fn batches_rows(&self) -> bool {
        let mut names = HashSet::new();
        !self.inputs.is_empty()
            && self.inputs.iter().chain(&self.outputs).all(|port| match port.dims.as_deref() {
                Some([Dim::Named(name), ..]) => {
                    names.insert(name.as_str());
                    true
                }
                _ => false,
            })
            && names.iter().filter(|name| !name.is_empty()).count() <= 1
    }
}

/// Checks an ONNX file.
///
/// `path` is the file's own path in the manifest: external data is named relative to it.
///
/// # Errors
/// The first rule that is broken.
pub fn check(bytes: &[u8], path: &str, manifest: &Manifest) -> Result<Graph, Error> {
    // ONNX Runtime's own flat format would be read by other rules than these.
    if bytes.get(4..8) == Some(b"ORTM") {
        return Err(Error::Malformed);
    }
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut walk = Walk { folder, manifest, graph: Graph::default(), initializers: HashSet::new(), has_graph: false };
    walk.model(bytes)?;
    if !walk.has_graph {
        return Err(Error::Malformed);
    }
    let Walk { mut graph, initializers, .. } = walk;
    graph.inputs.retain(|port| !initializers.contains(&port.name));
    Ok(graph)
}

struct Walk<'a> {
    folder: &'a str,
    manifest: &'a Manifest,
    graph: Graph,
    initializers: HashSet<String>,
    has_graph: bool,
}

impl Walk<'_> {
    /// `ModelProto`.
    fn model(&mut self, message: &[u8]) -> Result<(), Error> {
        for field in Fields::of(message) {
            match field? {
                (7, Value::Bytes(graph)) => {
                    self.has_graph = true;
                    self.graph(graph, 0)?;
                }
                (8, Value::Bytes(opset)) => self.opset(opset)?,
                (20, Value::Bytes(training)) => {
                    for field in Fields::of(training) {
                        if let (1 | 2, Value::Bytes(graph)) = field? {
                            self.graph(graph, 1)?;
                        }
                    }
                }
                (25, Value::Bytes(function)) => self.function(function)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// `OperatorSetIdProto`.
    fn opset(&self, message: &[u8]) -> Result<(), Error> {
        for field in Fields::of(message) {
            if let (1, Value::Bytes(domain)) = field? {
                check_domain(domain)?;
            }
        }
        Ok(())
    }

    /// `FunctionProto`.
    fn function(&mut self, message: &[u8]) -> Result<(), Error> {
        for field in Fields::of(message) {
            match field? {
                (7, Value::Bytes(node)) => self.node(node, 1)?,
                (9, Value::Bytes(opset)) => self.opset(opset)?,
                (10, Value::Bytes(domain)) => check_domain(domain)?,
                (11, Value::Bytes(attribute)) => self.attribute(attribute, 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// `GraphProto`; the outermost one has depth 0.
    fn graph(&mut self, message: &[u8], depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::Depth);
        }
        for field in Fields::of(message) {
            match field? {
                (1, Value::Bytes(node)) => self.node(node, depth)?,
                (5, Value::Bytes(tensor)) => {
                    let name = self.tensor(tensor)?;
                    if depth == 0 {
                        self.initializers.insert(name);
                    }
                }
                (11, Value::Bytes(info)) if depth == 0 => self.graph.inputs.push(port(info)?),
                (12, Value::Bytes(info)) if depth == 0 => self.graph.outputs.push(port(info)?),
                (15, Value::Bytes(sparse)) => {
                    let name = self.sparse_tensor(sparse)?;
                    if depth == 0 {
                        self.initializers.insert(name);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `NodeProto`.
    fn node(&mut self, message: &[u8], depth: usize) -> Result<(), Error> {
        for field in Fields::of(message) {
            match field? {
                (4, Value::Bytes(operator)) => {
                    let operator = text(operator);
                    if CODE_OPERATORS.contains(&operator.as_str()) {
                        return Err(Error::Operator(operator));
                    }
                }
                (5, Value::Bytes(attribute)) => self.attribute(attribute, depth)?,
                (7, Value::Bytes(domain)) => check_domain(domain)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// `AttributeProto`.
    fn attribute(&mut self, message: &[u8], depth: usize) -> Result<(), Error> {
        for field in Fields::of(message) {
            match field? {
                (5 | 10, Value::Bytes(tensor)) => {
                    self.tensor(tensor)?;
                }
                (6 | 11, Value::Bytes(graph)) => self.graph(graph, depth + 1)?,
                (22 | 23, Value::Bytes(sparse)) => {
                    self.sparse_tensor(sparse)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `SparseTensorProto`: its values and its indices are tensors, and either may be external. Gives its name,
    /// which is that of its values.
    fn sparse_tensor(&mut self, message: &[u8]) -> Result<String, Error> {
        let mut name = String::new();
        for field in Fields::of(message) {
            match field? {
                (1, Value::Bytes(values)) => name = self.tensor(values)?,
                (2, Value::Bytes(indices)) => {
                    self.tensor(indices)?;
                }
                _ => {}
            }
        }
        Ok(name)
    }

    /// `TensorProto`. Gives its name.
    fn tensor(&mut self, message: &[u8]) -> Result<String, Error> {
        let mut name = String::new();
        for field in Fields::of(message) {
            match field? {
                (8, Value::Bytes(bytes)) => name = text(bytes),
                (4 | 5 | 7 | 9 | 10 | 11, Value::Bytes(data)) => self.graph.weights_bytes += data.len() as u64,
                (13, Value::Bytes(entry)) => self.external(entry)?,
                _ => {}
            }
        }
        Ok(name)
    }

    /// `StringStringEntryProto` of a tensor's `external_data`. Checked whether or not the tensor says that its data
    /// is external.
    fn external(&mut self, message: &[u8]) -> Result<(), Error> {
        let (mut is_location, mut is_length, mut values) = (false, false, Vec::new());
        for field in Fields::of(message) {
            match field? {
                (1, Value::Bytes(key)) => {
                    is_location |= key == b"location";
                    is_length |= key == b"length";
                }
                (2, Value::Bytes(value)) => values.push(text(value)),
                _ => {}
            }
        }
        if is_length {
            let length = values.last().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
            self.graph.weights_bytes = self.graph.weights_bytes.saturating_add(length);
        }
        if !is_location {
            return Ok(());
        }
        for location in values {
            let path = match self.folder {
                "" => location.clone(),
                folder => format!("{folder}/{location}"),
            };
            let listed = self.manifest.files.iter().any(|file| file.path == path);
            if !listed || !manifest::is_inside(&location) || location.contains(IN_MEMORY) {
                return Err(Error::External(location));
            }
        }
        Ok(())
    }
}

/// `ValueInfoProto`, as far as it says the shape of a tensor.
fn port(message: &[u8]) -> Result<Port, Error> {
    let mut port = Port::default();
    for field in Fields::of(message) {
        match field? {
            (1, Value::Bytes(name)) => port.name = text(name),
            (2, Value::Bytes(types)) => {
                for field in Fields::of(types) {
                    if let (1, Value::Bytes(tensor)) = field? {
                        port.dims = dims(tensor)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(port)
}

/// The shape of a `TypeProto.Tensor`.
fn dims(tensor: &[u8]) -> Result<Option<Vec<Dim>>, Error> {
    let mut dims = None;
    for field in Fields::of(tensor) {
        let (2, Value::Bytes(shape)) = field? else { continue };
        let dims = dims.get_or_insert_with(Vec::new);
        for field in Fields::of(shape) {
            let (1, Value::Bytes(dimension)) = field? else { continue };
            let mut dim = Dim::Named(String::new());
            for field in Fields::of(dimension) {
                match field? {
                    (1, Value::Varint(length)) => dim = Dim::Fixed(length),
                    (2, Value::Bytes(name)) => dim = Dim::Named(text(name)),
                    _ => {}
                }
            }
            dims.push(dim);
        }
    }
    Ok(dims)
}

fn check_domain(domain: &[u8]) -> Result<(), Error> {
    let domain = text(domain);
    if DOMAINS.contains(&domain.as_str()) { Ok(()) } else { Err(Error::Domain(domain)) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
#[path = "onnx_check_tests.rs"]
mod tests;
