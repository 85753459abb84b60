//! Starts whole programs as a user would, on loopback and in folders of their own, and ends only what it started. Facts about
//! them come out over HTTP; nothing of the programs' code is linked in.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what is skipped is said aloud")]

pub mod digits;
pub mod history;
pub mod http;
pub mod program;

pub use program::{Program, free_port};

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in the repository").to_owned()
}

/// The Python that has the real clients, as the test command prepares it; `None`, said aloud, when there is none.
pub fn python() -> Option<PathBuf> {
    prepared("NEUROGRID_TEST_PYTHON", "the Python clients")
}

/// Folder with the packages that the clients for Node need; `None`, said aloud, when there is none.
pub fn node_packages() -> Option<PathBuf> {
    prepared("NEUROGRID_TEST_NODE", "the clients for Node")
}

/// Folder of all-MiniLM-L6-v2 with safetensors and ONNX weights; `None`, said aloud, when there is none.
pub fn minilm() -> Option<PathBuf> {
    prepared("NEUROGRID_TEST_MINILM_ONNX", "all-MiniLM-L6-v2")
}

/// A small BERT encoder with random weights that the repository carries.
pub fn tiny_bert() -> PathBuf {
    root().join("models/tests/data/tiny-bert")
}

fn prepared(variable: &str, what: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        println!("skipped: {variable} is not set, so {what} cannot be tested; `cargo xtask test` prepares it");
    }
    path
}
