//! A file's tokens, merges and scores go in, a tokenizer goes out: the one that the model's `tokenizer.json` describes. Two kinds are
//! known: bytes that are merged in a given order (`gpt2`), and SentencePiece's characters that are merged by scores (`llama`).

use super::file::ITEMS_MAX;
use super::splits::Split;
use super::{Gguf, Value as Stored};
use crate::load::Error;
use crate::task::Tokenizer;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Where the tokens stand.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// Bytes of a token at most. The longest that models have are some hundred spaces; and every way to cut a token in two is looked at.
const TOKEN_BYTES_MAX: usize = 1024;

/// What a space is among SentencePiece's tokens.
const SPACE: &str = "\u{2581}";

/// What a token is for, by its number in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A piece of text.
    Normal,
    /// What stands for text that has no token.
    Unknown,
    /// Never part of a text.
    Control,
    /// A piece of text that is looked for before all others.
    Whole,
    /// Nothing.
    Unused,
    /// A byte.
    Byte,
}

/// The tokens of a file, by their numbers.
pub(super) struct Vocabulary {
    texts: Vec<String>,
    uses: Vec<Use>,
}

impl Vocabulary {
    /// # Errors
    /// When the file has no tokens, or lists that are not as long as each other.
    pub(super) fn read(gguf: &Gguf) -> Result<Self, Error> {
        let text = |value: Stored| if let Stored::Text(text) = value { Some(text) } else { None };
        let texts = gguf.list(TOKENS, "a list of texts", text)?;
        let mut texts = texts.ok_or_else(|| gguf.wrong(format!("{TOKENS} is missing; it has no tokenizer")))?;
        for (id, text) in texts.iter_mut().enumerate() {
            if text.len() > TOKEN_BYTES_MAX {
                let detail = format!("token {id} has {} bytes; {TOKEN_BYTES_MAX} are possible", text.len());
                return Err(gguf.wrong(detail));
            }
            if text.is_empty() {
                *text = format!("[EMPTY_{id}]");
            }
        }
        let number = |value: Stored| match value.whole()? {
            2 => Some(Use::Unknown),
            3 => Some(Use::Control),
            4 => Some(Use::Whole),
            5 => Some(Use::Unused),
            6 => Some(Use::Byte),
            _ => Some(Use::Normal),
        };
        let key = "tokenizer.ggml.token_type";
        let uses = gguf.list(key, "a list of whole numbers", number)?;
        let uses = uses.unwrap_or_else(|| vec![Use::Normal; texts.len()]);
        same_length(gguf, key, uses.len(), texts.len())?;
        Ok(Self { texts, uses })
    }

    /// The token of a number that stands under a key.
    pub(super) fn text(&self, gguf: &Gguf, key: &str, id: u64) -> Result<&str, Error> {
        let text = usize::try_from(id).ok().and_then(|id| self.texts.get(id));
        let missing = || gguf.wrong(format!("{key} is {id}, and there are {} tokens", self.texts.len()));
        text.map(String::as_str).ok_or_else(missing)
    }

    /// The numbers of those of some tokens that are no pieces of text.
    pub(super) fn marked(&self, marks: &[&str]) -> impl Iterator<Item = usize> {
        let is_mark = |id: &usize| {
            matches!(self.uses[*id], Use::Control | Use::Whole) && marks.contains(&self.texts[*id].as_str())
        };
        (0..self.texts.len()).filter(is_mark)
    }

    /// The first token of a use.
    fn first(&self, wanted: Use) -> Option<&str> {
        self.uses.iter().position(|of| *of == wanted).map(|id| self.texts[id].as_str())
    }

    /// By text.
    fn numbers(&self, gguf: &Gguf) -> Result<Map<String, Value>, Error> {
        let mut numbers = Map::with_capacity(self.texts.len());
        for (id, text) in self.texts.iter().enumerate() {
            if let Some(other) = numbers.insert(text.clone(), json!(id)) {
                return Err(gguf.wrong(format!("tokens {other} and {id} are both {text:?}")));
            }
        }
        Ok(numbers)
    }

    /// Tokens that are looked for before a text is cut. After some, spaces belong to them.
    fn added(&self, takes_spaces: impl Fn(&str) -> bool) -> Vec<Value> {
        let is_added = |id: &usize| matches!(self.uses[*id], Use::Unknown | Use::Control | Use::Whole);
        let added = |id: usize| {
            let (text, is_special) = (&self.texts[id], self.uses[id] != Use::Whole);
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": is_special && takes_spaces(text),
                "normalized": false, "special": is_special,
            })
        };
        (0..self.texts.len()).filter(is_added).map(added).collect()
    }
}

