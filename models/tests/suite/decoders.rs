//! Small decoders of every family against the f64 reference: logits at every position, continuations, alone and in company, and
//! whatever blocks their keys lie in. On our own ops and on Candle's.

use crate::support::On;
use crate::support::{assert_close, data, is_there, json, numbers, options};
use models::engine::{Choose, Device, Error, Generator, NoChoice, Rows};
use models::generate::{Part, Plan};
use models::load::{Options, load_generator, load_language, text_need};
use models::manifest::{File, Manifest, Quantization, Task};
use models::task::generate::sampling::{Sampler, Sampling, Scratch};
use std::path::Path;

/// f32 against f64 through two to six layers, as a share of the largest logit; the largest differences seen are a tenth of it.
const TOLERANCE: f64 = 2e-5;

pub(crate) const NAMES: &[&str] = &[
    "gemma2",
    "gemma3",
    "gemma3-v5",
    "llama",
    "llama-3",
    "llama-3-v5",
    "mistral",
    "phi3",
    "phi4-mini",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "qwen3-yarn",
    "smollm2",
];

/// Room for some sequences of the longest texts here.
pub(crate) const CACHE_BYTES: u64 = 8 << 20;

pub(crate) fn manifest(folder: &Path) -> Manifest {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let kind = config["model_type"].as_str().unwrap();
    let architecture = if kind == "gemma3_text" { "gemma3" } else { kind };
    let file = |entry: std::fs::DirEntry| File {
        path: entry.file_name().into_string().unwrap(),
        sha256: "0".repeat(64),
        bytes: entry.metadata().unwrap().len(),
    };
    let mut files: Vec<File> = std::fs::read_dir(folder).unwrap().map(|entry| file(entry.unwrap())).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let fake = models::backend::fake::manifest_for("decoder", Task::Generate);
    Manifest { architecture: architecture.into(), files, ..fake }
}

pub(crate) fn load(name: &str, on: On) -> Box<dyn Generator> {
    let folder = data("decoder").join(name);
    load_generator(&manifest(&folder), &folder, &options(on), CACHE_BYTES).unwrap()
}

/// One sequence as a test runs it.
pub(crate) struct Text {
    pub(crate) ids: Vec<u32>,
    table: Vec<u32>,
    done: usize,
}

impl Text {
    /// Its blocks are every third from `first` on, backwards.
    pub(crate) fn new(engine: &dyn Generator, ids: &[u32], first: u32) -> Self {
        let count = (ids.len() + 16).div_ceil(engine.info().block_tokens) as u32;
        let table = (0..count).rev().map(|block| first + 3 * block).collect();
        Self { ids: ids.to_vec(), table, done: 0 }
    }

    /// So many of its next tokens.
    pub(crate) fn part(&mut self, count: usize) -> Part<'_> {
        let (position, end) = (self.done, self.done + count);
        self.done = end;
        Part { sequence: 1, tokens: &self.ids[position..end], position, blocks: &self.table, is_sampled: true }
    }
}

