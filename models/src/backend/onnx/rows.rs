//! Engine for graphs of plain tensors: items' rows are joined where the graph allows it, run, and taken apart again.
//! Names, types and shapes were checked by the pipeline; what still does not fit is the caller's fault.

use super::session::Opened;
use crate::engine::{Engine, Error, Info, Item, Output, TensorSpec};
use crate::load::onnx_check::Graph;
use crate::tensor::{NamedTensor, Tensor};
use bytes::BytesMut;

/// A graph of plain tensors.
pub(super) struct Rows {
    opened: Opened,
}

impl Rows {
    pub(super) fn new(graph: &Graph, mut opened: Opened) -> Self {
        // Both must say so: the file knows the dimensions' names, the runtime what became of them.
        let info = &mut opened.info;
        let is_open = info.inputs.iter().chain(&info.outputs).all(|spec| matches!(spec.shape.first(), Some(None)));
        let has_strings = info.inputs.iter().chain(&info.outputs).any(|spec| spec.datatype.size().is_none());
        info.batches_rows = graph.batches_rows() && is_open && !has_strings;
        Self { opened }
    }

    /// Runs items whose tensors differ in nothing but their rows as one.
    fn run_joined(&mut self, items: &[&[NamedTensor]]) -> Result<Vec<Output>, Error> {
        let counts: Vec<usize> = items.iter().map(|tensors| tensors[0].tensor.rows()).collect();
        let joined = (0..items[0].len()).map(|input| join(items, input)).collect::<Result<_, _>>()?;
        let outputs = self.opened.run_all(joined)?;
        let total: usize = counts.iter().sum();
        let backend = self.opened.info.backend;
        if let Some(output) = outputs.iter().find(|output| output.tensor.rows() != total) {
            let detail = format!("{} has {} rows for {total}", output.name, output.tensor.rows());
            return Err(Error::Backend { backend, detail });
        }
        let mut start = 0;
        let mut split = Vec::with_capacity(counts.len());
        for rows in counts {
            let part = |output: &NamedTensor| {
                let tensor = slice(&output.tensor, start, rows);
                tensor.map(|tensor| NamedTensor { name: output.name.clone(), tensor })
            };
            let parts: Result<Vec<_>, _> = outputs.iter().map(part).collect();
            split.push(Output::Tensors(parts.map_err(|detail| Error::Backend { backend, detail })?));
            start += rows;
        }
        Ok(split)
    }
}

impl Engine for Rows {
    fn info(&self) -> &Info {
        &self.opened.info
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error> {
        let tensors = items.iter().map(|item| match item {
            Item::Tensors(tensors) => check(&self.opened.info.inputs, tensors).map(|()| tensors.as_slice()),
            Item::Tokens(_) => Err(Error::Input("this model takes tensors, not tokens".into())),
        });
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let mut outputs = vec![Output::Tensors(vec![]); items.len()];
        for group in groups(&tensors, self.opened.info.batches_rows) {
            let members: Vec<_> = group.iter().map(|index| tensors[*index]).collect();
            for (index, output) in group.iter().zip(self.run_joined(&members)?) {
                outputs[*index] = output;
            }
        }
        Ok(outputs)
    }
}

/// Whether an item has the graph's inputs, in its order. The pipeline checks the same in more words; here it keeps a
/// wrong item from being told differently by each runtime.
fn check(specs: &[TensorSpec], tensors: &[NamedTensor]) -> Result<(), Error> {
    if tensors.len() != specs.len() {
        return Err(Error::Input(format!("{} inputs for a model of {}", tensors.len(), specs.len())));
    }
    for (NamedTensor { name, tensor }, spec) in tensors.iter().zip(specs) {
        let dims = tensor.shape().iter().zip(&spec.shape);
        let fits = *name == spec.name
            && tensor.datatype() == spec.datatype
            && tensor.shape().len() == spec.shape.len()
            && dims.into_iter().all(|(have, want)| want.is_none_or(|want| want == *have));
        if !fits {
            let (datatype, shape) = (tensor.datatype().name(), tensor.shape());
            return Err(Error::Input(format!("input {name} {datatype} {shape:?} is not the model's {}", spec.name)));
        }
    }
    Ok(())
}

/// Positions of items that can be joined. Graphs may leave sizes inside a row open, and then rows differ.
fn groups(items: &[&[NamedTensor]], batches_rows: bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let fits = |group: &&mut Vec<usize>| batches_rows && are_alike(items[group[0]], item);
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    groups
}

fn are_alike(a: &[NamedTensor], b: &[NamedTensor]) -> bool {
    let inner = |tensor: &Tensor| tensor.shape().get(1..).map(<[usize]>::to_vec);
    let alike = |(a, b): (&NamedTensor, &NamedTensor)| {
        a.name == b.name && a.tensor.datatype() == b.tensor.datatype() && inner(&a.tensor) == inner(&b.tensor)
    };
    a.len() == b.len() && a.iter().zip(b).all(alike)
}

/// One input of several items, one after the other.
fn join(items: &[&[NamedTensor]], input: usize) -> Result<(String, Tensor), Error> {
    let first = &items[0][input];
    if let [_] = items {
        return Ok((first.name.clone(), first.tensor.clone()));
    }
    let mut data = BytesMut::with_capacity(items.iter().map(|item| item[input].tensor.data().len()).sum());
    let mut shape = first.tensor.shape().to_vec();
    shape[0] = items.iter().map(|item| item[input].tensor.rows()).sum();
    items.iter().for_each(|item| data.extend_from_slice(item[input].tensor.data()));
    let tensor = Tensor::new(first.tensor.datatype(), shape, data.freeze());
    tensor.map(|tensor| (first.name.clone(), tensor)).map_err(|e| Error::Input(e.to_string()))
}

/// Some rows of a tensor, without a copy.
fn slice(tensor: &Tensor, start: usize, rows: usize) -> Result<Tensor, String> {
    if rows == tensor.rows() {
        return Ok(tensor.clone());
    }
    let row_len = tensor.data().len() / tensor.rows();
    let shape = [&[rows], &tensor.shape()[1..]].concat();
    let data = tensor.data().slice(start * row_len..(start + rows) * row_len);
    Tensor::new(tensor.datatype(), shape, data).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(shape: &[usize]) -> Vec<NamedTensor> {
        let values = vec![0.0; shape.iter().product()];
        vec![NamedTensor { name: "x".into(), tensor: Tensor::from_f32(shape.to_vec(), &values).unwrap() }]
    }

    fn check(shapes: &[&[usize]], batches_rows: bool, want: &[&[usize]]) {
        let items: Vec<_> = shapes.iter().map(|shape| item(shape)).collect();
        let items: Vec<_> = items.iter().map(Vec::as_slice).collect();
        assert_eq!(groups(&items, batches_rows), want, "{shapes:?}");
    }

    #[test]
    fn only_like_rows_are_joined_and_only_where_allowed() {
        check(&[&[1, 4], &[3, 4], &[2, 5], &[1, 4]], true, &[&[0, 1, 3], &[2]]);
        check(&[&[1, 4], &[3, 4]], false, &[&[0], &[1]]);
        check(&[], true, &[]);
    }
}
