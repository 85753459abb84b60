//! What a model that writes text has beside its weights: its tokenizer, its chat template, the tokens that end a text and how it is
//! meant to be sampled. Requests become prompts here; files of the checkpoint go in.

use super::chat::{self, Template};
use super::constraint::{self, Constraint, Format};
use super::sampling::Sampling;
use super::tools::{self, Syntax, Tools};
use super::vocabulary::Vocabulary;
use crate::load::Error;
use crate::task::Tokenizer;
use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// The parts, as `transformers` saves them. Absent files are null or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// `config.json`
    pub config: &'a Value,
    /// `generation_config.json`
    pub generation: &'a Value,
    /// `tokenizer_config.json`
    pub tokenizer: &'a Value,
    /// `chat_template.jinja`, where the template stands in a file of its own.
    pub template: Option<&'a str>,
}

/// Where the sampling that a model is meant for is stated.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// Where a template of its own file stands.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Turns requests into prompts, for one model. Cheap to share, needs no lock.
#[derive(Debug)]
pub struct Language {
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    end_tokens: Arc<[u32]>,
    sampling: Sampling,
    /// Made when the first form is demanded.
    vocabulary: OnceLock<Result<Vocabulary, constraint::Error>>,
}

/// Why a request becomes no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The model was not made for conversations.
    #[error("the model has no chat template; use /v1/completions, or a model that was tuned for conversations")]
    NoTemplate,
    /// The template refuses them.
    #[error(transparent)]
    Chat(#[from] chat::Error),
    /// The tokenizer's words.
    #[error("the prompt cannot be tokenised: {0}")]
    Tokens(String),
    /// There is nothing to continue.
    #[error("the prompt has no token; write something")]
    Empty,
}

impl Language {
    /// From a tokenizer and the files beside it.
    ///
    /// # Errors
    /// When a file is broken.
    pub fn new(tokenizer: Tokenizer, files: Files<'_>) -> Result<Self, Error> {
        let template = Template::read(files.tokenizer, files.template)
            .map_err(|e| Error::config(crate::load::inspect::TOKENIZER_CONFIG, e))?;
        let mut end_tokens: Vec<u32> = Vec::new();
        for stated in [&files.generation["eos_token_id"], &files.config["eos_token_id"]] {
            let one = stated.as_u64().into_iter();
            let several = stated.as_array().into_iter().flatten().filter_map(Value::as_u64);
            end_tokens.extend(one.chain(several).filter_map(|id| u32::try_from(id).ok()));
        }
        let eos = &files.tokenizer["eos_token"];
        end_tokens.extend(eos.as_str().or(eos["content"].as_str()).and_then(|token| tokenizer.id(token)));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let sampling = sampling(files.generation)?;
        let (tokenizer, end_tokens) = (Arc::new(tokenizer), end_tokens.into());
        Ok(Self { tokenizer, template, end_tokens, sampling, vocabulary: OnceLock::new() })
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Tokens that end a text.
    pub fn end_tokens(&self) -> &Arc<[u32]> {
        &self.end_tokens
    }

    /// The sampling of requests that state none.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Whether it takes conversations.
    pub fn chats(&self) -> bool {
        self.template.is_some()
    }

    /// What a text of this form may go on with, from its first token on. For the first form the vocabulary is made, which takes a tenth of
    /// a second for a hundred thousand tokens; a form itself some milliseconds, and at most some tens.
    ///
    /// # Errors
    /// [`constraint::Error`]
    pub fn constraint(&self, format: &Format) -> Result<Constraint, constraint::Error> {
        let vocabulary = self.vocabulary.get_or_init(|| Vocabulary::new(&self.tokenizer, &self.end_tokens));
        vocabulary.as_ref().map_err(Clone::clone)?.constraint(format)
    }

    /// The tools of a request, as this model calls them: a list in JSON, as OpenAI has it.
    ///
    /// # Errors
    /// [`tools::Error`]
    pub fn tools(&self, tools: Option<&str>, choice: &tools::Choice) -> Result<Tools, tools::Error> {
        let syntax = self.template.as_ref().and_then(|template| Syntax::of(template.source()));
        Tools::new(syntax, &self.tokenizer, tools, choice)
    }

    /// A conversation's tokens, up to where the model answers. JSON as OpenAI has it.
    ///
    /// # Errors
    /// [`PromptError`]
    pub fn chat(&self, messages: &str, tools: Option<&str>) -> Result<Vec<u32>, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        // Special tokens are written out in it.
        let ids = self.tokenizer.ids(&template.prompt(messages, tools)?).map_err(PromptError::Tokens)?;
        if ids.is_empty() { Err(PromptError::Empty) } else { Ok(ids) }
    }

