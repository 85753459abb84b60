//! The command line: what can be said, with help that teaches. Parsed here, acted on in `commands`.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod bench;
mod run;

pub(crate) use bench::{
    Bench, Load as BenchLoad, Output as BenchOutput, Requests as BenchRequests, Server as BenchServer,
};
pub(crate) use run::{Run, Target, Writing};

/// One inference service out of many machines.
///
/// `neurogrid up` starts a whole grid on this machine and prints curl lines to try it with. Every option can also be set
/// by the environment variable that its help names, or in a settings file; flags win over variables, variables over the file.
#[derive(Debug, Parser)]
#[command(name = "neurogrid", version, propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Settings file (TOML, a table per command). Without it `~/.config/neurogrid/config.toml` is read if it is there.
    #[arg(long, global = true, value_name = "FILE", env = "NEUROGRID_CONFIG", help_heading = "Everywhere")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON on standard output instead of text for people.
    #[arg(long, global = true, env = "NEUROGRID_JSON", help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// What is logged to standard error: error, warn, info, debug, trace, or a filter such as `info,worker=debug`.
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "NEUROGRID_LOG",
        default_value = "info",
        help_heading = "Everywhere"
    )]
    pub(crate) log: String,
    /// How log lines look.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "NEUROGRID_LOG_FORMAT",
        default_value = "text",
        help_heading = "Everywhere"
    )]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole grid in one process: coordinator, worker and bundled models.
    ///
    /// Nothing is downloaded. When everything is ready it prints the addresses and curl lines that work. Ctrl-C stops it.
    Up(Up),
    /// Serve models on this machine, alone or for a grid.
    ///
    /// Without --coordinator it serves its local API only (OpenAI's and KServe's shapes, see /docs on its address).
    /// With one or more it also takes work from them; it dials out, no port has to be opened.
    Worker(Worker),
    /// Run the grid's front: takes requests, hands them to workers, keeps tasks safe.
    ///
    /// With no settings its state is one SQLite file.
    Coordinator(Coordinator),
    /// Show what this machine has: CPU, memory, disks, GPUs, drivers, measured speed.
    Profile(Profile),
    /// Check everything that a worker or coordinator needs; each check with its proof and the line that mends it.
    Doctor(Doctor),
    /// Manage the models on this machine.
    #[command(subcommand)]
    Models(Models),
    /// Run one inference, on this machine or through a worker or coordinator.
    #[command(subcommand)]
    Run(Run),
    /// Load a server with requests and measure it: this grid's, or any other that speaks OpenAI's API.
    #[command(subcommand)]
    Bench(Bench),
    /// Check settings.
    #[command(subcommand)]
    Config(Config),
    /// Print a completion script for a shell.
    ///
    /// For bash: `neurogrid completions bash > /etc/bash_completion.d/neurogrid`
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Probe GPUs and answer on standard output. Run by the worker as a child, so that a crashing driver cannot take it down.
    #[command(name = worker::hardware::probe::CHILD_ARGUMENT, hide = true)]
    ProbeGpu,
}

