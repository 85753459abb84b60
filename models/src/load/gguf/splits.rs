//! Where a text is cut before its tokens are looked for, by the name that a file has for it in `tokenizer.ggml.pre`.
//!
//! # Source
//! The `tokenizer.json` of models that bear these names, as llama.cpp quotes their expressions beside its own (`src/llama-vocab.cpp` of
//! llama-cpp-python 0.3.36); for `default`, which no model has, that file itself.

use serde_json::{Value, json};

/// What one name stands for.
pub(super) struct Split {
    names: &'static [&'static str],
    /// One after the other, each cuts what the last one left. Where there is none, words are cut as GPT-2 does.
    expressions: &'static [&'static str],
    /// Whether digits are cut from each other first.
    has_lone_digits: bool,
    /// Whether a word that is a token is one without a look at the merges.
    pub(super) ignores_merges: bool,
    /// Whether a text begins with the token for it, where the file does not say so.
    pub(super) adds_begin: bool,
    /// Whether characters are composed first.
    pub(super) is_composed: bool,
}

const PLAIN: Split = Split {
    names: &[],
    expressions: &[],
    has_lone_digits: false,
    ignores_merges: false,
    adds_begin: false,
    is_composed: false,
};

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const SPLITS: &[Split] = &[
    Split {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ..PLAIN
    },
    Split { names: &["gpt-2"], ..PLAIN },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        expressions: &[LLAMA_3],
        ignores_merges: true,
        adds_begin: true,
        ..PLAIN
    },
    Split { names: &["dbrx"], expressions: &[LLAMA_3], ..PLAIN },
    Split { names: &["gpt-4o"], expressions: &[GPT_4O], ..PLAIN },
    Split { names: &["tekken"], expressions: &[TEKKEN], ignores_merges: true, adds_begin: true, ..PLAIN },
    Split { names: &["qwen2"], expressions: &[QWEN_2], is_composed: true, ..PLAIN },
    Split { names: &["smollm"], has_lone_digits: true, ..PLAIN },
];

impl Split {
    /// That of a name.
    ///
    /// # Errors
    /// When there is none, with the names that there are.
    pub(super) fn of(name: &str) -> Result<&'static Split, String> {
        SPLITS.iter().find(|split| split.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
            let known = known.join(", ");
            format!("tokenizer.ggml.pre is {name:?}; {known} are supported, and any other with a tokenizer.json beside the file")
        })
    }

    /// As a `tokenizer.json` says it.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let cut = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let digits = self.has_lone_digits.then(|| json!({"type": "Digits", "individual_digits": true}));
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.expressions.is_empty(),
        });
        let steps: Vec<Value> = digits.into_iter().chain(self.expressions.iter().map(cut)).chain([bytes]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
