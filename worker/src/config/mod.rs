//! What can be set, one struct per part, each with defaults and the reason for every number. Plain data: who reads
//! flags, environment and files fills it in; [`crate::build`] checks it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use models::engine::Device;
use models::manifest::Quantization;

/// Everything that a worker can be told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How much work may be inside.
    pub admission: Admission,
    /// How batches are put together.
    pub batch: Batch,
    /// How text is written.
    pub text: Text,
    /// Which devices are used.
    pub devices: Devices,
    /// Where models are kept and come from.
    pub cache: Cache,
    /// The local API.
    pub http: Http,
    /// Threads, and how models are loaded.
    pub compute: Compute,
    /// How the machine is looked at. When absent: by a child process of this executable, with speed.
    pub hardware: Option<crate::hardware::Options>,
}

/// How much work may be inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Tasks that may be inside at once; more are refused with 429.
    pub tasks_max: usize,
    /// How long a task may take that has no deadline of its own.
    pub task_timeout: Duration,
    /// How long those inside may still take when the worker shuts down.
    pub drain_timeout: Duration,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            // Enough to fill several batches of single texts on a GPU; at 10 ms a batch of 64 the last one waits 80 ms.
            tasks_max: 512,
            task_timeout: Duration::from_secs(1800),
            // Below the 30 s after which service managers and Kubernetes kill.
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// How batches are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Tokens in a batch of an encoder on an accelerator at most. How many there are in fact is measured when a model is loaded.
    pub tokens_max: usize,
    /// Tokens in a batch of an encoder on the CPU at most.
    pub tokens_max_cpu: usize,
    /// Whether the tokens of a batch are measured; else they are the bounds above.
    pub is_measured: bool,
    /// Sequences in a batch of an encoder.
    pub sequences_max: usize,
    /// Rows in a batch of a model that takes tensors.
    pub rows_max: usize,
    /// How long a batch that is not full waits for more while the device is free.
    pub wait: Duration,
    /// Batches in a row that may go past the job that is unserved the longest.
    pub overtakes_max: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            // Fills a large GPU with a small encoder; activations of BERT-base stay below 1 GiB.
            tokens_max: 16_384,
            // More than any CPU needs to work at its full rate; what is larger only keeps others waiting.
            tokens_max_cpu: 4_096,
            is_measured: true,
            sequences_max: 512,
            rows_max: 256,
            // Waiting for company costs latency when there is none; when there is, it gathers while the device works.
            wait: Duration::ZERO,
            // High priorities get seven of eight batches at least, and nobody starves.
            overtakes_max: 7,
        }
    }
}

/// How text is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Texts of one model that are written at once; others wait for their turn.
    pub sequences_max: usize,
    /// Bytes of a model's KV cache. When absent: what all its texts could need, up to half of the device memory that is free.
    pub cache_bytes: Option<u64>,
    /// How long a step may take while prompts are read: about the longest time between two tokens of a text.
    pub step: Duration,
    /// Texts that wait for their turn at each model; more are refused with 429.
    pub queue_max: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            // Weights are read once for all of them; on a CPU more gain little, and each one's tokens come slower.
            sequences_max: 32,
            cache_bytes: None,
            // Still reads as flowing; a prompt of a thousand tokens is read in a second where a step holds 250 of them.
            step: Duration::from_millis(250),
            // As many as may be inside.
            queue_max: 512,
        }
    }
}

/// Which devices are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// Each gets a thread. Empty means the CPU with 80 % of the memory that the process may use.
    pub devices: Vec<DeviceOptions>,
    /// Models that run on this device whatever else is there.
    pub force: Option<Device>,
    /// Models that are loaded before the worker says that it has started.
    pub preload: Vec<String>,
    /// Panics without an answer between them after which a model is out of use.
    pub panics_max: u32,
    /// How long an unloading waits for those who use the model.
    pub unload_timeout: Duration,
}

/// One device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Which.
    pub device: Device,
    /// Bytes that models may take on it.
    pub memory_bytes: u64,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            force: None,
            preload: Vec::new(),
            // One may be an input, two may be bad luck.
            panics_max: 3,
            // A long batch on a slow machine; after it the waiting tasks are failed.
            unload_timeout: Duration::from_secs(10),
        }
    }
}

/// Where models are kept and come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The folder that downloaded and unpacked models are kept in.
    pub folder: PathBuf,
    /// Whether the models inside the program are served.
    pub bundled: bool,
    /// Folders with one model each, served where they lie.
    pub folders: Vec<PathBuf>,
    /// What the weights of the models in these folders are turned into, else what their manifests say.
    pub quantization: Option<Quantization>,
    /// Bytes of downloaded models together; the least recently used go when another one needs the room. Without it only
    /// the disk is the limit, of which 1 GiB stays free.
    pub quota_bytes: Option<u64>,
    /// The Hugging Face Hub.
    pub hub: Hub,
    /// How files are fetched.
    pub download: Download,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            folder: default_folder(),
            bundled: true,
            folders: Vec::new(),
            quantization: None,
            quota_bytes: None,
            hub: Hub::default(),
            download: Download::default(),
        }
    }
}

