//! The form that a text must have: JSON, a regular expression or a grammar comes in, and for each next token those that may be written go
//! out. Tokens that were written come in one by one.
//!
//! Grammars are those of the `llguidance` crate, to which this is a door: with bounds on what a caller can make it do, counted in steps
//! and not in time, so that the same text fails or not on every machine. No token is ever forced: where only one text is possible, the
//! model still chooses by which tokens it writes it.

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

/// What a text must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema, which is JSON text. Properties come in the order in which the schema has them.
    JsonSchema(String),
    /// What this regular expression matches from beginning to end. The syntax is that of Rust's `regex`, without looking around.
    Regex(String),
    /// What the rule `start` of this grammar allows, in llguidance's kind of Lark.
    Grammar(String),
    /// A call of a tool, as [`super::tools::Tools`] has put it: a grammar too, and as long as the tools are.
    Calls(String),
}

impl Format {
    /// What it is to be called.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Grammar(_) => "grammar",
            Self::Calls(_) => "tools",
        }
    }

    /// Its source and the most bytes of it.
    fn source(&self) -> (&str, usize) {
        match self {
            Self::JsonObject => (r#"{"type": "object"}"#, SCHEMA_BYTES_MAX),
            Self::JsonSchema(source) | Self::Calls(source) => (source, SCHEMA_BYTES_MAX),
            Self::Regex(source) | Self::Grammar(source) => (source, EXPRESSION_BYTES_MAX),
        }
    }
}

/// Why a text cannot have a form, or has it no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The model cannot do this.
    #[error(
        "the model cannot be held to a form: {0}, so that its tokens have no bytes of their own; leave the form out, or use another model"
    )]
    Tokenizer(String),
    /// It is too long to look at.
    #[error("the {name} has {bytes} bytes, more than {most}; make it shorter")]
    TooLong {
        /// What it is.
        name: &'static str,
        /// How long.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// An object in it has too many properties.
    #[error("an object of the JSON schema has {0} properties, more than {PROPERTIES_MAX}; divide it into several")]
    Properties(usize),
    /// It cannot be used.
    #[error("the {name} cannot be used: {detail}")]
    Format {
        /// What it is.
        name: &'static str,
        /// The library's words.
        detail: String,
    },
    /// A token that the form does not allow where it stands: another form was meant when it was written.
    #[error(
        "token {token} is not allowed by the form that is demanded; what was written must have been written for the same"
    )]
    Token {
        /// Which.
        token: u32,
    },
    /// What comes next cannot be found out within bounds, or there is no token for it.
    #[error("the form that is demanded cannot be followed any further: {0}; make it simpler")]
    Stuck(String),
}

impl Error {
    /// Whether the caller asked for what cannot be done. Otherwise it is the model that cannot.
    pub fn is_callers(&self) -> bool {
        !matches!(self, Self::Tokenizer(_))
    }
}

/// The longest schema, or all tools together. OpenAI takes 120 thousand characters.
pub const SCHEMA_BYTES_MAX: usize = 128 << 10;

/// The longest expression or grammar, and the most that a schema may have in patterns: what it takes to compile one grows with the square of
/// its length, and nothing else bounds it.
pub const EXPRESSION_BYTES_MAX: usize = 8 << 10;

/// The most properties of one object: here, too, it takes their square.
pub const PROPERTIES_MAX: usize = 1_000;

/// White space between the parts of JSON: what people write, but no more of it. A model that is unsure goes on with spaces for as long as it
/// may.
const WHITE_SPACE: &str = r"[ \t]{1,40}|\r?\n[ \t]{0,40}";