    /// A text's tokens, with the special ones that begin one.
    ///
    /// # Errors
    /// [`PromptError`]
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let ids = self.tokenizer.begun(text).map_err(PromptError::Tokens)?;
        if ids.is_empty() { Err(PromptError::Empty) } else { Ok(ids) }
    }
}

/// What a `generation_config.json` states of sampling. One that says not to sample is greedy.
fn sampling(generation: &Value) -> Result<Sampling, Error> {
    let number = |key: &str, default: f32| match &generation[key] {
        Value::Null => Ok(default),
        value => value
            .as_f64()
            .map(|number| number as f32)
            .ok_or_else(|| Error::config(GENERATION_CONFIG, format!("{key} is {value}; a number is needed"))),
    };
    let usual = Sampling::default();
    let is_greedy = generation["do_sample"] == false;
    let sampling = Sampling {
        temperature: if is_greedy { 0.0 } else { number("temperature", usual.temperature)? },
        top_k: generation["top_k"].as_u64().unwrap_or(0) as usize,
        top_p: number("top_p", usual.top_p)?,
        min_p: number("min_p", usual.min_p)?,
        typical_p: number("typical_p", usual.typical_p)?,
        repetition_penalty: number("repetition_penalty", usual.repetition_penalty)?,
        ..usual
    };
    sampling.check().map_err(|e| Error::config(GENERATION_CONFIG, e))?;
    Ok(sampling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MARKED: &[(&str, u32)] = &[("<user>", 1), ("<end>", 2), ("<stop>", 3)];

    fn language(generation: Value, tokenizer: Value) -> Result<Language, Error> {
        let config = json!({"eos_token_id": 3});
        let files = Files { config: &config, generation: &generation, tokenizer: &tokenizer, template: None };
        Language::new(Tokenizer::words(100, MARKED), files)
    }

    #[test]
    fn a_conversation_is_tokenised_as_its_template_writes_it() {
        let template =
            json!({"chat_template": "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"});
        let language = language(Value::Null, template).unwrap();
        let ids = language.chat(r#"[{"role": "user", "content": "a b"}]"#, None).unwrap();
        let words = language.tokenizer().ids("a b").unwrap();
        assert_eq!(ids, [&[1], &words[..], &[2]].concat());
        assert!(language.chats());
        // A completion begins as the tokenizer begins a text.
        assert_eq!(language.prompt("a b").unwrap(), [&[0], &words[..]].concat());
    }

    #[test]
    fn what_cannot_be_a_prompt_is_refused() {
        let none = language(Value::Null, Value::Null).unwrap();
        assert_eq!(none.chat("[]", None), Err(PromptError::NoTemplate));
        let empty = language(Value::Null, json!({"chat_template": ""})).unwrap();
        assert_eq!(empty.chat("[]", None), Err(PromptError::Empty));
        let broken = language(Value::Null, json!({"chat_template": "{% if"})).unwrap_err().to_string();
        assert!(broken.contains("tokenizer_config.json"), "{broken}");
    }

    #[test]
    fn ends_and_sampling_come_from_wherever_they_are_stated() {
        let generation = json!({"eos_token_id": [7, 3], "temperature": 0.6, "top_p": 0.9, "top_k": 50});
        let stated = language(generation, json!({"eos_token": {"content": "<end>"}})).unwrap();
        assert_eq!(**stated.end_tokens(), [2, 3, 7]);
        let Sampling { temperature, top_k, top_p, min_p, .. } = stated.sampling().clone();
        assert_eq!((temperature, top_k, top_p, min_p), (0.6, 50, 0.9, 0.0));
        let greedy = language(json!({"do_sample": false, "temperature": 0.6}), Value::Null).unwrap();
        assert_eq!(greedy.sampling().temperature, 0.0);
        for (generation, key) in [(json!({"top_p": "x"}), "top_p"), (json!({"temperature": 9}), "temperature")] {
            let error = language(generation, Value::Null).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(GENERATION_CONFIG), "{error}");
        }
    }
}
