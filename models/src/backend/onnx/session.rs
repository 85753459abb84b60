//! A graph's file goes in, an open session with its specs comes out; later named values go in, and what the session made of them is lent. The
//! only file that calls `ort`'s session, so that every failure is turned into our errors in one place.

use super::runtime::{Kind, Runtime, runtime};
use super::values;
use crate::backend::says_out_of_memory;
use crate::engine::{self, Device, Info, TensorSpec};
use crate::load::{Error, Source, onnx_check::Graph};
use crate::tensor::{NamedTensor, Tensor};
use ort::error::ErrorCode;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{IoBinding, Session, SessionOutputs};
use ort::value::{DynValue, Outlet, ValueType};
use std::path::Path;

/// An open graph.
pub(super) struct Opened {
    session: Session,
    /// None on tract, which has none.
    binding: Option<Binding>,
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
        let binding = match runtime.kind {
            Kind::OnnxRuntime => {
                Some(Binding::new(&session, source.options.device).map_err(|e| refuse(e.to_string()))?)
            }
            Kind::Tract => None,
        };
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
        Ok(Self { session, binding, info, sizes_are_callers })
    }

    /// Runs the graph once. What it gives, or of that only the one that is wanted, is lent to `read`.
    pub(super) fn run<R>(
        &mut self,
        inputs: Vec<(String, Tensor)>,
        wanted: Option<&str>,
        read: impl FnOnce(&SessionOutputs<'_>) -> Result<R, String>,
    ) -> Result<R, engine::Error> {
        let Self { session, binding, info, sizes_are_callers } = self;
        let values = inputs.into_iter().map(|(name, tensor)| Ok((name, values::to_ort(&tensor)?)));
        let values = values.collect::<Result<Vec<_>, engine::Error>>()?;
        let broken = |detail| engine::Error::Backend { backend: info.backend, detail };
        let answer = |outputs: ort::Result<SessionOutputs<'_>>| match outputs {
            Ok(outputs) => read(&outputs).map_err(broken),
            Err(error) => Err(failed(info, *sizes_are_callers, &error)),
        };
        let Some(binding) = binding else { return answer(session.run(values)) };
        let names = info.outputs.iter().map(|spec| spec.name.as_str());
        let names: Vec<_> = names.filter(|name| wanted.is_none_or(|wanted| wanted == *name)).collect();
        let answer = answer(binding.run(session, &values, &names));
        // What stays bound keeps its memory until the next run, here and on the device.
        binding.io.clear();
        answer
    }

    /// Runs the graph once and gives all that comes of it.
    pub(super) fn run_all(&mut self, inputs: Vec<(String, Tensor)>) -> Result<Vec<NamedTensor>, engine::Error> {
        self.run(inputs, None, |outputs| {
            let named = outputs.iter().map(|(name, value)| {
                values::from_ort(&value).map(|tensor| NamedTensor { name: name.to_string(), tensor })
            });
            named.collect()
        })
    }
}

/// What a session's inputs and outputs are bound to, so that only what is wanted is copied, and to memory that copies are fast to.
struct Binding {
    io: IoBinding,
    /// Where outputs go: memory of the host, which CUDA's provider has pinned.
    memory: MemoryInfo<'static>,
    /// Whether no run has shown yet which memory the runtime takes.
    is_on_trial: bool,
}

impl Binding {
    fn new(session: &Session, device: Device) -> ort::Result<Self> {
        let is_on_trial = matches!(device, Device::Cuda(_));
        Ok(Self { io: session.create_binding()?, memory: host(AllocationDevice::CPU)?, is_on_trial })
    }

