//! Who a node is: an ed25519 key made at first start and kept in a file that nobody else may read. Bytes in,
//! signatures and verdicts out. The secret never leaves this module.

use crate::wire::NodeId;
use crate::wire::node::{Challenge, LoginRequest, LoginResponse, SessionToken, bytes_of_hex};
use data_encoding::HEXLOWER;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Why an identity cannot be had, or a proof is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key's file cannot be read or written.
    #[error("{path}: {source}; make the folder writable or choose another data folder")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// The key's file holds something else.
    #[error("{0} does not hold a key of 64 hex digits; restore it from a backup, or move it away to become a new node")]
    Damaged(PathBuf),
    /// Others may read the key.
    #[error("{path} may be read by others (mode {mode:o}); run `chmod 600 {path}`")]
    Readable {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// No entropy from the system.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The other side sent text that is not what it should be.
    #[error("{0} is not hex of the right length")]
    Hex(&'static str),
    /// A challenge for another place than the one that was dialled: somebody passes it on.
    #[error(
        "the challenge is for {signed_for}, but {dialled} was dialled; this may be an attempt to log in as this node"
    )]
    Origin {
        /// The origin in the challenge.
        signed_for: String,
        /// The origin that was dialled.
        dialled: String,
    },
    /// A challenge, or an answer, for another node.
    #[error("the challenge is for node {0}, not for this one")]
    Node(NodeId),
    /// A signature that does not match.
    #[error("the signature does not match the key")]
    Signature,
}

/// A key and the id that follows from it.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    node: NodeId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.node.short())
    }
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self::from_secret(&random()?))
    }

    /// That of a secret key.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(secret);
        let node = NodeId::of_key(key.verifying_key().as_bytes());
        Self { key, node }
    }

    /// The one in a file, made and stored there at first start. Of two processes that start at once, both get the same.
    ///
    /// # Errors
    /// When the file cannot be read or written, is damaged, or may be read by others.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_file(path, &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Self::generate()?.store_new(path).map_err(|source| Error::File { path: path.into(), source })?;
                let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
                Self::from_file(path, &text)
            }
            Err(source) => Err(Error::File { path: path.into(), source }),
        }
    }

    fn from_file(path: &Path, text: &str) -> Result<Self, Error> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let metadata = std::fs::metadata(path).map_err(|source| Error::File { path: path.into(), source })?;
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(Error::Readable { path: path.into(), mode });
            }
        }
        let secret = bytes_of_hex(text.trim_end()).ok_or_else(|| Error::Damaged(path.into()))?;
        Ok(Self::from_secret(&secret))
    }

    /// Writes the key beside its place and links it there, which fails when another process was quicker.
    fn store_new(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let beside = path.with_extension(format!("new-{}", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        writeln!(file, "{}", HEXLOWER.encode(self.key.as_bytes()))?;
        file.sync_all()?;
        match std::fs::hard_link(&beside, path) {
            Ok(()) => std::fs::remove_file(&beside),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => std::fs::remove_file(&beside),
            Err(_) => std::fs::rename(&beside, path), // a file system without links
        }
    }

    /// The node's id.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The public key as 64 hex digits.
    pub fn public_key_hex(&self) -> String {
        HEXLOWER.encode(&self.public_key())
    }

    /// The secret key in PKCS#8, for signing session tokens with a library that wants that form.
    pub fn secret_pkcs8_der(&self) -> Vec<u8> {
        // RFC 8410: version 0, algorithm 1.3.101.112, the key in an octet string inside an octet string.
        let mut der =
            vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        der.extend(self.key.as_bytes());
        der
    }

    /// Signs bytes.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).to_bytes()
    }

    /// The node's side: answers a challenge, if it is for this node and for the origin that was dialled.
    ///
    /// # Errors
    /// When it is not, or when the system gives no random bytes.
    pub fn answer(&self, challenge: &Challenge, dialled: &str) -> Result<LoginRequest, Error> {
        if challenge.origin != dialled {
            return Err(Error::Origin { signed_for: challenge.origin.clone(), dialled: dialled.into() });
        }
        if challenge.node_id != self.node {
            return Err(Error::Node(challenge.node_id.clone()));
        }
        let bytes = challenge.signed_bytes().ok_or(Error::Hex("the nonce"))?;
        Ok(LoginRequest {
            node_id: self.node.clone(),
            nonce: challenge.nonce.clone(),
            signature: HEXLOWER.encode(&self.sign(&bytes)),
            node_nonce: random_hex()?,
        })
    }

    /// The coordinator's side: proves with a token who gives it.
    pub fn prove(&self, origin: &str, request: &LoginRequest, token: SessionToken) -> LoginResponse {
        let signature = self.sign(&LoginResponse::signed_bytes(origin, request, &token));
        LoginResponse {
            token,
            coordinator_public_key: self.public_key_hex(),
            coordinator_signature: HEXLOWER.encode(&signature),
        }
    }
}

