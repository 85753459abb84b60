//! What is asked becomes what the device's thread takes: prompt, sampling, stops. Pure; for the CPU pool.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use coordinator_client::wire::task::Text;
use coordinator_client::wire::text::{ChatInput, GenerateInput, ToolChoice, WriteOptions};
use models::task::generate::language::{Language, PromptError};
use models::task::generate::sampling::Sampling;
use models::task::generate::stop::Stops;
use models::task::generate::text::TextStream;

use tokio::sync::mpsc;

use super::Input;
use crate::Error;
use crate::generate::writer::{Ask, Event};
use crate::generate::{End, Ended, Request, Stop};

/// Stop strings of a text: OpenAI's limit is 4, and each is looked for behind every token.
const STOPS_MAX: usize = 16;

/// Bytes of a stop string: as much text may be held back for it.
const STOP_BYTES_MAX: usize = 1024;

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

/// A text as the device's thread takes it, and what was shown of it elsewhere.
pub(crate) struct Prepared {
    pub(crate) ask: Ask,
    pub(crate) shown: String,
}

/// Prepares a text.
///
/// # Errors
/// When it becomes no prompt, or something is out of its range.
pub(crate) fn prepare(language: &Language, input: Input, to: &For<'_>) -> Result<Prepared, Error> {
    let refuse = |error: PromptError| Error::Prompt { model: to.model.to_owned(), error };
    let (prompt, options) = match input {
        Input::Chat(ChatInput { messages, tools, tool_choice, options }) => {
            let tools = tools.filter(|_| tool_choice != Some(ToolChoice::None));
            (language.chat(messages.as_str(), tools.as_ref().map(|tools| tools.as_str())).map_err(refuse)?, options)
        }
        Input::Generate(GenerateInput { prompt: Text::Words(words), options }) => {
            (language.prompt(&words).map_err(refuse)?, options)
        }
        Input::Generate(GenerateInput { prompt: Text::Ids(ids), options }) => (ids, options),
    };
    let sampling = sampling(language.sampling(), &options);
    let WriteOptions { max_tokens, stop, ignore_eos, generated, .. } = options;
    check_stops(&stop)?;
    let room = to.context.saturating_sub(prompt.len());
    let new_tokens_max = max_tokens.map_or(room.max(1), |most| most as usize);
    if new_tokens_max == 0 {
        return Err(Error::Request("max_tokens is 0; ask for at least one token".into()));
    }
    let untold = |detail: String| refuse(PromptError::Tokens(detail));
    let mut stream = TextStream::after(language.tokenizer(), &prompt).map_err(untold)?;
    let mut stops = Stops::new(stop);
    let mut shown = String::new();
    for token in &generated {
        let text = stream.push(language.tokenizer(), *token).map_err(untold)?;
        shown.push_str(&stops.push(&text));
    }
    let &For { priority, deadline, salt, .. } = to;
    let request = Request { prompt, generated, new_tokens_max, priority, deadline: Some(deadline), salt };
    let stop_tokens = if ignore_eos { [].into() } else { language.end_tokens().clone() };
    Ok(Prepared { ask: Ask { request, sampling, stream, stops, stop_tokens }, shown })
}

/// How a text ends whose last token was written elsewhere.
pub(crate) fn is_complete(ask: &Ask) -> Option<End> {
    let Request { generated, new_tokens_max, .. } = &ask.request;
    match ask.stops.has_stopped() {
        true => Some(End::Stopped(Stop::Text)),
        false => (!generated.is_empty() && generated.len() >= *new_tokens_max).then_some(End::Length),
    }
}

/// What a caller gets of a text of which nothing is left to write.
pub(crate) fn ended(end: End, prompt_tokens: usize) -> mpsc::Receiver<Event> {
    let (to, from) = mpsc::channel(1);
    let ended = Ended {
        id: 0,
        end,
        prompt_tokens,
        cached_tokens: 0,
        new_tokens: 0,
        preemptions: 0,
        queued: None,
        first_token: None,
        total: Duration::ZERO,
    };
    to.try_send(Event::Ended { ended, text: String::new() }).expect("it has room for one");
    from
}

fn check_stops(stops: &[String]) -> Result<(), Error> {
    if stops.len() > STOPS_MAX {
        return Err(Error::Request(format!("{} stop strings are given, at most {STOPS_MAX} are taken", stops.len())));
    }
    match stops.iter().map(String::len).max() {
        Some(bytes) if bytes > STOP_BYTES_MAX => {
            Err(Error::Request(format!("a stop string has {bytes} bytes, at most {STOP_BYTES_MAX} are taken")))
        }
        _ => Ok(()),
    }
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
    use coordinator_client::wire::text::JsonText;
    use models::backend::fake_generator;
    use std::sync::Arc;

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
            try_prepare(generate(options)).unwrap().shown
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
            is_complete(&try_prepare(generate(options)).unwrap().ask)
        };
        assert_eq!((end(Some(2), &[]), end(Some(3), &[])), (Some(End::Length), None));
        assert_eq!(end(Some(3), &["w21"]), Some(End::Stopped(Stop::Text)));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let refused = |options| matches!(try_prepare(generate(options)), Err(Error::Request(_)));
        assert!(refused(WriteOptions { max_tokens: Some(0), ..Default::default() }));
        assert!(refused(WriteOptions { stop: vec!["x".into(); STOPS_MAX + 1], ..Default::default() }));
        assert!(refused(WriteOptions { stop: vec!["x".repeat(STOP_BYTES_MAX + 1)], ..Default::default() }));
    }
}
