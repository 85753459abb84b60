//! What comes in: Rust files. What goes out: `unsafe` where the house has no place for it, and crates that do not forbid
//! it. That each block says `// SAFETY:` is clippy's to check (`undocumented_unsafe_blocks`).

use super::{Finding, Tree, source};

/// The room whose whole purpose needs it.
const ROOM: &str = "kernels/";
/// The file of `models` that does: a mapped file.
const FILE: &str = "models/src/load/mmap.rs";
/// Where those lie, and how they end, that speak to a CUDA device, which checks nothing of what it is told.
const CUDA: (&str, &str) = ("models/src/backend/candle/", "_cuda.rs");
/// A crate that forbids it everywhere says so in its root.
const FORBID: &str = "#![forbid(unsafe_code)]";

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.rust() {
        let code = source::code_only(text);
        if is_root(file) && !file.starts_with("kernels/") && !file.starts_with("models/") && !code.contains(FORBID) {
            findings.push(Finding::new(file, 1, format!("add `{FORBID}` below the file's head")));
        }
        let is_cuda = file.starts_with(CUDA.0) && file.ends_with(CUDA.1);
        if file.starts_with(ROOM) || file == FILE || is_cuda {
            continue;
        }
        for (number, line) in code.lines().enumerate() {
            if source::has_word(line, "unsafe") {
                let message = format!(
                    "unsafe code belongs in {ROOM}, {FILE} or {}*{}; find a safe way, or move it there",
                    CUDA.0, CUDA.1
                );
                findings.push(Finding::new(file, number + 1, message));
            }
        }
    }
    findings
}

/// True for the root of a library or executable.
fn is_root(file: &str) -> bool {
    let Some((_, inside)) = file.split_once('/') else { return false };
    matches!(inside, "src/lib.rs" | "src/main.rs")
}

#[cfg(test)]
mod tests {
    use super::{super::expect, check};

    #[test]
    fn unsafe_code_is_found_outside_its_places() {
        let files = [
            ("kernels/src/launch/mod.rs", "//! x\nunsafe fn launch() {}\n"),
            ("models/src/load/mmap.rs", "//! x\nlet map = unsafe { map() };\n"),
            ("models/src/backend/candle/decoder/graphs_cuda.rs", "//! x\nunsafe impl Send for X {}\n"),
            ("models/src/arch/bert/mod.rs", "//! x\n\nlet x = unsafe { y() };\n"),
            ("worker/src/device/mod.rs", "//! x\n// unsafe in a comment\nlet x = \"unsafe\"; let unsafe_code = 1;\n"),
        ];
        expect(check, &files, &[("models/src/arch/bert/mod.rs:3", "find a safe way")]);
    }

    #[test]
    fn a_crate_root_forbids_unsafe_code() {
        let files = [
            ("worker/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n"),
            ("cli/src/main.rs", "//! x\n// #![forbid(unsafe_code)]\n"),
            ("models/src/lib.rs", "//! x\n"),
            ("worker/src/http/lib.rs", "//! x\n"),
        ];
        expect(check, &files, &[("cli/src/main.rs:1", "forbid")]);
    }
}
