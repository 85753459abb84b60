//! OpenAI's shape for the list of models.

use serde::Serialize;
use utoipa::ToSchema;

/// Answer to `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<Model>,
}

/// A model as OpenAI lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Model {
    /// `name@version`.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970; 0 when that is not known.
    pub created: u64,
    /// Where it came from.
    pub owned_by: String,
}

impl Model {
    /// A model of this name and origin.
    pub fn new(id: String, owned_by: String) -> Self {
        Self { id, object: "model", created: 0, owned_by }
    }
}

impl ModelList {
    /// A list of models.
    pub fn new(data: Vec<Model>) -> Self {
        Self { object: "list", data }
    }
}