fn same_length(gguf: &Gguf, key: &str, have: usize, tokens: usize) -> Result<(), Error> {
    if have == tokens {
        return Ok(());
    }
    Err(gguf.wrong(format!("{key} has {have} entries for {tokens} tokens")))
}

/// The tokenizer of a file.
///
/// # Errors
/// When it is of a kind that is not known, or broken.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer, Error> {
    let vocabulary = Vocabulary::read(gguf)?;
    let json = match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => of_bytes(gguf, &vocabulary)?,
        Some("llama") => of_pieces(gguf, &vocabulary)?,
        other => {
            let detail = format!(
                "tokenizer.ggml.model is {:?}; gpt2 and llama are supported, and any other with a tokenizer.json beside the file",
                other.unwrap_or("none")
            );
            return Err(gguf.wrong(detail));
        }
    };
    Tokenizer::from_json(json.to_string().as_bytes()).map_err(|e| gguf.wrong(format!("its tokenizer is broken: {e}")))
}

/// Bytes as characters, merged in the order of the file.
fn of_bytes(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Value, Error> {
    let split = Split::of(gguf.text("tokenizer.ggml.pre")?.unwrap_or("default")).map_err(|e| gguf.wrong(e))?;
    // A space parts the two, and may be the first one's first character.
    let pair = |value: Stored| {
        let text = value.text()?;
        let after_first = text.chars().next()?.len_utf8();
        let space = after_first + text[after_first..].find(' ')?;
        Some(json!([text[..space], text[space + 1..]]))
    };
    let merges = gguf.list("tokenizer.ggml.merges", "a list of two texts with a space between them", pair)?;
    let merges = merges.ok_or_else(|| gguf.wrong("tokenizer.ggml.merges is missing"))?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(|_| false),
        "normalizer": split.is_composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": split.pre_tokenizer(),
        "post_processor": begin(gguf, vocabulary, split.adds_begin)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": split.ignores_merges,
            "vocab": vocabulary.numbers(gguf)?, "merges": merges,
        },
    }))
}

/// Characters, merged to the token of the highest score first; bytes where a character has no token.
fn of_pieces(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Value, Error> {
    let has_space_before = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prepend = has_space_before.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizers: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    let strip = has_space_before.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let back = [
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = back.into_iter().chain(strip).collect();
    // Phi 3 was trained so; no file says it.
    let is_phi = gguf.text("general.architecture")? == Some("phi3");
    let takes_spaces = |token: &str| is_phi && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>");
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(takes_spaces),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": begin(gguf, vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": vocabulary.first(Use::Unknown), "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.numbers(gguf)?, "merges": merges(gguf, vocabulary)?,
        },
    }))
}

/// Every way to make a token of two others, the tokens of the highest scores first.
fn merges(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Vec<[String; 2]>, Error> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.list(key, "a list of numbers", |score| score.number())?;
    let scores = scores.ok_or_else(|| gguf.wrong(format!("{key} is missing")))?;
    same_length(gguf, key, scores.len(), vocabulary.texts.len())?;
    let mut pieces: HashMap<&str, usize> = HashMap::new();
    for (id, text) in vocabulary.texts.iter().enumerate() {
        if matches!(vocabulary.uses[id], Use::Normal | Use::Whole) {
            pieces.insert(text, id);
        }
    }
    let mut found = Vec::new();
    for (text, id) in &pieces {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(first), Some(second)) = (pieces.get(left), pieces.get(right)) {
                found.push((*id, *first, *second));
            }
        }
        if found.len() > ITEMS_MAX {
            return Err(gguf.wrong(format!("its tokens can be made of each other in more than {ITEMS_MAX} ways")));
        }
    }
    found.sort_unstable_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    let text = |id: usize| vocabulary.texts[id].clone();
    Ok(found.into_iter().map(|(_, first, second)| [text(first), text(second)]).collect())
}

/// What is put before a text: the token that begins it, where the model wants one.
fn begin(gguf: &Gguf, vocabulary: &Vocabulary, usual: bool) -> Result<Value, Error> {
    let key = "tokenizer.ggml.bos_token_id";
    let is_wanted = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(usual);
    let Some(id) = gguf.whole(key)?.filter(|_| is_wanted) else { return Ok(Value::Null) };
    let token = vocabulary.text(gguf, key, id)?;
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }))
}
