//! How a node gets in: it registers and gets a challenge, answers it with its key and gets a session token. A challenge is
//! bound to an origin of this coordinator, can be answered once, and lives as long as a request may. Nothing is stored of
//! a node before it has proved its key.

use super::token::Tokens;
use crate::options;
use crate::store::{self, Node, NodeState, Store};
use coordinator_client::identity::{self, Identity, check_answer, random_hex};
use coordinator_client::wire::NodeId;
use coordinator_client::wire::node::{
    CHALLENGE_MS, Challenge, LoginRequest, LoginResponse, RegisterRequest, bytes_of_hex,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use subtle::ConstantTimeEq;

/// Longest name and region.
const NAME_BYTES_MAX: usize = 128;

/// Largest hardware profile: generous for a machine with sixteen cards.
pub(crate) const PROFILE_BYTES_MAX: usize = 256 << 10;

/// Unanswered challenges of one node: more than a node that retries on a bad network has open.
const CHALLENGES_PER_NODE: usize = 4;

/// Why a node does not get in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("public_key must be an ed25519 public key as 64 lower-case hex digits")]
    Key,
    #[error("{field} is longer than {max} bytes")]
    TooLong { field: &'static str, max: usize },
    #[error(
        "{0:?} is none of this coordinator's origins; dial one of them, or start the coordinator with this origin among its `origins`"
    )]
    Origin(String),
    #[error("this grid asks new nodes for an enrolment token; get one from its operator")]
    Enrolment,
    #[error("node {0} is banned from this grid; ask its operator")]
    Banned(NodeId),
    #[error("too many nodes are registering; try again in a minute")]
    Busy,
    #[error("no such challenge, or it was answered before, or its time is over; register again")]
    Challenge,
    #[error("the answer does not prove the node's key: {0}")]
    Answer(identity::Error),
    #[error(transparent)]
    Random(identity::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The door.
#[derive(Debug)]
pub(crate) struct Enrolment {
    identity: Identity,
    pub(crate) tokens: Tokens,
    store: Arc<dyn Store>,
    options: options::Nodes,
    pending: Mutex<HashMap<String, Pending>>,
}

#[derive(Debug)]
struct Pending {
    challenge: Challenge,
    node: Node,
}

impl Enrolment {
    pub(crate) fn new(identity: Identity, store: Arc<dyn Store>, options: options::Nodes) -> Self {
        let tokens = Tokens::new(&identity);
        Self { identity, tokens, store, options, pending: Mutex::default() }
    }

    /// The coordinator's key, as hex.
    pub(crate) fn public_key_hex(&self) -> String {
        self.identity.public_key_hex()
    }

    /// A node makes itself known. `is_ours` says whether an origin is one of this coordinator's.
    pub(crate) async fn register(
        &self,
        request: RegisterRequest,
        is_ours: impl Fn(&str) -> bool,
    ) -> Result<Challenge, Error> {
        let public_key = bytes_of_hex::<32>(&request.public_key).ok_or(Error::Key)?;
        for (field, value) in [("name", &request.name), ("region", &request.region)] {
            if value.len() > NAME_BYTES_MAX {
                return Err(Error::TooLong { field, max: NAME_BYTES_MAX });
            }
        }
        let profile = request.profile.to_string();
        if profile.len() > PROFILE_BYTES_MAX {
            return Err(Error::TooLong { field: "profile", max: PROFILE_BYTES_MAX });
        }
        if !is_ours(&request.origin) {
            return Err(Error::Origin(request.origin));
        }
        let id = NodeId::of_key(&public_key);
        let known = self.store.node(&id).await?;
        if known.as_ref().is_some_and(|node| node.state == NodeState::Banned) {
            return Err(Error::Banned(id));
        }
        if known.is_none() && !self.is_enrolled(request.enrolment_token.as_deref()) {
            return Err(Error::Enrolment);
        }
        let now = self.store.now_ms();
        let challenge = Challenge {
            node_id: id.clone(),
            nonce: random_hex().map_err(Error::Random)?,
            origin: request.origin,
            expires_at_ms: u64::try_from(now).unwrap_or(0) + CHALLENGE_MS,
        };
        // What was known stays until the node connects and says more.
        let profile = known.map_or(profile, |node| node.profile);
        let node = Node {
            id,
            tenant: "default".into(),
            public_key,
            name: request.name,
            region: request.region,
            profile,
            registered_ms: now,
            seen_ms: now,
            state: NodeState::Active,
            settled: 0,
            faulted: 0,
            lost: 0,
        };
        self.remember(Pending { challenge: challenge.clone(), node }, now)?;
        Ok(challenge)
    }

    fn is_enrolled(&self, token: Option<&str>) -> bool {
        match (&self.options.enrolment_token, token) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(want), Some(got)) => want.as_bytes().ct_eq(got.as_bytes()).into(),
        }
    }

    fn remember(&self, new: Pending, now: i64) -> Result<(), Error> {
        let mut pending = self.pending.lock().expect("nobody panics while it holds the lock");
        let of_node = pending.values().filter(|known| known.node.id == new.node.id).count();
        if pending.len() >= self.options.challenges_max || of_node >= CHALLENGES_PER_NODE {
            pending.retain(|_, known| is_alive(&known.challenge, now));
            let oldest = pending.values().filter(|known| known.node.id == new.node.id);
            let oldest = oldest.min_by_key(|known| known.challenge.expires_at_ms).map(|known| &known.challenge.nonce);
            if let Some(oldest) = oldest.cloned() {
                pending.remove(&oldest);
            }
            if pending.len() >= self.options.challenges_max {
                return Err(Error::Busy);
            }
        }
        pending.insert(new.challenge.nonce.clone(), new);
        Ok(())
    }

    /// A node answers its challenge. The challenge is used up whether the answer is right or not.
    pub(crate) async fn login(&self, request: LoginRequest) -> Result<LoginResponse, Error> {
        let now = self.store.now_ms();
        let pending = self.pending.lock().expect("nobody panics while it holds the lock").remove(&request.nonce);
        let Pending { challenge, node } =
            pending.filter(|pending| is_alive(&pending.challenge, now)).ok_or(Error::Challenge)?;
        check_answer(&node.public_key, &challenge, &request).map_err(Error::Answer)?;
        let id = node.id.clone();
        if self.store.node(&id).await?.is_some_and(|node| node.state == NodeState::Banned) {
            return Err(Error::Banned(id));
        }
        self.store.put_node(node).await?;
        let token = self.tokens.issue(&id, now);
        Ok(self.identity.prove(&challenge.origin, &request, token))
    }
}

