//! GGUF files of every architecture and of every type of block against the checkpoints that they were made of, and files that are
//! broken or hostile.

use crate::decoders::{self, CACHE_BYTES, NAMES, Text, argmax, check_engine, check_texts, step};
use crate::gguf_file::{As, File, Meta, Model, Tensor};
use crate::support::{On, data, options};
use kernels::linear_quantized::Blocks;
use models::engine::Generator;
use models::load::{self, load_generator};
use models::manifest::{self, Manifest, Task};
use std::path::Path;

/// A manifest for a folder with one file, in a folder of its own.
fn manifest(folder: &Path, architecture: &str) -> Manifest {
    let bytes = std::fs::metadata(folder.join("m.gguf")).unwrap().len();
    let file = manifest::File { path: "m.gguf".into(), sha256: "0".repeat(64), bytes };
    let fake = models::backend::fake::manifest_for("gguf", Task::Generate);
    Manifest { architecture: architecture.into(), files: vec![file], ..fake }
}

fn load(architecture: &str, bytes: &[u8]) -> Result<Box<dyn Generator>, load::Error> {
    load_on(On::Kernels, architecture, bytes)
}

fn load_on(on: On, architecture: &str, bytes: &[u8]) -> Result<Box<dyn Generator>, load::Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.gguf"), bytes).unwrap();
    load_generator(&manifest(folder.path(), architecture), folder.path(), &options(on), CACHE_BYTES)
}

fn architecture(model: &Model) -> &str {
    match model.config["model_type"].as_str().unwrap() {
        "gemma3_text" => "gemma3",
        other => other,
    }
}

#[test]
fn every_architecture_is_the_reference_from_numbers_as_they_are() {
    for name in NAMES {
        let (model, stored) = Model::read(&data("decoder").join(name));
        for on in [On::Kernels, On::Candle] {
            check_engine(name, load_on(on, architecture(&model), &model.gguf(|_| stored).bytes()).unwrap());
        }
    }
}

/// Architectures by the small checkpoints that show what is particular of them.
const LARGER: &[&str] = &["gemma2", "gemma3", "llama-3", "mistral", "phi3", "phi4-mini", "qwen2", "qwen3"];

/// What rounding of every product's input to 8 bits may change a logit by, as a share of the largest one: these random networks make ten
/// times as much of it as one product does. The largest change seen among a hundred thousand logits is two thirds of this.
const ROUNDING: f32 = 0.12;

/// How far the likeliest token leads where its choice says something.
const LEAD: f32 = 0.08;

/// Prompts that are tried, tokens that are written after each.
const PROMPTS: u32 = 24;
const WRITTEN: usize = 8;

fn largest(logits: &[f32]) -> f32 {
    logits.iter().fold(0.0, |most, logit| most.max(logit.abs()))
}

/// How far the likeliest token is above all others, as a share of the largest logit.
fn lead(logits: &[f32]) -> f32 {
    let best = argmax(logits);
    let others = logits.iter().enumerate().filter(|(id, _)| *id != best as usize).map(|(_, logit)| *logit);
    (logits[best as usize] - others.fold(f32::MIN, f32::max)) / largest(logits)
}

/// What was found when a file was compared with the checkpoint of its rounded weights.
#[derive(Default)]
struct Compared {
    /// The largest error of a logit, as a share of the largest one.
    worst: f32,
    /// Tokens whose choice says something, all of them chosen alike.
    tokens: usize,
    /// Continuations of such tokens only, which are therefore equal.
    continuations: usize,
}

