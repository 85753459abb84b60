//! How a node joins and logs in, as JSON over HTTP: register, challenge, login, session token. Types and the bytes
//! that are signed; keys and checks are in [`crate::identity`].
//!
//! 1. `POST /api/nodes/register` [`RegisterRequest`] -> 200 [`Challenge`]. Harmless to repeat; it is also how a known
//!    node asks for a fresh challenge. The coordinator refuses an origin that is not one of its own names
//!    (`forbidden`), which is what stops another server from passing its challenges on.
//! 2. `POST /api/nodes/login` [`LoginRequest`] -> 200 [`LoginResponse`]. The nonce is used up whether it succeeds or not.
//! 3. `GET /api/nodes/{id}/session` with `Authorization: Bearer {token}` and the sub-protocol
//!    [`super::SUBPROTOCOL`] becomes the link.
//!
//! Bytes in JSON are lower-case hex.

use super::digest::Transcript;
use super::id::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a challenge may be answered. As long as a request may take, so that no slow network dies of it.
pub const CHALLENGE_MS: u64 = 60_000;

/// How long a session token holds: short, because it is renewed over the link.
pub const TOKEN_MS: u64 = 600_000;

/// A node makes itself known and asks for a challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegisterRequest {
    /// Its ed25519 public key, 64 hex digits.
    pub public_key: String,
    /// The coordinator's origin as the node dialled it, e.g. `https://grid.example.org`.
    pub origin: String,
    /// A name for people, at most 128 bytes.
    pub name: String,
    /// Where it says it stands.
    #[serde(default)]
    pub region: String,
    /// Hardware, as the worker's `GET /api/hardware/profile` gives it.
    #[serde(default)]
    pub profile: serde_json::Value,
    /// Needed for the first registration where the grid asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment_token: Option<String>,
}

/// What the node has to sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Challenge {
    /// The node's id.
    pub node_id: NodeId,
    /// 32 random bytes, 64 hex digits. Single use.
    pub nonce: String,
    /// The coordinator's origin. The node signs only for the origin that it dialled.
    pub origin: String,
    /// When it can no longer be answered, milliseconds since 1970 by the coordinator's clock.
    pub expires_at_ms: u64,
}

impl Challenge {
    /// What the node signs: a [`Transcript`] of domain `neurogrid-auth-v1` and the parts origin, node id, nonce
    /// (32 bytes), expiry (u64 little-endian). `None` when the nonce is not 32 bytes as hex.
    pub fn signed_bytes(&self) -> Option<Vec<u8>> {
        let nonce = bytes_of_hex::<32>(&self.nonce)?;
        let transcript = Transcript::new("neurogrid-auth-v1")
            .part(self.origin.as_bytes())
            .part(self.node_id.0.as_bytes())
            .part(&nonce)
            .part(&self.expires_at_ms.to_le_bytes());
        Some(transcript.into_bytes())
    }
}

/// The node's answer to a [`Challenge`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginRequest {
    /// The node's id.
    pub node_id: NodeId,
    /// The challenge's nonce.
    pub nonce: String,
    /// The node's signature over [`Challenge::signed_bytes`], 128 hex digits.
    pub signature: String,
    /// 32 random bytes of the node, 64 hex digits, for the coordinator to sign.
    pub node_nonce: String,
}

/// A token, and the proof that it comes from the coordinator that the node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginResponse {
    /// For the `Authorization: Bearer` header.
    #[serde(flatten)]
    pub token: SessionToken,
    /// The coordinator's ed25519 public key, 64 hex digits. The node remembers it at its first login.
    pub coordinator_public_key: String,
    /// The coordinator's signature over [`LoginResponse::signed_bytes`], 128 hex digits.
    pub coordinator_signature: String,
}

impl LoginResponse {
    /// What the coordinator signs: a [`Transcript`] of domain `neurogrid-coordinator-v1` and the parts origin, node
    /// id, the node's nonce (as hex text), token.
    pub fn signed_bytes(origin: &str, request: &LoginRequest, token: &SessionToken) -> Vec<u8> {
        Transcript::new("neurogrid-coordinator-v1")
            .part(origin.as_bytes())
            .part(request.node_id.0.as_bytes())
            .part(request.node_nonce.as_bytes())
            .part(token.token.as_bytes())
            .into_bytes()
    }
}

/// Proof of a login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionToken {
    /// A signed JWT.
    pub token: String,
    /// When it stops being valid, milliseconds since 1970 by the coordinator's clock.
    pub expires_at_ms: u64,
    /// The same from now, because clocks differ.
    pub expires_in_ms: u64,
}

impl std::fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionToken {{ expires_in_ms: {} }}", self.expires_in_ms)
    }
}

/// The bytes of a hex text of exactly this length.
pub fn bytes_of_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

/// Paths at the coordinator, relative to its address.
pub mod paths {
    use super::NodeId;

    /// `POST` a [`super::RegisterRequest`].
    pub const REGISTER: &str = "/api/nodes/register";

    /// `POST` a [`super::LoginRequest`].
    pub const LOGIN: &str = "/api/nodes/login";

    /// `GET` with an upgrade to a WebSocket.
    pub fn session(node: &NodeId) -> String {
        format!("/api/nodes/{node}/session")
    }

    /// `GET` and `PUT` payloads that are too large for a frame; bearer token.
    pub fn payload(sha256: &str) -> String {
        format!("/api/blobs/{sha256}")
    }

    /// `GET` a model version's manifest; bearer token.
    pub fn model(name: &str, version: &str) -> String {
        format!("/api/models/{name}/{version}")
    }

    /// `GET` one of its files; bearer token.
    pub fn model_blob(name: &str, version: &str, sha256: &str) -> String {
        format!("/api/models/{name}/{version}/blobs/{sha256}")
    }
}