    fn run<'a>(
        &'a mut self,
        session: &'a mut Session,
        inputs: &[(String, DynValue)],
        outputs: &[&str],
    ) -> ort::Result<SessionOutputs<'a>> {
        if self.is_on_trial {
            self.try_out(session, inputs, outputs)?;
        }
        self.bind(inputs, outputs)?;
        let outputs = session.run_binding(&self.io)?;
        self.io.synchronize_outputs()?;
        Ok(outputs)
    }

    /// Finds out whether the runtime takes pinned memory. Inputs that no run goes well with tell nothing.
    fn try_out(&mut self, session: &mut Session, inputs: &[(String, DynValue)], outputs: &[&str]) -> ort::Result<()> {
        for memory in [AllocationDevice::CUDA_PINNED, AllocationDevice::CPU] {
            self.memory = host(memory)?;
            let tried = self.bind(inputs, outputs).and_then(|()| session.run_binding(&self.io).map(|_| ()));
            self.is_on_trial = tried.is_err();
            match tried {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, ?memory, "ONNX Runtime cannot run with its results bound to this memory")
                }
            }
        }
        Ok(())
    }

    /// Anew for every run: an output that stays bound would have the shape of the run before.
    fn bind(&mut self, inputs: &[(String, DynValue)], outputs: &[&str]) -> ort::Result<()> {
        self.io.clear();
        for output in outputs {
            self.io.bind_output_to_device(*output, &self.memory)?;
        }
        for (name, value) in inputs {
            self.io.bind_input(name, value)?;
        }
        self.io.synchronize_inputs()
    }
}

/// Memory that this process reads.
fn host(device: AllocationDevice) -> ort::Result<MemoryInfo> {
    MemoryInfo::new(device, 0, AllocatorType::Device, MemoryType::CPUOutput)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(session: &mut Session, binding: &mut Binding, rows: usize, tokens: usize) -> ort::Result<Vec<Tensor>> {
        let names = ["input_ids", "attention_mask", "token_type_ids"];
        let values = names.map(|name| {
            let values: Vec<i64> =
                (0..rows * tokens).map(|i| if name == "input_ids" { i as i64 % 7 } else { 1 }).collect();
            (name.to_string(), values::to_ort(&Tensor::from_i64(vec![rows, tokens], &values).unwrap()).unwrap())
        });
        let outputs = binding.run(session, &values, &["last_hidden_state"])?;
        assert_eq!(outputs.len(), 1, "only what is wanted is computed");
        Ok(outputs.values().map(|value| values::from_ort(&value).unwrap()).collect())
    }

    /// A library without CUDA stands for one that does not take pinned memory.
    #[test]
    fn where_the_memory_is_not_taken_results_are_the_same() {
        let Some(library) = std::env::var_os("NEUROGRID_TEST_ORT") else {
            eprintln!("skipped: NEUROGRID_TEST_ORT names no ONNX Runtime");
            return;
        };
        let runtime = runtime(Some(Path::new(&library)));
        assert_eq!(runtime.kind, Kind::OnnxRuntime, "{:?}", runtime.why_not);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert/model.onnx");
        let mut session = Session::builder(&runtime.environment).unwrap().commit_from_file(file).unwrap();
        let mut plain = Binding::new(&session, Device::Cpu).unwrap();
        let mut tried = Binding::new(&session, Device::Cuda(0)).unwrap();
        // No run goes well with a token that is not in the table, wherever its results go, so that nothing is decided.
        let wrong =
            [("input_ids".to_string(), values::to_ort(&Tensor::from_i64(vec![1, 1], &[1 << 40]).unwrap()).unwrap())];
        assert!(tried.run(&mut session, &wrong, &["last_hidden_state"]).is_err());
        assert!(tried.is_on_trial);
        for (rows, tokens) in [(1, 3), (4, 6), (2, 2)] {
            let want = run(&mut session, &mut plain, rows, tokens).unwrap();
            assert_eq!(want[0].shape()[..2], [rows, tokens]);
            assert_eq!(run(&mut session, &mut tried, rows, tokens).unwrap(), want);
            assert!(!tried.is_on_trial);
        }
    }
}
