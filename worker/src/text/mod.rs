//! The road of a text: what is asked goes in, pieces of the text come out as they are written, and its end. Knows no HTTP and no
//! coordinator.
//!
//! ```text
//! admission.rs      -> Permit      or a refusal at once
//! device/           -> Use         the loaded model
//! text/ask.rs       -> Ask         prompt, sampling and stops, on the CPU pool
//! device/desk.rs    -> Event       a token at each step, on the device's own thread
//! text/mod.rs       -> Piece, End
//! ```
//! Dropping a [`Writing`] calls its text off before the next step.

mod ask;

use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator_client::wire::text::{ChatInput, Finish, GenerateInput, Piece, TokenLogprob, ToolCall, Written};
use models::task::generate::language::Language;
use models::task::generate::sampling::Choice;
use models::task::generate::tools::{Call, Found, Parser};
use tokio::sync::mpsc;

use crate::Error;
use crate::admission::Permit;
use crate::device::resident::Use;
use crate::error::Stage;
use crate::generate::writer::{Event, Failure};
use crate::generate::{End, Ended};
use crate::service::{Handle, NewTask, Timings, Watched};

pub(crate) use ask::{For, Prepared, complete, prepare};

/// A text as it is asked for.
#[derive(Debug, Clone)]
pub struct NewText {
    /// `name` for the newest version at hand, or `name@version`.
    pub model: String,
    /// What is asked.
    pub input: Input,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// When it is of no use any more. The worker's task timeout when absent.
    pub deadline: Option<Instant>,
    /// Only texts with the same salt share what was computed of their prompts: callers who must not learn of each other's prompts
    /// by how fast they are answered have different ones.
    pub salt: u64,
}

/// What is asked of a model that writes text.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// An answer to a conversation.
    Chat(ChatInput),
    /// What stands behind a prompt.
    Generate(GenerateInput),
}

impl Input {
    /// What it asks for, in words.
    pub fn name(&self) -> &'static str {
        match self {
            Input::Chat(_) => "chat",
            Input::Generate(_) => "generate",
        }
    }
}

impl NewText {
    /// A text of the default priority, without a deadline of its own, that shares with all others.
    pub fn new(model: impl Into<String>, input: Input) -> Self {
        Self { model: model.into(), input, priority: NewTask::PRIORITY_DEFAULT, deadline: None, salt: 0 }
    }
}

/// A text that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct TextDone {
    /// All of it.
    pub written: Written,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Of these, tokens that were not computed because the KV cache had them.
    pub cached_tokens: u64,
    /// Where the time went.
    pub timings: Timings,
    /// From its arrival at the device to its first token.
    pub first_token: Option<Duration>,
    /// `name@version` of the model that wrote it.
    pub model: String,
    /// Digest of that model's files.
    pub model_digest: String,
    /// Inside which class of machines it is comparable.
    pub execution_class: String,
}

/// What comes next of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// More of it.
    Piece(Piece),
    /// Its end; nothing more comes.
    End(Box<TextDone>),
}

/// A text that is being written. Dropping it calls it off.
pub struct Writing {
    model: Use,
    language: Arc<Language>,
    from: mpsc::Receiver<Event>,
    /// What was taken from the channel and not given out: the end, behind a piece.
    taken: Option<Event>,
    /// Finds calls of tools in the text, where there may be any.
    parser: Option<Parser>,
    /// So far.
    written: Written,
    prompt_tokens: usize,
    prepared_in: Duration,
    started: Instant,
    worker: Handle,
    watched: Option<Watched>,
    _permit: Permit,
}

/// Pieces of more tokens are not made: who reads slowly gets several.
const PIECE_TOKENS_MAX: usize = 64;

/// What stands for a logarithm that JSON cannot carry: of a token that cannot be.
const LOGPROB_LEAST: f32 = -9999.0;

/// A text that was put on its desk.
pub(crate) struct Begun {
    pub(crate) model: Use,
    pub(crate) language: Arc<Language>,
    pub(crate) from: mpsc::Receiver<Event>,
    pub(crate) parser: Option<Parser>,
    /// What was shown elsewhere already, and the tokens that it was shown for.
    pub(crate) shown: Found,
    pub(crate) generated: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    pub(crate) prepared_in: Duration,
}

/// Its place in the worker.
pub(crate) struct Inside {
    pub(crate) worker: Handle,
    pub(crate) started: Instant,
    pub(crate) watched: Watched,
    pub(crate) permit: Permit,
}

impl Writing {
    pub(crate) fn new(begun: Begun, inside: Inside) -> Self {
        let Begun { model, language, from, parser, shown, generated, prompt_tokens, prepared_in } = begun;
        let Inside { worker, started, watched, permit } = inside;
        let tool_calls = shown.calls.into_iter().map(call_of).collect();
        let written = Written { text: shown.text, tokens: generated, tool_calls, ..nothing() };
        Self {
            model,
            language,
            from,
            taken: None,
            parser,
            written,
            prompt_tokens,
            prepared_in,
            started,
            worker,
            watched: Some(watched),
            _permit: permit,
        }
    }

    /// `name@version` of the model that writes.
    pub fn model(&self) -> &str {
        &self.model.id
    }

