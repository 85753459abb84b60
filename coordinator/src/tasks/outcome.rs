//! What nodes report: results are checked and settled, failures and refusals become the store's words for who was at
//! fault. Reports come in, acknowledgements go out. A result that is not what it says never reaches a caller.

use super::hub::{Done, News};
use super::relay::Nonsense;
use super::{from_wire, payload};
use crate::grid::Grid;
use crate::nodes::link::{Link, Offered};
use crate::store::{self, Failure, Fault, GivenBack, Settlement, Want};
use coordinator_client::api::Code;
use coordinator_client::identity;
use coordinator_client::wire::digest::{encode, sha256_hex};
use coordinator_client::wire::{
    self, AckOutcome, Cancel, Decline, DeclineReason, Failed, FailureClass, Frame, Payload, TaskOutput, TaskResult,
    Timings, Usage,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What is kept of a result beside its output. In the store as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) execution_class: String,
    pub(crate) model_digest: String,
    pub(crate) batch_size: u32,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    pub(crate) input_sha256: String,
    pub(crate) output_sha256: String,
    /// The node's, in hex.
    pub(crate) signature: String,
}

/// A result that is not what it says.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the result says it is of model {got}, the task asks {want}")]
    Model { got: String, want: String },
    #[error("the result is of kind {got}, the task of kind {want}")]
    Kind { got: &'static str, want: &'static str },
    #[error("the result names input {got}, the task's is {want}")]
    Input { got: String, want: String },
    #[error("the output's SHA-256 is {got}, the result names {want}")]
    Output { got: String, want: String },
    #[error("the result's signature is not the node's")]
    Signature,
    #[error("the output cannot be read: {0}")]
    Blob(String),
    #[error(transparent)]
    Text(#[from] Nonsense),
}

/// Why a result was not settled.
enum Trouble {
    Refused(Refusal),
    /// The coordinator was started again since it offered this, and does not know any more what it offered.
    Forgotten,
    Store(store::Error),
}

impl From<store::Error> for Trouble {
    fn from(error: store::Error) -> Self {
        Trouble::Store(error)
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Trouble::Refused(refusal)
    }
}

impl Grid {
    /// Settles a result. `None` when the store failed: the node sends it again.
    pub(crate) async fn settle(&self, link: &Link, offered: Option<Offered>, result: TaskResult) -> Option<AckOutcome> {
        let attempt = from_wire(result.attempt);
        let want = offered.as_ref().map(|offered| Want { kind: offered.kind, model: offered.model.clone() });
        match self.try_settle(link, offered, result).await {
            Ok(Settlement::Settled) => {
                self.metrics.settled.increment(1);
                Some(AckOutcome::Settled)
            }
            Ok(Settlement::Duplicate) => {
                self.metrics.duplicate.increment(1);
                Some(AckOutcome::Duplicate)
            }
            Ok(Settlement::Stale) => {
                self.metrics.stale.increment(1);
                Some(AckOutcome::StaleAttempt)
            }
            Err(Trouble::Refused(refusal)) => {
                tracing::warn!(node = link.node.short(), task = %attempt.task, %refusal, "a result was refused");
                self.metrics.refused_results.increment(1);
                let failure = Failure {
                    fault: Fault::Worker,
                    code: Code::DigestMismatch,
                    detail: refusal.to_string(),
                    retryable: true,
                };
                self.acknowledge(self.give_back(attempt, &link.node, failure, true, want).await)
            }
            Err(Trouble::Forgotten) => {
                let detail =
                    "the coordinator was started again and does not know any more from where this text went on";
                let code = Code::StaleAttempt;
                let failure = Failure { fault: Fault::Coordinator, code, detail: detail.into(), retryable: true };
                self.acknowledge(self.give_back(attempt, &link.node, failure, false, want).await)
            }
            Err(Trouble::Store(error)) => {
                tracing::error!(task = %attempt.task, %error, "a result could not be settled; the node sends it again");
                None
            }
        }
    }

