//! OpenAI's shapes, as workers and coordinators serve them: a request becomes a task's input, a task's output becomes the
//! response, at once or in chunks. Fields that OpenAI has and that mean nothing here are read and ignored; what would change
//! the answer and is not served is refused. Pure, no server.

mod chat;
mod completions;
mod embeddings;
mod logprobs;
mod models;
mod request;
mod stream;

pub use chat::{ChatCompletion, ChatRequest};
pub use completions::{Completion, CompletionRequest};
pub use embeddings::{
    Embedding, EmbeddingsRequest, EmbeddingsResponse, EmbeddingsUsage, EncodingFormat, Input, Vector,
};
pub use logprobs::{ChatLogprobs, CompletionLogprobs};
pub use models::{Model, ModelList};
pub use request::{CompletionUsage, Head, How, Shape};
pub use stream::{ChatChunk, Chunks};
