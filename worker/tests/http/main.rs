//! The worker's API through real connections: requests go in over loopback, and what each caller sees is compared with
//! what is promised. The engine is a fake that stops when it is told to; the bundled model runs on the real backends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

mod api;
mod bench;
mod description;
mod devices;
mod door;
mod faults;
mod inference;
mod input;
mod models;
mod pressure;
mod prompts;
mod shutdown;
mod tasks;
mod texts;
