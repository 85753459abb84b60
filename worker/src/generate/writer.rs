//! Writes texts on one engine: the scheduler's plans are carried out, tokens are chosen and become text, and each caller gets its
//! own as it comes. The only thing that it decides is where a text ends.
//!
//! A caller's channel holds all that it may get, so that nobody who reads slowly holds up the others. One that was closed calls its
//! text off: its blocks are free before the next step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use models::engine::{self, Generator};
use models::generate::{Sampled, SequenceId};
use models::task::Tokenizer;
use models::task::generate::constraint::{self, Constraint};
use models::task::generate::sampling::{self, Choice, Sampler, Sampling, Scratch};
use models::task::generate::stop::Stops;
use models::task::generate::text::TextStream;
use tokio::sync::mpsc;

use super::{End, Ended, Refusal, Request, Scheduler, Stop};

/// A text to be written.
#[derive(Debug)]
pub struct Ask {
    /// What the scheduler needs to know.
    pub request: Request,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// The text ends where one of these begins.
    pub stops: Vec<String>,
    /// Tokens that end a text. They are no part of it.
    pub stop_tokens: Arc<[u32]>,
    /// The form that it must have: from its first token on, those that were generated already included.
    pub constraint: Option<Constraint>,
    /// Special tokens that its text names, as it does no others.
    pub shown: Arc<[u32]>,
}

/// What a caller gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was written.
    Token {
        /// Which, and how likely it was.
        choice: Choice,
        /// What may be shown now: nothing while it may be the beginning of a character or of a stop string.
        text: String,
    },
    /// The text is at its end; nothing more comes.
    Ended {
        /// Why, and its figures.
        ended: Ended,
        /// What was held back until now.
        text: String,
    },
    /// It failed; nothing more comes.
    Failed(Failure),
}

