//! Arguments of `neurogrid bench`.

use crate::bench::length::Length;
use crate::bench::slo::Limits;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// What a server is loaded with.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Bench {
    /// Chats, streamed: `POST /v1/chat/completions`.
    #[command(after_help = TEXT_EXAMPLES)]
    Chat(Texts),
    /// Texts that go on with a prompt, streamed: `POST /v1/completions`.
    #[command(after_help = TEXT_EXAMPLES)]
    Completions(Texts),
    /// Vectors of texts: `POST /v1/embeddings`.
    #[command(after_help = VECTOR_EXAMPLES)]
    Embeddings(Vectors),
}

const TEXT_EXAMPLES: &str = "\
Examples:
  One caller, one text after another: what a single user sees
    neurogrid bench chat --url http://127.0.0.1:8080

  Two requests a second at random times, for a minute behind 10 s of warm-up; which share is good enough?
    neurogrid bench chat --url http://127.0.0.1:8080 --rate 2 --warmup 10s --duration 1min --slo ttft=500ms,itl=50ms

  A curve of several rates, kept as JSON and as a picture, with the server's CPU time and memory
    neurogrid bench chat --url http://127.0.0.1:8080 --rate 1,2,4,8 --save run.json --plot run.svg --pid 4242

  16 callers who all begin with the same 1,000 tokens, answers of exactly 64 tokens
    neurogrid bench completions --url http://127.0.0.1:8000 --concurrency 16 --prompt-tokens 1100-1200 \\
      --shared-prefix-tokens 1000 --output-tokens 64 --ignore-eos";

const VECTOR_EXAMPLES: &str = "\
Examples:
  64 callers with a text each
    neurogrid bench embeddings --url http://127.0.0.1:8080 --model minilm-tiny --concurrency 64

  50 requests of 8 texts a second at random times, each text of 20 to 200 tokens
    neurogrid bench embeddings --url http://127.0.0.1:3000 --model any --rate 50 --texts 8 --prompt-tokens 20-200";

/// Options of `bench chat` and `bench completions`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Texts {
    #[command(flatten)]
    pub(crate) server: Server,
    #[command(flatten)]
    pub(crate) load: Load,
    /// Tokens of a prompt, as the server counts them, the chat's template among them: 128, 64-256 (evenly between), or 128±32
    /// (or 128+-32: normal, mean and standard deviation). Prompts are everyday words that the seed fixes.
    #[arg(long, value_name = "COUNT", default_value = "128", help_heading = "Requests")]
    pub(crate) prompt_tokens: Length,
    /// Tokens that all prompts have in common at their beginning, to see what a cache of prefixes is worth.
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true, help_heading = "Requests")]
    pub(crate) shared_prefix_tokens: u32,
    /// Tokens of an answer at most; with --ignore-eos exactly. Written as --prompt-tokens.
    #[arg(long, value_name = "COUNT", default_value = "64", help_heading = "Requests")]
    pub(crate) output_tokens: Length,
    /// Ask for texts that do not end before they have their length. vLLM, SGLang and llama.cpp know this too.
    #[arg(long, help_heading = "Requests")]
    pub(crate) ignore_eos: bool,
    /// The temperature of sampling.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, help_heading = "Requests")]
    pub(crate) temperature: f64,
    #[command(flatten)]
    pub(crate) requests: Requests,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `bench embeddings`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Vectors {
    #[command(flatten)]
    pub(crate) server: Server,
    #[command(flatten)]
    pub(crate) load: Load,
    /// Tokens of a text, as the server counts them: 64, 20-200 (evenly between), or 128±32 (or 128+-32: normal, mean and standard
    /// deviation). Texts are everyday words that the seed fixes.
    #[arg(long, value_name = "COUNT", default_value = "64", help_heading = "Requests")]
    pub(crate) prompt_tokens: Length,
    /// Texts in one request.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2048), help_heading = "Requests")]
    pub(crate) texts: u32,
    #[command(flatten)]
    pub(crate) requests: Requests,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Who is asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// The server's address, with or without /v1.
    #[arg(long, value_name = "URL", help_heading = "Server")]
    pub(crate) url: String,
    /// The model's name there. Need not be given where the server lists just one.
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub(crate) model: Option<String>,
    /// Key of the server.
    #[arg(long, value_name = "KEY", env = "NEUROGRID_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub(crate) api_key: Option<String>,
    /// How long a request may take from its start to its end.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "5min", help_heading = "Server")]
    pub(crate) timeout: Duration,
    /// The server's process on this machine: its CPU time and peak memory are measured too, with those of its children.
    #[arg(long, value_name = "PID", help_heading = "Server")]
    pub(crate) pid: Option<u32>,
}

