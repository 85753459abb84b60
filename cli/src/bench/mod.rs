//! Load for any server that speaks OpenAI's API, and what can be said of its answers. A plan comes in, a report goes out. Knows
//! nothing of the command line.
//!
//! `api`, `schedule`, `prompts`, `record`, `stats`, `slo`, `report`, `plot` and `table` are pure; `client` sends one
//! request, `load` sends many, `process` asks Linux what they cost.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod length;
pub(crate) mod load;
pub(crate) mod plot;
pub(crate) mod process;
pub(crate) mod prompts;
mod random;
mod record;
pub(crate) mod report;
mod schedule;
pub(crate) mod server;
pub(crate) mod slo;
mod stats;
pub(crate) mod table;
#[cfg(test)]
mod tests;