fn is_alive(challenge: &Challenge, now: i64) -> bool {
    u64::try_from(now).is_ok_and(|now| now < challenge.expires_at_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Clock, Limits, Memory};
    use coordinator_client::identity::check_proof;
    use std::sync::atomic::{AtomicI64, Ordering};

    const ORIGIN: &str = "http://127.0.0.1:3001";

    struct Door {
        enrolment: Enrolment,
        now: Arc<AtomicI64>,
    }

    fn door(options: options::Nodes) -> Door {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let store = Arc::new(Memory::new(Clock::Manual(now.clone()), Limits::default()));
        Door { enrolment: Enrolment::new(Identity::from_secret(&[9; 32]), store, options), now }
    }

    fn request(node: &Identity) -> RegisterRequest {
        RegisterRequest {
            public_key: node.public_key_hex(),
            origin: ORIGIN.into(),
            name: "n".into(),
            region: String::new(),
            profile: serde_json::Value::Null,
            enrolment_token: None,
        }
    }

    impl Door {
        async fn challenge(&self, node: &Identity) -> Result<Challenge, Error> {
            self.enrolment.register(request(node), |origin| origin == ORIGIN).await
        }
    }

    #[tokio::test]
    async fn a_challenge_is_answered_once_and_in_time() {
        let (door, node) = (door(options::Nodes::default()), Identity::from_secret(&[1; 32]));
        let challenge = door.challenge(&node).await.unwrap();
        assert!(door.enrolment.store.nodes().await.unwrap().is_empty(), "nothing is stored before the proof");
        let answer = node.answer(&challenge, ORIGIN).unwrap();
        let response = door.enrolment.login(answer.clone()).await.unwrap();
        check_proof(ORIGIN, &answer, &response).unwrap();
        let now = door.now.load(Ordering::SeqCst);
        assert_eq!(door.enrolment.tokens.check(&response.token.token, now).unwrap(), *node.node());
        assert!(matches!(door.enrolment.login(answer).await, Err(Error::Challenge)));
        let late = node.answer(&door.challenge(&node).await.unwrap(), ORIGIN).unwrap();
        door.now.fetch_add(60_000, Ordering::SeqCst);
        assert!(matches!(door.enrolment.login(late).await, Err(Error::Challenge)));
    }

    #[tokio::test]
    async fn a_wrong_answer_uses_the_challenge_up() {
        let (door, node) = (door(options::Nodes::default()), Identity::from_secret(&[1; 32]));
        let challenge = door.challenge(&node).await.unwrap();
        let mut wrong = node.answer(&challenge, ORIGIN).unwrap();
        wrong.signature = "00".repeat(64);
        assert!(matches!(door.enrolment.login(wrong).await, Err(Error::Answer(_))));
        let right = node.answer(&challenge, ORIGIN).unwrap();
        assert!(matches!(door.enrolment.login(right).await, Err(Error::Challenge)));
    }

    #[tokio::test]
    async fn strangers_need_the_token_and_the_banned_stay_out() {
        let options = options::Nodes { enrolment_token: Some("secret".into()), ..Default::default() };
        let (door, node) = (door(options), Identity::from_secret(&[1; 32]));
        assert!(matches!(door.challenge(&node).await, Err(Error::Enrolment)));
        let wrong = RegisterRequest { enrolment_token: Some("secreT".into()), ..request(&node) };
        assert!(matches!(door.enrolment.register(wrong, |_| true).await, Err(Error::Enrolment)));
        let right = RegisterRequest { enrolment_token: Some("secret".into()), ..request(&node) };
        let challenge = door.enrolment.register(right, |_| true).await.unwrap();
        door.enrolment.login(node.answer(&challenge, ORIGIN).unwrap()).await.unwrap();
        let open = door.challenge(&node).await.expect("who is known needs no token");
        door.enrolment.store.set_node_state(node.node(), NodeState::Banned).await.unwrap();
        assert!(matches!(door.challenge(&node).await, Err(Error::Banned(_))));
        let answer = node.answer(&open, ORIGIN).unwrap();
        assert!(matches!(door.enrolment.login(answer).await, Err(Error::Banned(_))));
    }

    #[tokio::test]
    async fn bad_requests_are_told_what_is_wrong() {
        let (door, node) = (door(options::Nodes::default()), Identity::from_secret(&[1; 32]));
        let check = async |request| door.enrolment.register(request, |origin| origin == ORIGIN).await;
        let origin = RegisterRequest { origin: "https://evil.example".into(), ..request(&node) };
        assert!(matches!(check(origin).await, Err(Error::Origin(_))));
        assert!(matches!(check(RegisterRequest { public_key: "zz".into(), ..request(&node) }).await, Err(Error::Key)));
        let name = RegisterRequest { name: "x".repeat(129), ..request(&node) };
        assert!(matches!(check(name).await, Err(Error::TooLong { field: "name", .. })));
    }

    #[tokio::test]
    async fn challenges_are_bounded_and_one_node_cannot_use_them_up() {
        let options = options::Nodes { challenges_max: 6, ..Default::default() };
        let door = door(options);
        let greedy = Identity::from_secret(&[1; 32]);
        for _ in 0..20 {
            door.challenge(&greedy).await.unwrap();
        }
        let others = [2, 3].map(|secret| Identity::from_secret(&[secret; 32]));
        for other in &others {
            door.challenge(other).await.unwrap();
        }
        let late = Identity::from_secret(&[4; 32]);
        assert!(matches!(door.challenge(&late).await, Err(Error::Busy)));
        door.now.fetch_add(60_000, Ordering::SeqCst);
        door.challenge(&late).await.expect("the old ones are over");
    }
}
