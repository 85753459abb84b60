//! A graph's file goes in, an open session with its specs comes out; later named values go in and named tensors come
//! out. The only file that calls `ort`'s session, so that every failure is turned into our errors in one place.

use super::runtime::{Kind, Runtime, runtime};
use super::values;
use crate::backend::says_out_of_memory;
use crate::engine::{self, Device, Info, TensorSpec};
use crate::load::{Error, Source, onnx_check::Graph};
use crate::tensor::{NamedTensor, Tensor};
use ort::error::ErrorCode;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, ValueType};
use std::path::Path;

/// An open graph.
pub(super) struct Opened {
    session: Session,
    pub(super) info: Info,
    /// Whether callers choose sizes inside a row, so that a failure inside the graph may be their fault.
    sizes_are_callers: bool,
}

impl Opened {
    pub(super) fn open(source: Source<'_>, path: &Path, graph: &Graph) -> Result<Self, Error> {
        let runtime = runtime(source.options.onnx_library.as_deref());
        let backend = runtime.kind.name();
        let refuse = |detail: String| Error::Backend { backend, model: source.manifest.id(), detail };
        if runtime.kind == Kind::Tract && source.options.device != Device::Cpu {
            let why = runtime.why_not.clone().unwrap_or_default();
            let detail = format!("tract runs on the CPU only, and it runs because {why}");
            return Err(Error::Device { device: source.options.device, detail });
        }
        let builder = configure(runtime, source).map_err(|e| refuse(e.to_string()))?;
        let (mut builder, provider) = builder;
        let session = builder.commit_from_file(path).map_err(|e| refuse(e.to_string()))?;
        let specs = |outlets: &[Outlet]| outlets.iter().map(spec).collect::<Result<Vec<_>, String>>();
        let inputs = specs(session.inputs()).map_err(refuse)?;
        let outputs = specs(session.outputs()).map_err(refuse)?;
        let device = source.options.device;
        let class = match device {
            Device::Cpu => format!(
                "{backend}-{}-cpu-{}-{}",
                runtime.version,
                source.manifest.precision,
                crate::backend::cpu_class()
            ),
            Device::Cuda(_) => format!("{backend}-{}-cuda-{}", runtime.version, source.manifest.precision),
            Device::Metal(_) => format!("{backend}-{}-coreml-{}", runtime.version, source.manifest.precision),
        };
        let sizes_are_callers = inputs.iter().any(|spec| spec.shape.iter().skip(1).any(Option::is_none));
        let info = Info {
            backend,
            provider: provider.into(),
            library: Some(runtime.describe()),
            device,
            execution_class: class,
            weights_bytes: graph.weights_bytes,
            inputs,
            outputs,
            vector_len: None,
            max_tokens: None,
            batches_rows: false,
        };
        Ok(Self { session, info, sizes_are_callers })
    }

    /// Runs the graph once.
    pub(super) fn run(&mut self, inputs: Vec<(String, Tensor)>) -> Result<Vec<NamedTensor>, engine::Error> {
        let (info, sizes_are_callers) = (&self.info, self.sizes_are_callers);
        let fail = |e: ort::Error| failed(info, sizes_are_callers, &e);
        let values = inputs.into_iter().map(|(name, tensor)| Ok((name, values::to_ort(&tensor)?)));
        let values = values.collect::<Result<Vec<_>, engine::Error>>()?;
        let outputs = self.session.run(values).map_err(fail)?;
        let named = outputs.iter().map(|(name, value)| {
            let tensor =
                values::from_ort(&value).map_err(|detail| engine::Error::Backend { backend: info.backend, detail });
            Ok(NamedTensor { name: name.to_string(), tensor: tensor? })
        });
        named.collect()
    }
}

/// Threads, optimisation and provider. What a runtime does not know, tract for the most part, is left as it is.
fn configure(runtime: &Runtime, source: Source<'_>) -> ort::Result<(SessionBuilder, &'static str)> {
    let threads = source.options.thread_count();
    let mut builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .unwrap_or_else(ort::Error::recover);
    if runtime.kind == Kind::Tract {
        return Ok((builder, "tract"));
    }
    builder = builder.with_intra_threads(threads)?.with_inter_threads(1)?;
    // Threads that spin between two batches would take the processor from everything else on this machine.
    builder = builder.with_intra_op_spinning(false)?;
    // A plan of the memory is kept per shape of inputs, and ours differ from batch to batch.
    builder = builder.with_memory_pattern(false)?;
    match source.options.device {
        Device::Cpu => Ok((builder, "CPUExecutionProvider")),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            // What its arena has taken it keeps, so it takes what is asked for and no more, and never what the ledger has promised to others.
            let mut provider = ort::ep::CUDA::default()
                .with_device_id(ordinal as i32)
                .with_arena_extend_strategy(ort::ep::ArenaExtendStrategy::SameAsRequested);
            if let Some(bytes) = source.options.device_bytes_max {
                provider = provider.with_memory_limit(usize::try_from(bytes).unwrap_or(usize::MAX));
            }
            let provider = provider.build().error_on_failure();
            Ok((builder.with_execution_providers([provider])?, "CUDAExecutionProvider"))
        }
        #[cfg(feature = "metal")]
        Device::Metal(_) => {
            let provider = ort::ep::CoreML::default().build().error_on_failure();
            Ok((builder.with_execution_providers([provider])?, "CoreMLExecutionProvider"))
        }
        #[allow(unreachable_patterns, reason = "which devices are left depends on the features")]
        device => Err(ort::Error::new(format!("this build has no provider for {device}"))),
    }
}

fn spec(outlet: &Outlet) -> Result<TensorSpec, String> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(format!("{} is not a tensor; only graphs of tensors are served", outlet.name()));
    };
    let datatype = values::from_element_type(*ty)
        .ok_or_else(|| format!("{} is of type {ty}, which is not served", outlet.name()))?;
    let shape = shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    Ok(TensorSpec { name: outlet.name().into(), datatype, shape })
}

/// Whose fault a failure is.
fn failed(info: &Info, sizes_are_callers: bool, error: &ort::Error) -> engine::Error {
    let (backend, device, detail) = (info.backend, info.device, error.to_string());
    let words = detail.to_ascii_lowercase();
    match error.code() {
        _ if says_out_of_memory(&words) => engine::Error::OutOfMemory { device, detail },
        _ if words.contains("cuda failure") || words.contains("cuda error") => engine::Error::Device { device, detail },
        ErrorCode::InvalidArgument => engine::Error::Input(detail),
        // Shapes were checked against what the graph states; where it leaves sizes open, only running it tells that
        // two of them do not go together.
        ErrorCode::GenericFailure | ErrorCode::RuntimeException if sizes_are_callers => engine::Error::Input(detail),
        _ => engine::Error::Backend { backend, detail },
    }
}
