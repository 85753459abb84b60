//! Writes GGUF files for tests, as converters of checkpoints write them: a model by the names of `transformers` goes in, a file's bytes
//! come out. Written apart from what reads them, from the format's description and from what llama.cpp's converter does to tensors.

use half::{bf16, f16};
use kernels::linear_quantized::{Blocks, dequantize, quantize};
use models::load::checkpoint::{Checkpoint, Type};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A value of the metadata.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    Bools(Vec<bool>),
}

impl Meta {
    pub(crate) fn text(text: &str) -> Self {
        Meta::Text(text.into())
    }

    /// Its type's number and its bytes.
    fn write(&self) -> (u32, Vec<u8>) {
        let list = |kind: u32, count: usize, bytes: Vec<u8>| {
            (9, [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), &bytes].concat())
        };
        match self {
            Meta::U32(number) => (4, number.to_le_bytes().to_vec()),
            Meta::F32(number) => (6, number.to_le_bytes().to_vec()),
            Meta::Bool(flag) => (7, vec![u8::from(*flag)]),
            Meta::Text(text) => (8, written(text)),
            Meta::Texts(texts) => list(8, texts.len(), texts.iter().flat_map(|text| written(text)).collect()),
            Meta::F32s(numbers) => list(6, numbers.len(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Meta::I32s(numbers) => list(5, numbers.len(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Meta::Bools(flags) => list(7, flags.len(), flags.iter().map(|flag| u8::from(*flag)).collect()),
        }
    }
}

fn written(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    F32,
    F16,
    Bf16,
    Blocks(Blocks),
}

impl As {
    /// Its number in files.
    fn number(self) -> u32 {
        match self {
            As::F32 => 0,
            As::F16 => 1,
            As::Blocks(Blocks::Q4_0) => 2,
            As::Blocks(Blocks::Q4_1) => 3,
            As::Blocks(Blocks::Q5_0) => 6,
            As::Blocks(Blocks::Q5_1) => 7,
            As::Blocks(Blocks::Q8_0) => 8,
            As::Blocks(Blocks::Q4_K) => 12,
            As::Blocks(Blocks::Q5_K) => 13,
            As::Blocks(Blocks::Q6_K) => 14,
            As::Blocks(Blocks::IQ4_NL) => 20,
            As::Bf16 => 30,
        }
    }

    fn write(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            As::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            As::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            As::Bf16 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            As::Blocks(blocks) => quantize(blocks, numbers).unwrap(),
        }
    }

    /// What is read of what was written.
    fn rounded(self, numbers: &[f32]) -> Vec<f32> {
        match self {
            As::F32 => numbers.to_vec(),
            As::F16 => numbers.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
            As::Bf16 => numbers.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
            As::Blocks(blocks) => {
                let mut out = vec![0.0; numbers.len()];
                dequantize(blocks, &self.write(numbers), &mut out).unwrap();
                out
            }
        }
    }
}

/// Name, shape, type and bytes of a tensor.
pub(crate) type Tensor = (String, Vec<usize>, u32, Vec<u8>);

/// A file that is to be written.
#[derive(Clone, Default)]
pub(crate) struct File {
    pub(crate) values: Vec<(String, Meta)>,
    /// Name, dimensions outermost first, the type's number, bytes.
    pub(crate) tensors: Vec<Tensor>,
}

const ALIGNMENT: usize = 32;

impl File {
    /// Sets a value, another in its place if there is one.
    pub(crate) fn set(&mut self, key: &str, value: Meta) -> &mut Self {
        self.values.retain(|(other, _)| other != key);
        self.values.push((key.into(), value));
        self
    }

    fn tensor(&mut self, name: &str, shape: &[usize], stored: As, numbers: &[f32]) {
        self.tensors.push((name.into(), shape.to_vec(), stored.number(), stored.write(numbers)));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            let (kind, value) = value.write();
            bytes.extend(written(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut offset = 0;
        for (name, shape, kind, data) in &self.tensors {
            bytes.extend(written(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(ALIGNMENT);
        }
        for (_, _, _, data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            bytes.extend(data);
        }
        bytes
    }
}

/// A model by the names of `transformers`.
pub(crate) struct Model {
    pub(crate) config: Value,
    /// Shape and numbers.
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Model {
    /// A checkpoint, and how most of it is stored.
    pub(crate) fn read(folder: &Path) -> (Self, As) {
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(folder, &crate::decoders::manifest(folder)).unwrap();
        let mut tensors = BTreeMap::new();
        for name in checkpoint.names() {
            let view = checkpoint.tensor(name).unwrap();
            let Type::Plain(stored) = view.stored else { panic!("{name} is stored as {}", view.stored) };
            let numbers = kernels::stored::Values { bytes: view.data, stored }.to_f32();
            tensors.insert(name.to_owned(), (view.shape.to_vec(), numbers));
        }
        let stored = match checkpoint.precision() {
            "f32" => As::F32,
            "f16" => As::F16,
            _ => As::Bf16,
        };
        (Self { config, tensors }, stored)
    }

    /// The same tensors as those of a small checkpoint, in sizes that are whole blocks of any type, with other random numbers.
    pub(crate) fn larger(small: &Model, seed: u64) -> Self {
        let mut config = small.config.clone();
        let (h, f, dim, vocabulary) = (256, 512, 64, 288);
        config["hidden_size"] = h.into();
        config["intermediate_size"] = f.into();
        config["num_attention_heads"] = 4.into();
        config["head_dim"] = dim.into();
        if config["rope_scaling"]["short_factor"].is_array() {
            let factors = |step: f64| (0..24).map(|pair| 1.0 + step * f64::from(pair)).collect::<Value>();
            config["rope_scaling"]["short_factor"] = factors(0.03125);
            config["rope_scaling"]["long_factor"] = factors(0.5);
        }
        let count = |key: &str| config[key].as_u64().unwrap() as usize;
        let (q, kv) = (4 * dim, count("num_key_value_heads") * dim);
        let is_gemma = config["model_type"].as_str().unwrap().starts_with("gemma");
        let mut random = Random(seed);
        let mut tensors = BTreeMap::new();
        for name in small.tensors.keys() {
            let part = name.rsplit('.').nth(1).unwrap();
            let rows = match part {
                "embed_tokens" | "lm_head" => vocabulary,
                "q_proj" => q,
                "k_proj" | "v_proj" => kv,
                "qkv_proj" => q + 2 * kv,
                "gate_proj" | "up_proj" => f,
                "gate_up_proj" => 2 * f,
                "q_norm" | "k_norm" => dim,
                _ => h,
            };
            let columns = match part {
                _ if name.ends_with("bias") || part.ends_with("norm") => None,
                "o_proj" => Some(q),
                "down_proj" => Some(f),
                _ => Some(h),
            };
            // As the small ones are drawn.
            let (mean, deviation) = match (columns, part) {
                (None, _) if name.ends_with("bias") => (0.0, 0.3),
                (None, _) => (if is_gemma { 0.3 } else { 1.3 }, 0.2),
                (_, "embed_tokens") => (0.0, if is_gemma { 0.1 } else { 0.25 }),
                // Attention is less sharp, so that rounding says little about where a token looks.
                (Some(columns), "q_proj" | "k_proj" | "qkv_proj") => (0.0, 0.7 / (columns as f32).sqrt()),
                (Some(columns), _) => (0.0, 1.5 / (columns as f32).sqrt()),
            };
            let shape: Vec<usize> = [Some(rows), columns].into_iter().flatten().collect();
            let numbers = (0..shape.iter().product()).map(|_| mean + deviation * random.normal()).collect();
            tensors.insert(name.clone(), (shape, numbers));
        }
        Self { config, tensors }
    }

    /// What is left of it in a file that stores its tensors so.
    pub(crate) fn rounded(&self, stored: impl Fn(&str) -> As) -> Self {
        let tensors = self.tensors.iter().map(|(name, (shape, numbers))| {
            (name.clone(), (shape.clone(), of_matrix(shape, stored(name)).rounded(numbers)))
        });
        Self { config: self.config.clone(), tensors: tensors.collect() }
    }

    /// Writes `config.json` and `model.safetensors`, in f32.
    pub(crate) fn write(&self, folder: &Path) {
        use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let all: Vec<_> = self.tensors.iter().map(|(name, (shape, numbers))| (name, shape, bytes(numbers))).collect();
        let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        let views = all.iter().map(|(name, shape, bytes)| (name.as_str(), view(shape, bytes)));
        serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    }

    /// As a converter writes it: `stored` says how each tensor is, which goes for matrices.
    pub(crate) fn gguf(&self, stored: impl Fn(&str) -> As) -> File {
        let mut file = self.metadata();
        let config = &self.config;
        let kind = config["model_type"].as_str().unwrap();
        let (is_gemma, is_llama) = (kind.starts_with("gemma"), matches!(kind, "llama" | "mistral"));
        for (name, (shape, numbers)) in &self.tensors {
            let mut numbers = numbers.clone();
            if is_gemma && name.ends_with("norm.weight") {
                numbers.iter_mut().for_each(|weight| *weight += 1.0);
            }
            if is_llama && (name.contains("q_proj") || name.contains("k_proj")) {
                numbers = in_pairs(&numbers, shape[0], head_dim(config));
            }
            file.tensor(&stored_name(name, is_gemma), shape, of_matrix(shape, stored(name)), &numbers);
        }
        let scaling = scaling(config);
        let factors =
            |key: &str| crate::support::numbers(&scaling[key]).into_iter().map(|x| x as f32).collect::<Vec<_>>();
        match scaling["rope_type"].as_str().or(scaling["type"].as_str()) {
            Some("llama3") => {
                let factors = llama_3_factors(scaling, theta(config), head_dim(config));
                file.tensor("rope_freqs.weight", &[factors.len()], As::F32, &factors);
            }
            Some("longrope") => {
                for (name, key) in [("short", "short_factor"), ("long", "long_factor")] {
                    let factors = factors(key);
                    file.tensor(&format!("rope_factors_{name}.weight"), &[factors.len()], As::F32, &factors);
                }
            }
            _ => {}
        }
        file
    }

    fn metadata(&self) -> File {
        let config = &self.config;
        let kind = config["model_type"].as_str().unwrap();
        let name = match kind {
            "mistral" => "llama",
            "gemma3_text" => "gemma3",
            other => other,
        };
        let mut file = File::default();
        file.set("general.architecture", Meta::text(name));
        let mut set = |key: &str, value: Option<Meta>| {
            if let Some(value) = value {
                file.set(&format!("{name}.{key}"), value);
            }
        };
        let whole = |key: &str| config[key].as_u64().map(|number| Meta::U32(number as u32));
        let number = |key: &str| config[key].as_f64().map(|number| Meta::F32(number as f32));
        set("context_length", whole("max_position_embeddings"));
        set("embedding_length", whole("hidden_size"));
        set("feed_forward_length", whole("intermediate_size"));
        set("block_count", whole("num_hidden_layers"));
        set("attention.head_count", whole("num_attention_heads"));
        set("attention.head_count_kv", whole("num_key_value_heads"));
        set("attention.key_length", whole("head_dim"));
        set("attention.value_length", whole("head_dim"));
        set("attention.layer_norm_rms_epsilon", number("rms_norm_eps"));
        set("rope.freq_base", Some(Meta::F32(theta(config) as f32)));
        set("attn_logit_softcapping", number("attn_logit_softcapping"));
        set("final_logit_softcapping", number("final_logit_softcapping"));
        if !kind.starts_with("qwen") {
            set("attention.sliding_window", whole("sliding_window"));
        }
        // No converter writes it: what readers suppose instead is not what these small models have.
        let divisor = config["query_pre_attn_scalar"].as_f64();
        set("attention.scale", divisor.map(|divisor| Meta::F32(divisor.sqrt().recip() as f32)));
        if name == "gemma3" {
            let by_kind = &config["rope_parameters"]["sliding_attention"]["rope_theta"];
            let local = config["rope_local_base_freq"].as_f64().or(by_kind.as_f64());
            set("rope.freq_base_swa", local.map(|base| Meta::F32(base as f32)));
            set("attention.sliding_window_pattern", whole("sliding_window_pattern"));
            if let Some(kinds) = config["layer_types"].as_array() {
                let slides = kinds.iter().map(|kind| kind == "sliding_attention").collect();
                set("attention.sliding_window_pattern", Some(Meta::Bools(slides)));
            }
        }
        let scaling = scaling(config);
        match scaling["rope_type"].as_str().or(scaling["type"].as_str()) {
            Some("linear") => {
                set("rope.scaling.type", Some(Meta::text("linear")));
                set("rope.scaling.factor", scaling["factor"].as_f64().map(|factor| Meta::F32(factor as f32)));
            }
            Some("yarn") => {
                let number = |key: &str| scaling[key].as_f64().map(|number| Meta::F32(number as f32));
                set("rope.scaling.type", Some(Meta::text("yarn")));
                set("rope.scaling.factor", number("factor"));
                set("rope.scaling.yarn_beta_fast", number("beta_fast"));
                set("rope.scaling.yarn_beta_slow", number("beta_slow"));
                let original = scaling["original_max_position_embeddings"].as_u64().unwrap();
                set("rope.scaling.original_context_length", Some(Meta::U32(original as u32)));
                // What a reader multiplies with already.
                let grown = |share: f64| 0.1 * share * scaling["factor"].as_f64().unwrap().ln() + 1.0;
                if let (Some(over), Some(under)) = (scaling["mscale"].as_f64(), scaling["mscale_all_dim"].as_f64()) {
                    let factor = grown(over) / grown(under) / grown(1.0);
                    set("rope.scaling.attn_factor", Some(Meta::F32(factor as f32)));
                }
            }
            Some("longrope") => {
                let original = config["original_max_position_embeddings"].as_f64().unwrap();
                let longer = config["max_position_embeddings"].as_f64().unwrap() / original;
                let factor = if longer > 1.0 { (1.0 + longer.ln() / original.ln()).sqrt() } else { 1.0 };
                set("rope.scaling.attn_factor", Some(Meta::F32(factor as f32)));
            }
            _ => {}
        }
        if name == "phi3" {
            set("rope.scaling.original_context_length", whole("original_max_position_embeddings"));
        }
        if matches!(name, "llama" | "phi3") {
            let share = config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
            set("rope.dimension_count", Some(Meta::U32((share * head_dim(config) as f64) as u32)));
        }
        file
    }
}

/// Vectors are never rounded.
fn of_matrix(shape: &[usize], stored: As) -> As {
    if shape.len() > 1 { stored } else { As::F32 }
}

fn head_dim(config: &Value) -> usize {
    let size = |key: &str| config[key].as_u64().map(|size| size as usize);
    size("head_dim").unwrap_or_else(|| size("hidden_size").unwrap() / size("num_attention_heads").unwrap())
}

fn theta(config: &Value) -> f64 {
    let stated = [
        &config["rope_theta"],
        &config["rope_parameters"]["rope_theta"],
        &config["rope_parameters"]["full_attention"]["rope_theta"],
    ];
    stated.into_iter().find_map(Value::as_f64).unwrap_or(10_000.0)
}

fn scaling(config: &Value) -> &Value {
    let stated = [&config["rope_scaling"], &config["rope_parameters"]["full_attention"], &config["rope_parameters"]];
    stated.into_iter().find(|value| value.is_object()).unwrap_or(&Value::Null)
}

fn llama_3_factors(scaling: &Value, theta: f64, dim: usize) -> Vec<f32> {
    let number = |key: &str| scaling[key].as_f64().unwrap();
    let (factor, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
    let original = number("original_max_position_embeddings");
    let of_pair = |pair: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / dim as f64);
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return factor;
        }
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    (0..dim / 2).map(|pair| of_pair(pair) as f32).collect()
}

/// Rows that are half a head apart become neighbours.
fn in_pairs(numbers: &[f32], rows: usize, dim: usize) -> Vec<f32> {
    let width = numbers.len() / rows;
    let mut paired = Vec::with_capacity(numbers.len());
    for head in numbers.chunks_exact(dim * width) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            paired.extend(a);
            paired.extend(b);
        }
    }
    paired
}

fn stored_name(name: &str, is_gemma: bool) -> String {
    let replaced = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_attention_layernorm", if is_gemma { "post_attention_norm" } else { "ffn_norm" }),
    ];
    replaced.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Random numbers that are the same everywhere.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) >> 40) as f32 / (1 << 24) as f32
    }

    /// Of mean 0 and deviation 1, nearly normal.
    fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.uniform()).sum::<f32>() - 6.0).clamp(-3.5, 3.5)
    }
}
