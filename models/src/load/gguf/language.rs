//! What stands beside a tokenizer in a folder of `transformers`, from a file's metadata: which tokens end a text, the chat template, how
//! the model is meant to be sampled.

use super::Gguf;
use super::vocabulary::{TOKENS, Vocabulary};
use crate::load::Error;
use serde_json::{Map, Value, json};

/// Tokens by their part, as `tokenizer_config.json` names it, and where the file has its number.
const SPECIALS: &[(&str, &str)] = &[
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

/// Where the numbers of tokens stand that end a text, a turn and a message.
const ENDS: &[&str] = &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Tokens that end a turn in every model that has them. Many files state the end of a text only.
const END_MARKS: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"];

/// Settings of sampling, in the file and in a `generation_config.json`.
const SAMPLING: &[(&str, &str)] = &[
    ("general.sampling.temp", "temperature"),
    ("general.sampling.top_k", "top_k"),
    ("general.sampling.top_p", "top_p"),
    ("general.sampling.min_p", "min_p"),
    ("general.sampling.penalty_repeat", "repetition_penalty"),
];

/// A `tokenizer_config.json`: special tokens by name, and the chat template.
///
/// # Errors
/// When a value is of another type, or names a token that is not there.
pub fn tokenizer_config(gguf: &Gguf) -> Result<Value, Error> {
    let mut config = Map::new();
    if gguf.has(TOKENS) {
        let vocabulary = Vocabulary::read(gguf)?;
        for (name, key) in SPECIALS {
            if let Some(id) = gguf.whole(key)? {
                config.insert((*name).into(), json!(vocabulary.text(gguf, key, id)?));
            }
        }
    }
    if let Some(template) = gguf.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(Value::Object(config))
}

/// A `generation_config.json`; null where the file states nothing of it.
///
/// # Errors
/// When a value is of another type.
pub fn generation_config(gguf: &Gguf) -> Result<Value, Error> {
    let mut config = Map::new();
    for (key, name) in SAMPLING {
        let stated = match gguf.value(key).and_then(super::Value::whole) {
            Some(whole) => Some(json!(whole)),
            None => gguf.number(key)?.map(|number| json!(number)),
        };
        config.extend(stated.map(|stated| ((*name).to_owned(), stated)));
    }
    Ok(if config.is_empty() { Value::Null } else { Value::Object(config) })
}

/// The numbers of all tokens that end a text.
pub(super) fn ends(gguf: &Gguf) -> Result<Vec<u64>, Error> {
    let mut ends = Vec::new();
    for key in ENDS {
        ends.extend(gguf.whole(key)?);
    }
    if gguf.has(TOKENS) {
        let vocabulary = Vocabulary::read(gguf)?;
        ends.extend(vocabulary.marked(END_MARKS).map(|id| id as u64));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}
