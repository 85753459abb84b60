//! Arguments of `neurogrid run`.

use super::Serving;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Kinds of inference.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Run {
    /// Texts to vectors.
    Embed {
        /// NAME or NAME@VERSION.
        model: String,
        /// Texts; each line of standard input when none is given.
        texts: Vec<String>,
        /// What the texts are for, where the model has prompts: query, document, or another name that it has.
        #[arg(long, value_name = "NAME", conflicts_with = "prompt_name")]
        input_type: Option<String>,
        /// The exact name of one of the model's prompts.
        #[arg(long, value_name = "NAME")]
        prompt_name: Option<String>,
        /// Keep only the first so many dimensions.
        #[arg(long, value_name = "COUNT")]
        dimensions: Option<u32>,
        #[command(flatten)]
        target: Target,
    },
    /// Scores of documents against a query, best first.
    Rerank {
        /// NAME or NAME@VERSION.
        model: String,
        /// What is looked for.
        query: String,
        /// Documents; each line of standard input when none is given.
        documents: Vec<String>,
        /// Only the best so many.
        #[arg(long, value_name = "COUNT")]
        top_n: Option<u32>,
        #[command(flatten)]
        target: Target,
    },
    /// Labels of texts, or of tensors read as JSON from --tensors.
    Classify {
        /// NAME or NAME@VERSION.
        model: String,
        /// Texts; each line of standard input when neither texts nor --tensors are given.
        texts: Vec<String>,
        /// JSON file with a list of tensors (`[{"name": …, "datatype": "FP32", "shape": […], "data": […]}]`); `-` reads standard input.
        #[arg(long, value_name = "FILE", conflicts_with = "texts")]
        tensors: Option<PathBuf>,
        /// Only the best so many labels.
        #[arg(long, value_name = "COUNT")]
        top_n: Option<u32>,
        #[command(flatten)]
        target: Target,
    },
    /// Named tensors to named tensors, on any ONNX model.
    Infer {
        /// NAME or NAME@VERSION.
        model: String,
        /// JSON file with a list of tensors, as for classify; `-` reads standard input.
        tensors: PathBuf,
        /// Only these outputs.
        #[arg(long, value_name = "NAME")]
        output: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Talk with a model that was tuned for it, in the terminal or once.
    ///
    /// With a message it is answered and that is all; so it is with standard input that is no terminal. Else lines are read and
    /// answered one after the other: /help says what else can be typed, Ctrl-C ends an answer, Ctrl-D the conversation.
    #[command(
        after_help = "Examples:\n  neurogrid run chat debian-tiny-chat\n  neurogrid run chat debian-tiny-chat \"What is git?\"\n  \
        git diff | neurogrid run chat my-model --system \"Write a commit message.\" --coordinator http://127.0.0.1:3001"
    )]
    Chat {
        /// NAME or NAME@VERSION.
        model: String,
        /// A message to be answered.
        message: Vec<String>,
        /// What the model is told before the conversation.
        #[arg(long, value_name = "TEXT")]
        system: Option<String>,
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        target: Box<Target>,
    },
    /// Go on with a text.
    Generate {
        /// NAME or NAME@VERSION.
        model: String,
        /// What the text begins with; standard input when not given.
        prompt: Option<String>,
        #[command(flatten)]
        writing: Writing,
        #[command(flatten)]
        target: Box<Target>,
    },
}

/// How a text is written. What is not given is as the model's own files say.
#[derive(Debug, Clone, Args)]
pub(crate) struct Writing {
    /// Tokens at most.
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_tokens: Option<u32>,
    /// From 0, always the likeliest token, to 2.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) temperature: Option<f32>,
    /// Share of probability from which tokens are drawn.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) top_p: Option<f32>,
    /// How many of the likeliest tokens are drawn from.
    #[arg(long, value_name = "COUNT")]
    pub(crate) top_k: Option<u32>,
    /// The same seed gives the same text.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
    /// The text ends before this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

/// Where an inference runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Run it through this coordinator.
    #[arg(long, value_name = "URL", conflicts_with = "worker")]
    pub(crate) coordinator: Option<String>,
    /// Run it on this worker. With neither, it runs in this process.
    #[arg(long, value_name = "URL")]
    pub(crate) worker: Option<String>,
    /// Key of the worker or coordinator.
    #[arg(long, value_name = "KEY", env = "NEUROGRID_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    #[command(flatten)]
    pub(crate) serving: Serving,
}
