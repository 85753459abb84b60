//! What a node is offered: a task's input as it was submitted, but of a text that another node began, what reached this side
//! of it too. Stored inputs come in, payloads with their digests go out.

use super::payload::{self, Damaged};
use super::to_wire;
use crate::grid::Grid;
use crate::nodes::link::Offered;
use crate::store::{self, Claimed};
use coordinator_client::wire::digest::encode;
use coordinator_client::wire::text::WriteOptions;
use coordinator_client::wire::{Attempt, Payload, TaskId, TaskInput, TaskKind};

/// Why a task cannot be offered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("the input's blob cannot be used: {0}")]
    Blob(String),
}

/// Tokens of a text at most, where its input says so and is at hand.
fn tokens_max(input: &Payload<TaskInput>) -> Option<u32> {
    match input {
        Payload::Inline(task) => options_of(task)?.max_tokens,
        Payload::Blob(_) => None,
    }
}

/// How a text is to be written, where the task is one.
pub(crate) fn options_of(task: &TaskInput) -> Option<&WriteOptions> {
    match task {
        TaskInput::Generate(input) => Some(&input.options),
        TaskInput::Chat(input) => Some(&input.options),
        TaskInput::Embed(_) | TaskInput::Rerank(_) | TaskInput::Classify(_) | TaskInput::Infer(_) => None,
    }
}

fn options_of_mut(task: &mut TaskInput) -> Option<&mut WriteOptions> {
    match task {
        TaskInput::Generate(input) => Some(&mut input.options),
        TaskInput::Chat(input) => Some(&mut input.options),
        TaskInput::Embed(_) | TaskInput::Rerank(_) | TaskInput::Classify(_) | TaskInput::Infer(_) => None,
    }
}

/// Chooses a seed where the caller left that open, so that every attempt writes the same text. Returns whether it did.
pub(crate) fn fix_seed(task: &mut TaskInput) -> bool {
    match options_of_mut(task) {
        Some(options) if options.seed.is_none() => {
            options.seed = Some(rand::random());
            true
        }
        _ => false,
    }
}

/// Whether tasks of this kind are texts to be written.
pub(crate) fn is_text(kind: TaskKind) -> bool {
    matches!(kind, TaskKind::Generate | TaskKind::Chat)
}

impl Grid {
    /// What a claimed task's node is offered.
    pub(crate) async fn to_offer(&self, task: &Claimed) -> Result<(Payload<TaskInput>, Offered), Error> {
        let attempt = to_wire(task.attempt);
        let (mut input, mut input_sha256) = payload::read::<TaskInput>(&task.input)?;
        let tokens_max = tokens_max(&input);
        if is_text(task.kind) {
            let generated = self.hub.texts.begin(attempt, tokens_max);
            if !generated.is_empty() {
                self.metrics.continued.increment(1);
                (input, input_sha256) = self.going_on(attempt.task, input, generated).await?;
            }
            self.hub.texts.offered(attempt, input_sha256.clone());
        }
        Ok((input, Offered { kind: task.kind, model: task.model.clone(), input_sha256, tokens_max }))
    }

    /// The input of a text that goes on behind these tokens, with its SHA-256.
    async fn going_on(
        &self,
        id: TaskId,
        input: Payload<TaskInput>,
        generated: Vec<u32>,
    ) -> Result<(Payload<TaskInput>, String), Error> {
        let mut task = match input {
            Payload::Inline(task) => task,
            Payload::Blob(blob) => self.read_blob(&blob.sha256).await.map_err(Error::Blob)?,
        };
        if let Some(options) = options_of_mut(&mut task) {
            options.generated = generated;
        }
        let stored = self.keep_input(id, encode(&task)).await.map_err(|e| Error::Blob(e.to_string()))?;
        Ok(payload::read(&stored)?)
    }

    /// What was offered as an attempt of which its link knows no more, or `None` when the task is forgotten.
    pub(crate) async fn offered(&self, attempt: Attempt) -> Result<Option<Offered>, store::Error> {
        let id = attempt.task;
        let (Some(task), Some(stored)) = (self.store.task(id).await?, self.store.input(id).await?) else {
            return Ok(None);
        };
        let read = payload::read::<TaskInput>(&stored).ok();
        let tokens_max = read.as_ref().and_then(|(input, _)| tokens_max(input));
        let submitted = read.map(|(_, sha256)| sha256).unwrap_or_default();
        let input_sha256 = self.hub.texts.input_sha256(attempt).unwrap_or(submitted);
        Ok(Some(Offered { kind: task.kind, model: task.model, input_sha256, tokens_max }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::task::{EmbedInput, Text};
    use coordinator_client::wire::text::GenerateInput;

    #[test]
    fn a_seed_is_chosen_once() {
        let generate = |seed| {
            let options = WriteOptions { seed, ..WriteOptions::default() };
            TaskInput::Generate(GenerateInput { prompt: Text::Ids(vec![1]), options })
        };
        let mut open = generate(None);
        assert!(fix_seed(&mut open));
        let chosen = open.clone();
        assert!(!fix_seed(&mut open), "it is fixed now");
        assert_eq!(open, chosen);
        let mut fixed = generate(Some(7));
        assert!(!fix_seed(&mut fixed));
        assert_eq!(fixed, generate(Some(7)));
        assert!(!fix_seed(&mut TaskInput::Embed(EmbedInput::default())));
    }
}
