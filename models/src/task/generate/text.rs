//! Tokens that a model writes go in one by one, text comes out as soon as it is whole characters: a token may be a part of one, and
//! what a token means may depend on those before it.

use crate::task::Tokenizer;
use std::sync::Arc;

/// Tokens before the first new one that are looked at: enough for any tokenizer's spaces and marks.
const CONTEXT: usize = 8;

/// Tokens that a character may take: its four bytes, and as many again. What is longer open makes none, and is told as it is, so that the
/// next token never costs more than the last.
const OPEN_MAX: usize = 8;

/// The text of a sequence that grows.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// Tokens that the next text depends on.
    ids: Vec<u32>,
    /// Their text, as far as it is told.
    told: String,
    /// How many of `ids` it is the text of.
    told_ids: usize,
    /// Special tokens that are told, as all others are not.
    shown: Arc<[u32]>,
}

impl TextStream {
    /// Behind these tokens, which are not told.
    ///
    /// # Errors
    /// The tokenizer's words.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self, String> {
        Self::showing(tokenizer, prompt, Arc::default())
    }

    /// Behind these tokens, with special tokens that are told as the names that they have: those by which a model marks its calls.
    ///
    /// # Errors
    /// The tokenizer's words.
    pub fn showing(tokenizer: &Tokenizer, prompt: &[u32], shown: Arc<[u32]>) -> Result<Self, String> {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Ok(Self { told: tokenizer.text_showing(&ids, &shown)?, told_ids: ids.len(), ids, shown })
    }

    /// Takes a token in. Returns the text that it completes, which may be nothing.
    ///
    /// # Errors
    /// The tokenizer's words.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, String> {
        self.ids.push(token);
        let text = tokenizer.text_showing(&self.ids, &self.shown)?;
        // A replacement at the end may be the first bytes of a character that the next token completes.
        let is_open = self.ids.len() - self.told_ids < OPEN_MAX;
        if is_open && text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = text[common(&self.told, &text)..].to_owned();
        self.ids.drain(..self.told_ids);
        self.told = tokenizer.text_showing(&self.ids, &self.shown)?;
        self.told_ids = self.ids.len();
        Ok(new)
    }

    /// What is left when no more comes: bytes that make no character stand as replacements.
    ///
    /// # Errors
    /// The tokenizer's words.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, String> {
        let text = tokenizer.text_showing(&self.ids, &self.shown)?;
        Ok(text[common(&self.told, &text)..].to_owned())
    }
}

/// Bytes that two texts begin with alike, up to a border of characters.
fn common(told: &str, text: &str) -> usize {
    if text.starts_with(told) {
        return told.len();
    }
    let alike = told.chars().zip(text.chars()).take_while(|(a, b)| a == b);
    alike.map(|(c, _)| c.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level tokenizer of one token a byte, as every GPT-like vocabulary contains.
    fn bytes() -> Tokenizer {
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            (0..=255_u8).map(|byte| (letter(byte).to_string(), byte.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "truncation": null, "padding": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    /// The character that byte-level vocabularies write a byte as.
    fn letter(byte: u8) -> char {
        let printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
        match printable(&byte) {
            true => char::from(byte),
            false => char::from_u32(256 + (0..byte).filter(|b| !printable(b)).count() as u32).unwrap(),
        }
    }

    fn told(prompt: &[u8], bytes_of: &[u8]) -> (Vec<String>, String) {
        let tokenizer = bytes();
        let ids = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).collect::<Vec<_>>();
        let mut stream = TextStream::after(&tokenizer, &ids(prompt)).unwrap();
        let pieces = ids(bytes_of).into_iter().map(|id| stream.push(&tokenizer, id).unwrap()).collect();
        (pieces, stream.finish(&tokenizer).unwrap())
    }

    #[test]
    fn characters_come_whole() {
        let (pieces, rest) = told(b"a prompt of some length", "né€🦀!".as_bytes());
        assert_eq!(pieces, ["n", "", "é", "", "", "€", "", "", "", "🦀", "!"]);
        assert_eq!(rest, "");
        // One that is never completed stands as a replacement, and takes nothing with it.
        let (pieces, rest) = told(b"", b"ok\xf0\x9f");
        assert_eq!((pieces.concat(), rest.as_str()), ("ok".into(), "\u{fffd}"));
        let (pieces, rest) = told(b"", b"a\xffb");
        assert_eq!((pieces.concat() + &rest).as_str(), "a\u{fffd}b");
    }

    #[test]
    fn bytes_that_make_no_character_do_not_pile_up() {
        let tokenizer = bytes();
        let mut stream = TextStream::after(&tokenizer, &[]).unwrap();
        let mut text = String::new();
        for _ in 0..100 {
            text += &stream.push(&tokenizer, 0xff).unwrap();
            assert!(stream.ids.len() <= 2 * OPEN_MAX, "{}", stream.ids.len());
        }
        text += &stream.push(&tokenizer, u32::from(b'a')).unwrap();
        assert_eq!(text, "\u{fffd}".repeat(100) + "a");
    }

    #[test]
    fn the_prompt_is_not_told() {
        let (pieces, _) = told("ends in é".as_bytes(), b" and on");
        assert_eq!(pieces.concat(), " and on");
    }
}
