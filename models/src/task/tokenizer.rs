//! Text goes in, token ids with their special tokens come out. Padding and truncation of the tokenizer's own file are
//! switched off: padding is the backend's business, and nothing is cut unless the caller said so.

use crate::engine::Tokens;
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

/// A model's tokenizer. Shared by threads without locks.
pub struct Tokenizer(Kind);

enum Kind {
    /// A `tokenizer.json`.
    File(Box<tokenizers::Tokenizer>),
    /// The fake's: words between spaces, numbered by a hash.
    Words {
        /// Ids are below this.
        vocabulary: u32,
        /// Words with a number of their own.
        marked: &'static [(&'static str, u32)],
    },
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids)", self.vocabulary())
    }
}

/// A text's tokens before special tokens are added.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    File(Box<Encoding>),
    Words(Vec<u32>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::File(encoding) => encoding.len(),
            Piece::Words(ids) => ids.len(),
        }
    }

    fn cut(&mut self, length: usize) {
        match self {
            Piece::File(encoding) => encoding.truncate(length, 0, TruncationDirection::Right),
            Piece::Words(ids) => ids.truncate(length),
        }
    }
}

/// Why text could not become tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Error {
    /// So many tokens, special tokens included.
    TooLong(usize),
    /// The tokenizer's words.
    Failed(String),
}

/// How many tokens there may be, and what to do when there are more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Length {
    pub(super) max: usize,
    pub(super) truncate: bool,
}