/// Runs a step and gives the logits of its parts.
pub(crate) fn step(engine: &mut dyn Generator, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
    let mut plan = Plan::default();
    parts.iter().for_each(|part| plan.push(*part));
    let mut all = vec![];
    engine.step(&plan, &mut |at, logits| all.push((at, logits.to_vec()))).unwrap();
    assert!(all.iter().map(|(at, _)| *at).eq(0..parts.len()));
    all.into_iter().map(|(_, logits)| logits).collect()
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

fn check(name: &str, on: On) {
    if is_there(on) {
        check_engine(name, load(name, on));
    }
}

/// That logits are the same in another company: to the last bit on our own ops; on Candle up to rounding, for its products are summed in
/// another order when there are more rows.
pub(crate) fn assert_same(engine: &dyn Generator, found: &[f32], want: &[f32], what: &str) {
    if engine.info().backend == "kernels" {
        assert_eq!(found, want, "{what}");
        return;
    }
    let want: Vec<f64> = want.iter().map(|logit| f64::from(*logit)).collect();
    let scale = want.iter().fold(1.0_f64, |most, logit| most.max(logit.abs()));
    assert_close(found, &want, TOLERANCE * scale, what);
}

/// That an engine computes what the reference makes of a checkpoint.
pub(crate) fn check_engine(name: &str, engine: Box<dyn Generator>) {
    let context = engine.info().context;
    check_texts(name, engine, |tokens| {
        // With a scaling that changes with the length longer sequences are refused, unless they are asked for.
        assert!(tokens <= context || (name, tokens, context) == ("phi4-mini", 90, 64), "{name}: {tokens} of {context}");
        tokens <= context
    });
}

/// The same for texts of some lengths.
pub(crate) fn check_texts(name: &str, mut engine: Box<dyn Generator>, is_looked_at: impl Fn(usize) -> bool) {
    let golden = json(&format!("decoder/{name}.golden.json"));
    let mut texts = vec![];
    for case in golden["cases"].as_array().unwrap() {
        let prompt = ids(&case["ids"]);
        if !is_looked_at(prompt.len()) {
            continue;
        }
        let (best, most, sums) = (ids(&case["argmax"]), numbers(&case["max"]), numbers(&case["logsumexp"]));
        let last = numbers(&case["last"]);
        let scale = last.iter().fold(0.0_f64, |most, logit| most.max(logit.abs()));

        // Token by token, so that every position is looked at.
        let mut one_by_one = Text::new(&*engine, &prompt, 1);
        let mut logits = vec![];
        for at in 0..prompt.len() {
            logits = step(&mut *engine, &[one_by_one.part(1)]).remove(0);
            let place = format!("{name}, {} tokens, at {at}", prompt.len());
            assert_eq!(argmax(&logits), best[at], "{place}");
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            let found = [largest, (f64::from(largest) + sum.ln()) as f32];
            assert_close(&found, &[most[at], sums[at]], TOLERANCE * scale.max(1.0), &place);
        }
        assert_close(&logits, &last, TOLERANCE * scale.max(1.0), name);

        // At once, and in two chunks, in other blocks: the same.
        let mut at_once = Text::new(&*engine, &prompt, 2);
        let found = step(&mut *engine, &[at_once.part(prompt.len())]).remove(0);
        assert_same(&*engine, &found, &logits, &format!("{name} at once"));
        if prompt.len() > 1 {
            let mut chunked = Text::new(&*engine, &prompt, 0);
            step(&mut *engine, &[chunked.part(prompt.len() / 3 + 1)]);
            let rest = prompt.len() - chunked.done;
            let found = step(&mut *engine, &[chunked.part(rest)]).remove(0);
            assert_same(&*engine, &found, &logits, &format!("{name} in chunks"));
        }

        // The likeliest each time.
        let greedy = ids(&case["greedy"]);
        let mut written = vec![];
        let mut next = argmax(&logits);
        while written.len() < greedy.len() {
            written.push(next);
            at_once.ids.push(next);
            if written.len() < greedy.len() {
                next = argmax(&step(&mut *engine, &[at_once.part(1)]).remove(0));
            }
        }
        assert_eq!(written, greedy, "{name}, {} tokens", prompt.len());
        texts.push((prompt, logits));
    }

    assert!(!texts.is_empty(), "{name}: no text has such a length");
    // All of them in one step, and a token of one beside a prompt of another: what each gets is what it got alone.
    let mut first = 0;
    let mut together: Vec<Text> = vec![];
    for (prompt, _) in &texts {
        let mut text = Text::new(&*engine, prompt, 0);
        let count = text.table.len() as u32;
        text.table = (first..first + count).collect();
        first += count;
        together.push(text);
    }
    let parts: Vec<Part<'_>> = together.iter_mut().map(|text| text.part(text.ids.len())).collect();
    let found = step(&mut *engine, &parts);
    for ((_, want), found) in texts.iter().zip(found) {
        assert_same(&*engine, &found, want, &format!("{name} together"));
    }
}

macro_rules! families {
    ($($test:ident: $($name:literal)*;)*) => {
        mod on_kernels { $(#[test] fn $test() { $(super::check($name, crate::support::On::Kernels);)* })* }
        mod on_candle { $(#[test] fn $test() { $(super::check($name, crate::support::On::Candle);)* })* }
        mod on_cuda { $(#[test] fn $test() { $(super::check($name, crate::support::On::Cuda);)* })* }

        #[test]
        fn every_checkpoint_is_looked_at() {
            let looked_at = [$($($name),*),*];
            assert_eq!(looked_at, NAMES);
            let mut there: Vec<String> = std::fs::read_dir(data("decoder")).unwrap()
                .map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir())
                .map(|entry| entry.file_name().into_string().unwrap()).collect();
            there.sort();
            assert_eq!(there, NAMES);
        }
    };
}

families! {
    gemma2_is_the_reference: "gemma2";
    gemma3_is_the_reference: "gemma3" "gemma3-v5";
    llama_is_the_reference: "llama" "llama-3" "llama-3-v5";
    mistral_is_the_reference: "mistral";
    phi_is_the_reference: "phi3" "phi4-mini";
    qwen2_is_the_reference: "qwen2" "qwen2-yarn";
    qwen3_is_the_reference: "qwen3" "qwen3-yarn";
    smollm2_is_the_reference: "smollm2";
}

/// What writes text.
fn writers() -> impl Iterator<Item = On> {
    [On::Kernels, On::Candle, On::Cuda].into_iter().filter(|on| is_there(*on))
}

#[test]
fn long_texts_have_angles_of_their_own_where_they_are_asked_for() {
    let folder = data("decoder/phi4-mini");
    let load = |max_tokens| {
        let manifest = Manifest { max_tokens, ..manifest(&folder) };
        load_generator(&manifest, &folder, &options(On::Kernels), CACHE_BYTES).unwrap()
    };
    for (asked, context) in [(None, 64), (Some(40), 40), (Some(64), 64), (Some(65), 65), (Some(9999), 256)] {
        assert_eq!(load(asked).info().context, context, "{asked:?}");
    }
    check_texts("phi4-mini", load(Some(256)), |tokens| tokens > 64);
}

#[test]
fn a_step_that_does_not_fit_is_refused_and_touches_nobody() {
    for on in writers() {
        let mut engine = load("smollm2", on);
        let info = engine.info().clone();
        let mut text = Text::new(&*engine, &[5, 6, 7], 0);
        let before = step(&mut *engine, &[text.part(3)]).remove(0);
        let far = info.context;
        for (tokens, position, blocks) in [
            (vec![info.vocabulary as u32], 0, vec![9]),
            (vec![1, 2], far - 1, (0..info.blocks as u32).collect()),
            (vec![], 0, vec![9]),
            (vec![1], 0, vec![]),
            (vec![1], 0, vec![info.blocks as u32]),
        ] {
            let mut plan = Plan::default();
            plan.push(Part { sequence: 1, tokens: &tokens, position, blocks: &blocks, is_sampled: true });
            let error = engine.step(&plan, &mut |_, _| panic!("nothing is to be chosen")).unwrap_err();
            assert!(matches!(error, Error::Input(_) | Error::Backend { .. }), "{on:?}: {error}");
        }
        text.done = 2;
        let after = step(&mut *engine, &[text.part(1)]).remove(0);
        assert_same(&*engine, &after, &before, &format!("{on:?}"));
    }
}

#[test]
fn a_step_without_a_token_to_be_chosen_fills_the_cache() {
    for on in writers() {
        let mut engine = load("qwen3", on);
        let ids = [9, 8, 7, 6, 5];
        let mut at_once = Text::new(&*engine, &ids, 1);
        let want = step(&mut *engine, &[at_once.part(5)]).remove(0);
        let mut text = Text::new(&*engine, &ids, 0);
        let mut plan = Plan::default();
        plan.push(Part { is_sampled: false, ..text.part(4) });
        engine.step(&plan, &mut |_, _| panic!("nothing is to be chosen")).unwrap();
        let found = step(&mut *engine, &[text.part(1)]).remove(0);
        assert_same(&*engine, &found, &want, &format!("{on:?}"));
    }
}

/// Chooses by what each text asks, here or where the logits are.
struct Choosing {
    samplers: Vec<Sampler>,
    /// Whose tokens are chosen where the logits are, if that can be.
    is_asked: fn(usize) -> bool,
    allowed: Vec<u32>,
    chosen: Vec<(usize, u32)>,
}

const POSITION: usize = 3;

impl Choose for Choosing {
    fn ask(&mut self, at: usize, rows: &mut Rows) -> bool {
        let allowed = (at % 2 == 1).then_some(self.allowed.as_slice());
        (self.is_asked)(at) && self.samplers[at].ask(allowed, POSITION, rows)
    }

    fn chosen(&mut self, at: usize, token: Result<u32, NoChoice>) {
        self.chosen.push((at, self.samplers[at].accept(token.unwrap()).token));
    }

    fn logits(&mut self, at: usize, logits: &mut [f32]) {
        let allowed = (at % 2 == 1).then_some(self.allowed.as_slice());
        let choice = self.samplers[at].choose(logits, allowed, POSITION, &mut Scratch::new()).unwrap();
        self.chosen.push((at, choice.token));
    }
}

#[test]
fn tokens_are_the_same_wherever_they_are_chosen() {
    for on in writers() {
        let mut engine = load("smollm2", on);
        let vocabulary = engine.info().vocabulary;
        let off = Sampling::default;
        let penalised = || Sampling { temperature: 0.0, presence_penalty: 2.0, frequency_penalty: 2.0, ..off() };
        let samplings = [
            penalised(),
            penalised(),
            penalised(),
            penalised(),
            Sampling { temperature: 0.0, ..off() },
            Sampling { temperature: 1.7, seed: 1 << 40, ..off() },
            Sampling { top_k: 9, top_p: 0.8, seed: 3, ..off() },
            Sampling { repetition_penalty: 1.5, presence_penalty: 2.0, frequency_penalty: 2.0, seed: 4, ..off() },
            Sampling { bias: vec![(2, 50.0), (3, 49.0)], logprobs: Some(1), ..off() },
            Sampling { min_p: 0.2, typical_p: 0.6, seed: 9, ..off() },
        ];
        // Half of the vocabulary, so that penalties move the choice.
        let written: Vec<u32> = (0..vocabulary as u32 / 2).chain(0..9).collect();
        let prompts: Vec<[u32; POSITION]> = (0..samplings.len() as u32).map(|n| [n + 1, 2 * n + 1, 3]).collect();
        let mut write = |is_asked: fn(usize) -> bool| {
            let mut plan = Plan::default();
            let blocks: Vec<[u32; 1]> = (0..samplings.len() as u32).map(|n| [n]).collect();
            for (n, tokens) in prompts.iter().enumerate() {
                plan.push(Part { sequence: n as u64, tokens, position: 0, blocks: &blocks[n], is_sampled: true });
            }
            let samplers =
                samplings.iter().zip(&prompts).map(|(of, prompt)| Sampler::new(of.clone(), prompt, &written));
            let allowed = vec![0xaaaa_aaaa; vocabulary.div_ceil(32)];
            let mut choosing = Choosing { samplers: samplers.collect(), is_asked, allowed, chosen: vec![] };
            engine.step_and_choose(&plan, &mut choosing).unwrap();
            choosing.chosen.sort_unstable();
            choosing.chosen
        };
        let here = write(|_| false);
        assert_eq!(here.len(), samplings.len());
        assert_eq!(write(|_| true), here, "{on:?}");
        assert_eq!(write(|at| at % 3 == 1), here, "{on:?}, some here and some there");
    }
}

#[test]
fn what_a_model_took_of_a_cuda_device_is_given_back() {
    if !is_there(On::Cuda) {
        return;
    }
    let free = || models::backend::cuda::free_bytes(Device::Cuda(0)).unwrap();
    let mut free_after = vec![];
    for _ in 0..6 {
        let mut engine = load("llama", On::Cuda);
        let before = free();
        let mut text = Text::new(&*engine, &[5, 6, 7, 8], 0);
        step(&mut *engine, &[text.part(3)]);
        step(&mut *engine, &[text.part(1)]);
        drop(engine);
        assert!(free() >= before);
        free_after.push(free());
    }
    // The first may bring what stays.
    let (most, least) = (free_after[1..].iter().max().unwrap(), free_after[1..].iter().min().unwrap());
    assert!(most - least <= most / 200, "{free_after:?}");
}

#[test]
fn what_cannot_run_is_refused_with_the_reason() {
    let folder = data("decoder").join("smollm2");
    let refused = |manifest: &Manifest, options: &Options, cache_bytes: u64, words: &[&str]| {
        let error = load_generator(manifest, &folder, options, cache_bytes).err().unwrap().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error} does not say {words:?}");
    };
    let smollm2 = manifest(&folder);
    for on in writers() {
        refused(&smollm2, &options(on), 1000, &["1000", "KV cache"]);
    }
    refused(&smollm2, &options(On::Tract), 1 << 20, &["auto, kernels or candle"]);
    let on_gpu = |on| Options { device: Device::Cuda(0), ..options(on) };
    refused(&smollm2, &on_gpu(On::Kernels), 1 << 20, &["on the CPU", "cuda:0"]);
    if !cfg!(feature = "cuda") {
        refused(&smollm2, &on_gpu(On::Candle), 1 << 20, &["this build has no CUDA"]);
    }
    let in_int8 = Manifest { quantization: Some(Quantization::Int8), ..manifest(&folder) };
    refused(&in_int8, &options(On::Candle), 1 << 20, &["int8"]);
    let encoder = data("tiny-bert");
    let other = Manifest { architecture: "bert".into(), ..manifest(&folder) };
    assert!(load_generator(&other, &encoder, &options(On::Kernels), 1 << 20).is_err());
}

#[test]
fn memory_is_counted_as_it_is_taken() {
    for name in ["gemma2", "llama-3", "qwen3"] {
        for on in writers() {
            let folder = data("decoder").join(name);
            let need = text_need(&manifest(&folder), &folder, &options(on)).unwrap();
            let engine = load(name, on);
            let info = engine.info();
            assert_eq!((need.block_bytes, need.block_tokens), (info.block_bytes, info.block_tokens), "{name} {on:?}");
            assert_eq!(info.blocks as u64, CACHE_BYTES / info.block_bytes, "{name} {on:?}");
            assert!(need.weights_bytes >= info.weights_bytes, "{name} {on:?}: {need:?}, {}", info.weights_bytes);
            assert!(need.context >= info.context, "{name} {on:?}");
        }
        // Half precision is half the cache where a device computes in it.
        let folder = data("decoder").join(name);
        let half = Manifest { precision: "f16".into(), ..manifest(&folder) };
        let on_gpu = Options { device: Device::Cuda(0), ..options(On::Candle) };
        let [of_f32, of_f16] = [manifest(&folder), half].map(|of| text_need(&of, &folder, &on_gpu).unwrap());
        assert_eq!(of_f32.block_bytes, 2 * of_f16.block_bytes, "{name}");
        assert!(of_f32.weights_bytes > of_f16.weights_bytes, "{name}");
    }
}

#[test]
fn what_stands_beside_the_weights_is_read_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("config.json", r#"{"model_type": "llama", "eos_token_id": 2}"#);
    let files = |with: &Path| Manifest { architecture: "llama".into(), ..manifest(with) };
    let error = load_language(&files(folder.path()), folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    write(
        "tokenizer.json",
        r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
            "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "end": 2, "file": 3}, "unk_token": "a"}}"#,
    );
    write("tokenizer_config.json", r#"{"chat_template": "a b", "eos_token": "b"}"#);
    write("generation_config.json", r#"{"temperature": 0.5}"#);
    let language = load_language(&files(folder.path()), folder.path()).unwrap();
    assert_eq!((language.chat("[]", None).unwrap(), &**language.end_tokens()), (vec![0, 1], &[1, 2][..]));
    assert_eq!(language.sampling().temperature, 0.5);
    // A template in a file of its own is the one.
    write("chat_template.jinja", "file");
    assert_eq!(load_language(&files(folder.path()), folder.path()).unwrap().chat("[]", None).unwrap(), [3]);
}