    async fn try_settle(
        &self,
        link: &Link,
        offered: Option<Offered>,
        result: TaskResult,
    ) -> Result<Settlement, Trouble> {
        let attempt = from_wire(result.attempt);
        let offered = match offered {
            Some(offered) => offered,
            None => match self.offered(result.attempt).await? {
                None => return Ok(Settlement::Stale),
                Some(offered) if self.is_forgotten(&offered, &result) => return Err(Trouble::Forgotten),
                Some(offered) => offered,
            },
        };
        check_facts(&offered, &result)?;
        identity::verify(&link.public_key, &result.signed_bytes(&link.node), &result.signature)
            .map_err(|_| Refusal::Signature)?;
        let facts = Facts {
            execution_class: result.execution_class,
            model_digest: result.model_digest,
            batch_size: result.batch_size,
            usage: result.usage,
            timings: result.timings,
            input_sha256: result.input_sha256,
            output_sha256: result.output_sha256,
            signature: data_encoding::HEXLOWER.encode(&result.signature),
        };
        let (stored, mut output) = match result.output {
            Payload::Inline(output) => {
                let encoded = encode(&output);
                let got = sha256_hex(&encoded);
                if got != facts.output_sha256 {
                    return Err(Refusal::Output { got, want: facts.output_sha256 }.into());
                }
                (payload::inline(&encoded), output)
            }
            Payload::Blob(blob) => {
                if blob.sha256 != facts.output_sha256 {
                    return Err(Refusal::Output { got: blob.sha256, want: facts.output_sha256 }.into());
                }
                let output = self.read_blob::<TaskOutput>(&blob.sha256).await.map_err(Refusal::Blob)?;
                self.registry
                    .blobs
                    .refer(&blob.sha256, attempt.task)
                    .await
                    .map_err(|e| Refusal::Blob(e.to_string()))?;
                (payload::reference(blob), output)
            }
        };
        check_kind(&offered, &output)?;
        let usage = facts.usage;
        let texts = &self.hub.texts;
        if let TaskOutput::Generate(written) | TaskOutput::Chat(written) = &mut output {
            texts.check(attempt.task, written, usage, offered.tokens_max).map_err(Refusal::Text)?;
            let own = std::mem::take(&mut written.logprobs);
            written.logprobs = texts.all_logprobs(attempt.task, own);
        }
        let facts = serde_json::to_string(&facts).expect("facts are plain data");
        let settlement = self.store.finish(attempt, &link.node, stored, facts).await?;
        if settlement == Settlement::Settled {
            self.hub.tell(attempt.task, News::Done(Arc::new(Done { output, usage })));
        }
        Ok(settlement)
    }

    /// Whether a text was offered as one that goes on, from where nobody here knows any more.
    fn is_forgotten(&self, offered: &Offered, result: &TaskResult) -> bool {
        let may_go_on = result.attempt.epoch > 1 && super::offer::is_text(offered.kind);
        let is_unknown = self.hub.texts.input_sha256(result.attempt).is_none();
        may_go_on && is_unknown && result.input_sha256 != offered.input_sha256
    }

    /// A value that went by reference.
    pub(crate) async fn read_blob<T: serde::de::DeserializeOwned>(&self, sha256: &str) -> Result<T, String> {
        let max = self.options.registry.payload_bytes_max;
        let encoded = self.registry.blobs.read(sha256, max).await.map_err(|e| e.to_string())?;
        payload::decode(&encoded).map_err(|e| e.to_string())
    }

    /// A task was not done. `None` when the store failed: the node sends it again.
    pub(crate) async fn failed(&self, link: &Link, offered: Option<Offered>, failed: Failed) -> Option<AckOutcome> {
        self.metrics.failed.increment(1);
        let want = offered.map(|offered| Want { kind: offered.kind, model: offered.model });
        let attempt = from_wire(failed.attempt);
        let (failure, counts) = failure_of(failed);
        self.acknowledge(self.give_back(attempt, &link.node, failure, counts, want).await)
    }

    /// A node tells of a text what cannot be: it is stopped, and another one goes on.
    pub(crate) async fn refuse_text(
        &self,
        link: &Link,
        offered: Option<Offered>,
        attempt: wire::Attempt,
        nonsense: Nonsense,
    ) {
        tracing::warn!(node = link.node.short(), task = %attempt.task, %nonsense, "a piece of a text was refused");
        self.metrics.refused_pieces.increment(1);
        let want = offered.map(|offered| Want { kind: offered.kind, model: offered.model });
        let detail = format!("a piece of the text was refused: {nonsense}");
        let failure = Failure { fault: Fault::Worker, code: Code::Internal, detail, retryable: true };
        if let Err(error) = self.give_back(from_wire(attempt), &link.node, failure, true, want).await {
            tracing::error!(task = %attempt.task, %error, "a refused text waits until its lease is over");
        }
        link.send(Frame::Cancel(Cancel { attempt, reason: "what it tells of the text was refused".into() }));
    }

