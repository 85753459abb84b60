//! Times whole decoders on the CPU, tokens in and logits out, without choosing tokens and without HTTP: one text that is written, 16
//! beside each other, and a prompt that is read. Nothing comes in but the machine; a table goes out.
//!
//! `cargo bench -p benches --bench decoder`, with `-- SmolLM2` for one model and `-- SmolLM2 int8` for one precision of it (`bf16`,
//! `int8`). The weights are random: no step of the computation depends on their values. Nobody else runs beside ours here.

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use benches::fastest::Fastest;
use benches::machine;
use benches::roofline::Roofline;
use half::bf16;
use kernels::launch;
use kernels::testing::normal;
use models::engine::Generator;
use models::generate::{Part, Plan};
use models::load::load_generator;
use models::manifest::{File, Quantization, Task};
use models::{Manifest, Options};
use safetensors::tensor::{Dtype, TensorView};

/// In what a model runs.
const PRECISIONS: &[(&str, Option<Quantization>)] = &[("bf16", None), ("int8", Some(Quantization::Int8))];

/// How long each shape is timed.
const TIMED_FOR: Duration = Duration::from_secs(3);

/// Tokens that a text has when the next one is written.
const CONTEXT: usize = 256;

/// A decoder's sizes.
struct Sizes {
    name: &'static str,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    layers: usize,
    vocabulary: usize,
}

const SIZES: &[Sizes] = &[
    Sizes {
        name: "SmolLM2-135M",
        hidden: 576,
        inner: 1536,
        heads: 9,
        kv_heads: 3,
        dim: 64,
        layers: 30,
        vocabulary: 49_152,
    },
    Sizes {
        name: "Qwen2.5-0.5B",
        hidden: 896,
        inner: 4864,
        heads: 14,
        kv_heads: 2,
        dim: 64,
        layers: 24,
        vocabulary: 151_936,
    },
    Sizes {
        name: "Llama-3.2-1B",
        hidden: 2048,
        inner: 8192,
        heads: 32,
        kv_heads: 8,
        dim: 64,
        layers: 16,
        vocabulary: 128_256,
    },
];

/// A step that is timed: sequences, tokens of each that are run, and tokens of each before them.
const STEPS: &[(&str, usize, usize, usize)] =
    &[("1 writes", 1, 1, CONTEXT), ("16 write", 16, 1, CONTEXT), ("512 are read", 1, 512, 0)];

impl Sizes {
    /// Weights of all products, the output's included.
    fn products(&self) -> usize {
        let attention = self.hidden * self.dim * (2 * self.heads + 2 * self.kv_heads);
        self.layers * (attention + 3 * self.hidden * self.inner) + self.vocabulary * self.hidden
    }

    /// Multiply-adds count as two; norms, activations and exponentials are left out. Logits are of each sequence's last token.
    fn flops(&self, sequences: usize, tokens: usize, before: usize) -> f64 {
        let output = self.vocabulary * self.hidden;
        let keys: usize = (0..tokens).map(|token| before + token + 1).sum();
        let attention = self.layers * 4 * self.heads * self.dim * keys;
        2.0 * (sequences * (tokens * (self.products() - output) + output)) as f64 + (sequences * attention) as f64
    }
}

