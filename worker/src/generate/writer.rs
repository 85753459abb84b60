//! Writes texts on one engine: the scheduler's plans are carried out, tokens are chosen and become text, and each caller gets its
//! own as it comes. The only thing that it decides is where a text ends.
//!
//! What may come next in a text of a demanded form is found on the CPU pool, from when its token is written to when the next step's logits are there.
//! Where that is not soon enough the text sits out: its logits are kept, and its token is chosen before the first plan by whose time it is found. Nobody
//! waits for it but itself. Where there is nothing else to run, the step does or awaits what is missing.
//!
//! A caller's channel holds all that it may get, so that nobody who reads slowly holds up the others. One that was closed calls its
//! text off: its blocks are free before the next step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use models::engine::{self, Choose, Generator, NoChoice, Rows};
use models::generate::{Plan, Sampled, SequenceId};
use models::task::Tokenizer;
use models::task::generate::constraint::{self, Constraint};
use models::task::generate::sampling::{self, Choice, Sampler, Sampling, Scratch};
use models::task::generate::stop::Stops;
use models::task::generate::text::TextStream;
use tokio::sync::mpsc;

use super::beside::{Beside, Crashed};
use super::{End, Ended, Refusal, Request, Scheduler, Stop};
use crate::pool::Pool;

/// A text to be written.
#[derive(Debug)]
pub struct Ask {
    /// What the scheduler needs to know.
    pub request: Request,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// The text so far: it stands behind the prompt and the tokens that were generated already.
    pub stream: TextStream,
    /// The text ends where one of these begins. What was generated already has been pushed.
    pub stops: Stops,
    /// Tokens that end a text. They are no part of it.
    pub stop_tokens: Arc<[u32]>,
    /// The form that it must have. What was generated already has been pushed.
    pub constraint: Option<Constraint>,
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
    /// The engine panicked.
    #[error("the engine crashed")]
    Panicked,
    /// The engine was taken down.
    #[error("the engine was taken down")]
    Unloaded,
}

/// What a step was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// There was nothing to run.
    Idle,
    /// It ran.
    Ran {
        /// Sequences in it.
        sequences: usize,
        /// Their tokens.
        tokens: usize,
    },
    /// It failed, and with it the texts that it was for.
    Failed(engine::Error),
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
    /// A token is not below the vocabulary.
    #[error("token id {token} is not below the vocabulary's {vocabulary}")]
    Token {
        /// Which.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
}

/// What is kept of a text that is being written.
struct Text {
    sampler: Sampler,
    constraint: Option<Beside<Constraint>>,
    stream: TextStream,
    stops: Stops,
    stop_tokens: Arc<[u32]>,
    to: mpsc::Sender<Event>,
    /// What its next token is to be chosen from, while it is not known what may come next: logits, and their position.
    kept: Option<(Vec<f32>, usize)>,
}

/// One engine and the texts that it writes.
pub struct Writer {
    scheduler: Scheduler,
    engine: Box<dyn Generator>,
    tokenizer: Arc<Tokenizer>,
    pool: Pool,
    texts: HashMap<SequenceId, Text>,
    scratch: Scratch,
    sampled: Vec<Sampled>,
    stopped: Vec<(SequenceId, Stop)>,
    /// Who sits out.
    late: Vec<SequenceId>,
    failed: Vec<(SequenceId, Failure)>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("engine", self.engine.info()).field("texts", &self.texts.len()).finish()
    }
}

