//! What each token of a model says in bytes, as grammars need it: a tokenizer comes in, a trie of its tokens goes out. Made once per model,
//! when the first text of a demanded form is asked for.
//!
//! A token's bytes are what it adds to a text, so only tokenizers will do whose tokens add the same wherever they stand: byte-level ones
//! (GPT-2, Llama 3, Qwen) and those of SentencePiece (Llama 2, Mistral, Gemma, Phi-3). Those that join words with spaces are refused.

use super::constraint::{Constraint, Error, Format};
use crate::task::Tokenizer;
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;
use std::sync::Arc;

/// The tokens of a model. Cheap to clone, needs no lock.
#[derive(Clone)]
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary({} ids)", self.factory.tok_env().tok_trie().vocab_size())
    }
}

impl Vocabulary {
    /// The tokens of a tokenizer, of which these end a text. Takes a tenth of a second for a hundred thousand.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when its tokens have no bytes of their own.
    pub fn new(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<Self, Error> {
        let mut words = token_bytes(tokenizer).map_err(Error::Tokenizer)?;
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|id| (*id as usize) < words.len()).collect();
        for end in &ends {
            // What ends a text is never a part of it, whatever a tokenizer says of the token.
            let word = &mut words[*end as usize];
            if word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        let info = TokRxInfo::new(words.len() as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        // It takes any tokens that spell what is allowed: which of them is the model's to say.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|e| Error::Tokenizer(e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = super::constraint::limits();
        Ok(Self { factory: Arc::new(factory) })
    }

    /// What a text of this form may go on with.
    ///
    /// # Errors
    /// [`Error`], the caller's fault.
    pub fn constraint(&self, format: &Format) -> Result<Constraint, Error> {
        Constraint::new(&self.factory, format)
    }
}

/// What each id says. Special tokens say what no text can: a byte that is in no UTF-8, and their names. Ids that are no token say nothing.
pub(super) fn token_bytes(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>, String> {
    let Some(file) = tokenizer.file() else {
        return Err("it has no vocabulary".into());
    };
    let decoder = serde_json::to_value(file.get_decoder()).map_err(|e| e.to_string())?;
    let spelling = Spelling::read(&decoder)?;
    let vocabulary = file.get_vocab(true);
    let size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
    if size > IDS_MAX {
        return Err(format!("its ids go up to {size}, which is above {IDS_MAX}"));
    }
    let mut words = vec![vec![]; size];
    for (token, id) in vocabulary {
        let is_special = file.get_added_vocabulary().is_special_token(&token);
        words[id as usize] = if is_special {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat()
        } else {
            spelling.bytes(&token)
        };
        if words[id as usize].len() > TOKEN_BYTES_MAX {
            words[id as usize].clear();
        }
    }
    Ok(words)
}

/// More ids than any vocabulary has; the trie has room for twice as many.
const IDS_MAX: usize = 1 << 20;

/// The deepest trie that can be walked. A longer token is never allowed; those that spell the same with more tokens are.
const TOKEN_BYTES_MAX: usize = 1000;

/// How a tokenizer writes bytes as characters.
enum Spelling {
    /// One character for each byte.
    ByteLevel,
    /// Texts with replacements, and `<0x0A>` for single bytes where so it is.
    Text { replacements: Vec<(String, String)>, has_bytes: bool },
}

impl Spelling {
    /// From what a `tokenizer.json` says of its decoder.
    fn read(decoder: &Value) -> Result<Self, String> {
        let steps = match decoder["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        let mut replacements = vec![];
        let mut has_bytes = false;
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => return Ok(Self::ByteLevel),
                Some("ByteFallback") => has_bytes = true,
                Some("Metaspace") => {
                    let mark = step["replacement"].as_str().unwrap_or("▁");
                    replacements.push((mark.into(), " ".into()));
                }
                Some("Replace") => {
                    let (Some(from), Some(to)) = (step["pattern"]["String"].as_str(), step["content"].as_str()) else {
                        return Err("its decoder replaces what matches a pattern".into());
                    };
                    replacements.push((from.into(), to.into()));
                }
                // They say nothing of single tokens: one joins them, one cuts the first space of a whole text.
                Some("Fuse" | "Strip") => {}
                other => return Err(format!("its decoder is {}", other.unwrap_or("absent"))),
            }
        }
        Ok(Self::Text { replacements, has_bytes })
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            // A token with a character that stands for no byte was added as it is.
            Self::ByteLevel => token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.into()),
            Self::Text { has_bytes, replacements } => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| *has_bytes && hex.len() == 2).map(|hex| u8::from_str_radix(hex, 16)) {
                    Some(Ok(byte)) => vec![byte],
                    _ => replacements.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to)).into(),
                }
            }
        }
    }
}