/// What every program needs that serves models.
#[derive(Debug, Clone, Args)]
pub(crate) struct Serving {
    #[command(flatten)]
    pub(crate) store: Store,
    /// Folder with one model, served where it lies (config.json, model.safetensors or model.onnx, tokenizer.json; or one .gguf file).
    #[arg(long, value_name = "FOLDER", env = "NEUROGRID_MODEL_FOLDER", value_delimiter = ',', help_heading = "Models")]
    pub(crate) model_folder: Vec<PathBuf>,
    /// Make the weights of the models in these folders smaller when they are loaded: faster, and a little less exact. `neurogrid
    /// models accuracy` says how much.
    #[arg(
        long,
        value_name = "KIND",
        env = "NEUROGRID_QUANTIZATION",
        requires = "model_folder",
        help_heading = "Models"
    )]
    pub(crate) quantization: Option<Quantization>,
    /// Load these models before saying that the worker is ready.
    #[arg(long, value_name = "MODEL", env = "NEUROGRID_PRELOAD", value_delimiter = ',', help_heading = "Models")]
    pub(crate) preload: Vec<String>,
    /// Which backend runs the models.
    #[arg(long, value_name = "BACKEND", env = "NEUROGRID_BACKEND", default_value = "auto", help_heading = "Compute")]
    pub(crate) backend: Backend,
    /// Devices that run the models: auto (every CUDA device that works in a build with CUDA, the Mac's GPU in one with Metal; else the CPU),
    /// cpu, cuda, cuda:N, metal, metal:N. In a build for GPUs the CPU is used only where it is asked for.
    #[arg(
        long,
        value_name = "DEVICE",
        env = "NEUROGRID_DEVICE",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "Compute"
    )]
    pub(crate) device: Vec<worker::device::choice::Asked>,
    /// ONNX Runtime's library. Without it: `ORT_DYLIB_PATH`, an installed Python `onnxruntime`, the system's folders; when
    /// there is none, the built-in engine runs ONNX models.
    #[arg(long, value_name = "FILE", env = "NEUROGRID_ONNX_LIBRARY", help_heading = "Compute")]
    pub(crate) onnx_library: Option<PathBuf>,
    /// Texts that a model writes at once; others wait for their turn.
    #[arg(long, value_name = "COUNT", env = "NEUROGRID_MAX_SEQUENCES", default_value_t = worker::config::Text::default().sequences_max, help_heading = "Text")]
    pub(crate) max_sequences: usize,
    /// Memory for the KV cache of each model that writes text. What all its texts could need, up to half of what is free, when not given.
    #[arg(long, value_name = "GB", env = "NEUROGRID_KV_CACHE_GB", help_heading = "Text")]
    pub(crate) kv_cache_gb: Option<f64>,
    /// CPU threads for all work together. As many as this process may use when not given.
    #[arg(
        long,
        value_name = "COUNT",
        env = "NEUROGRID_THREADS",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Compute"
    )]
    pub(crate) threads: usize,
    /// NVIDIA's management library, when it is not where the driver puts it.
    #[arg(long, value_name = "FILE", env = "NEUROGRID_NVML_LIBRARY", help_heading = "Compute")]
    pub(crate) nvml_library: Option<PathBuf>,
    /// Tasks inside the worker at once; more are answered with 429.
    #[arg(long, value_name = "COUNT", env = "NEUROGRID_MAX_CONCURRENT_TASKS", help_heading = "Limits")]
    pub(crate) max_concurrent_tasks: Option<usize>,
    /// How long a task may take that has no deadline of its own.
    #[arg(long, value_name = "TIME", env = "NEUROGRID_TASK_TIMEOUT", value_parser = humantime::parse_duration, default_value = "30min", help_heading = "Limits")]
    pub(crate) task_timeout: Duration,
    /// Fewer CPU cores than this and the worker refuses to start.
    #[arg(
        long,
        value_name = "COUNT",
        env = "NEUROGRID_MIN_CPU_CORES",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Limits"
    )]
    pub(crate) min_cpu_cores: usize,
    /// Less memory than this and the worker refuses to start.
    #[arg(
        long,
        value_name = "GB",
        env = "NEUROGRID_MIN_MEMORY_GB",
        default_value_t = 0.0,
        hide_default_value = true,
        help_heading = "Limits"
    )]
    pub(crate) min_memory_gb: f64,
    /// Less free disk than this and the worker refuses to start.
    #[arg(
        long,
        value_name = "GB",
        env = "NEUROGRID_MIN_STORAGE_GB",
        default_value_t = 0.0,
        hide_default_value = true,
        help_heading = "Limits"
    )]
    pub(crate) min_storage_gb: f64,
    /// Refuse to start without a GPU that this build can use.
    #[arg(long, env = "NEUROGRID_GPU_REQUIRED", help_heading = "Limits")]
    pub(crate) gpu_required: bool,
}

