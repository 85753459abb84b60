//! What is asked becomes what the device's thread takes: prompt, sampling, stops. Pure; for the CPU pool.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator_client::wire::text::{
    self as wire, ChatInput, GenerateInput, JsonText, Text, ToolChoice, WriteOptions,
};
use models::task::Tokenizer;
use models::task::generate::constraint::{self, Constraint, Format};
use models::task::generate::language::{Language, PromptError};
use models::task::generate::sampling::Sampling;
use models::task::generate::stop::Stops;
use models::task::generate::text::TextStream;
use models::task::generate::tools::{Choice, Found, Parser, Tools};

use tokio::sync::mpsc;

use super::Input;
use crate::Error;
use crate::generate::writer::{Ask, Event};
use crate::generate::{End, Ended, Request, Stop};

/// What does not depend on the input.
pub(crate) struct For<'a> {
    /// `name@version`.
    pub(crate) model: &'a str,
    /// Tokens of a text at most, prompt included.
    pub(crate) context: usize,
    /// 0 to 9.
    pub(crate) priority: u8,
    /// When it is of no use any more.
    pub(crate) deadline: Instant,
    /// Whom it shares with.
    pub(crate) salt: u64,
}

/// A text as the device's thread takes it.
pub(crate) struct Prepared {
    pub(crate) ask: Ask,
    /// What was shown of it elsewhere.
    pub(crate) shown: Found,
    /// Finds calls in the rest.
    pub(crate) parser: Option<Parser>,
}

/// Prepares a text.
///
/// # Errors
/// When it becomes no prompt, or something is out of its range.
pub(crate) fn prepare(language: &Language, input: Input, to: &For<'_>) -> Result<Prepared, Error> {
    let refuse = |error: PromptError| Error::Prompt { model: to.model.to_owned(), error };
    let mut tools = None;
    let (prompt, options) = match input {
        Input::Chat(ChatInput { messages, tools: stated, tool_choice, options }) => {
            let choice = tool_choice.map_or(Choice::Auto, choice_of);
            let stated = language.tools(stated.as_ref().map(JsonText::as_str), &choice);
            let stated = stated.map_err(|error| Error::Tools { model: to.model.to_owned(), error })?;
            let prompt = language.chat(messages.as_str(), stated.prompt()).map_err(refuse)?;
            tools = Some(stated);
            (prompt, options)
        }
        Input::Generate(GenerateInput { prompt: Text::Words(words), options }) => {
            (language.prompt(&words).map_err(refuse)?, options)
        }
        Input::Generate(GenerateInput { prompt: Text::Ids(ids), options }) => (ids, options),
    };
    let sampling = sampling(language.sampling(), &options);
    let WriteOptions { max_tokens, stop, ignore_eos, format, generated, .. } = options;
    let room = to.context.saturating_sub(prompt.len());
    let new_tokens_max = max_tokens.map_or(room.max(1), |most| most as usize);

    let shapeless = |error: constraint::Error| Error::Form { model: to.model.to_owned(), error };
    let format = format.map(format_of);
    // A call that is demanded is all that there is to be.
    let format = tools.as_ref().and_then(Tools::format).or(format.as_ref());
    let mut constraint = format.map(|format| language.constraint(format)).transpose().map_err(shapeless)?;

    let untold = |detail: String| refuse(PromptError::Tokens(detail));
    let marks = tools.as_ref().map(|tools| Arc::clone(tools.shown())).unwrap_or_default();
    let mut parser = tools.as_ref().and_then(Tools::parser);
    let mut stream = TextStream::showing(language.tokenizer(), &prompt, marks).map_err(untold)?;
    let mut stops = Stops::new(stop);
    let mut shown = Found::default();
    for token in &generated {
        if let Some(constraint) = &mut constraint {
            constraint.push(*token).map_err(shapeless)?;
        }
        let text = stops.push(&stream.push(language.tokenizer(), *token).map_err(untold)?);
        let Found { text, calls } = find(&mut parser, text);
        shown.text.push_str(&text);
        shown.calls.extend(calls);
    }
    let &For { priority, deadline, salt, .. } = to;
    let request = Request { prompt, generated, new_tokens_max, priority, deadline: Some(deadline), salt };
    let stop_tokens = if ignore_eos { [].into() } else { language.end_tokens().clone() };
    Ok(Prepared { ask: Ask { request, sampling, stream, stops, stop_tokens, constraint }, shown, parser })
}

/// What a piece of text turns out to be, where calls are looked for.
pub(super) fn find(parser: &mut Option<Parser>, text: String) -> Found {
    match parser {
        Some(parser) => parser.push(&text),
        None => Found { text, calls: vec![] },
    }
}

fn choice_of(choice: ToolChoice) -> Choice {
    match choice {
        ToolChoice::None => Choice::None,
        ToolChoice::Auto => Choice::Auto,
        ToolChoice::Required => Choice::Required,
        ToolChoice::Function(name) => Choice::Function(name),
    }
}

fn format_of(format: wire::Format) -> Format {
    match format {
        wire::Format::JsonObject => Format::JsonObject,
        wire::Format::JsonSchema(schema) => Format::JsonSchema(schema.as_str().to_owned()),
        wire::Format::Regex(pattern) => Format::Regex(pattern),
        wire::Format::Grammar(grammar) => Format::Grammar(grammar),
    }
}