/// Why a text failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The step that it was part of.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// No token could be chosen.
    #[error(transparent)]
    Sampling(#[from] sampling::Error),
    /// Its form allows no token that there is.
    #[error(transparent)]
    Constraint(#[from] constraint::Error),
    /// The tokenizer could not turn its tokens into text.
    #[error("its tokens could not be turned into text: {0}")]
    Text(String),
}

/// Why a text is not taken on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The scheduler's reason.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// A parameter is out of its range.
    #[error(transparent)]
    Sampling(#[from] sampling::Error),
    /// What was generated already has not the form that is demanded.
    #[error(transparent)]
    Constraint(#[from] constraint::Error),
    /// A token is not below the vocabulary.
    #[error("token id {token} is not below the vocabulary's {vocabulary}")]
    Token {
        /// Which.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// The prompt's tokens are none of the tokenizer's.
    #[error("the prompt's tokens have no text: {0}")]
    Text(String),
}

/// What is kept of a text that is being written.
struct Text {
    sampler: Sampler,
    constraint: Option<Constraint>,
    stream: TextStream,
    stops: Stops,
    stop_tokens: Arc<[u32]>,
    to: mpsc::Sender<Event>,
}

/// One engine and the texts that it writes.
pub struct Writer {
    scheduler: Scheduler,
    engine: Box<dyn Generator>,
    tokenizer: Arc<Tokenizer>,
    texts: HashMap<SequenceId, Text>,
    scratch: Scratch,
    sampled: Vec<Sampled>,
    stopped: Vec<(SequenceId, Stop)>,
    failed: Vec<(SequenceId, Failure)>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("engine", self.engine.info()).field("texts", &self.texts.len()).finish()
    }
}

impl Writer {
    /// One that writes nothing yet. The scheduler's blocks are the engine's.
    pub fn new(scheduler: Scheduler, engine: Box<dyn Generator>, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            scheduler,
            engine,
            tokenizer,
            texts: HashMap::new(),
            scratch: Scratch::new(),
            sampled: Vec::new(),
            stopped: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Takes a text on. What is written comes out of the channel; dropping that calls it off.
    ///
    /// # Errors
    /// At once, with figures, when it cannot be.
    pub fn submit(&mut self, now: Instant, ask: Ask) -> Result<mpsc::Receiver<Event>, Refused> {
        let Ask { request, sampling, stops, stop_tokens, mut constraint, shown } = ask;
        sampling.check()?;
        let before = [&request.prompt[..], &request.generated].concat();
        let vocabulary = self.engine.info().vocabulary;
        let of_bias = sampling.bias.iter().map(|(token, _)| token);
        if let Some(&token) = before.iter().chain(of_bias).find(|token| **token as usize >= vocabulary) {
            return Err(Refused::Token { token, vocabulary });
        }
        if let Some(constraint) = &mut constraint {
            request.generated.iter().try_for_each(|token| constraint.push(*token))?;
        }
        let stream = TextStream::showing(&self.tokenizer, &before, shown).map_err(Refused::Text)?;
        let sampler = Sampler::new(sampling, &request.prompt, &request.generated);
        // All its tokens, and its end.
        let most = request.new_tokens_max.saturating_sub(request.generated.len()).saturating_add(1);
        let id = self.scheduler.submit(now, request)?;
        let (to, from) = mpsc::channel(most);
        self.texts.insert(id, Text { sampler, constraint, stream, stops: Stops::new(stops), stop_tokens, to });
        Ok(from)
    }

    /// The scheduler, for its figures and the next deadline.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Runs one step. Returns false when there was nothing to run.
    pub fn step(&mut self, clock: &dyn Fn() -> Instant) -> bool {
        let is_gone = |(id, text): (&SequenceId, &Text)| text.to.is_closed().then_some(*id);
        for id in self.texts.iter().filter_map(is_gone).collect::<Vec<_>>() {
            self.scheduler.cancel(clock(), id);
        }
        let plan = self.scheduler.next(clock());
        let Self { engine, tokenizer, texts, scratch, sampled, stopped, failed, .. } = self;
        sampled.clear();
        stopped.clear();
        let has_work = !plan.is_empty();
        let mut choose = |at: usize, logits: &mut [f32]| {
            let part = plan.part(at);
            let id = part.sequence;
            let Some(text) = texts.get_mut(&id) else { return };
            match text.write(tokenizer, logits, part.position + part.tokens.len(), scratch) {
                Ok((token, stop)) => {
                    sampled.push(Sampled { sequence: id, token });
                    stopped.extend(stop.map(|stop| (id, stop)));
                }
                Err(failure) => failed.push((id, failure)),
            }
        };
        let result = if has_work { engine.step(plan, &mut choose) } else { Ok(()) };
        match result {
            Ok(()) => self.scheduler.finish_step(clock(), &self.sampled, &self.stopped),
            // What it left in the blocks is of no use: it must not count as computed, for others would share it.
            Err(error) => {
                failed.extend(plan.parts().map(|part| (part.sequence, Failure::Engine(error.clone()))));
            }
        }
        for (id, failure) in self.failed.drain(..) {
            if let Some(text) = self.texts.remove(&id) {
                text.tell(Event::Failed(failure));
            }
            self.scheduler.cancel(clock(), id);
        }
        for ended in self.scheduler.drain_ended() {
            if let Some(text) = self.texts.remove(&ended.id) {
                text.end(&self.tokenizer, ended);
            }
        }
        has_work
    }
}

impl Text {
    /// Chooses the next token and hands it out. Says whether it ends the text.
    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &mut [f32],
        position: usize,
        scratch: &mut Scratch,
    ) -> Result<(u32, Option<Stop>), Failure> {
        let allowed = self.constraint.as_mut().map(|constraint| constraint.mask(logits.len())).transpose()?;
        let choice = self.sampler.choose(logits, allowed, position, scratch)?;
        let token = choice.token;
        if self.stop_tokens.contains(&token) {
            return Ok((token, Some(Stop::Token)));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.push(token)?;
        }
        let text = self.stream.push(tokenizer, token).map_err(Failure::Text)?;
        let text = self.stops.push(&text);
        self.tell(Event::Token { choice, text });
        let is_complete = self.constraint.as_ref().is_some_and(Constraint::has_ended);
        let stop = self.stops.has_stopped().then_some(Stop::Text);
        Ok((token, stop.or(is_complete.then_some(Stop::Grammar))))
    }

    /// Hands out what was held back, and the end.
    fn end(mut self, tokenizer: &Tokenizer, ended: Ended) {
        let mut text = String::new();
        if ended.end != End::Stopped(Stop::Text) {
            // What its last tokens left open; bytes that make no character are not worth failing for.
            let open = std::mem::take(&mut self.stream).finish(tokenizer).unwrap_or_default();
            text = self.stops.push(&open) + &self.stops.finish();
        }
        self.tell(Event::Ended { ended, text });
    }

    /// There is room for all that it may get. A caller who has left need not be told.
    fn tell(&self, event: Event) {
        drop(self.to.try_send(event));
    }
}

#[cfg(test)]
mod tests;