/// How weights are made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quantization {
    /// 8 bits, with a scale for each output and each token. For encoders, and models that write text, with safetensors weights, on the CPU.
    Int8,
}

impl From<Quantization> for models::manifest::Quantization {
    fn from(quantization: Quantization) -> Self {
        match quantization {
            Quantization::Int8 => Self::Int8,
        }
    }
}

/// Which backend runs the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The fastest that is there; which one runs is shown with every model.
    Auto,
    /// Our own ops, on the CPU: encoders with safetensors weights, and all models that write text.
    Kernels,
    /// Candle, on safetensors weights.
    Candle,
    /// ONNX Runtime, or the built-in ONNX engine where there is no library.
    Onnx,
}

/// Who may call, and from where.
#[derive(Debug, Clone, Args)]
pub(crate) struct Access {
    /// Key that callers must send as `Authorization: Bearer KEY`. Needed on any address but loopback.
    #[arg(long, value_name = "KEY", env = "NEUROGRID_API_KEY", hide_env_values = true, help_heading = "Access", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) api_key: Option<String>,
    /// Serve any address without a key. Whoever reaches the port can use the machine.
    #[arg(long, env = "NEUROGRID_INSECURE", help_heading = "Access")]
    pub(crate) insecure: bool,
}

/// Options of `up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    /// Where the coordinator listens.
    #[arg(long, value_name = "ADDRESS", env = "NEUROGRID_COORDINATOR_BIND", default_value = "127.0.0.1:3001")]
    pub(crate) bind: SocketAddr,
    /// Where the worker listens.
    #[arg(long, value_name = "ADDRESS", env = "NEUROGRID_WORKER_BIND", default_value = "127.0.0.1:8080")]
    pub(crate) worker_bind: SocketAddr,
    /// Folder for the database, keys and results. `~/.local/share/neurogrid` when not given.
    #[arg(long, value_name = "FOLDER", env = "NEUROGRID_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) serving: Serving,
}

/// Options of `worker`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Worker {
    /// Coordinator to take work from; may be given several times.
    #[arg(long, value_name = "URL", env = "NEUROGRID_COORDINATOR", value_delimiter = ',')]
    pub(crate) coordinator: Vec<String>,
    /// Token that the grid asks of new nodes.
    #[arg(long, value_name = "TOKEN", env = "NEUROGRID_ENROLMENT_TOKEN", hide_env_values = true)]
    pub(crate) enrolment_token: Option<String>,
    /// Where the local API listens. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", env = "NEUROGRID_WORKER_BIND", default_value = "127.0.0.1:8080")]
    pub(crate) bind: SocketAddr,
    /// Name of this node, for people. The machine's name when not given.
    #[arg(long, value_name = "NAME", env = "NEUROGRID_NAME")]
    pub(crate) name: Option<String>,
    /// Where this node is, in the grid's words.
    #[arg(long, value_name = "REGION", env = "NEUROGRID_REGION", default_value = "")]
    pub(crate) region: String,
    /// Folder for this node's key and results that wait to be sent. `~/.local/share/neurogrid` when not given.
    #[arg(long, value_name = "FOLDER", env = "NEUROGRID_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) serving: Serving,
}