fn main() {
    let is_timed = std::env::args().any(|argument| argument == "--bench");
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |names: &[&str]| filters.iter().zip(names).all(|(filter, name)| name.contains(filter.as_str()));
    let threads = Options::default().thread_count();
    let peak = if is_timed { Roofline::measure(launch::isa()).flops_per_s * threads as f64 } else { 1.0 };
    let tiny = Sizes { name: "tiny", hidden: 64, inner: 96, heads: 4, kv_heads: 2, dim: 16, layers: 2, vocabulary: 99 };
    let mut lines = Vec::new();
    // When nothing is timed, one small model is enough to see that every call works.
    let sizes: Vec<&Sizes> = if is_timed { SIZES.iter().collect() } else { vec![&tiny] };
    for sizes in sizes.into_iter().filter(|sizes| is_wanted(&[sizes.name])) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(sizes, folder.path());
        for &(precision, quantization) in PRECISIONS.iter().filter(|(name, _)| is_wanted(&[sizes.name, name])) {
            let mut engine = load(folder.path(), quantization);
            for &(name, sequences, tokens, before) in STEPS {
                let plan = plan(&*engine, sizes, sequences, tokens, before);
                let mut step = || {
                    let mut asked = 0;
                    engine.step(&plan, &mut |_, logits| asked += usize::from(logits[0].is_finite())).expect("it fits");
                    assert_eq!(asked, sequences, "{name}: a row of numbers for each sequence");
                };
                step();
                if !is_timed {
                    continue;
                }
                let mut fastest = Fastest::default();
                let start = Instant::now();
                while start.elapsed() < TIMED_FOR {
                    fastest.run_batch(&mut step);
                }
                let seconds = fastest.seconds().expect("a step has run");
                let flops = sizes.flops(sequences, tokens, before);
                let bytes = sizes.products() as f64 * if quantization.is_some() { 1.0 } else { 2.0 };
                lines.push(format!(
                    "| {} | {precision} | {name} | {:.2} | {:.1} | {:.1} | {:.1} | {:.0} % |",
                    sizes.name,
                    seconds * 1e3,
                    (sequences * tokens) as f64 / seconds,
                    bytes / seconds / 1e9,
                    flops / seconds / 1e9,
                    100.0 * flops / seconds / peak,
                ));
            }
        }
    }
    if is_timed {
        #[expect(clippy::print_stdout, reason = "the table is what a bench is run for")]
        {
            println!(
                "\n## decoder\n\n{}, {threads} threads, {}. Peak of all threads {:.1} GFLOP/s. Bytes are those of the weights.\n\n\
                 | model | weights | step | ms | tokens/s | GB/s | GFLOP/s | of the peak |\n|---|---|---|--:|--:|--:|--:|--:|\n{}",
                machine::processor(),
                launch::isa(),
                peak / 1e9,
                lines.join("\n")
            );
        }
    }
}

/// A step of sequences that have so many tokens, whose keys are whatever is in the cache.
fn plan(engine: &dyn Generator, sizes: &Sizes, sequences: usize, tokens: usize, before: usize) -> Plan {
    let blocks = (before + tokens).div_ceil(engine.info().block_tokens);
    let ids: Vec<u32> = (0..tokens).map(|at| (at * 31 % sizes.vocabulary) as u32).collect();
    let mut plan = Plan::default();
    for sequence in 0..sequences {
        let table: Vec<u32> = (sequence * blocks..(sequence + 1) * blocks).map(|block| block as u32).collect();
        let sequence = sequence as u64;
        plan.push(Part { sequence, tokens: &ids, position: before, blocks: &table, is_sampled: true });
    }
    plan
}

fn load(folder: &Path, quantization: Option<Quantization>) -> Box<dyn Generator> {
    let file = |entry: std::fs::DirEntry| File {
        path: entry.file_name().into_string().expect("names here are text"),
        sha256: "0".repeat(64),
        bytes: entry.metadata().expect("a file has a length").len(),
    };
    let files = std::fs::read_dir(folder).expect("the folder is there");
    let files = files.map(|entry| file(entry.expect("it can be listed"))).collect();
    let fake = models::backend::fake::manifest_for("bench", Task::Generate);
    let manifest = Manifest { architecture: "llama".into(), precision: "bf16".into(), files, quantization, ..fake };
    load_generator(&manifest, folder, &Options::default(), 1 << 30).expect("the checkpoint can be loaded")
}

/// A `LlamaForCausalLM` of these sizes, in bf16, whose table of words is its output, too.
fn write(sizes: &Sizes, folder: &Path) {
    let &Sizes { hidden: h, inner: f, heads, kv_heads, dim, layers, vocabulary, .. } = sizes;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": h,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim,
        "intermediate_size": f, "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a file can be written");
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![vocabulary, h]), ("model.norm.weight".into(), vec![h])];
    for layer in 0..layers {
        for (name, outputs, inputs) in [
            ("self_attn.q_proj", heads * dim, h),
            ("self_attn.k_proj", kv_heads * dim, h),
            ("self_attn.v_proj", kv_heads * dim, h),
            ("self_attn.o_proj", h, heads * dim),
            ("mlp.gate_proj", f, h),
            ("mlp.up_proj", f, h),
            ("mlp.down_proj", h, f),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![outputs, inputs]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![h]));
        }
    }
    // Some numbers, over and over: a billion of their own would take longer than the bench.
    let some: Vec<f32> = normal(1, 1 << 16);
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            // Of a size that keeps every layer's numbers near 1.
            let scale = if shape.len() == 2 { 1.0 / (shape[1] as f32).sqrt() } else { 1.0 };
            let values = some.iter().cycle().take(shape.iter().product());
            let bytes = values.flat_map(|x| bf16::from_f32(x * scale).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("the bytes fit the shape"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("a file can be written");
}