impl Writer {
    /// One that writes nothing yet. The scheduler's blocks are the engine's; the pool has one closure of each text at a time.
    pub fn new(scheduler: Scheduler, engine: Box<dyn Generator>, tokenizer: Arc<Tokenizer>, pool: Pool) -> Self {
        Self {
            scheduler,
            engine,
            tokenizer,
            pool,
            texts: HashMap::new(),
            scratch: Scratch::new(),
            sampled: Vec::new(),
            stopped: Vec::new(),
            late: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Takes a text on. What is written comes out of the channel; dropping that calls it off.
    ///
    /// # Errors
    /// At once, with figures, when it cannot be.
    pub fn submit(&mut self, now: Instant, ask: Ask) -> Result<mpsc::Receiver<Event>, Refused> {
        let Ask { request, sampling, stream, stops, stop_tokens, constraint } = ask;
        sampling.check()?;
        let vocabulary = self.engine.info().vocabulary;
        let of_bias = sampling.bias.iter().map(|(token, _)| token);
        let before = request.prompt.iter().chain(&request.generated);
        if let Some(&token) = before.chain(of_bias).find(|token| **token as usize >= vocabulary) {
            return Err(Refused::Token { token, vocabulary });
        }
        let sampler = Sampler::new(sampling, &request.prompt, &request.generated);
        // All its tokens, and its end.
        let most = request.new_tokens_max.saturating_sub(request.generated.len()).saturating_add(1);
        let id = self.scheduler.submit(now, request)?;
        let (to, from) = mpsc::channel(most);
        // Found already, unless it goes on behind what was written elsewhere. What goes wrong is told when it is asked for.
        let mut constraint = constraint.map(|constraint| Beside::new(constraint, |one| drop(one.find())));
        find_next(&mut constraint, &self.pool);
        self.texts.insert(id, Text { sampler, constraint, stream, stops, stop_tokens, to, kept: None });
        Ok(from)
    }

    /// The scheduler, for its figures and the next deadline.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Whether no text is here.
    pub fn is_idle(&self) -> bool {
        self.texts.is_empty()
    }

    /// Gives up every text.
    pub fn fail_all(&mut self, failure: &Failure) {
        for text in std::mem::take(&mut self.texts).into_values() {
            text.tell(Event::Failed(failure.clone()));
        }
    }

    /// Runs one step.
    pub fn step(&mut self, clock: &dyn Fn() -> Instant) -> Step {
        let is_gone = |(id, text): (&SequenceId, &Text)| text.to.is_closed().then_some(*id);
        for id in self.texts.iter().filter_map(is_gone).collect::<Vec<_>>() {
            self.scheduler.cancel(clock(), id);
        }
        self.go_on(clock);
        while self.scheduler.next(clock()).is_empty() && self.wait() {
            self.go_on(clock);
        }
        let Self { scheduler, engine, tokenizer, pool, texts, scratch, sampled, stopped, late, failed } = self;
        let plan = scheduler.plan();
        sampled.clear();
        stopped.clear();
        let before = late.len();
        let mut step = Step::Idle;
        if !plan.is_empty() {
            step = Step::Ran { sequences: plan.len(), tokens: plan.tokens().len() };
        }
        let mut choosing = Choosing { plan, tokenizer, pool, texts, scratch, sampled, stopped, late, failed };
        let result = if plan.is_empty() { Ok(()) } else { engine.step_and_choose(plan, &mut choosing) };
        match result {
            Ok(()) => {
                late[before..].iter().for_each(|id| scheduler.defer(*id));
                scheduler.finish_step(clock(), sampled, stopped);
            }
            // What it left in the blocks is of no use: it must not count as computed, for others would share it.
            Err(error) => {
                failed.extend(plan.parts().map(|part| (part.sequence, Failure::Engine(error.clone()))));
                step = Step::Failed(error);
            }
        }
        self.tell_ends(clock);
        step
    }

    /// Chooses the tokens of those who sat out and need not any more.
    fn go_on(&mut self, clock: &dyn Fn() -> Instant) {
        let Self { scheduler, tokenizer, pool, texts, scratch, late, failed, .. } = self;
        late.retain(|id| {
            let Some(text) = texts.get_mut(id) else { return false };
            // Whoever lost its blocks meanwhile gets the same logits again.
            let Some((mut logits, position)) = text.kept.take().filter(|_| scheduler.awaits(*id)) else { return false };
            let written = match text.choose(&mut logits, position, scratch) {
                Ok(Some(choice)) => text.write(tokenizer, pool, choice),
                Ok(None) => {
                    text.kept = Some((logits, position));
                    return true;
                }
                Err(failure) => Err(failure),
            };
            match written {
                Ok((token, stop)) => scheduler.finish_late(clock(), Sampled { sequence: *id, token }, stop),
                Err(failure) => failed.push((*id, failure)),
            }
            false
        });
        self.tell_ends(clock);
    }

    /// Sees to it that one of those who sit out can go on. Returns false when there is none.
    fn wait(&mut self) -> bool {
        let Some(text) = self.late.first().and_then(|id| self.texts.get_mut(id)) else { return false };
        text.constraint.as_mut().is_some_and(|constraint| {
            constraint.wait();
            true
        })
    }

    /// Tells those who failed, and those who came to an end.
    fn tell_ends(&mut self, clock: &dyn Fn() -> Instant) {
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
    }
}

/// Sends a text's form to where it is found what may come next, unless that is known or nothing may.
fn find_next(constraint: &mut Option<Beside<Constraint>>, pool: &Pool) {
    let Some(beside) = constraint else { return };
    if let Ok(Some(constraint)) = beside.get()
        && !constraint.is_found()
        && !constraint.has_ended()
    {
        beside.send(pool);
    }
}

/// What is said of a form when what follows it panicked.
fn lost(_: Crashed) -> constraint::Error {
    constraint::Error::Stuck("finding what may come next crashed".into())
}

/// Who chooses the tokens of a step, or has the device choose them.
struct Choosing<'a> {
    plan: &'a Plan,
    tokenizer: &'a Tokenizer,
    pool: &'a Pool,
    texts: &'a mut HashMap<SequenceId, Text>,
    scratch: &'a mut Scratch,
    sampled: &'a mut Vec<Sampled>,
    stopped: &'a mut Vec<(SequenceId, Stop)>,
    late: &'a mut Vec<SequenceId>,
    failed: &'a mut Vec<(SequenceId, Failure)>,
}

impl Choosing<'_> {
    /// Which text a part is of, and the position of the token that is chosen for it.
    fn place(&self, at: usize) -> (SequenceId, usize) {
        let part = self.plan.part(at);
        (part.sequence, part.position + part.tokens.len())
    }

