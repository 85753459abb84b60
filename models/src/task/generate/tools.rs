//! Tools that a model may call: definitions as OpenAI has them come in, and out go what its chat template is told of them, the form of an
//! answer that must call one, and a [`Parser`] that finds the calls in what it writes. Never calls anything.
//!
//! Models were trained to write calls in different ways. Which one a model has is read from its chat template:
//!
//! | its template has | and it is | a call |
//! |---|---|---|
//! | `<tool_call>`, but not `<function=` | [`Syntax::Hermes`] | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` |
//! | `[TOOL_CALLS]`, but not `[ARGS]` | [`Syntax::Mistral`] | `[TOOL_CALLS] [{"name": …, "arguments": {…}}]` |
//! | `tools` and `"parameters"`, or `<\|python_tag\|>` | [`Syntax::Llama`] | `{"name": …, "parameters": {…}}`, also behind `<\|python_tag\|>` |
//!
//! The first that fits is taken. A model with none of them is given no tools.

use super::constraint::{self, Format, json_schema};
use crate::task::Tokenizer;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;

mod parser;

pub use parser::{Call, Found, Parser};

/// How a model writes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// Hermes, Qwen 2.5 and 3: one object in tags for each call.
    Hermes,
    /// Llama 3.1 to 3.3: an object that is the whole answer.
    Llama,
    /// Mistral: one list of objects behind a token.
    Mistral,
}

impl Syntax {
    /// From the text of a chat template.
    pub fn of(template: &str) -> Option<Self> {
        let has = |words: &str| template.contains(words);
        if has("<tool_call>") {
            return (!has("<function=")).then_some(Self::Hermes);
        }
        if has("[TOOL_CALLS]") {
            return (!has("[ARGS]")).then_some(Self::Mistral);
        }
        let is_llama = has("<|python_tag|>") || has("tools") && has("\"parameters\"");
        is_llama.then_some(Self::Llama)
    }

    /// What stands before a call, or may.
    fn open(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// What stands behind it.
    fn close(self) -> Option<&'static str> {
        (self == Self::Hermes).then_some("</tool_call>")
    }

    /// What the arguments are called.
    fn arguments(self) -> &'static str {
        if self == Self::Llama { "parameters" } else { "arguments" }
    }
}

/// Whether an answer calls tools.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// It does not: the model is not told of any.
    None,
    /// As the model chooses.
    #[default]
    Auto,
    /// It calls at least one.
    Required,
    /// It calls this one, once.
    Function(String),
}

/// Why tools cannot be used. All but the first are the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The model was not made for them.
    #[error("the model's chat template knows no tools; leave `tools` out, or use a model that was tuned to call them")]
    Unknown,
    /// They are not as OpenAI has them.
    #[error(
        "`tools` must be a list of {{\"type\": \"function\", \"function\": {{\"name\": …, \"parameters\": …}}}}: {0}"
    )]
    Shape(String),
    /// A name that calls cannot be told by.
    #[error("the tool's name {0:?} must be 1 to 64 of a-z, A-Z, 0-9, _ and -, and no other tool's")]
    Name(String),
    /// What one of them takes.
    #[error("the tool {name:?} cannot be demanded: {detail}")]
    Parameters {
        /// Which.
        name: String,
        /// Why.
        detail: constraint::Error,
    },
    /// So many.
    #[error("{0} tools are more than {TOOLS_MAX}; give fewer")]
    TooMany(usize),
    /// A call is demanded, and there is nothing to call.
    #[error("a call is demanded by `tool_choice`, but there are no tools; give some")]
    None,
    /// A tool is demanded that there is not.
    #[error("`tool_choice` demands {name:?}, which is none of the tools; there are {known}")]
    Missing {
        /// Which.
        name: String,
        /// All names.
        known: String,
    },
}

/// OpenAI's most.
pub const TOOLS_MAX: usize = 128;

/// Calls that a demanded answer has at most, so that it has an end.
pub const DEMANDED_CALLS_MAX: usize = 8;

/// The tools of a request, for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// As they were given, for the chat template.
    prompt: Option<String>,
    format: Option<Format>,
    shown: Arc<[u32]>,
    reader: Option<(Syntax, Arc<[String]>)>,
}

/// As OpenAI has it.
#[derive(Deserialize)]
struct Definition {
    #[serde(rename = "type")]
    kind: String,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Option<Value>,
}