    /// An offer was not taken.
    pub(crate) async fn declined(&self, link: &Link, offered: Option<Offered>, decline: Decline) {
        self.metrics.declined.increment(1);
        let want = offered.map(|offered| Want { kind: offered.kind, model: offered.model });
        let attempt = from_wire(decline.attempt);
        let failure = refusal_of(&decline);
        if let Err(error) = self.give_back(attempt, &link.node, failure, false, want).await {
            tracing::error!(task = %attempt.task, %error, "a declined offer waits until its lease is over");
        }
    }

    fn acknowledge(&self, given_back: Result<GivenBack, store::Error>) -> Option<AckOutcome> {
        match given_back {
            Ok(GivenBack::Stale) => {
                self.metrics.stale.increment(1);
                Some(AckOutcome::StaleAttempt)
            }
            Ok(_) => Some(AckOutcome::Settled),
            Err(error) => {
                tracing::error!(%error, "a report could not be settled; the node sends it again");
                None
            }
        }
    }
}

fn check_facts(offered: &Offered, result: &TaskResult) -> Result<(), Refusal> {
    if result.model != offered.model {
        return Err(Refusal::Model { got: result.model.clone(), want: offered.model.clone() });
    }
    if result.input_sha256 != offered.input_sha256 {
        return Err(Refusal::Input { got: result.input_sha256.clone(), want: offered.input_sha256.clone() });
    }
    Ok(())
}

fn check_kind(offered: &Offered, output: &TaskOutput) -> Result<(), Refusal> {
    use coordinator_client::wire::TaskKind;
    let got = match output {
        TaskOutput::Embed { .. } => TaskKind::Embed,
        TaskOutput::Rerank { .. } => TaskKind::Rerank,
        TaskOutput::Classify { .. } => TaskKind::Classify,
        TaskOutput::Infer { .. } => TaskKind::Infer,
        TaskOutput::Generate(_) => TaskKind::Generate,
        TaskOutput::Chat(_) => TaskKind::Chat,
    };
    if got == offered.kind { Ok(()) } else { Err(Refusal::Kind { got: got.name(), want: offered.kind.name() }) }
}

/// The store's words for a failure, and whether it counts against the task.
fn failure_of(failed: Failed) -> (Failure, bool) {
    let (fault, retryable, counts) = match failed.class {
        FailureClass::Input => (Fault::Caller, false, true),
        // No room is no failure of the task; whether to try again is not for one node to say.
        FailureClass::Resource => (Fault::Worker, true, false),
        FailureClass::Model => (Fault::Model, failed.retryable, true),
        FailureClass::Hardware | FailureClass::Internal => (Fault::Worker, true, true),
        // We did not cancel it, or the attempt would be stale: the node stopped it for reasons of its own.
        FailureClass::Cancelled => (Fault::Network, true, false),
    };
    (Failure { fault, code: failed.code, detail: failed.detail, retryable }, counts)
}

/// The store's words for an offer that was not taken: a misplaced offer is our fault.
fn refusal_of(decline: &Decline) -> Failure {
    let (code, reason) = match decline.reason {
        DeclineReason::NoSlot => (Code::QueueFull, "no slot was free"),
        DeclineReason::NoMemory => (Code::OutOfMemory, "the model does not fit into memory"),
        DeclineReason::ModelMissing => (Code::ModelNotFound, "the node does not have the model"),
        DeclineReason::Draining => (Code::Unavailable, "the node takes nothing more"),
        DeclineReason::Stale => (Code::StaleAttempt, "the node has settled this attempt, or holds a later one"),
        DeclineReason::Unsupported => (Code::WrongTask, "the node does not run this kind of task"),
    };
    let detail = if decline.detail.is_empty() { reason.into() } else { format!("{reason}: {}", decline.detail) };
    Failure { fault: Fault::Coordinator, code, detail, retryable: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::{Attempt, TaskId};

    #[test]
    fn every_class_names_who_is_at_fault_and_whether_it_counts() {
        let attempt = Attempt { task: TaskId::new(), epoch: 1 };
        for (class, says_retryable, want) in [
            (FailureClass::Input, true, (Fault::Caller, false, true)),
            (FailureClass::Resource, false, (Fault::Worker, true, false)),
            (FailureClass::Model, true, (Fault::Model, true, true)),
            (FailureClass::Model, false, (Fault::Model, false, true)),
            (FailureClass::Hardware, false, (Fault::Worker, true, true)),
            (FailureClass::Internal, false, (Fault::Worker, true, true)),
            (FailureClass::Cancelled, true, (Fault::Network, true, false)),
        ] {
            let failed =
                Failed { attempt, class, retryable: says_retryable, code: Code::Internal, detail: String::new() };
            let (failure, counts) = failure_of(failed);
            assert_eq!((failure.fault, failure.retryable, counts), want, "{class:?}");
        }
    }
}
