//! Settings of the coordinator, one struct per part, each with a default and its reason. Plain data, read from a settings
//! file or built in code; nothing here opens or checks anything.

use crate::store::{Clock, Limits};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where the coordinator listens and whom it lets in.
    pub http: Http,
    /// Where state is kept.
    pub store: Store,
    /// Links to nodes.
    pub nodes: Nodes,
    /// Who gets what, when.
    pub schedule: Schedule,
    /// Models and large payloads.
    pub registry: Registry,
    /// What callers may ask.
    pub tasks: Tasks,
}

/// Where the coordinator listens and whom it lets in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where it listens. Loopback unless told otherwise; port 0 takes a free one.
    pub address: SocketAddr,
    /// The key that people's routes ask for, as `Authorization: Bearer`. Without one, only loopback is served.
    pub api_key: Option<String>,
    /// Serve other addresses than loopback without an API key.
    pub insecure: bool,
    /// Origins under which nodes reach this coordinator besides its own address, e.g. `https://grid.example.org`.
    pub origins: Vec<String>,
    /// Largest JSON body. 32 MiB: a batch of 2,048 long texts, or a batch of images as numbers.
    pub body_bytes_max: usize,
    /// A caller must have sent its request in this time. 60 s: 32 MiB at 5 Mbit/s.
    #[serde(with = "humantime_serde")]
    pub body_time_max: Duration,
    /// Longest `Prefer: wait`, and how long `/v1` routes wait for a result, or for the next piece of a streamed one.
    /// 5 minutes: proxies seldom hold longer.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// Longest streamed text. An hour: a slow node writes several thousand tokens in it, and a text that nobody can be
    /// waiting for any more ends.
    #[serde(with = "humantime_serde")]
    pub stream_max: Duration,
    /// How long a shutdown waits for requests under way.
    #[serde(with = "humantime_serde")]
    pub drain_max: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 3001)),
            api_key: None,
            insecure: false,
            origins: vec![],
            body_bytes_max: 32 << 20,
            body_time_max: Duration::from_secs(60),
            wait_max: Duration::from_secs(300),
            stream_max: Duration::from_secs(3_600),
            drain_max: Duration::from_secs(10),
        }
    }
}

/// Where state is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Folder of the database, the coordinator's key and the blobs.
    pub folder: PathBuf,
    /// Keep tasks, nodes and models in memory: they are gone when the process ends. The key and the blobs stay.
    pub in_memory: bool,
    /// Database connections that only read. 4: reads are short, and more only contend for the same pages.
    pub readers: usize,
    /// Tasks queued or leased at one time.
    pub tasks_open_max: usize,
    /// How long a finished task and its result are kept, and blobs that nothing refers to.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// How long a node that failed a task is passed over for it.
    #[serde(with = "humantime_serde")]
    pub exclusion: Duration,
    /// The store's clock. Tests move it by hand.
    #[serde(skip)]
    pub clock: Clock,
}

impl Store {
    /// The limits that every engine keeps.
    pub fn limits(&self) -> Limits {
        Limits {
            tasks_open_max: self.tasks_open_max,
            retention_ms: millis(self.retention),
            exclusion_ms: millis(self.exclusion),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            folder: PathBuf::from("neurogrid-coordinator"),
            in_memory: false,
            readers: 4,
            tasks_open_max: limits.tasks_open_max,
            retention: Duration::from_millis(limits.retention_ms.unsigned_abs()),
            exclusion: Duration::from_millis(limits.exclusion_ms.unsigned_abs()),
            clock: Clock::System,
        }
    }
}

/// Links to nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// Nodes that are new here must show this token.
    pub enrolment_token: Option<String>,
    /// Time between a node's heartbeats. 5 s: cheap, and a silent node is noticed within a lease's third.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Time between pings. A link is dead when a fourth is due after three without a sign of life: with 2.25 s, 9 s after
    /// the last sign at most, so that with the grace the work runs elsewhere within 10 s.
    #[serde(with = "humantime_serde")]
    pub ping: Duration,
    /// How long a claim holds without renewal. 30 s: six heartbeats.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long the work of a closed link waits for its node to come back. Half a second: a reconnect takes a round
    /// trip or two, and the work must run elsewhere within a second.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// A new link must say hello in this time.
    #[serde(with = "humantime_serde")]
    pub hello_max: Duration,
    /// How long a worker waits for an ack before it sends a report again.
    #[serde(with = "humantime_serde")]
    pub resend: Duration,
    /// Links at one time. Each takes two sockets' worth of buffers.
    pub links_max: usize,
    /// Challenges not yet answered. Each takes about 200 bytes and what the node said of itself.
    pub challenges_max: usize,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            enrolment_token: None,
            heartbeat: Duration::from_secs(5),
            ping: Duration::from_millis(2_250),
            lease: Duration::from_secs(30),
            grace: Duration::from_millis(500),
            hello_max: Duration::from_secs(10),
            resend: Duration::from_secs(10),
            links_max: 10_000,
            challenges_max: 4_096,
        }
    }
}

/// Who gets what, when.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Safety net: how often the store is asked what waits even if nobody said so. Jittered by a quarter.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// How often leases and deadlines are looked at. A quarter of a second: what a deadline may be late.
    #[serde(with = "humantime_serde")]
    pub sweep: Duration,
    /// Longest wait after the first failed attempt; doubles with each, and the wait is random below it.
    #[serde(with = "humantime_serde")]
    pub backoff: Duration,
    /// Longest wait after any failed attempt.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// A node that said it would fetch a model and has not after this time is no longer waited for.
    #[serde(with = "humantime_serde")]
    pub fetch_max: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(1),
            sweep: Duration::from_millis(250),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            fetch_max: Duration::from_secs(600),
        }
    }
}

/// Models and large payloads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Largest file of a model. 64 GiB: shards are far smaller.
    pub model_bytes_max: u64,
    /// Largest input or output that goes by reference. 256 MiB.
    pub payload_bytes_max: u64,
    /// How often blobs that nothing refers to are looked for.
    #[serde(with = "humantime_serde")]
    pub collect: Duration,
    /// An upload that nothing refers to yet is left alone so long: a model's manifest follows its files.
    #[serde(with = "humantime_serde")]
    pub collect_after: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            model_bytes_max: 64 << 30,
            payload_bytes_max: 256 << 20,
            collect: Duration::from_secs(600),
            collect_after: Duration::from_secs(86_400),
        }
    }
}

/// What callers may ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tasks {
    /// So many failed attempts put a task into quarantine, unless it says otherwise.
    pub failures_max: u32,
    /// The most that a task may say.
    pub failures_max_limit: u32,
    /// Callers waiting for results at one time; each costs a channel and, when its result comes, the result.
    pub waiting_max: usize,
    /// Priority of `/v1` requests: somebody waits for them.
    pub interactive_priority: u8,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { failures_max: 3, failures_max_limit: 1_000, waiting_max: 16_384, interactive_priority: 8 }
    }
}

/// A duration as the store counts it.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were_and_unknown_ones_are_refused() {
        let json = serde_json::to_string(&Options::default()).unwrap();
        let again: Options = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), json);
        assert!(serde_json::from_str::<Options>(r#"{"http": {"adress": "127.0.0.1:1"}}"#).is_err());
    }

    #[test]
    fn the_work_of_a_silent_node_is_free_within_ten_seconds() {
        let nodes = Nodes::default();
        assert!(nodes.ping * 4 + nodes.grace < Duration::from_secs(10));
        assert!(nodes.grace <= Duration::from_secs(1));
        assert!(nodes.lease >= nodes.heartbeat * 3);
    }
}