/// The end of a text whose last token was written elsewhere, as its caller gets it; else the text itself, of which something is left.
pub(crate) fn complete(ask: Ask, tokenizer: &Tokenizer) -> Result<mpsc::Receiver<Event>, Box<Ask>> {
    let Request { prompt, generated, new_tokens_max, .. } = &ask.request;
    let end = match ask.stops.has_stopped() {
        true => End::Stopped(Stop::Text),
        false if ask.constraint.as_ref().is_some_and(Constraint::has_ended) => End::Stopped(Stop::Grammar),
        false if !generated.is_empty() && generated.len() >= *new_tokens_max => End::Length,
        false => return Err(Box::new(ask)),
    };
    let ended = Ended {
        id: 0,
        end,
        prompt_tokens: prompt.len(),
        cached_tokens: 0,
        new_tokens: 0,
        preemptions: 0,
        queued: None,
        first_token: None,
        total: Duration::ZERO,
    };
    let Ask { stream, mut stops, .. } = ask;
    let open = stream.finish(tokenizer).unwrap_or_default();
    let text = stops.push(&open) + &stops.finish();
    let (to, from) = mpsc::channel(1);
    to.try_send(Event::Ended { ended, text }).expect("it has room for one");
    Ok(from)
}

/// The model's own sampling, but for what the request states.
fn sampling(own: &Sampling, options: &WriteOptions) -> Sampling {
    Sampling {
        temperature: options.temperature.unwrap_or(own.temperature),
        top_k: options.top_k.map_or(own.top_k, |count| count as usize),
        top_p: options.top_p.unwrap_or(own.top_p),
        min_p: options.min_p.unwrap_or(own.min_p),
        typical_p: options.typical_p.unwrap_or(own.typical_p),
        repetition_penalty: options.repetition_penalty.unwrap_or(own.repetition_penalty),
        presence_penalty: options.presence_penalty.unwrap_or(own.presence_penalty),
        frequency_penalty: options.frequency_penalty.unwrap_or(own.frequency_penalty),
        bias: options.logit_bias.iter().map(|(token, bias)| (*token, *bias)).collect(),
        logprobs: options.logprobs.map(|count| count as usize),
        // The keys of a new hasher are random, as far as a text needs it.
        seed: options.seed.unwrap_or_else(|| RandomState::new().hash_one(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::backend::fake_generator;

    fn language() -> Arc<Language> {
        fake_generator::loaded(1 << 20).language
    }

    fn try_prepare(input: Input) -> Result<Prepared, Error> {
        let to = For { model: "m@1", context: 64, priority: 5, deadline: Instant::now(), salt: 7 };
        prepare(&language(), input, &to)
    }

    fn generate(options: WriteOptions) -> Input {
        Input::Generate(GenerateInput { prompt: Text::Words("a b".into()), options })
    }

    #[test]
    fn a_text_has_the_models_sampling_but_for_what_is_asked() {
        let options = WriteOptions { top_p: Some(0.5), seed: Some(9), max_tokens: Some(5), ..Default::default() };
        let Ask { request, sampling, .. } = try_prepare(generate(options)).unwrap().ask;
        assert_eq!((request.prompt.len(), request.new_tokens_max, request.salt), (3, 5, 7));
        assert_eq!((sampling.top_p, sampling.seed, sampling.temperature), (0.5, 9, 1.0));
        let without = || try_prepare(generate(WriteOptions::default())).unwrap().ask;
        assert_eq!(without().request.new_tokens_max, 64 - 3);
        assert_ne!(without().sampling.seed, without().sampling.seed);
    }

    #[test]
    fn a_conversation_becomes_a_prompt() {
        let messages = JsonText::new(r#"[{"role": "user", "content": "a b"}]"#.into()).unwrap();
        let chat = |messages| ChatInput { messages, tools: None, tool_choice: None, options: WriteOptions::default() };
        let prepared = try_prepare(Input::Chat(chat(messages))).unwrap();
        assert_eq!(prepared.ask.request.prompt, language().tokenizer().ids("user a b").unwrap());
        let empty = JsonText::new("[]".into()).unwrap();
        assert!(matches!(try_prepare(Input::Chat(chat(empty))), Err(Error::Prompt { .. })));
    }

    #[test]
    fn what_was_shown_elsewhere_is_what_would_be_shown_here() {
        let generated = vec![20, 21, 22];
        let shown = |stop: &[&str]| {
            let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
            let options = WriteOptions { generated: generated.clone(), stop, ..Default::default() };
            try_prepare(generate(options)).unwrap().shown.text
        };
        assert_eq!(shown(&[]), "w20 w21 w22 ");
        // The beginning of a stop string is held back.
        assert_eq!(shown(&["w22 w9"]), "w20 w21 ");
    }

    #[test]
    fn a_text_whose_last_token_was_written_elsewhere_is_at_its_end() {
        let end = |max_tokens, stop: &[&str]| {
            let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
            let options = WriteOptions { generated: vec![20, 21], stop, max_tokens, ..Default::default() };
            let ask = try_prepare(generate(options)).unwrap().ask;
            let mut from = complete(ask, language().tokenizer()).ok()?;
            match from.try_recv() {
                Ok(Event::Ended { ended, text }) => Some((ended.end, text)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(end(Some(2), &[]), Some((End::Length, String::new())));
        assert_eq!(end(Some(3), &[]), None);
        assert_eq!(end(Some(3), &["w21"]), Some((End::Stopped(Stop::Text), String::new())));
        // What was held back for a stop string that does not come is shown now.
        assert_eq!(end(Some(2), &["w21 w"]), Some((End::Length, "w21 ".to_owned())));
    }
}