fn compare(on: On, name: &str, stored: impl Fn(&str) -> As + Copy) -> Compared {
    let (small, _) = Model::read(&data("decoder").join(name));
    let model = Model::larger(&small, 7);
    let mut file = load_on(on, architecture(&model), &model.gguf(stored).bytes()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.rounded(stored).write(folder.path());
    let listed = decoders::manifest(folder.path());
    let mut reference = load_generator(&listed, folder.path(), &options(On::Kernels), CACHE_BYTES).unwrap();

    let mut compared = Compared::default();
    // Candle's steps of few tokens take ten times as long.
    for first in (0..PROMPTS).step_by(if on == On::Kernels { 1 } else { 3 }) {
        let prompt: Vec<u32> = (0..1 + first).map(|at| 10 + (first * 31 + at * 17) % 270).collect();
        // In one step and token by token: the same.
        let mut one_by_one = Text::new(&*file, &prompt, 1);
        let mut last = vec![];
        prompt.iter().for_each(|_| last = step(&mut *file, &[one_by_one.part(1)]).remove(0));
        let mut found = Text::new(&*file, &prompt, 0);
        let mut wanted = Text::new(&*reference, &prompt, 0);
        let mut is_clear = true;
        for written in 0..WRITTEN {
            let count = if written == 0 { prompt.len() } else { 1 };
            let by_file = step(&mut *file, &[found.part(count)]).remove(0);
            let by_reference = step(&mut *reference, &[wanted.part(count)]).remove(0);
            if written == 0 {
                // On Candle, products of more rows are summed in another order, and what they are rounded to then differs.
                let off = by_file.iter().zip(&last).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let most = if on == On::Kernels { 0.0 } else { ROUNDING * largest(&last) };
                assert!(off <= most, "{name} on {on:?}: off by {off} in one step");
            }
            let off = by_file.iter().zip(&by_reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            compared.worst = compared.worst.max(off / largest(&by_reference));
            let next = argmax(&by_reference);
            let says_something = lead(&by_reference) > LEAD;
            if says_something {
                assert_eq!(argmax(&by_file), next, "{name} {prompt:?}, token {written}");
                compared.tokens += 1;
            }
            is_clear &= says_something;
            found.ids.push(next);
            wanted.ids.push(next);
        }
        compared.continuations += usize::from(is_clear);
    }
    compared
}

/// Says what was found, and checks it.
fn check_equal(on: On, name: &str, in_what: &str, stored: impl Fn(&str) -> As + Copy) {
    let Compared { worst, tokens, continuations } = compare(on, name, stored);
    println!(
        "{name} in {in_what} on {on:?}: logits are off by {worst:.4} of the largest at most; {tokens} clear tokens and {continuations} \
         continuations of such are equal"
    );
    assert!(worst < ROUNDING && tokens > 20, "{name} {in_what}: {worst}, {tokens}");
}

/// In three types for each architecture, and on Candle in one, so that every type is there with several: all of all would take minutes.
#[test]
fn every_architecture_is_its_dequantised_self_and_so_is_every_type_of_block() {
    for (at, name) in LARGER.iter().enumerate() {
        for other in 0..3 {
            let blocks = Blocks::ALL[(at + 3 * other) % Blocks::ALL.len()];
            check_equal(On::Kernels, name, &format!("{blocks:?}"), |_| As::Blocks(blocks));
        }
        // Candle has no products with IQ4_NL.
        let blocks = Blocks::ALL.iter().filter(|blocks| **blocks != Blocks::IQ4_NL).nth(at % (Blocks::ALL.len() - 1));
        let blocks = *blocks.expect("there are so many");
        check_equal(On::Candle, name, &format!("{blocks:?}"), |_| As::Blocks(blocks));
    }
}

#[test]
fn types_may_differ_from_tensor_to_tensor() {
    // As files are that call themselves Q4_K_M, and worse: values, the table of words and what is joined with others in other types.
    let mixed = |name: &str| match name {
        _ if name.contains("v_proj") && name.contains(".0.") => As::Blocks(Blocks::Q6_K),
        _ if name.contains("v_proj") => As::F16,
        _ if name.contains("k_proj") && name.contains(".1.") => As::Blocks(Blocks::Q8_0),
        _ if name.contains("o_proj") => As::Blocks(Blocks::Q4_1),
        _ if name.contains("gate_proj") => As::Blocks(Blocks::Q5_0),
        _ if name.contains("up_proj") => As::Bf16,
        _ if name.contains("embed_tokens") => As::Blocks(Blocks::Q6_K),
        _ if name.contains("down_proj") => As::Blocks(Blocks::Q5_K),
        _ => As::Blocks(Blocks::Q4_K),
    };
    for name in ["llama-3", "qwen2", "phi3"] {
        check_equal(On::Kernels, name, "several types", mixed);
        check_equal(On::Candle, name, "several types", mixed);
    }
}

/// A small file that loads.
fn good() -> File {
    let (model, _) = Model::read(&data("decoder/smollm2"));
    model.gguf(|_| As::F32)
}

fn check_refused(file: &File, words: &str) {
    let error = load("llama", &file.bytes()).err().unwrap_or_else(|| panic!("{words}: it was loaded")).to_string();
    assert!(error.contains(words), "{error} does not say {words:?}");
}

/// Files by their names.
type Parts = Vec<(String, File)>;

/// The parts of a file as `gguf-split` makes them, by their names: the first has the metadata.
fn in_parts(file: &File, count: usize) -> Parts {
    let part = |index: usize| {
        let tensors = file.tensors.iter().skip(index).step_by(count).cloned().collect();
        let mut part = File { values: if index == 0 { file.values.clone() } else { vec![] }, tensors };
        part.set("split.no", Meta::U32(index as u32));
        part.set("split.count", Meta::U32(count as u32));
        part.set("split.tensors.count", Meta::U32(file.tensors.len() as u32));
        (format!("m-{:05}-of-{count:05}.gguf", index + 1), part)
    };
    (0..count).map(part).collect()
}

fn load_parts(parts: &[(String, File)]) -> Result<Box<dyn Generator>, load::Error> {
    let folder = tempfile::tempdir().unwrap();
    let listed = |(name, part): &(String, File)| {
        let bytes = part.bytes();
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        manifest::File { path: name.clone(), sha256: "0".repeat(64), bytes: bytes.len() as u64 }
    };
    let fake = models::backend::fake::manifest_for("gguf", Task::Generate);
    // In any order.
    let files = parts.iter().rev().map(listed).collect();
    let manifest = Manifest { architecture: "llama".into(), files, ..fake };
    load_generator(&manifest, folder.path(), &options(On::Kernels), CACHE_BYTES)
}

#[test]
fn a_file_in_parts_is_the_file() {
    for count in [1, 2, 5] {
        check_engine("smollm2", load_parts(&in_parts(&good(), count)).unwrap());
    }
    // The first part may hold metadata only.
    let mut parts = in_parts(&good(), 2);
    let tensors = std::mem::take(&mut parts[0].1.tensors);
    parts[1].1.tensors.extend(tensors);
    check_engine("smollm2", load_parts(&parts).unwrap());
}

#[test]
fn parts_that_are_missing_twice_or_another_models_are_refused_and_named() {
    let refused = |change: &dyn Fn(&mut Parts), words: &[&str]| {
        let mut parts = in_parts(&good(), 3);
        change(&mut parts);
        let error = load_parts(&parts).err().unwrap_or_else(|| panic!("{words:?}: it was loaded")).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error} does not say {words:?}");
    };
    refused(&|parts| drop(parts.remove(1)), &["m-00002-of-00003.gguf", "missing"]);
    refused(&|parts| drop(parts.remove(0)), &["m-00001-of-00003.gguf", "missing"]);
    refused(&|parts| parts[2].1 = parts[1].1.clone(), &["m-00003-of-00003.gguf", "it is part 2 of 3"]);
    refused(&|parts| parts.push(("n.gguf".into(), good())), &["n.gguf", "keep one"]);
    refused(&|parts| *parts = in_parts(&good(), 2).split_off(1), &["m-00001-of-00002.gguf", "missing"]);
    refused(&|parts| _ = parts[1].1.set("split.count", Meta::U32(4)), &["m-00002-of-00003.gguf", "one of 4 parts"]);
    refused(&|parts| _ = parts[1].1.set("split.no", Meta::text("1")), &["m-00002-of-00003.gguf", "split.no"]);
    refused(&|parts| drop(parts[1].1.tensors.pop()), &["m-00001-of-00003.gguf", "split.tensors.count"]);
    let twice = |parts: &mut Parts| {
        let tensor = parts[0].1.tensors[0].clone();
        parts[2].1.tensors.push(tensor);
    };
    refused(&twice, &["m-00003-of-00003.gguf", "is also in m-00001-of-00003.gguf"]);
}

#[test]
fn metadata_that_fits_no_model_is_refused() {
    let with = |key: &str, value: Meta, words: &str| check_refused(good().set(key, value), words);
    assert!(load("llama", &good().bytes()).is_ok());
    with("general.architecture", Meta::text("mamba"), "\"mamba\"");
    with("general.architecture", Meta::U32(7), "general.architecture");
    with("llama.block_count", Meta::text("two"), "llama.block_count");
    with("llama.block_count", Meta::U32(0), "llama.block_count is missing");
    with("llama.block_count", Meta::U32(u32::MAX), "which no model has");
    with("llama.block_count", Meta::U32(1), "blk.1.");
    with("llama.block_count", Meta::U32(3), "is missing");
    with("llama.embedding_length", Meta::F32(48.0), "llama.embedding_length");
    with("llama.embedding_length", Meta::U32(1 << 23), "elements of a head");
    with("llama.attention.head_count", Meta::U32(5), "elements of a head");
    with("llama.attention.head_count", Meta::I32s(vec![3, 1]), "differs from layer to layer");
    with("llama.attention.head_count", Meta::I32s(vec![-1, -1]), "a whole number for each layer");
    with("llama.attention.head_count_kv", Meta::U32(2), "multiple of 2");
    with("llama.attention.key_length", Meta::U32(1 << 29), "elements of a head");
    with("llama.attention.value_length", Meta::U32(8), "those of values 8");
    with("llama.attention.layer_norm_rms_epsilon", Meta::Bool(true), "rms_epsilon");
    with("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN), "rms_epsilon is NaN");
    with("llama.rope.freq_base", Meta::F32(-1.0), "rope_theta");
    with("llama.rope.scaling.type", Meta::text("yarn"), "rope.scaling.factor is missing");
    with("llama.rope.scaling.type", Meta::text("longrope"), "short_factor");
    with("llama.rope.scaling.type", Meta::text("twisted"), "twisted");
    with("llama.rope.scaling.attn_factor", Meta::F32(1.5), "attn_factor is 1.5");
    let with_yarn = |key: &str, value: Meta, words: &str| {
        let mut file = good();
        file.set("llama.rope.scaling.type", Meta::text("yarn")).set("llama.rope.scaling.factor", Meta::F32(4.0));
        assert!(load("llama", &file.bytes()).is_ok());
        check_refused(file.set(key, value), words);
    };
    with_yarn("llama.rope.scaling.yarn_ext_factor", Meta::F32(0.5), "yarn_ext_factor is 0.5");
    with_yarn("llama.rope.scaling.yarn_log_multiplier", Meta::F32(0.1), "yarn_log_multiplier");
    with_yarn("llama.rope.scaling.yarn_beta_fast", Meta::F32(-1.0), "beta_fast");
    with("llama.rope.dimension_count", Meta::U32(8), "8 of the 16 elements");
    with("llama.expert_count", Meta::U32(8), "num_local_experts");
    with("llama.pooling_type", Meta::U32(3), "embeddings");
    with("split.count", Meta::U32(2), "one of 2 parts");
    with("split.tensors.count", Meta::U32(2), "split.tensors.count is 2");
    let of_head = |count: usize| {
        let mut file = good();
        file.tensors.push(("rope_freqs.weight".into(), vec![count], 0, vec![0; 4 * count]));
        file
    };
    check_refused(&of_head(8), "no frequency can be divided by");
    let mut file = of_head(4);
    file.tensors.last_mut().unwrap().3 = [1.0_f32; 4].iter().flat_map(|x| x.to_le_bytes()).collect();
    check_refused(&file, "short_factor");
    file.set("llama.rope.scaling.type", Meta::text("yarn"));
    check_refused(&file, "beside rope_freqs.weight");
}

#[test]
fn a_file_has_the_factors_for_long_texts() {
    let (model, stored) = Model::read(&data("decoder/phi4-mini"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.gguf"), model.gguf(|_| stored).bytes()).unwrap();
    let manifest = Manifest { max_tokens: Some(256), ..manifest(folder.path(), "phi3") };
    let engine = load_generator(&manifest, folder.path(), &options(On::Kernels), CACHE_BYTES).unwrap();
    check_texts("phi4-mini", engine, |tokens| tokens > 64);
}

#[test]
fn tensors_that_fit_no_model_are_refused() {
    let changed = |name: &str, change: &dyn Fn(&mut Tensor), words: &str| {
        let mut file = good();
        change(file.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap());
        check_refused(&file, words);
    };
    let renamed = |to: &'static str| move |tensor: &mut Tensor| tensor.0 = to.into();
    changed("blk.0.attn_q.weight", &renamed("blk.0.attn_q.weights"), "belongs to no model");
    changed("blk.0.attn_q.weight", &renamed("blk.00.attn_k.weight"), "are one");
    changed("blk.0.attn_q.weight", &renamed("blk.0.attn_sinks.weight"), "belongs to no model");
    changed("blk.0.attn_norm.weight", &renamed("blk.0.attn_norm.bias"), "belongs to no model");
    changed("blk.0.ffn_gate.weight", &renamed("blk.0.ffn_gate_inp.weight"), "belongs to no model");
    changed("token_embd.weight", &renamed("blk.0.attn_q.bias"), "is missing");
    changed("blk.0.attn_q.weight", &|tensor| tensor.1 = vec![96, 24], "configuration says");
    changed("blk.0.attn_q.weight", &|tensor| tensor.1 = vec![47, 48], "no heads");
    changed("blk.0.attn_v.weight", &|tensor| tensor.2 = 2, "whole blocks of 32");
    changed("blk.0.attn_v.weight", &|tensor| tensor.2 = 10, "tensor blk.0.attn_v.weight: is stored as Q2_K");
    changed("blk.0.attn_v.weight", &|tensor| tensor.2 = 8, "whole blocks of 32");
    changed("blk.0.attn_v.weight", &|tensor| tensor.1 = vec![usize::MAX / 2, 48], "larger than memory");
    changed("blk.0.attn_norm.weight", &|tensor| (tensor.1, tensor.2) = (vec![64], 8), "configuration says");
    // Blocks that hold no numbers.
    let (small, _) = Model::read(&data("decoder/llama-3"));
    let mut file = Model::larger(&small, 1).gguf(|_| As::Blocks(Blocks::Q8_0));
    let tensor = file.tensors.iter_mut().find(|tensor| tensor.0 == "blk.0.attn_k.weight").unwrap();
    tensor.3[..2].copy_from_slice(&[0, 0x7e]);
    check_refused(&file, "NaN");
}

#[test]
fn a_file_that_is_cut_off_is_refused_wherever() {
    let whole = good().bytes();
    let header = whole.len() - good().tensors.iter().map(|tensor| tensor.3.len()).sum::<usize>();
    for length in (0..header).step_by(7).chain((header..whole.len()).step_by(10_007)).chain([whole.len() - 1]) {
        assert!(load("llama", &whole[..length]).is_err(), "{length} of {}", whole.len());
    }
}

#[test]
fn a_file_with_any_byte_changed_is_loaded_or_refused() {
    let whole = good().bytes();
    let header = whole.len() - good().tensors.iter().map(|tensor| tensor.3.len()).sum::<usize>();
    let mut refused = 0;
    for at in (0..header).step_by(17) {
        for byte in [0, 0xff, whole[at] ^ 1] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            refused += usize::from(load("llama", &bytes).is_err());
        }
    }
    assert!(refused > 100, "only {refused} were refused");
}