/// The Hugging Face Hub.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hub {
    /// Another address that speaks the Hub's API; `HF_ENDPOINT`, or the Hub itself, when absent.
    pub endpoint: Option<String>,
    /// The token that gated and private models need; the one that the Hub's own tools keep, when absent.
    pub token: Option<String>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token must not end up in a log.
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Hub").field("endpoint", &self.endpoint).field("token", &token).finish()
    }
}

/// How files are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// Bytes that are asked for at once.
    pub chunk_bytes: u64,
    /// Connections for one file.
    pub connections: usize,
    /// A connection that brings nothing for so long is given up and asked anew.
    pub idle_timeout: Duration,
    /// The wait before the second attempt; doubled each time.
    pub backoff: Duration,
    /// Attempts after the first that bring nothing new.
    pub retries: u32,
}

impl Default for Download {
    fn default() -> Self {
        Self {
            // A second at 64 Mbit/s: little is lost with a connection, and the overhead of a request does not count.
            chunk_bytes: 8 << 20,
            // One connection seldom fills a line; more than a few are what servers refuse.
            connections: 4,
            idle_timeout: Duration::from_secs(30),
            backoff: Duration::from_millis(500),
            // Two minutes in all with the doubling: longer than a restart of a server or a router.
            retries: 8,
        }
    }
}

/// `$XDG_CACHE_HOME/neurogrid/models`, `~/.cache/neurogrid/models`, or a folder of the working directory.
fn default_folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    base.unwrap_or_else(|| PathBuf::from(".cache")).join("neurogrid").join("models")
}

/// The local API.
#[derive(Clone, PartialEq, Eq)]
pub struct Http {
    /// Where it listens. Port 0 takes a free one.
    pub address: std::net::SocketAddr,
    /// The key that callers must send as `Authorization: Bearer …`. Needed on other addresses than loopback.
    pub api_key: Option<String>,
    /// Serve without a key on any address.
    pub insecure: bool,
    /// Largest body of a request.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are being read or worked on at once; more are refused with 429.
    pub bodies_bytes_max: usize,
    /// Connections at once; more wait in the system's queue.
    pub connections_max: usize,
    /// How long a caller may take to send a request's body.
    pub body_timeout: Duration,
    /// How long the result of a task that nobody waits for is kept.
    pub result_retention: Duration,
    /// Results that are kept.
    pub results_max: usize,
    /// Bytes of results that are kept.
    pub results_bytes_max: usize,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 8080).into(),
            api_key: None,
            insecure: false,
            // A batch of 64 images of 512 × 512 as f32, or 2,048 long texts.
            body_bytes_max: 64 << 20,
            // Four of the largest; what a body becomes while it is worked on takes about as much again.
            bodies_bytes_max: 256 << 20,
            connections_max: 1024,
            body_timeout: Duration::from_secs(60),
            result_retention: Duration::from_secs(86_400),
            results_max: 10_000,
            results_bytes_max: 256 << 20,
        }
    }
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not end up in a log.
        f.debug_struct("Http")
            .field("address", &self.address)
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .field("insecure", &self.insecure)
            .finish_non_exhaustive()
    }
}

/// Threads, and how models are loaded.
#[derive(Clone, Default)]
pub struct Compute {
    /// CPU threads of every pool; 0 for as many as the process may use.
    pub threads: usize,
    /// Which backend runs the models.
    pub backend: models::load::Backend,
    /// The ONNX Runtime library to use; searched for when absent.
    pub onnx_library: Option<PathBuf>,
    /// Loads models that answer requests in another way than [`models::load()`]. For tests and benches.
    pub loader: Option<Loader>,
    /// Asks a device how much of its memory is free; CUDA devices are asked when absent.
    pub free_memory: Option<FreeMemory>,
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compute")
            .field("threads", &self.threads)
            .field("backend", &self.backend)
            .field("onnx_library", &self.onnx_library)
            .field("loader", &self.loader.as_ref().map(|_| "its own"))
            .field("free_memory", &self.free_memory.as_ref().map(|_| "its own"))
            .finish()
    }
}

/// Bytes of a device's memory that nobody has taken, or `None` where the device does not tell.
pub type FreeMemory = Arc<dyn Fn(Device) -> Option<u64> + Send + Sync>;

/// Makes an engine and a pipeline of a model's files.
pub type Loader = Arc<
    dyn Fn(&models::Manifest, &std::path::Path, &models::Options) -> Result<models::Loaded, models::Error>
        + Send
        + Sync,
>;