    /// Waits for what comes next: all tokens that are there by then are one piece. Nothing comes behind the end or an error.
    ///
    /// # Errors
    /// When it cannot be written on.
    pub async fn next(&mut self) -> Option<Result<Next, Error>> {
        self.watched.as_ref()?;
        let mut piece = Piece::default();
        loop {
            let event = match self.taken.take() {
                Some(event) => Some(event),
                None if piece.tokens.is_empty() => self.from.recv().await,
                None => match self.from.try_recv() {
                    Ok(event) => Some(event),
                    Err(_) => return Some(Ok(self.give(piece))),
                },
            };
            match event {
                Some(Event::Token { choice, text }) => {
                    piece.tokens.push(choice.token);
                    self.find(&mut piece, text);
                    piece.logprobs.extend(self.logprob(&choice));
                    if piece.tokens.len() == PIECE_TOKENS_MAX {
                        return Some(Ok(self.give(piece)));
                    }
                }
                // What was held back to the end belongs to no token, and is a piece of its own: nobody can go on from it.
                Some(end @ Event::Ended { .. }) if !piece.tokens.is_empty() => {
                    self.taken = Some(end);
                    return Some(Ok(self.give(piece)));
                }
                Some(Event::Ended { ended, text }) => {
                    self.find(&mut piece, text);
                    if let Some(parser) = self.parser.take() {
                        add(&mut piece, parser.finish());
                    }
                    if piece.is_empty() {
                        return Some(self.end(ended));
                    }
                    self.taken = Some(Event::Ended { ended, text: String::new() });
                    return Some(Ok(self.give(piece)));
                }
                Some(failed @ Event::Failed(_)) if !piece.tokens.is_empty() => {
                    self.taken = Some(failed);
                    return Some(Ok(self.give(piece)));
                }
                Some(Event::Failed(failure)) => return Some(Err(self.fail(failure))),
                None if !piece.tokens.is_empty() => {
                    self.taken = Some(Event::Failed(Failure::Unloaded));
                    return Some(Ok(self.give(piece)));
                }
                None => return Some(Err(self.fail(Failure::Unloaded))),
            }
        }
    }

    /// Puts a piece of the text where it belongs: to what is shown, or to a call.
    fn find(&mut self, piece: &mut Piece, text: String) {
        add(piece, ask::find(&mut self.parser, text));
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it cannot be written on.
    pub async fn whole(mut self) -> Result<TextDone, Error> {
        loop {
            match self.next().await {
                Some(Ok(Next::Piece(_))) => {}
                Some(Ok(Next::End(done))) => return Ok(*done),
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Internal("a text ended twice".into())),
            }
        }
    }

    fn give(&mut self, piece: Piece) -> Next {
        self.written.text.push_str(&piece.text);
        self.written.tokens.extend_from_slice(&piece.tokens);
        self.written.tool_calls.extend_from_slice(&piece.tool_calls);
        self.written.logprobs.extend_from_slice(&piece.logprobs);
        Next::Piece(piece)
    }

    fn logprob(&self, choice: &Choice) -> Option<TokenLogprob> {
        let of = |token: u32, logprob: f32, top| {
            let text = self.language.tokenizer().text(&[token]).unwrap_or_default();
            TokenLogprob { token, text, logprob: logprob.max(LOGPROB_LEAST), top }
        };
        let top = choice.top.iter().map(|(token, logprob)| of(*token, *logprob, vec![])).collect();
        choice.logprob.map(|logprob| of(choice.token, logprob, top))
    }

    fn end(&mut self, ended: Ended) -> Result<Next, Error> {
        self.written.finish = match ended.end {
            End::Stopped(_) if !self.written.tool_calls.is_empty() => Finish::ToolCalls,
            End::Stopped(_) => Finish::Stop,
            End::Length => Finish::Length,
            End::Deadline => {
                let error = Error::DeadlineExceeded { stage: Stage::Writing };
                return Err(self.failed(error));
            }
            End::Cancelled => return Err(self.fail(Failure::Unloaded)),
        };
        let written = std::mem::replace(&mut self.written, nothing());
        let queue = ended.queued.unwrap_or_default();
        let timings = Timings {
            queue,
            prepare: self.prepared_in,
            device: ended.total.saturating_sub(queue),
            finish: Duration::ZERO,
        };
        let done = TextDone {
            input_tokens: self.prompt_tokens as u64,
            cached_tokens: ended.cached_tokens.min(self.prompt_tokens) as u64,
            written,
            timings,
            first_token: ended.first_token,
            model: self.model.id.clone(),
            model_digest: self.model.digest.clone(),
            execution_class: self.model.info.execution_class.clone(),
        };
        if let Some(watched) = self.watched.take() {
            watched.wrote(&done, ended.new_tokens, self.started.elapsed());
        }
        Ok(Next::End(Box::new(done)))
    }

    fn fail(&mut self, failure: Failure) -> Error {
        let model = self.model.id.clone();
        let error = match failure {
            Failure::Engine(error) => Error::Engine { model, error },
            Failure::Panicked => Error::Panicked { model },
            Failure::Unloaded => self.worker.why_gone(&model),
            failure @ (Failure::Sampling(_) | Failure::Constraint(_) | Failure::Text(_)) => {
                Error::NotWritten { model, detail: failure.to_string() }
            }
        };
        self.failed(error)
    }

    fn failed(&mut self, error: Error) -> Error {
        if let Some(watched) = self.watched.take() {
            watched.failed(&error);
        }
        error
    }
}

fn add(piece: &mut Piece, Found { text, calls }: Found) {
    piece.text.push_str(&text);
    piece.tool_calls.extend(calls.into_iter().map(call_of));
}

fn call_of(Call { name, arguments }: Call) -> ToolCall {
    ToolCall { name, arguments }
}

fn nothing() -> Written {
    Written { text: String::new(), tokens: vec![], tool_calls: vec![], logprobs: vec![], finish: Finish::Stop }
}