impl Tokenizer {
    /// The first word's id of the fake tokenizer; those below are for marked words.
    pub(crate) const FIRST_WORD: u32 = 16;

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The library's words when it is not valid.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        Ok(Self(Kind::File(Box::new(tokenizer))))
    }

    /// A tokenizer that needs no file, for the fake engine. `marked` words get the ids given with them, which are
    /// below 16; all others one from 16 to `vocabulary`.
    pub(crate) fn words(vocabulary: u32, marked: &'static [(&'static str, u32)]) -> Self {
        Self(Kind::Words { vocabulary, marked })
    }

    /// Ids are below this.
    pub fn vocabulary(&self) -> usize {
        match &self.0 {
            Kind::File(tokenizer) => tokenizer.get_vocab_size(true),
            Kind::Words { vocabulary, .. } => *vocabulary as usize,
        }
    }

    /// The tokens of one text, without special tokens.
    pub(super) fn piece(&self, text: &str) -> Result<Piece, Error> {
        match &self.0 {
            Kind::File(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, false).map_err(|e| Error::Failed(e.to_string()))?;
                Ok(Piece::File(Box::new(encoding)))
            }
            Kind::Words { vocabulary, marked } => {
                let id = |word: &str| match marked.iter().find(|(mark, _)| *mark == word) {
                    Some((_, id)) => *id,
                    None => {
                        let count = u64::from(vocabulary - Self::FIRST_WORD);
                        Self::FIRST_WORD + (crate::backend::fake::hash(word.bytes()) % count) as u32
                    }
                };
                Ok(Piece::Words(text.split_whitespace().map(id).collect()))
            }
        }
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// The library's words.
    pub fn text(&self, ids: &[u32]) -> Result<String, String> {
        match &self.0 {
            Kind::File(tokenizer) => tokenizer.decode(ids, true).map_err(|e| e.to_string()),
            Kind::Words { .. } => Ok(ids.iter().map(|id| format!("w{id} ")).collect()),
        }
    }

    /// The tokens of a text as it stands, with the special ones that are written in it and none else.
    ///
    /// # Errors
    /// The library's words.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        match self.piece(text) {
            Ok(Piece::File(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Piece::Words(ids)) => Ok(ids),
            Err(Error::Failed(detail)) => Err(detail),
            Err(Error::TooLong(tokens)) => Err(format!("{tokens} tokens are too many")),
        }
    }

    /// The tokens of a text with the special ones that begin it, and without one that would end it.
    ///
    /// # Errors
    /// The library's words.
    pub fn begun(&self, text: &str) -> Result<Vec<u32>, String> {
        let own = self.ids(text)?;
        match &self.0 {
            Kind::File(tokenizer) => {
                let whole = tokenizer.encode_fast(text, true).map_err(|e| e.to_string())?;
                let whole = whole.get_ids();
                let added = match own.len() {
                    0 => whole.len().min(1),
                    length => whole.windows(length).position(|part| part == own).unwrap_or(0),
                };
                Ok([&whole[..added], &own].concat())
            }
            Kind::Words { .. } => Ok([vec![0], own].concat()),
        }
    }

    /// The number of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.0 {
            Kind::File(tokenizer) => tokenizer.token_to_id(token),
            Kind::Words { marked, .. } => marked.iter().find(|(mark, _)| *mark == token).map(|(_, id)| *id),
        }
    }

    /// Tokens of a text, its special tokens included.
    ///
    /// # Errors
    /// The library's words when it cannot be tokenised.
    pub(super) fn length(&self, text: &str) -> Result<usize, String> {
        match self.piece(text) {
            Ok(piece) => Ok(piece.len() + self.added(false)),
            Err(Error::Failed(detail)) => Err(detail),
            Err(Error::TooLong(tokens)) => Ok(tokens),
        }
    }

    /// One sequence of one text or of a pair, with special tokens. What is too long is cut at the end of the last
    /// text, or refused.
    pub(super) fn sequence(
        &self,
        mut first: Piece,
        mut second: Option<Piece>,
        length: Length,
    ) -> Result<Tokens, Error> {
        let added = self.added(second.is_some());
        let have = first.len() + second.as_ref().map_or(0, Piece::len) + added;
        if have > length.max {
            let last = second.as_mut().unwrap_or(&mut first);
            let excess = have - length.max;
            // At least one token of the text that is cut must be left, else nothing of it would be looked at.
            if !length.truncate || excess >= last.len() {
                return Err(Error::TooLong(have));
            }
            last.cut(last.len() - excess);
        }
        let tokens = match (&self.0, first, second) {
            (Kind::File(tokenizer), Piece::File(first), second) => {
                let second = second.and_then(|piece| match piece {
                    Piece::File(mut encoding) => {
                        encoding.set_type_ids(vec![1; encoding.len()]);
                        Some(*encoding)
                    }
                    Piece::Words(_) => None,
                });
                let whole = tokenizer.post_process(*first, second, true).map_err(|e| Error::Failed(e.to_string()))?;
                Tokens { ids: whole.get_ids().to_vec(), type_ids: whole.get_type_ids().to_vec() }
            }
            (_, Piece::Words(first), second) => {
                let second = second.map_or(vec![], |piece| match piece {
                    Piece::Words(ids) => ids,
                    Piece::File(encoding) => encoding.get_ids().to_vec(),
                });
                let type_ids = [vec![0; first.len() + 1], vec![1; second.len()]].concat();
                // Id 0 stands before every sequence, as [CLS] does.
                Tokens { ids: [vec![0], first, second].concat(), type_ids }
            }
            (Kind::Words { .. }, Piece::File(_), _) => {
                return Err(Error::Failed("a piece of another tokenizer".into()));
            }
        };
        if tokens.ids.is_empty() {
            return Err(Error::Failed("it gives no tokens at all".into()));
        }
        let type_ids = if tokens.type_ids.iter().all(|id| *id == 0) { vec![] } else { tokens.type_ids };
        Ok(Tokens { ids: tokens.ids, type_ids })
    }

    /// Special tokens of a sequence.
    fn added(&self, is_pair: bool) -> usize {
        match &self.0 {
            Kind::File(tokenizer) => tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(is_pair)),
            Kind::Words { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(first: &str, second: Option<&str>, max: usize, truncate: bool, want: Result<usize, Error>) {
        let tokenizer = Tokenizer::words(1000, &[]);
        let second = second.map(|text| tokenizer.piece(text).unwrap());
        let tokens = tokenizer.sequence(tokenizer.piece(first).unwrap(), second, Length { max, truncate });
        assert_eq!(tokens.map(|t| t.ids.len()), want, "{first:?} {max} {truncate}");
    }

    #[test]
    fn what_is_too_long_is_cut_only_when_asked() {
        check("a b c", None, 4, false, Ok(4));
        check("a b c", None, 3, false, Err(Error::TooLong(4)));
        check("a b c", None, 3, true, Ok(3));
        check("a b c", None, 1, true, Err(Error::TooLong(4)));
        check("a b", Some("c d"), 4, true, Ok(4));
        check("a b", Some("c d"), 3, true, Err(Error::TooLong(5)));
    }

    #[test]
    fn a_text_is_begun_and_not_ended() {
        let special = |id: u32, token: &str| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true})
        };
        let token = |token: &str| serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}});
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [special(0, "<s>"), special(1, "</s>")], "normalizer": null, "decoder": null,
            "pre_tokenizer": {"type": "Whitespace"}, "truncation": null, "padding": null,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [token("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, token("</s>")],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3}, "unk_token": "a"},
        });
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        for (text, own, begun) in [
            ("a b", &[2, 3][..], &[0, 2, 3][..]),
            ("", &[], &[0]),
            // Who writes the special tokens gets them once more, as with any tokenizer.
            ("<s>b", &[0, 3], &[0, 0, 3]),
            ("b</s>", &[3, 1], &[0, 3, 1]),
        ] {
            assert_eq!(
                (tokenizer.ids(text).unwrap(), tokenizer.begun(text).unwrap()),
                (own.to_vec(), begun.to_vec()),
                "{text}"
            );
        }
        assert_eq!((tokenizer.id("</s>"), tokenizer.id("c")), (Some(1), None));
        assert_eq!(tokenizer.text(&[0, 2, 3, 1]).unwrap(), "a b");
    }

    #[test]
    fn an_empty_text_is_its_special_tokens() {
        check("", None, 8, false, Ok(1));
    }

    #[test]
    fn a_broken_file_is_refused() {
        assert!(Tokenizer::from_json(b"{}").is_err());
        assert!(Tokenizer::from_json(b"\xff").is_err());
    }
}
