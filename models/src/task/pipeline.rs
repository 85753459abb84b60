//! A [`Request`] goes in and items for the device come out; later the device's outputs go in and a [`Reply`] comes
//! out. Pure: the same request gives the same items, and no state is kept between the two halves but [`Pending`].

use super::classify::Scores;
use super::prompt::Prompts;
use super::tokenizer::{self, Length, Tokenizer};
use super::{Error, Reply, Request, Text, classify, embed, infer, limits, rerank};
use crate::engine::{Info, Item, Output, TensorSpec, Tokens};
use crate::load;
use crate::manifest::{Manifest, Task};

/// Preparation and finishing for one loaded model. Cheap to share, needs no lock.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) model: String,
    pub(super) task: Task,
    pub(super) normalize: bool,
    pub(super) labels: Vec<String>,
    pub(super) inputs: Vec<TensorSpec>,
    pub(super) outputs: Vec<TensorSpec>,
    pub(super) batches_rows: bool,
    pub(super) vector_len: usize,
    pub(super) matryoshka: Vec<usize>,
    pub(super) prompts: Prompts,
    pub(super) scores: Option<Scores>,
    text: Option<TextSide>,
}

/// What a model that takes text has.
#[derive(Debug)]
struct TextSide {
    tokenizer: Tokenizer,
    vocabulary: usize,
    max_tokens: usize,
}

/// Items for the device, and what is needed to finish them.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// One after the other, in the order in which [`Pipeline::finish`] wants their outputs.
    pub items: Vec<Item>,
    /// To be given to [`Pipeline::finish`].
    pub pending: Pending,
    /// Tokens of all items, special tokens included: what usage counts. 0 for tensors.
    pub tokens: usize,
}

/// What a request asked, as far as finishing needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending(pub(super) Kind);

/// By the kind of request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Embed { count: usize, dimensions: usize, normalize: bool },
    Rerank { count: usize, top_n: usize },
    ClassifyTexts { count: usize, top_n: usize },
    ClassifyTensors { rows: usize, top_n: usize },
    Infer { outputs: Vec<String> },
}

impl Pipeline {
    /// The pipeline of a model that runs on an engine described by `info`.
    ///
    /// `vocabulary` is the model's own, where its configuration states one; else the tokenizer's counts.
    ///
    /// # Errors
    /// When what the engine gives does not fit the manifest's task.
    pub fn new(
        manifest: &Manifest,
        info: &Info,
        tokenizer: Option<Tokenizer>,
        vocabulary: Option<usize>,
    ) -> Result<Self, load::Error> {
        let misfit = |detail: String| load::Error::Misfit { model: manifest.id(), detail };
        let text = match tokenizer {
            Some(tokenizer) => Some(TextSide {
                vocabulary: vocabulary.unwrap_or_else(|| tokenizer.vocabulary()),
                max_tokens: info.max_tokens.ok_or_else(|| misfit("its longest sequence is unknown".into()))?,
                tokenizer,
            }),
            None => None,
        };
        let vector_len = match (&text, info.vector_len) {
            (Some(_), None) => return Err(misfit("it takes text but gives no vector".into())),
            (_, length) => length.unwrap_or(0),
        };
        let mut pipeline = Self {
            model: manifest.id(),
            task: manifest.task,
            normalize: manifest.normalize,
            labels: manifest.labels.clone(),
            inputs: info.inputs.clone(),
            outputs: info.outputs.clone(),
            batches_rows: info.batches_rows,
            vector_len,
            matryoshka: manifest.matryoshka_dimensions.clone(),
            prompts: Prompts::new(manifest),
            scores: None,
            text,
        };
        match (manifest.task, pipeline.text.is_some()) {
            (Task::Embed | Task::Rerank, false) => return Err(misfit("it needs a tokenizer.json".into())),
            (Task::Rerank, true) if vector_len != 1 => {
                return Err(misfit(format!("a reranker gives 1 score, it gives {vector_len}")));
            }
            (Task::Classify, true) => pipeline.check_labels(vector_len).map_err(misfit)?,
            (Task::Classify, false) => {
                let scores = Scores::find(&info.outputs).map_err(misfit)?;
                pipeline.check_labels(scores.classes.unwrap_or(pipeline.labels.len())).map_err(misfit)?;
                pipeline.scores = Some(scores);
            }
            (Task::Embed, true) => pipeline.check_embedding().map_err(misfit)?,
            _ => {}
        }
        Ok(pipeline)
    }

    /// What the manifest says of embeddings must be possible with this model: lengths that it has, and prompts that leave
    /// room for a text, so that cutting what is too long never cuts a prompt.
    fn check_embedding(&self) -> Result<(), String> {
        if let Some(most) = self.matryoshka.last().filter(|most| **most > self.vector_len) {
            return Err(format!("matryoshka_dimensions has {most}, the model gives {}", self.vector_len));
        }
        let TextSide { tokenizer, max_tokens, .. } = self.text();
        for (name, text) in self.prompts.iter().filter(|(_, text)| !text.is_empty()) {
            let tokens = tokenizer.length(text).map_err(|e| format!("prompt {name:?} is not tokenised: {e}"))?;
            if tokens >= *max_tokens {
                return Err(format!(
                    "prompt {name:?} takes {tokens} of {max_tokens} tokens and leaves no room for a text"
                ));
            }
        }
        Ok(())
    }

