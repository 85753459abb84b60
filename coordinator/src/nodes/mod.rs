//! Nodes: how they get in, their links, who is here. Knocks and frames come in; tokens, links and frames go out. Never
//! knows HTTP, and never decides who runs what.

pub(crate) mod enrol;
pub(crate) mod link;
pub(crate) mod presence;
pub(crate) mod session;
pub(crate) mod token;

use serde::{Deserialize, Serialize};

/// What the store keeps of a node's own words, as JSON in its `profile`: hardware, program, and the models that it had
/// when it last said so, so that a restarted coordinator knows which models are only away.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SaidOfItself {
    pub(crate) agent: String,
    pub(crate) models: Vec<coordinator_client::wire::ModelHeld>,
    pub(crate) hardware: serde_json::Value,
}