/// Options of `coordinator`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Coordinator {
    /// Where it listens. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", env = "NEUROGRID_COORDINATOR_BIND", default_value = "127.0.0.1:3001")]
    pub(crate) bind: SocketAddr,
    /// Folder for the database, the coordinator's key and blobs. `~/.local/share/neurogrid` when not given.
    #[arg(long, value_name = "FOLDER", env = "NEUROGRID_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Token that new nodes must show.
    #[arg(long, value_name = "TOKEN", env = "NEUROGRID_ENROLMENT_TOKEN", hide_env_values = true)]
    pub(crate) enrolment_token: Option<String>,
    /// Address under which nodes reach this coordinator, when it is not the one it listens on (a proxy in front, say).
    #[arg(long, value_name = "URL", env = "NEUROGRID_ORIGIN", value_delimiter = ',')]
    pub(crate) origin: Vec<String>,
    /// How long finished tasks and their results are kept.
    #[arg(long, value_name = "TIME", env = "NEUROGRID_RETENTION", value_parser = humantime::parse_duration, default_value = "1day")]
    pub(crate) retention: Duration,
    /// Tasks that may wait or run at one time; more are refused with 429.
    #[arg(long, value_name = "COUNT", env = "NEUROGRID_TASKS_OPEN_MAX", default_value_t = 1_000_000)]
    pub(crate) tasks_open_max: usize,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Options of `profile`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Profile {
    /// Leave out every measurement. The first one takes up to ten seconds a device, and is kept; later ones take a second or two.
    #[arg(long)]
    pub(crate) no_measure: bool,
    /// Measure what the devices can do again, and keep that.
    #[arg(long, conflicts_with = "no_measure")]
    pub(crate) measure_again: bool,
    /// Folder in which what was measured is kept. `~/.local/share/neurogrid` when not given.
    #[arg(long, value_name = "FOLDER", env = "NEUROGRID_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// NVIDIA's management library, when it is not where the driver puts it.
    #[arg(long, value_name = "FILE", env = "NEUROGRID_NVML_LIBRARY")]
    pub(crate) nvml_library: Option<PathBuf>,
}

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Doctor {
    /// Also check that this coordinator can be reached.
    #[arg(long, value_name = "URL", env = "NEUROGRID_COORDINATOR", value_delimiter = ',')]
    pub(crate) coordinator: Vec<String>,
    /// Check that this address can be bound.
    #[arg(long, value_name = "ADDRESS", env = "NEUROGRID_WORKER_BIND", default_value = "127.0.0.1:8080")]
    pub(crate) bind: SocketAddr,
    #[command(flatten)]
    pub(crate) serving: Serving,
}

/// What can be done with models.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Models {
    /// List the models on this machine.
    List(Store),
    /// Download a model. Goes on where an earlier download stopped; every file is verified.
    ///
    /// SOURCE is `hf:ORG/NAME[@REVISION]` (Hugging Face Hub), `http(s)://…/manifest.json`, or `grid:NAME[@VERSION]` together
    /// with --coordinator.
    Pull {
        /// Where from.
        source: String,
        #[command(flatten)]
        grid: Grid,
        #[command(flatten)]
        store: Store,
    },
    /// Add a folder with a model: a copy to this machine's models, or with --coordinator to a coordinator's registry, so that
    /// every worker of the grid can fetch it.
    Add {
        /// Folder with config.json, model.safetensors or model.onnx, and tokenizer.json; or with one .gguf file.
        folder: PathBuf,
        /// Its name; the folder's when not given.
        #[arg(long)]
        name: Option<String>,
        /// Its version; 1 when not given.
        #[arg(id = "model_version", long = "model-version", value_name = "VERSION")]
        version: Option<String>,
        /// Make its weights smaller when it is loaded. It is then another model than the same without, and is to have a name or
        /// a version of its own.
        #[arg(long, value_name = "KIND")]
        quantization: Option<Quantization>,
        /// A text that the model wants before its inputs, and the name by which requests choose it: `query=query: `.
        /// May be repeated; beside the prompts that the folder has.
        #[arg(long, value_name = "NAME=TEXT", value_parser = prompt)]
        prompt: Vec<(String, String)>,
        /// The prompt of requests that choose none.
        #[arg(long, value_name = "NAME")]
        default_prompt: Option<String>,
        #[command(flatten)]
        grid: Grid,
        #[command(flatten)]
        store: Store,
    },
    /// Measure how near a model in fewer bits is to itself as it is stored: its vectors' cosine and whether the order of
    /// similarities stays, or for classifiers and rerankers their scores.
    Accuracy {
        /// Folder with config.json, model.safetensors and tokenizer.json.
        folder: PathBuf,
        /// The form that is measured.
        #[arg(long, value_name = "KIND", default_value = "int8")]
        quantization: Quantization,
        /// Texts of the kind that the model is used for, one a line; - reads them from standard input. Without it, 64 sentences of
        /// everyday English.
        #[arg(long, value_name = "FILE")]
        texts: Option<PathBuf>,
        /// CPU threads. As many as this process may use when not given.
        #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
        threads: usize,
    },
    /// Hash every file of a model again and compare with its manifest.
    Verify {
        /// NAME or NAME@VERSION; all models when not given.
        model: Option<String>,
        #[command(flatten)]
        store: Store,
    },
    /// Delete a downloaded model.
    Rm {
        /// NAME or NAME@VERSION.
        model: String,
        #[command(flatten)]
        store: Store,
    },
}