    fn check_labels(&self, classes: usize) -> Result<(), String> {
        if self.labels.is_empty() || self.labels.len() == classes {
            return Ok(());
        }
        Err(format!("the manifest has {} labels, the model {classes} classes", self.labels.len()))
    }

    /// `name@version`.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What the model is for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Whether it takes text; else it takes tensors.
    pub fn takes_text(&self) -> bool {
        self.text.is_some()
    }

    /// Length of an embedding.
    pub fn dimensions(&self) -> Option<usize> {
        (self.task == Task::Embed).then_some(self.vector_len)
    }

    /// The longest sequence, for a model that takes text.
    pub fn max_tokens(&self) -> Option<usize> {
        self.text.as_ref().map(|side| side.max_tokens)
    }

    /// Bytes of the longest prompt that may stand before a text; 0 where there is none.
    pub fn prompt_bytes_max(&self) -> usize {
        self.prompts.iter().map(|(_, text)| text.len()).max().unwrap_or(0)
    }

    /// The model's input tensors.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// The model's output tensors.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Checks a request as far as that needs no look into its texts and tensors.
    ///
    /// # Errors
    /// When the model does another task, when there are too many inputs or none, or when what is chosen is not there.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        self.check_task(request)?;
        match request {
            Request::Embed { inputs, prompt, dimensions, .. } => {
                check_count("inputs", inputs.len(), limits::INPUTS_MAX)?;
                embed::check(self, inputs, prompt.as_ref(), *dimensions).map(|_| ())
            }
            Request::Rerank { documents, .. } => check_count("documents", documents.len(), limits::DOCUMENTS_MAX),
            Request::ClassifyTexts { inputs, .. } => check_count("inputs", inputs.len(), limits::INPUTS_MAX),
            Request::ClassifyTensors { .. } | Request::Infer { .. } => Ok(()),
        }
    }

    /// Checks a request and turns it into items.
    ///
    /// # Errors
    /// Everything that is wrong with the request, before a device sees any of it.
    pub fn prepare(&self, request: Request) -> Result<Prepared, Error> {
        self.check(&request)?;
        match request {
            Request::Embed { inputs, prompt, dimensions, normalize, truncate } => {
                embed::prepare(self, inputs, prompt.as_ref(), dimensions, normalize, truncate)
            }
            Request::Rerank { query, documents, top_n, truncate } => {
                rerank::prepare(self, &query, &documents, top_n, truncate)
            }
            Request::ClassifyTexts { inputs, top_n, truncate } => {
                classify::prepare_texts(self, inputs, top_n, truncate)
            }
            Request::ClassifyTensors { inputs, top_n } => classify::prepare_tensors(self, inputs, top_n),
            Request::Infer { inputs, outputs } => infer::prepare(self, inputs, outputs),
        }
    }

    /// Turns the outputs of a request's items into its reply.
    ///
    /// # Errors
    /// [`Error::BrokenOutput`] when they are not what the model can give: another number, another length, NaN.
    pub fn finish(&self, pending: Pending, outputs: Vec<Output>) -> Result<Reply, Error> {
        match pending.0 {
            Kind::Embed { count, dimensions, normalize } => {
                embed::finish(&self.vectors(outputs, count)?, dimensions, normalize)
            }
            Kind::Rerank { count, top_n } => Ok(rerank::finish(&self.vectors(outputs, count)?, top_n)),
            Kind::ClassifyTexts { count, top_n } => {
                let vectors = self.vectors(outputs, count)?;
                Ok(Reply::Labels(vectors.iter().map(|logits| self.rank(logits, true, top_n)).collect()))
            }
            Kind::ClassifyTensors { rows, top_n } => classify::finish_tensors(self, outputs, rows, top_n),
            Kind::Infer { outputs: names } => infer::finish(self, outputs, &names),
        }
    }

    fn check_task(&self, request: &Request) -> Result<(), Error> {
        let fits = match request {
            Request::Embed { .. } => self.task == Task::Embed,
            Request::Rerank { .. } => self.task == Task::Rerank,
            Request::ClassifyTexts { .. } => self.task == Task::Classify && self.takes_text(),
            Request::ClassifyTensors { .. } => self.task == Task::Classify && !self.takes_text(),
            // Any model that takes tensors can be asked for its raw outputs.
            Request::Infer { .. } => !self.takes_text(),
        };
        if fits {
            return Ok(());
        }
        let does = match (self.task, self.takes_text()) {
            (Task::Classify, true) => "classify texts",
            (Task::Classify, false) => "classify tensors",
            (task, _) => task.name(),
        };
        Err(Error::WrongTask { model: self.model.clone(), does, asked: request.name() })
    }

    /// Tokens of each text, with the prompt before those that are words.
    pub(super) fn tokenize_all(&self, inputs: Vec<Text>, prompt: &str, truncate: bool) -> Result<Vec<Item>, Error> {
        let tokens = inputs.into_iter().enumerate().map(|(index, input)| match input {
            Text::Words(text) => {
                let whole = if prompt.is_empty() { text } else { [prompt, &text].concat() };
                self.sequence(index, self.piece(index, &whole)?, None, truncate)
            }
            Text::Ids(ids) => self.check_ids(index, ids, truncate),
        });
        tokens.map(|tokens| tokens.map(Item::Tokens)).collect()
    }

    fn text(&self) -> &TextSide {
        self.text.as_ref().expect("only requests for text come here, and check_task let them through")
    }

    pub(super) fn piece(&self, index: usize, text: &str) -> Result<tokenizer::Piece, Error> {
        if text.len() > limits::TEXT_BYTES_MAX {
            let want = format!("at most {}", limits::TEXT_BYTES_MAX);
            return Err(Error::Range { what: "bytes of a text", have: text.len(), want });
        }
        self.text().tokenizer.piece(text).map_err(|e| self.tokenizer_error(index, e))
    }

    pub(super) fn sequence(
        &self,
        index: usize,
        first: tokenizer::Piece,
        second: Option<tokenizer::Piece>,
        truncate: bool,
    ) -> Result<Tokens, Error> {
        let length = Length { max: self.text().max_tokens, truncate };
        let tokens = self.text().tokenizer.sequence(first, second, length);
        let tokens = tokens.map_err(|e| self.tokenizer_error(index, e))?;
        self.check_vocabulary(index, &tokens.ids)?;
        Ok(tokens)
    }

    fn tokenizer_error(&self, index: usize, error: tokenizer::Error) -> Error {
        match error {
            tokenizer::Error::TooLong(have) => self.too_long(index, have),
            tokenizer::Error::Failed(detail) => Error::Tokenizer { index, detail },
        }
    }

    fn too_long(&self, index: usize, have: usize) -> Error {
        Error::TooLong { index, model: self.model.clone(), have, max: self.text().max_tokens }
    }

    /// A text that the caller tokenised. When cut, its last token (a separator, usually) stays the last.
    fn check_ids(&self, index: usize, mut ids: Vec<u32>, truncate: bool) -> Result<Tokens, Error> {
        if ids.is_empty() {
            return Err(Error::Tokenizer { index, detail: "there are no token ids".into() });
        }
        self.check_vocabulary(index, &ids)?;
        let max = self.text().max_tokens;
        if ids.len() > max {
            if !truncate {
                return Err(self.too_long(index, ids.len()));
            }
            let last = ids[ids.len() - 1];
            ids.truncate(max);
            ids[max - 1] = last;
        }
        Ok(Tokens { ids, type_ids: vec![] })
    }

    fn check_vocabulary(&self, index: usize, ids: &[u32]) -> Result<(), Error> {
        let vocabulary = self.text().vocabulary;
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(&id) => Err(Error::TokenId { index, id, vocabulary }),
            None => Ok(()),
        }
    }

    /// The outputs as vectors of the right number and length, without NaN or infinity.
    fn vectors(&self, outputs: Vec<Output>, count: usize) -> Result<Vec<Vec<f32>>, Error> {
        if outputs.len() != count {
            return Err(self.broken(format!("{} outputs for {count} items", outputs.len())));
        }
        let check = |(index, output)| match output {
            Output::Vector(vector) if vector.len() != self.vector_len => {
                Err(self.broken(format!("item {index} has {} values, not {}", vector.len(), self.vector_len)))
            }
            Output::Vector(vector) if !vector.iter().all(|v: &f32| v.is_finite()) => {
                Err(self.broken(format!("item {index} has values that are not finite")))
            }
            Output::Vector(vector) => Ok(vector),
            Output::Tensors(_) => Err(self.broken(format!("item {index} is tensors, not a vector"))),
        };
        outputs.into_iter().enumerate().map(check).collect()
    }

    pub(super) fn broken(&self, detail: String) -> Error {
        Error::BrokenOutput { model: self.model.clone(), detail }
    }
}

/// What [`Pipeline::prepare`] gives for token items.
pub(super) fn prepared(items: Vec<Item>, pending: Kind) -> Prepared {
    let tokens = items.iter().map(|item| if let Item::Tokens(t) = item { t.ids.len() } else { 0 }).sum();
    Prepared { items, pending: Pending(pending), tokens }
}

/// Refuses none and too many.
pub(super) fn check_count(what: &'static str, have: usize, max: usize) -> Result<(), Error> {
    if (1..=max).contains(&have) { Ok(()) } else { Err(Error::Count { what, have, max }) }
}

/// How many results are wanted: all when nothing was said, never more than there are.
pub(super) fn check_top_n(top_n: Option<usize>, all: usize) -> Result<usize, Error> {
    match top_n {
        Some(0) => Err(Error::Range { what: "top_n", have: 0, want: "at least 1".into() }),
        Some(n) => Ok(n.min(all)),
        None => Ok(all),
    }
}
