//! Session tokens: a node's id goes in, a signed JWT comes out, and back. Signed with the coordinator's own key; nothing
//! is kept, so a token holds until it expires. Never looks at the machine's clock.

use crate::options::millis;
use coordinator_client::identity::Identity;
use coordinator_client::wire::NodeId;
use coordinator_client::wire::node::{SessionToken, TOKEN_MS};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the token is for; a token of ours for something else is no session token.
const AUDIENCE: &str = "neurogrid-session";

/// Makes and reads tokens.
pub(crate) struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: NodeId,
    aud: String,
    iat: i64,
    exp: i64,
}

/// A token that is not valid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the session token is not valid: {0}; log in again")]
    Invalid(String),
    #[error("the session token expired; log in again")]
    Expired,
}

impl Tokens {
    /// Tokens signed with this key.
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["aud", "exp", "sub"]);
        // Checked against the store's clock, which is the only one that counts here.
        validation.validate_exp = false;
        Self {
            encoding: EncodingKey::from_ed_der(&identity.secret_pkcs8_der()),
            decoding: DecodingKey::from_ed_der(&identity.public_key()),
            validation,
        }
    }

    /// A token for a node that has proved its key.
    pub(crate) fn issue(&self, node: &NodeId, now_ms: i64) -> SessionToken {
        let expires_ms = now_ms + millis(Duration::from_millis(TOKEN_MS));
        let claims = Claims { sub: node.clone(), aud: AUDIENCE.into(), iat: now_ms / 1000, exp: expires_ms / 1000 };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.encoding)
            .expect("the key was checked when it was made, and claims are plain data");
        SessionToken { token, expires_at_ms: u64::try_from(expires_ms).unwrap_or(0), expires_in_ms: TOKEN_MS }
    }

    /// Whose token it is.
    pub(crate) fn check(&self, token: &str, now_ms: i64) -> Result<NodeId, Error> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map_err(|e| Error::Invalid(e.to_string()))?
            .claims;
        if claims.exp.saturating_mul(1000) <= now_ms { Err(Error::Expired) } else { Ok(claims.sub) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_node_its_time_and_its_coordinator() {
        let tokens = Tokens::new(&Identity::from_secret(&[1; 32]));
        let others = Tokens::new(&Identity::from_secret(&[2; 32]));
        let node = NodeId::of_key(&[3; 32]);
        let now = 1_000_000_000_000;
        let token = tokens.issue(&node, now).token;
        assert_eq!(tokens.check(&token, now), Ok(node));
        assert_eq!(tokens.check(&token, now + 600_000), Err(Error::Expired));
        assert!(matches!(others.check(&token, now), Err(Error::Invalid(_))));
        assert!(matches!(tokens.check("x.y.z", now), Err(Error::Invalid(_))));
        let mut forged: Vec<&str> = token.split('.').collect();
        forged[0] = "eyJhbGciOiJub25lIn0"; // {"alg":"none"}
        assert!(matches!(tokens.check(&forged.join("."), now), Err(Error::Invalid(_))));
    }
}
