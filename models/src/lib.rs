//! What a model is: a manifest with verified files goes in, an engine that answers batches and a pipeline
//! that turns requests into batches come out. This crate never touches the network, a clock or HTTP.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod accuracy;
pub mod arch;
pub mod backend;
pub mod bundled;
pub mod engine;
pub mod generate;
pub mod load;
pub mod manifest;
pub mod task;
pub mod tensor;

pub use engine::Engine;
pub use load::{Error, Loaded, Options, load};
pub use manifest::Manifest;
pub use tensor::{DataType, NamedTensor, Tensor};