/// The coordinator's side: whether the node with this key answered this challenge.
///
/// # Errors
/// When it did not.
pub fn check_answer(public_key: &[u8; 32], challenge: &Challenge, request: &LoginRequest) -> Result<(), Error> {
    if request.node_id != NodeId::of_key(public_key) || request.node_id != challenge.node_id {
        return Err(Error::Node(request.node_id.clone()));
    }
    if request.nonce != challenge.nonce {
        return Err(Error::Signature);
    }
    let bytes = challenge.signed_bytes().ok_or(Error::Hex("the nonce"))?;
    let signature = bytes_of_hex::<64>(&request.signature).ok_or(Error::Hex("the signature"))?;
    verify(public_key, &bytes, &signature)
}

/// The node's side: the key of the coordinator that gave this token for this request, at the origin that was dialled.
///
/// # Errors
/// When the proof does not hold.
pub fn check_proof(dialled: &str, request: &LoginRequest, response: &LoginResponse) -> Result<[u8; 32], Error> {
    let key = bytes_of_hex::<32>(&response.coordinator_public_key).ok_or(Error::Hex("the coordinator's key"))?;
    let signature =
        bytes_of_hex::<64>(&response.coordinator_signature).ok_or(Error::Hex("the coordinator's signature"))?;
    verify(&key, &LoginResponse::signed_bytes(dialled, request, &response.token), &signature)?;
    Ok(key)
}

/// Whether a signature over these bytes was made with this key. Weak keys are refused.
///
/// # Errors
/// When it was not.
pub fn verify(public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> Result<(), Error> {
    let key = VerifyingKey::from_bytes(public_key).map_err(|_| Error::Signature)?;
    let signature = Signature::from_slice(signature).map_err(|_| Error::Signature)?;
    key.verify_strict(bytes, &signature).map_err(|_| Error::Signature)
}

/// 32 random bytes.
///
/// # Errors
/// When the system gives none.
pub fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

/// 32 random bytes as hex, e.g. for a nonce.
///
/// # Errors
/// When the system gives none.
pub fn random_hex() -> Result<String, Error> {
    Ok(HEXLOWER.encode(&random()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Identity {
        Identity::from_secret(&[7; 32])
    }

    fn challenge(origin: &str) -> Challenge {
        Challenge { node_id: node().node().clone(), nonce: "ab".repeat(32), origin: origin.into(), expires_at_ms: 9 }
    }

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/node.key");
        let first = Identity::load_or_create(&path).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().node(), first.node());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(matches!(Identity::load_or_create(&path), Err(Error::Readable { mode: 0o644, .. })));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::fs::write(&path, "xyz").unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(Error::Damaged(_))));
    }

    #[test]
    fn an_answer_is_good_for_its_challenge_alone() {
        let asked = challenge("http://a");
        let answer = node().answer(&asked, "http://a").unwrap();
        let check = |challenge: &Challenge, request: &LoginRequest| {
            check_answer(&node().public_key(), challenge, request).is_ok()
        };
        assert!(check(&asked, &answer));
        assert!(!check(&challenge("http://b"), &answer));
        assert!(!check(&Challenge { expires_at_ms: 10, ..asked.clone() }, &answer));
        assert!(!check(&Challenge { nonce: "cd".repeat(32), ..asked.clone() }, &answer));
        assert!(check_answer(&Identity::from_secret(&[8; 32]).public_key(), &asked, &answer).is_err());
    }

    #[test]
    fn a_challenge_that_was_passed_on_is_not_answered() {
        let refused = node().answer(&challenge("https://good.example"), "https://evil.example");
        assert!(matches!(refused, Err(Error::Origin { .. })));
        let other = Challenge { node_id: NodeId::of_key(&[1; 32]), ..challenge("http://a") };
        assert!(matches!(node().answer(&other, "http://a"), Err(Error::Node(_))));
    }

    #[test]
    fn a_token_comes_with_proof_of_its_giver() {
        let coordinator = Identity::from_secret(&[9; 32]);
        let request = node().answer(&challenge("http://a"), "http://a").unwrap();
        let token = SessionToken { token: "t".into(), expires_at_ms: 1, expires_in_ms: 1 };
        let response = coordinator.prove("http://a", &request, token);
        assert_eq!(check_proof("http://a", &request, &response).unwrap(), coordinator.public_key());
        assert!(check_proof("http://b", &request, &response).is_err());
        let mut swapped = response.clone();
        swapped.coordinator_public_key = node().public_key_hex();
        assert!(check_proof("http://a", &request, &swapped).is_err());
        let mut other = response;
        other.token.token = "u".into();
        assert!(check_proof("http://a", &request, &other).is_err());
    }
}