impl Tools {
    /// The tools of a request to a model that writes calls like this. `tools` is a list in JSON. Without tools, or where none may be called, there
    /// is nothing to be told, to be demanded or to be found.
    ///
    /// # Errors
    /// [`Error`]
    pub fn new(
        syntax: Option<Syntax>,
        tokenizer: &Tokenizer,
        tools: Option<&str>,
        choice: &Choice,
    ) -> Result<Self, Error> {
        let definitions: Vec<Definition> = match tools {
            Some(tools) => serde_json::from_str(tools).map_err(|e| Error::Shape(e.to_string()))?,
            None => vec![],
        };
        if let Some(other) = definitions.iter().find(|definition| definition.kind != "function") {
            return Err(Error::Shape(format!("type {:?} is not known", other.kind)));
        }
        if definitions.len() > TOOLS_MAX {
            return Err(Error::TooMany(definitions.len()));
        }
        let functions: Vec<Function> = definitions.into_iter().map(|definition| definition.function).collect();
        for (at, Function { name, .. }) in functions.iter().enumerate() {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            let is_another = functions[..at].iter().any(|other| other.name == *name);
            if is_another || !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_plain) {
                return Err(Error::Name(name.clone()));
            }
        }
        let demanded: Vec<&Function> = match choice {
            Choice::None | Choice::Auto => vec![],
            Choice::Required if functions.is_empty() => return Err(Error::None),
            Choice::Required => functions.iter().collect(),
            Choice::Function(name) => {
                let known = || functions.iter().map(|function| function.name.as_str()).collect::<Vec<_>>().join(", ");
                let found = functions.iter().find(|function| function.name == *name);
                vec![found.ok_or_else(|| Error::Missing { name: name.clone(), known: known() })?]
            }
        };
        if functions.is_empty() || *choice == Choice::None {
            return Ok(Self { prompt: None, format: None, shown: Arc::default(), reader: None });
        }
        let syntax = syntax.ok_or(Error::Unknown)?;
        let calls_max = if matches!(choice, Choice::Function(_)) { 1 } else { DEMANDED_CALLS_MAX };
        let is_demanded = !demanded.is_empty();
        let format = is_demanded.then(|| grammar(syntax, tokenizer, &demanded, calls_max)).transpose()?;
        let marks = [Some(syntax.open()), syntax.close()];
        let shown = marks.into_iter().flatten().filter_map(|mark| tokenizer.special_id(mark)).collect();
        let names = functions.iter().map(|function| function.name.clone()).collect();
        Ok(Self { prompt: tools.map(str::to_owned), format, shown, reader: Some((syntax, names)) })
    }

    /// What the chat template is told: JSON as it was given. Nothing where no tool may be called.
    pub fn prompt(&self) -> Option<&str> {
        self.prompt.as_deref()
    }

    /// The form of an answer that must call a tool; it goes before any other form. An answer that may do without has none: its
    /// arguments are what the model makes of them.
    pub fn format(&self) -> Option<&Format> {
        self.format.as_ref()
    }

    /// Special tokens that must be told in the text for calls to be found in it: for [`super::text::TextStream::showing`].
    pub fn shown(&self) -> &Arc<[u32]> {
        &self.shown
    }

    /// Finds the calls of one answer. Nothing where there are none to be found: the text is the answer.
    pub fn parser(&self) -> Option<Parser> {
        self.reader.as_ref().map(|(syntax, names)| Parser::new(*syntax, names.clone()))
    }
}

/// OpenAI's longest name.
const NAME_BYTES_MAX: usize = 64;

/// The grammar, in Lark, of an answer that is nothing but calls of these.
fn grammar(syntax: Syntax, tokenizer: &Tokenizer, functions: &[&Function], calls_max: usize) -> Result<Format, Error> {
    let text = |text: &str| Value::from(text).to_string();
    // A special token is none of the texts that a grammar allows, and is named by its number.
    let mark = |mark: &str| match tokenizer.special_id(mark) {
        Some(id) => format!("<[{id}]>"),
        None => text(mark),
    };
    let repeated = |one: &str| if calls_max > 1 { format!(" ({one}){{0,{}}}", calls_max - 1) } else { String::new() };
    let mut lines = vec![match syntax {
        Syntax::Hermes => {
            let [open, close] = ["<tool_call>", "</tool_call>"].map(mark);
            let more = repeated("\"\\n\" one");
            format!("start: one{more}\none: {open} \"\\n\" call \"\\n\" {close}")
        }
        Syntax::Mistral => {
            let (mark, more) = (mark("[TOOL_CALLS]"), repeated("\", \" call"));
            format!("start: {mark} \" \"? \"[\" call{more} \"]\"")
        }
        // It was trained to write one call at a time.
        Syntax::Llama => "start: call".to_owned(),
    }];
    let calls: Vec<String> = (0..functions.len()).map(|at| format!("call_{at}")).collect();
    lines.push(format!("call: {}", calls.join(" | ")));
    for (at, function) in functions.iter().enumerate() {
        let before = format!("{{\"name\": \"{}\", \"{}\": ", function.name, syntax.arguments());
        lines.push(format!("call_{at}: {} arguments_{at} \"}}\"", text(&before)));
        // A rule of its own, so that what it refers to is looked for in its own schema.
        let schema = json_schema(parameters(function.parameters.as_ref()))
            .map_err(|detail| Error::Parameters { name: function.name.clone(), detail })?;
        lines.push(format!("arguments_{at}: %json {schema}"));
    }
    Ok(Format::Calls(lines.join("\n")))
}

/// The schema of arguments: an object, also where it does not say so.
fn parameters(stated: Option<&Value>) -> Value {
    match stated {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) => {
            let mut schema = schema.clone();
            let elsewhere = ["$ref", "anyOf", "oneOf", "allOf", "const", "enum"];
            if !elsewhere.iter().any(|key| schema.contains_key(*key)) {
                schema.entry("type").or_insert_with(|| "object".into());
            }
            schema.into()
        }
        Some(other) => other.clone(),
    }
}

#[cfg(test)]
mod tests;
