//! Text generation on one device: requests go in, plans for the engine's steps and the ends of requests come out. It decides what each
//! step runs and who has which memory; it runs nothing itself. Pure, but for the writer: it is told the time, takes no lock and knows no tokenizer.
//!
//! ```text
//! request.rs      Request -> an id, or a Refusal with its figures
//!   waiting.rs    who is next: priority, order of arrival, a bound on overtaking
//!   scheduler.rs  -> Plan       each running sequence a token, then chunks of prompts
//!   blocks.rs     whose block is which, what is shared, what is free
//!   writer.rs     the engine runs the plan, tokens are chosen, callers get their text
//!   beside.rs     what may come next in a text of a demanded form, found on the CPU pool while the engine runs
//!   scheduler.rs  <- Sampled    -> Ended
//! ```

pub mod blocks;
pub mod request;
pub mod scheduler;

mod beside;
mod sequence;
mod waiting;
pub mod writer;

pub use blocks::Blocks;
pub use request::{End, Ended, Refusal, Request, SequenceId, Stop};
pub use scheduler::{Figures, Limits, Scheduler};