/// A coordinator, as a place for models.
#[derive(Debug, Clone, Args)]
pub(crate) struct Grid {
    /// The coordinator whose registry is meant. Only as a flag: a worker's settings must not turn a copy into an upload.
    #[arg(long, value_name = "URL")]
    pub(crate) coordinator: Option<String>,
    /// The coordinator's key.
    #[arg(long, value_name = "KEY", env = "NEUROGRID_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

/// The models on this machine.
#[derive(Debug, Clone, Args)]
pub(crate) struct Store {
    /// Folder of downloaded models. `~/.cache/neurogrid/models` when not given.
    #[arg(long, value_name = "FOLDER", env = "NEUROGRID_CACHE_DIR", help_heading = "Models")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Downloaded models may take so many gigabytes together; the least recently used go when another one needs the room.
    /// Without it only the disk is the limit.
    #[arg(long, value_name = "GB", env = "NEUROGRID_CACHE_QUOTA_GB", help_heading = "Models")]
    pub(crate) cache_quota_gb: Option<f64>,
    /// Another address that speaks the Hugging Face Hub's API. `HF_ENDPOINT`, or the Hub itself, when not given.
    #[arg(long, value_name = "URL", env = "NEUROGRID_HUB_ENDPOINT", help_heading = "Models")]
    pub(crate) hub_endpoint: Option<String>,
    /// Token for gated and private models of the Hub. `HF_TOKEN`, or the one that the Hub's own tools keep, when not given.
    #[arg(long, value_name = "TOKEN", env = "NEUROGRID_HUB_TOKEN", hide_env_values = true, help_heading = "Models")]
    pub(crate) hub_token: Option<String>,
}

/// What can be done with settings.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Config {
    /// Check the settings file and the environment; every mistake is reported at once.
    Check,
    /// Print a settings file with every option, its default and its meaning.
    Template,
}

/// `NAME=TEXT`: what stands before the first `=` is the name.
fn prompt(argument: &str) -> Result<(String, String), String> {
    let (name, text) = argument.split_once('=').ok_or("write it like query=\"query: \"")?;
    Ok((name.into(), text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_of_a_program_is_also_a_variable() {
        for name in ["up", "worker", "coordinator"] {
            let command = Cli::command();
            let sub = command.find_subcommand(name).expect("exists");
            for arg in sub.get_arguments().filter(|arg| arg.get_long().is_some()) {
                assert!(arg.get_env().is_some(), "{name} --{}", arg.get_long().expect("filtered"));
            }
        }
    }

    #[test]
    fn a_prompt_is_a_name_and_a_text_with_all_its_spaces() {
        let pair = |name: &str, text: &str| Ok((name.to_owned(), text.to_owned()));
        assert_eq!(prompt("query=query: "), pair("query", "query: "));
        assert_eq!(prompt("q=a=b\nc"), pair("q", "a=b\nc"));
        assert_eq!(prompt("document="), pair("document", ""));
        assert!(prompt("query").is_err());
    }

    #[test]
    fn every_option_and_command_explains_itself() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