/// What a caller can make this do. See [`ParserLimits`] for what each counts; the speeds are its own figures.
pub(super) fn limits() -> ParserLimits {
    ParserLimits {
        // 20 ms.
        initial_lexer_fuel: 1_000_000,
        // 7 ms, which its text may have to wait for: a mask of JSON takes some hundred steps.
        step_lexer_fuel: 100_000,
        // 2.5 ms.
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // At 1 to 2 KiB each, up to 64 MiB for a text.
        max_lexer_states: 32_000,
        max_grammar_size: 200_000,
        // It would be walked at once and without a bound.
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// A text of a demanded form, as far as it is written.
pub struct Constraint {
    matcher: Matcher,
    /// The mask behind what is written, once it is found.
    mask: Option<Vec<u32>>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("stop", &self.matcher.stop_reason()).finish()
    }
}

impl Constraint {
    pub(super) fn new(factory: &ParserFactory, format: &Format) -> Result<Self, Error> {
        let name = format.name();
        let (source, most) = format.source();
        if source.len() > most {
            return Err(Error::TooLong { name, bytes: source.len(), most });
        }
        let grammar = match format {
            Format::Regex(_) => TopLevelGrammar::from_regex(source),
            Format::Grammar(_) | Format::Calls(_) => TopLevelGrammar::from_lark(source.to_owned()),
            Format::JsonObject | Format::JsonSchema(_) => {
                let schema = serde_json::from_str(source).map_err(|e| Error::Format { name, detail: e.to_string() })?;
                TopLevelGrammar::from_json_schema(json_schema(schema)?)
            }
        };
        Self::compile(factory, name, grammar)
    }

    fn compile(factory: &ParserFactory, name: &'static str, grammar: TopLevelGrammar) -> Result<Self, Error> {
        let parser = factory.create_parser(grammar);
        let mut constraint = Self { matcher: Matcher::new(parser), mask: None };
        // The first mask is what shows whether anything can be written at all.
        constraint.find().map_err(|e| match e {
            Error::Stuck(detail) => Error::Format { name, detail },
            other => other,
        })?;
        Ok(constraint)
    }

    /// The tokens that may come next, among them those that end a text where it may end: bit `i % 32` of word `i / 32` is 1 for token `i`.
    ///
    /// # Shapes
    /// `[⌈vocabulary / 32⌉]`, for a model with so many logits.
    ///
    /// # Errors
    /// [`Error::Stuck`]
    pub fn mask(&mut self, vocabulary: usize) -> Result<&[u32], Error> {
        self.find()?;
        let mask = self.mask.get_or_insert_default();
        mask.resize(vocabulary.div_ceil(WORD), 0);
        Ok(mask)
    }

    /// Finds the tokens that may come next, unless they are found, so that [`mask`](Self::mask) takes no time. It takes microseconds, and some 10 ms
    /// at most.
    ///
    /// # Errors
    /// [`Error::Stuck`], as often as it is asked.
    pub fn find(&mut self) -> Result<(), Error> {
        if self.mask.is_none() {
            self.mask = Some(self.computed()?);
        }
        Ok(())
    }

    /// Whether the tokens that may come next are found.
    pub fn is_found(&self) -> bool {
        self.mask.is_some()
    }

    /// The mask in as many words as the tokenizer's vocabulary takes.
    fn computed(&mut self) -> Result<Vec<u32>, Error> {
        let tokens = self.matcher.tok_env().map_err(|e| stuck(&e))?.tok_trie().vocab_size();
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| stuck(&e))?;
        let mut mask = Vec::from(mask);
        mask.truncate(tokens.div_ceil(WORD));
        // One bit behind the last token belongs to the library.
        if let Some(last) = mask.get_mut(tokens / WORD) {
            *last &= (1 << (tokens % WORD)) - 1;
        }
        Ok(mask)
    }

    /// A token was written.
    ///
    /// # Errors
    /// [`Error::Token`] when it may not be; [`Error::Stuck`].
    pub fn push(&mut self, token: u32) -> Result<(), Error> {
        self.mask = None;
        if self.has_ended() {
            let ends = self.matcher.tok_env().map_err(|e| stuck(&e))?;
            let is_end = ends.tok_trie().eos_tokens().contains(&token);
            return if is_end { Ok(()) } else { Err(Error::Token { token }) };
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::Token { token }),
            Err(e) => Err(stuck(&e)),
        }
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.has_ended() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether the text is complete and nothing can be added to it.
    pub fn has_ended(&self) -> bool {
        matches!(self.matcher.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence)
    }
}

/// Tokens of a mask's word.
const WORD: usize = u32::BITS as usize;

/// A schema with our idea of white space, unless it has its own.
///
/// # Errors
/// [`Error::TooLong`] for the patterns in it, [`Error::Properties`].
pub(super) fn json_schema(mut schema: Value) -> Result<Value, Error> {
    let bytes = pattern_bytes(&schema);
    if bytes > EXPRESSION_BYTES_MAX {
        return Err(Error::TooLong { name: "patterns of a JSON schema", bytes, most: EXPRESSION_BYTES_MAX });
    }
    let properties = properties_max(&schema);
    if properties > PROPERTIES_MAX {
        return Err(Error::Properties(properties));
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITE_SPACE}));
    }
    Ok(schema)
}

/// How long all expressions of a schema are.
fn pattern_bytes(schema: &Value) -> usize {
    match schema {
        Value::Array(list) => list.iter().map(pattern_bytes).sum(),
        Value::Object(object) => {
            let of_one = |(key, value): (&String, &Value)| match (key.as_str(), value) {
                ("pattern" | "whitespace_pattern", Value::String(pattern)) => pattern.len(),
                ("patternProperties", Value::Object(of)) => {
                    of.keys().map(String::len).sum::<usize>() + pattern_bytes(value)
                }
                _ => pattern_bytes(value),
            };
            object.iter().map(of_one).sum()
        }
        _ => 0,
    }
}

/// How many members the largest object of a schema has. Only properties are that many.
fn properties_max(schema: &Value) -> usize {
    match schema {
        Value::Array(list) => list.iter().map(properties_max).max().unwrap_or(0),
        Value::Object(object) => object.values().map(properties_max).max().unwrap_or(0).max(object.len()),
        _ => 0,
    }
}

/// The library's words, without what it says of itself behind them.
fn stuck(error: &impl std::fmt::Display) -> Error {
    let words = error.to_string();
    let words = words.split("\n<").next().unwrap_or_default();
    Error::Stuck(words.trim().to_owned())
}

#[cfg(test)]
mod tests;
