//! An engine that answers at once, for tests and benches of everything around it. Vectors are a hash of the tokens,
//! so an answer shows which input it belongs to. It can be told by its input to fail or to panic. No files, no clock.

use crate::engine::{Device, Engine, Error, Info, Item, Output, TensorSpec, Tokens};
use crate::load::{Error as LoadError, Loaded};
use crate::manifest::{File, Manifest, Pooling, Task};
use crate::task::{Pipeline, Tokenizer};
use crate::tensor::{DataType, NamedTensor, Tensor};
use std::sync::Arc;

/// A word that makes the batch fail by the caller's fault.
pub const FAIL: &str = "!fail";
/// A word that makes the engine panic.
pub const PANIC: &str = "!panic";
/// A word that makes the device run out of memory.
pub const OUT_OF_MEMORY: &str = "!oom";
/// A word that makes the device fail.
pub const DEVICE: &str = "!device";
/// A word that makes the vector NaN.
pub const NAN: &str = "!nan";

/// Marked words and their ids.
pub(super) const MARKED: &[(&str, u32)] = &[(FAIL, 1), (PANIC, 2), (OUT_OF_MEMORY, 3), (DEVICE, 4), (NAN, 5)];

/// Ids of words are below this.
const VOCABULARY: u32 = 65_536;
/// Tokens of a sequence at most.
const TOKENS_MAX: usize = 512;
/// Length of an embedding.
const DIMENSIONS: usize = 8;
/// Classes of the classifier.
const CLASSES: usize = 3;
/// Input and output of the model of tensors: `y = 2x`, rows of this many values.
const WIDTH: usize = 4;

/// The engine.
#[derive(Debug)]
pub struct Fake {
    info: Info,
    runs: u64,
}

impl Fake {
    /// An engine for a task: embeddings of 8 values, 1 score, 3 classes, or `y = 2x` on `FP32 [n, 4]`.
    pub fn new(task: Task) -> Self {
        let vector_len = match task {
            Task::Embed => Some(DIMENSIONS),
            Task::Rerank => Some(1),
            Task::Classify => Some(CLASSES),
            Task::Infer | Task::Generate => None,
        };
        let spec = |name: &str, datatype, shape| TensorSpec { name: name.into(), datatype, shape };
        let (inputs, outputs) = match vector_len {
            Some(length) => (
                vec![spec("input_ids", DataType::I64, vec![None, None])],
                vec![spec("vector", DataType::F32, vec![None, Some(length)])],
            ),
            None => (
                vec![spec("x", DataType::F32, vec![None, Some(WIDTH)])],
                vec![spec("y", DataType::F32, vec![None, Some(WIDTH)])],
            ),
        };
        let info = Info {
            backend: "fake",
            provider: "fake".into(),
            library: None,
            device: Device::Cpu,
            execution_class: "fake".into(),
            weights_bytes: 0,
            inputs,
            outputs,
            vector_len,
            max_tokens: vector_len.map(|_| TOKENS_MAX),
            batches_rows: true,
        };
        Self { info, runs: 0 }
    }

    /// Batches that were run.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    fn vector(&self, tokens: &Tokens) -> Result<Vec<f32>, Error> {
        tokens.ids.iter().try_for_each(|id| heed(*id))?;
        if tokens.ids.iter().any(|id| MARKED.contains(&(NAN, *id))) {
            return Ok(vec![f32::NAN; self.info.vector_len.unwrap_or(0)]);
        }
        let seed = hash(tokens.ids.iter().flat_map(|id| id.to_le_bytes()));
        Ok((0..self.info.vector_len.unwrap_or(0)).map(|index| unit(seed, index)).collect())
    }
}

impl Engine for Fake {
    fn info(&self) -> &Info {
        &self.info
    }

    fn run(&mut self, items: &[Item]) -> Result<Vec<Output>, Error> {
        self.runs += 1;
        let output = |item: &Item| match (item, self.info.vector_len) {
            (Item::Tokens(tokens), Some(_)) => self.vector(tokens).map(Output::Vector),
            (Item::Tensors(tensors), None) => tensors.iter().map(double).collect::<Result<_, _>>().map(Output::Tensors),
            (Item::Tokens(_), None) => Err(Error::Input("this model takes tensors, not tokens".into())),
            (Item::Tensors(_), Some(_)) => Err(Error::Input("this model takes tokens, not tensors".into())),
        };
        items.iter().map(output).collect()
    }
}

/// Fails or panics where a token is marked for it.
pub(super) fn heed(token: u32) -> Result<(), Error> {
    let device = Device::Cpu;
    let detail = |word: &str| format!("the input holds {word}");
    match MARKED.iter().find(|(_, marked)| *marked == token).map(|(word, _)| *word) {
        Some(FAIL) => Err(Error::Input(detail(FAIL))),
        Some(PANIC) => panic!("the input holds {PANIC}"),
        Some(OUT_OF_MEMORY) => Err(Error::OutOfMemory { device, detail: detail(OUT_OF_MEMORY) }),
        Some(DEVICE) => Err(Error::Device { device, detail: detail(DEVICE) }),
        _ => Ok(()),
    }
}

