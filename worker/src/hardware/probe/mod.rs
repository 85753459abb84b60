//! Drivers are asked in a child process: in go questions, out come answers, and a driver that crashes, hangs or talks
//! nonsense is a finding. The parent writes a line of JSON and reads lines of JSON until the answer is complete; before
//! each single query the child says which it is, so that the parent knows which one killed it, leaves that one out, and
//! asks the rest again.

mod child;
mod parent;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(super) use child::Reporter;
pub use child::{run_probe_child, serve};
pub use parent::{Command, Failure};
pub(super) use parent::{Live, ask_once};

use super::{Finding, adapters, cuda, nvidia};

/// The hidden subcommand with which an executable becomes the child: it calls [`run_probe_child`] and does nothing else.
pub const CHILD_ARGUMENT: &str = "__probe-gpu";

/// What the child is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The NVIDIA driver and its cards, in full.
    Nvidia,
    /// The graphics adapters of all makers.
    Adapters,
    /// The devices that this build's CUDA can use.
    Cuda,
    /// The load of the NVIDIA cards at this moment.
    NvidiaLoad,
}

impl Subject {
    /// For findings.
    fn name(self) -> &'static str {
        match self {
            Self::Nvidia | Self::NvidiaLoad => "nvidia",
            Self::Adapters => "adapters",
            Self::Cuda => "cuda",
        }
    }
}

/// One question: a line from parent to child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What is asked.
    pub subject: Subject,
    /// The NVML library, where it is not to be searched.
    #[serde(default)]
    pub library: Option<PathBuf>,
    /// Steps that must be left out, because they ended or stopped a child before.
    #[serde(default)]
    pub skip: Vec<String>,
}

/// A part of an answer: a line from child to parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The child is there. What comes before this on its output (a loader's or a test runner's words) is not ours.
    Ready,
    /// What the child is about to do.
    Step(String),
    /// The NVIDIA driver.
    Driver(nvidia::Driver),
    /// One NVIDIA card in full.
    Gpu(nvidia::Gpu),
    /// The load of one NVIDIA card.
    GpuSample(nvidia::GpuSample),
    /// One device of CUDA's.
    CudaDevice(cuda::Device),
    /// One graphics adapter.
    Adapter(adapters::Adapter),
    /// Something that was noticed.
    Finding(Finding),
    /// The answer is complete.
    Done,
}

impl Command {
    /// This executable, run again as the child.
    ///
    /// # Errors
    /// When the system does not tell which file this executable is.
    pub fn this_executable() -> io::Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Self { program, args: vec![OsString::from(CHILD_ARGUMENT)], environment: Vec::new() })
    }
}
