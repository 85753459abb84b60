//! Shapes of the HTTP APIs that workers and coordinators share. Serialised types only, no server.

pub mod openai;
pub mod problem;
pub mod rerank;
pub mod task;
pub mod text;

pub use problem::{Code, Problem};
