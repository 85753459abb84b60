//! Engine on ONNX Runtime, or on tract where its library is missing. A checked graph goes in, an engine comes out.
//! The library is found and loaded once per process; which one runs stands in every engine's `Info`.

mod encoder;
mod rows;
mod runtime;
pub mod search;
mod session;
mod values;

pub use runtime::{Kind, Runtime, runtime};

use crate::engine::{Device, Engine};
use crate::load::{Error, Source, onnx_check::Graph, takes_tokens};
use session::Opened;
use std::path::Path;

/// Loads a graph.
///
/// # Errors
/// When the runtime refuses it, the device is not there, or its inputs and outputs are not what the task needs.
pub(crate) fn load(source: Source<'_>, path: &Path, graph: &Graph) -> Result<Box<dyn Engine>, Error> {
    refuse_device(source.options.device)?;
    let opened = Opened::open(source, path, graph)?;
    if takes_tokens(source.manifest) {
        return Ok(Box::new(encoder::Encoder::new(source, opened)?));
    }
    Ok(Box::new(rows::Rows::new(graph, opened)))
}

fn refuse_device(device: Device) -> Result<(), Error> {
    let refuse = |detail: &str| Err(Error::Device { device, detail: detail.into() });
    match device {
        Device::Cuda(_) if !cfg!(feature = "cuda") => {
            refuse("this build has no CUDA: use the CUDA binary or the CUDA container image")
        }
        Device::Metal(_) if !cfg!(feature = "metal") => {
            refuse("this build has no Metal: use the macOS binary, or build with --features metal")
        }
        _ => Ok(()),
    }
}
