//! What comes in: every text file but `Cargo.lock`. What goes out: words that belong to one machine, one registry or to
//! unfinished work.

use super::{Finding, Tree, source};

/// Hosts of package and image registries. Written in two halves so that this file does not find itself.
const REGISTRIES: [&str; 7] = [
    concat!("crates", ".io"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
    concat!("npm", "js.org"),
    concat!("gh", "cr.io"),
    concat!("docker", ".io/"),
    concat!("nv", "cr.io"),
];
/// Folders that only some machines have.
const FOLDERS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.files().filter(|(file, _)| !file.ends_with("Cargo.lock")) {
        for (number, line) in text.lines().enumerate() {
            for word in REGISTRIES.iter().filter(|word| follows(line, word, |before| !before.is_alphanumeric())) {
                let message = format!("`{word}` names a registry's host; which one is asked is the user's setting");
                findings.push(Finding::new(file, number + 1, message));
            }
            for word in FOLDERS.iter().filter(|word| follows(line, word, |before| !is_of_path(before))) {
                let message = format!(
                    "`{word}` is a path of one machine; use one relative to the repository or to a temporary folder"
                );
                findings.push(Finding::new(file, number + 1, message));
            }
        }
        if file.ends_with(".rs") {
            let code = source::code_only(text);
            for (number, _) in code.lines().enumerate().filter(|(_, line)| line.contains("todo!")) {
                findings.push(Finding::new(file, number + 1, "`todo!`: write it, or leave the feature out"));
            }
        }
    }
    findings
}

/// True when the word stands in the line and what is before it is the line's start or fits.
fn follows(line: &str, word: &str, fits: impl Fn(char) -> bool) -> bool {
    line.match_indices(word).any(|(start, _)| line[..start].chars().next_back().is_none_or(&fits))
}

/// Characters in front of a slash that make it the middle of a path: `net/`, `{root}/`, `./`.
fn is_of_path(before: char) -> bool {
    before.is_alphanumeric() || "_-}./$~)".contains(before)
}

#[cfg(test)]
mod tests {
    use super::{super::expect, check};

    #[test]
    fn paths_of_one_machine_are_found() {
        let files = [
            ("docs/a.md", concat!("see /wo", "rk/main\nsee net/wo", "rk/main\n")),
            ("e2e/tests/b.rs", concat!("//! x\nopen(\"/ro", "ot/x\");\n")),
        ];
        expect(check, &files, &[("docs/a.md:1", "path of one machine"), ("e2e/tests/b.rs:2", "path of one machine")]);
    }

    #[test]
    fn registries_are_found_but_not_in_the_lock_file() {
        let line = concat!("see https://py", "pi.org/simple\n");
        expect(check, &[("Cargo.lock", line), ("docs/a.md", line)], &[("docs/a.md:1", "host")]);
    }

    #[test]
    fn unfinished_code_is_found_and_prose_is_not() {
        let files = [("worker/src/a.rs", "//! todo! in prose\nfn f() { todo!() }\n"), ("a.md", "todo!\n")];
        expect(check, &files, &[("worker/src/a.rs:2", "write it")]);
    }
}