/// How requests come.
#[derive(Debug, Clone, Args)]
pub(crate) struct Load {
    /// Open loop: so many requests a second, at random times (Poisson), whether or not earlier ones are answered. Latencies count from
    /// when a request was due. Several rates are measured one after another.
    #[arg(long, value_name = "RATE", value_delimiter = ',', value_parser = rate, help_heading = "Load")]
    pub(crate) rate: Vec<f64>,
    /// Closed loop: so many callers, of whom each asks again when it has its answer. Several numbers are measured one after another.
    /// One caller when neither this nor --rate is given.
    #[arg(long, value_name = "COUNT", value_delimiter = ',', conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Load")]
    pub(crate) concurrency: Vec<u32>,
    /// How long each load is measured; 30 s when --requests is not given either. What is under way at the end is waited for.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Load")]
    pub(crate) duration: Option<Duration>,
    /// How many requests of each load are measured at most.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    pub(crate) requests: Option<u64>,
    /// Load the server so long before each measurement.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s", help_heading = "Load")]
    pub(crate) warmup: Duration,
    /// Requests of an open loop that may be under way. What is due beyond is not sent, and counted as dropped. Each takes a
    /// connection: `ulimit -n` bounds it too.
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Load")]
    pub(crate) in_flight_max: u32,
    /// Fixes prompts, lengths and times: the same seed asks every server the same.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "Load")]
    pub(crate) seed: u64,
}

/// What is asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct Requests {
    /// Ask what this file has in place of words, from its first line on and again: a JSON object a line, with `prompt` or `messages`, and
    /// `max_tokens` if it is to have its own.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens"], help_heading = "Requests")]
    pub(crate) prompts: Option<PathBuf>,
    /// Fields that are put over every request's body: '{"cache_prompt": false}'.
    #[arg(long, value_name = "JSON", default_value = "{}", hide_default_value = true, value_parser = object, help_heading = "Requests")]
    pub(crate) extra: serde_json::Map<String, serde_json::Value>,
}

/// What is said of it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Output {
    /// Limits of a good answer: ttft (until the first token), itl (a token behind it, on the answer's average), gap (the longest wait
    /// within the text), e2e (until the end). Which share of all that was due kept them all is told.
    #[arg(long, value_name = "NAME=TIME,…", help_heading = "Output")]
    pub(crate) slo: Option<Limits>,
    /// Write everything that was measured to this file, as JSON, with date, machine and command. --json prints the same.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) save: Option<PathBuf>,
    /// Draw the latencies, and for several loads latency over throughput, into this file (SVG).
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) plot: Option<PathBuf>,
}

/// Requests a second.
fn rate(argument: &str) -> Result<f64, String> {
    let rate: f64 = argument.trim().parse().map_err(|_| "write requests a second, as 2 or 0.5".to_owned())?;
    // Above this the gaps are shorter than any machine keeps.
    if rate.is_finite() && rate > 0.0 && rate <= 1e6 { Ok(rate) } else { Err("must be above 0".into()) }
}

/// A JSON object.
fn object(argument: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(argument).map_err(|error| format!("{error}; write an object, as {{\"cache_prompt\": false}}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn chat(arguments: &str) -> Result<Texts, String> {
        let all = ["neurogrid", "bench", "chat", "--url", "http://h"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Bench(Bench::Chat(texts)) => Ok(texts),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn loads_are_read_and_nonsense_is_refused() {
        assert_eq!(chat("--rate 1,2.5,8").unwrap().load.rate, [1.0, 2.5, 8.0]);
        assert_eq!(chat("--concurrency 1,16").unwrap().load.concurrency, [1, 16]);
        for (wrong, says) in [
            ("--rate 0", "above 0"),
            ("--rate -1", "-1"),
            ("--rate inf", "above 0"),
            ("--rate fast", "requests a second"),
            ("--concurrency 0", "0 is not in"),
            ("--rate 1 --concurrency 1", "cannot be used with"),
            ("--requests 0", "0 is not in"),
            ("--slo p99=1s", "there are ttft"),
            ("--output-tokens 9-3", "write 3-9"),
            ("--extra 5", "write an object"),
        ] {
            let refused = chat(wrong).unwrap_err();
            assert!(refused.contains(says), "{wrong}: {refused}");
        }
    }

    #[test]
    fn prompts_from_a_file_have_their_own_length() {
        assert!(chat("--prompts f").is_ok());
        assert!(chat("--prompts f --prompt-tokens 5").is_err());
    }
}