fn double(input: &NamedTensor) -> Result<NamedTensor, Error> {
    let refuse = |e: crate::tensor::Error| Error::Input(e.to_string());
    let values: Vec<f32> = input.tensor.to_f32().map_err(refuse)?.iter().map(|value| 2.0 * value).collect();
    let tensor = Tensor::from_f32(input.tensor.shape().to_vec(), &values).map_err(refuse)?;
    Ok(NamedTensor { name: "y".into(), tensor })
}

/// FNV-1a: short, and the same on every machine.
pub(crate) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// A number from −1 to 1 for a seed and an index.
fn unit(seed: u64, index: usize) -> f32 {
    let mixed = hash(seed.to_le_bytes().into_iter().chain((index as u64).to_le_bytes()));
    (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// The manifest of a fake model of embeddings, version `1`. It lists a file that does not exist, for a manifest must
/// list weights; loading it with [`Backend::Fake`](crate::load::Backend::Fake) reads none.
pub fn manifest(name: &str) -> Manifest {
    manifest_for(name, Task::Embed)
}

/// The same for another task.
pub fn manifest_for(name: &str, task: Task) -> Manifest {
    let file = |path: &str| File { path: path.into(), sha256: "0".repeat(64), bytes: 0 };
    let mut files = vec![file("model.safetensors")];
    if task != Task::Infer {
        files.push(file("tokenizer.json"));
    }
    Manifest {
        name: name.into(),
        version: "1".into(),
        task,
        architecture: "fake".into(),
        files,
        precision: "f32".into(),
        quantization: None,
        license: None,
        source: None,
        pooling: (task == Task::Embed).then_some(Pooling::Mean),
        normalize: true,
        max_tokens: None,
        labels: match task {
            Task::Classify => (0..CLASSES).map(|class| format!("class-{class}")).collect(),
            _ => vec![],
        },
        prompts: Default::default(),
        default_prompt: None,
        matryoshka_dimensions: vec![],
    }
}

/// A loaded fake model of embeddings. Its tokenizer takes the words between spaces.
pub fn loaded(name: &str) -> Loaded {
    loaded_as(manifest(name))
}

/// The same for any manifest: only its name, version, task and normalisation count.
pub fn loaded_as(manifest: Manifest) -> Loaded {
    try_loaded(Manifest { labels: manifest_for("labels", manifest.task).labels, ..manifest })
        .expect("the fake's specs fit each task")
}

fn try_loaded(manifest: Manifest) -> Result<Loaded, LoadError> {
    let engine = Fake::new(manifest.task);
    let tokenizer = engine.info.vector_len.map(|_| Tokenizer::words(VOCABULARY, MARKED));
    let pipeline = Arc::new(Pipeline::new(&manifest, &engine.info, tokenizer, None)?);
    Ok(Loaded { manifest, pipeline, engine: Box::new(engine), choice: "the fake was asked for".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Reply, Request, Text};

    fn embed(loaded: &mut Loaded, texts: &[&str]) -> Result<Vec<f32>, String> {
        let inputs = texts.iter().map(|text| Text::Words((*text).into())).collect();
        let request = Request::Embed { inputs, prompt: None, dimensions: None, normalize: None, truncate: false };
        let prepared = loaded.pipeline.prepare(request).map_err(|e| e.to_string())?;
        let outputs = loaded.engine.run(&prepared.items).map_err(|e| e.to_string())?;
        match loaded.pipeline.finish(prepared.pending, outputs).map_err(|e| e.to_string())? {
            Reply::Embeddings { values, .. } => Ok(values),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn an_answer_shows_its_input() {
        let mut fake = loaded("fake");
        let both = embed(&mut fake, &["one text", "another"]).unwrap();
        assert_eq!(both[..DIMENSIONS], embed(&mut fake, &["one text"]).unwrap());
        assert_ne!(both[..DIMENSIONS], both[DIMENSIONS..]);
    }

    #[test]
    fn marked_inputs_fail_as_told() {
        let mut fake = loaded("fake");
        for word in [FAIL, OUT_OF_MEMORY, DEVICE, NAN] {
            assert!(embed(&mut fake, &["fine", &format!("a {word} b")]).is_err(), "{word}");
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| embed(&mut fake, &[PANIC])));
        assert!(panicked.is_err());
        assert!(embed(&mut fake, &["fine"]).is_ok());
    }

    #[test]
    fn tensors_come_back_doubled() {
        let mut fake = loaded_as(manifest_for("fake", Task::Infer));
        let tensor = Tensor::from_f32(vec![1, 4], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let inputs = vec![NamedTensor { name: "x".into(), tensor }];
        let prepared = fake.pipeline.prepare(Request::Infer { inputs, outputs: vec![] }).unwrap();
        let outputs = fake.engine.run(&prepared.items).unwrap();
        let Reply::Tensors(tensors) = fake.pipeline.finish(prepared.pending, outputs).unwrap() else { panic!() };
        assert_eq!(tensors[0].tensor.to_f32().unwrap(), [2.0, 4.0, 6.0, 8.0]);
    }
}
