//! What workers and coordinators say to each other: serialised types in, frames and HTTP shapes out, a session state
//! machine without input or output, and a client that drives it. Never runs inference and never keeps tasks.

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod fake;
pub mod identity;
pub mod session;
pub mod spool;
pub mod wire;
