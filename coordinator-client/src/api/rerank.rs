//! The shapes of reranking that Jina and Cohere share: their request becomes a task's input, a task's output becomes
//! their response. Fields of theirs that mean nothing here are read and ignored. Pure, no server.

use super::{Code, Problem};
use crate::wire::task::RerankInput;
use crate::wire::{TaskInput, TaskOutput, Usage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/rerank`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct RerankRequest {
    /// `name` or `name@version`.
    pub model: String,
    /// What is looked for.
    pub query: Document,
    /// What is scored.
    pub documents: Vec<Document>,
    /// Only the best so many.
    #[serde(default)]
    pub top_n: Option<u32>,
    /// Whether the answer repeats the documents.
    #[serde(default)]
    pub return_documents: bool,
    /// Cut what is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
}

/// A text, bare or in an object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "a document must be a text or {\"text\": \"…\"}")]
pub enum Document {
    /// Bare.
    Text(String),
    /// In an object.
    Object {
        /// The text.
        text: String,
    },
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Document::Text(text) | Document::Object { text } => text,
        }
    }
}

/// What the response needs of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The documents, when the answer repeats them.
    documents: Option<Vec<String>>,
}

impl RerankRequest {
    /// The task that it asks for, with the model and what the answer needs.
    pub fn into_task(self) -> (String, TaskInput, Wanted) {
        let documents: Vec<String> = self.documents.into_iter().map(Document::into_text).collect();
        let wanted = Wanted { documents: self.return_documents.then(|| documents.clone()) };
        let (query, top_n, truncate) = (self.query.into_text(), self.top_n, self.truncate);
        (self.model, TaskInput::Rerank(RerankInput { query, documents, top_n, truncate }), wanted)
    }
}

/// Answer to `POST /v1/rerank`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RerankResponse {
    /// `list`.
    pub object: &'static str,
    /// `name@version` of the model that answered.
    pub model: String,
    /// Best first.
    pub results: Vec<RerankResult>,
    /// Tokens.
    pub usage: RerankUsage,
}

/// One document's score.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RerankResult {
    /// Position of the document in the request.
    pub index: u32,
    /// 0 to 1.
    pub relevance_score: f32,
    /// The document, when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<Document>,
}

/// Tokens as Jina counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct RerankUsage {
    /// Tokens of all pairs, special tokens included.
    pub prompt_tokens: u64,
    /// The same: a score has no other tokens.
    pub total_tokens: u64,
}

impl RerankResponse {
    /// The response that a task's output gives.
    ///
    /// # Errors
    /// When the output is not a ranking of the request's documents: a fault of whoever answered the task.
    pub fn new(model: String, output: TaskOutput, usage: Usage, wanted: &Wanted) -> Result<Self, Problem> {
        let TaskOutput::Rerank { results } = output else {
            return Err(Problem::new(Code::Internal, "the task's output is not a ranking"));
        };
        let result = |score: crate::wire::task::Score| {
            let document = match &wanted.documents {
                None => None,
                Some(documents) => {
                    let text = documents.get(score.index as usize).cloned();
                    let none = || Problem::new(Code::Internal, format!("there is no document {}", score.index));
                    Some(Document::Object { text: text.ok_or_else(none)? })
                }
            };
            Ok(RerankResult { index: score.index, relevance_score: score.score, document })
        };
        let results = results.into_iter().map(result).collect::<Result<_, Problem>>()?;
        let usage = RerankUsage { prompt_tokens: usage.input_tokens, total_tokens: usage.input_tokens };
        Ok(Self { object: "list", model, results, usage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::task::Score;

    fn request(more: &str) -> RerankRequest {
        let body = format!(r#"{{"model": "m", "query": "q", "documents": ["a", {{"text": "b"}}] {more}}}"#);
        serde_json::from_str(&body).unwrap()
    }

    #[test]
    fn documents_may_be_bare_or_objects() {
        let (model, input, _) = request(r#", "top_n": 1, "max_chunks_per_doc": 3"#).into_task();
        let documents = vec!["a".to_owned(), "b".to_owned()];
        let want = RerankInput { query: "q".into(), documents, top_n: Some(1), truncate: false };
        assert_eq!((model.as_str(), input), ("m", TaskInput::Rerank(want)));
    }

    #[test]
    fn documents_come_back_when_they_are_wanted() {
        let output = || TaskOutput::Rerank { results: vec![Score { index: 1, score: 0.9 }] };
        let json = |more| {
            let (model, _, wanted) = request(more).into_task();
            let response =
                RerankResponse::new(model, output(), Usage { input_tokens: 5, ..Usage::default() }, &wanted).unwrap();
            serde_json::to_value(response).unwrap()["results"].clone()
        };
        assert_eq!(json("").to_string(), r#"[{"index":1,"relevance_score":0.8999999761581421}]"#);
        assert_eq!(json(r#", "return_documents": true"#)[0]["document"]["text"], "b");
    }

    #[test]
    fn a_score_for_a_document_that_is_not_there_is_an_error() {
        let (model, _, wanted) = request(r#", "return_documents": true"#).into_task();
        let output = TaskOutput::Rerank { results: vec![Score { index: 2, score: 0.9 }] };
        let response = RerankResponse::new(model, output, Usage::default(), &wanted);
        assert_eq!(response.unwrap_err().code, Code::Internal);
    }
}
