//! What comes in: source files. What goes out: those that are long and do not say why.

use super::{Finding, Tree};

/// About what a reader can keep in mind; most files are far shorter.
const LINES_MAX: usize = 600;
/// Written in a comment, followed by the reason.
const REASON: &str = concat!("tidy: long ", "because ");

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let long = tree
        .with_extension(&["rs", "py", "cu", "wgsl", "metal"])
        .map(|(file, text)| (file, text, text.lines().count()))
        .filter(|(_, text, lines)| *lines > LINES_MAX && !text.contains(REASON));
    long.map(|(file, _, lines)| {
        let message = format!("{lines} lines; make a folder of it, or say `// {REASON}…`");
        Finding::new(file, LINES_MAX + 1, message)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::expect, *};

    #[test]
    fn a_long_file_needs_a_reason() {
        let long = "//! x\n".repeat(LINES_MAX + 1);
        let reasoned = format!("{long}// {REASON}one table\n");
        let files = [
            ("worker/src/a.rs", long.as_str()),
            ("worker/src/b.rs", &reasoned),
            ("worker/src/c.rs", "//! x\n"),
            ("docs/long.md", &long),
        ];
        expect(check, &files, &[("worker/src/a.rs:601", "601 lines")]);
    }
}
