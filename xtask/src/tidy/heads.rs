//! What comes in: Rust files. What goes out: those that do not begin with `//!`.

use super::{Finding, Tree};

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let headless = tree.rust().filter(|(_, text)| !text.lines().next().is_some_and(|line| line.starts_with("//! ")));
    headless
        .map(|(file, _)| {
            Finding::new(file, 1, "begin the file with `//!`: what comes in, what goes out, what it never does")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::expect, check};

    #[test]
    fn a_file_without_a_head_is_found() {
        let files = [
            ("worker/src/lib.rs", "//! The worker.\n"),
            ("worker/src/admission.rs", "use std::fmt;\n//! Too late.\n"),
            ("worker/tests/api.rs", ""),
            ("README.md", "# Not Rust\n"),
        ];
        expect(check, &files, &[("worker/src/admission.rs:1", "//!"), ("worker/tests/api.rs:1", "//!")]);
    }
}
