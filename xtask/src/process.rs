//! What comes in: a program and its arguments. What goes out: its success, and the lines of its output that were asked
//! for, while everything it says reaches the terminal as it is said. It never hides output.

use anyhow::{Context as _, Result, bail};
use std::{
    env,
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

/// The repository's root: the folder above this crate.
pub(crate) fn repository() -> Result<PathBuf> {
    let xtask =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = xtask.parent().context("xtask lies at the root of the file system; it belongs in the repository")?;
    Ok(root.to_owned())
}

/// The cargo that runs this program, in `root`, without what the outer `cargo run` says of the package it runs: build
/// scripts would take these variables for their own.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Where cargo puts what it builds (`CARGO_TARGET_DIR` and settings files count).
pub(crate) fn target_folder(root: &Path) -> Result<PathBuf> {
    let text = output(cargo(root).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("`cargo metadata` did not answer in JSON")?;
    let folder = metadata["target_directory"].as_str().context("`cargo metadata` names no target_directory")?;
    Ok(PathBuf::from(folder))
}

/// Shows a command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(word).collect::<Vec<_>>().join(" ")
}

fn word(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    // The program is an absolute path more often than not; its name is what a person types.
    if text.contains(char::is_whitespace) || text.is_empty() { format!("'{text}'") } else { text.into_owned() }
}

/// Runs a command with our own terminal. `Ok(false)` when it ran and failed.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    println!("$ {}", line(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    Ok(status.success())
}

/// Runs a command with our own terminal, and makes its failure ours.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    if !succeeds(command)? {
        bail!("`{}` failed; its own words are above", line(command));
    }
    Ok(())
}

/// Runs a command quietly and returns what it wrote to stdout; its failure carries what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", line(command), last_lines(&errors, 4));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` did not answer in UTF-8", line(command)))
}

/// Runs a command, passes on everything it says, and keeps the lines that `wanted` picks (without colours).
pub(crate) fn watched(command: &mut Command, wanted: fn(&str) -> bool) -> Result<(bool, Vec<String>)> {
    println!("$ {}", line(command));
    if io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let out = child.stdout.take().expect("stdout was piped two lines above");
    let err = child.stderr.take().expect("stderr was piped two lines above");
    let (mut kept, more) = thread::scope(|scope| {
        let errors = scope.spawn(|| pass_on(err, io::stderr(), wanted));
        let kept = pass_on(out, io::stdout(), wanted);
        (kept, errors.join().expect("the thread that passes lines on does not panic"))
    });
    kept.extend(more);
    let status = child.wait().with_context(|| format!("cannot wait for `{}`", line(command)))?;
    Ok((status.success(), kept))
}

/// Copies lines from a child to our own output until the child closes its end.
fn pass_on(from: impl Read, mut to: impl Write, wanted: fn(&str) -> bool) -> Vec<String> {
    let mut kept = Vec::new();
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut bytes) {
        // Our own output may be closed (`| head`); the child must be read to its end all the same.
        let _ = to.write_all(&bytes).and_then(|()| to.flush());
        let text = without_colours(&String::from_utf8_lossy(&bytes));
        if wanted(&text) {
            kept.push(text.trim().to_owned());
        }
        bytes.clear();
    }
    kept
}

/// Removes terminal escape sequences (`ESC [ … letter`).
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            plain.push(character);
            continue;
        }
        for inside in characters.by_ref() {
            if inside.is_ascii_alphabetic() {
                break;
            }
        }
    }
    plain
}

/// The last `count` lines that are not empty, as one line.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_removed_and_text_is_kept() {
        assert_eq!(without_colours("\u{1b}[32;1m Summary\u{1b}[0m [ 1.2s] 3 tests"), " Summary [ 1.2s] 3 tests");
    }

    #[test]
    fn the_last_lines_skip_empty_ones() {
        assert_eq!(last_lines("a\n\nb\nc\n\n", 2), "b / c");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn passing_on_keeps_every_byte_and_picks_the_wanted_lines() {
        let mut copy = Vec::new();
        let kept = pass_on("one\nSummary two\nthree".as_bytes(), &mut copy, |line| line.contains("Summary"));
        assert_eq!(copy, b"one\nSummary two\nthree");
        assert_eq!(kept, ["Summary two"]);
    }
}