/// The byte that a byte-level vocabulary writes as this character: what can be printed is itself, the others are numbered from 256.
///
/// # Source
/// `bytes_to_unicode` of GPT-2's `encoder.py`.
fn byte_of(character: char) -> Option<u8> {
    let is_printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u32::from(character) {
        code @ 0..=255 => Some(code as u8).filter(is_printed),
        code => (0..=255).filter(|byte| !is_printed(byte)).nth(code as usize - 256),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// The character that byte-level vocabularies write a byte as.
    fn letter(byte: u8) -> char {
        (0..512).filter_map(char::from_u32).find(|c| byte_of(*c) == Some(byte)).unwrap()
    }

    /// A byte-level tokenizer: 256 single bytes, then these tokens, then special ones.
    pub(crate) fn byte_level(tokens: &[&str], special: &[&str]) -> Tokenizer {
        let spelled = |token: &str| token.bytes().map(letter).collect::<String>();
        let all = (0..=255_u8).map(|byte| letter(byte).to_string()).chain(tokens.iter().map(|token| spelled(token)));
        let vocabulary: serde_json::Map<String, Value> =
            all.enumerate().map(|(id, token)| (token, id.into())).collect();
        let first = vocabulary.len();
        let added = |(at, token): (usize, &&str)| {
            json!({"id": first + at, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true})
        };
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = json!({
            "version": "1.0", "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(), "normalizer": null,
            "post_processor": null, "truncation": null, "padding": null, "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    fn check(decoder: Value, token: &str, want: &[u8]) {
        assert_eq!(Spelling::read(&decoder).unwrap().bytes(token), want, "{decoder} {token}");
    }

    #[test]
    fn every_byte_has_a_character() {
        let tokenizer = byte_level(&["né {"], &["<end>"]);
        let words = token_bytes(&tokenizer).unwrap();
        for byte in 0..=255_u8 {
            assert_eq!(words[usize::from(byte)], [byte]);
        }
        assert_eq!(words[256], "né {".as_bytes());
        assert_eq!(words[257], b"\xff<end>");
        // What is written in characters that stand for no byte is itself, as decoders have it.
        check(json!({"type": "ByteLevel"}), "a b", b"a b");
    }

    #[test]
    fn sentencepiece_writes_spaces_and_bytes_in_its_own_way() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let sequence = json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]});
        check(sequence.clone(), "▁a", b" a");
        check(sequence.clone(), "<0x0A>", b"\n");
        check(sequence, "<0xZZ>", b"<0xZZ>");
        check(json!({"type": "Metaspace", "replacement": "▁"}), "▁▁<0x0A>", b"  <0x0A>");
    }

    #[test]
    fn tokenizers_whose_tokens_depend_on_their_neighbours_are_refused() {
        for decoder in [Value::Null, json!({"type": "WordPiece"}), json!({"type": "CTC"})] {
            assert!(Spelling::read(&decoder).is_err(), "{decoder}");
        }
        let error = Vocabulary::new(&Tokenizer::words(100, &[]), &[]).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
    }
}