    fn keep(&mut self, id: SequenceId, written: Result<(u32, Option<Stop>), Failure>) {
        match written {
            Ok((token, stop)) => {
                self.sampled.push(Sampled { sequence: id, token });
                self.stopped.extend(stop.map(|stop| (id, stop)));
            }
            Err(failure) => self.failed.push((id, failure)),
        }
    }
}

impl Choose for Choosing<'_> {
    fn ask(&mut self, at: usize, rows: &mut Rows) -> bool {
        let (id, position) = self.place(at);
        self.texts.get_mut(&id).is_some_and(|text| text.ask(position, rows))
    }

    fn chosen(&mut self, at: usize, token: Result<u32, NoChoice>) {
        let (id, _) = self.place(at);
        let Some(text) = self.texts.get_mut(&id) else { return };
        let choice = token.map(|token| text.sampler.accept(token)).map_err(Failure::from);
        let written = choice.and_then(|choice| text.write(self.tokenizer, self.pool, choice));
        self.keep(id, written);
    }

    fn logits(&mut self, at: usize, logits: &mut [f32]) {
        let (id, position) = self.place(at);
        let Some(text) = self.texts.get_mut(&id) else { return };
        match text.choose(logits, position, self.scratch) {
            Ok(Some(choice)) => {
                let written = text.write(self.tokenizer, self.pool, choice);
                self.keep(id, written);
            }
            Ok(None) => {
                text.kept = Some((logits.to_vec(), position));
                self.late.push(id);
            }
            Err(failure) => self.keep(id, Err(failure)),
        }
    }
}

impl Text {
    /// Adds what its next token is to be chosen by. Returns false where that has to be done here, or is not known yet.
    fn ask(&mut self, position: usize, rows: &mut Rows) -> bool {
        let tokens = rows.tokens();
        let Self { constraint, sampler, .. } = self;
        match constraint {
            None => sampler.ask(None, position, rows),
            Some(beside) => {
                let Ok(Some(form)) = beside.get() else { return false };
                form.mask(tokens).is_ok_and(|allowed| sampler.ask(Some(allowed), position, rows))
            }
        }
    }

    /// Chooses the next token. Leaves everything as it is, and gives nothing, where it is not known what may come next.
    fn choose(
        &mut self,
        logits: &mut [f32],
        position: usize,
        scratch: &mut Scratch,
    ) -> Result<Option<Choice>, Failure> {
        let Self { constraint, sampler, .. } = self;
        let allowed = match constraint {
            None => None,
            Some(beside) => match beside.get().map_err(lost)? {
                None => return Ok(None),
                Some(form) => Some(form.mask(logits.len())?),
            },
        };
        Ok(Some(sampler.choose(logits, allowed, position, scratch)?))
    }

    /// Hands a token out that was chosen by what may come next. Gives it, and whether the text ends with it.
    fn write(&mut self, tokenizer: &Tokenizer, pool: &Pool, choice: Choice) -> Result<(u32, Option<Stop>), Failure> {
        let token = choice.token;
        if self.stop_tokens.contains(&token) {
            return Ok((token, Some(Stop::Token)));
        }
        let mut is_complete = false;
        if let Some(beside) = &mut self.constraint
            && let Some(form) = beside.get().map_err(lost)?
        {
            form.push(token)?;
            is_complete = form.has_ended();
        }
        let text = self.stream.push(tokenizer, token).map_err(Failure::Text)?;
        let text = self.stops.push(&text);
        self.tell(Event::Token { choice, text });
        let stop = self.stops.has_stopped().then_some(Stop::Text).or(is_complete.then_some(Stop::Grammar));
        if stop.is_none() {
            find_next(&mut self.constraint, pool);
        }
        Ok((token, stop))
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
