//! What comes in: the workspace's dependencies, the rooms' `Cargo.toml` and their code. What goes out: dependencies that no
//! room names, and those that a room names and does not use. A name in the code is taken for a use.

use super::{
    Finding, Tree,
    arrows::{line_naming, packages},
    source,
};
use std::collections::BTreeSet;

/// Dependencies that are there for what they switch on: (room, package). The room's `Cargo.toml` says what for.
const NAMED_NOWHERE: &[(&str, &str)] = &[("models", "gemm")];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut used_by_rooms = BTreeSet::new();
    for (file, text) in tree.files() {
        let Some(room) = file.strip_suffix("/Cargo.toml").filter(|room| !room.contains('/')) else { continue };
        // A file that does not parse is a finding of the arrows.
        let Ok(table) = text.parse::<toml::Table>() else { continue };
        let named = packages(&table, &["dependencies", "dev-dependencies", "build-dependencies"]);
        let code: String =
            tree.rust().filter(|(file, _)| in_room(file, room)).map(|(_, text)| without_prose(text)).collect();
        for dependency in &named {
            let crate_name = dependency.replace('-', "_");
            let excepted = NAMED_NOWHERE.contains(&(room, dependency.as_str()));
            if !excepted && !code.lines().any(|line| source::has_word(line, &crate_name)) {
                let message = format!("{room} does not use {dependency}; remove the line");
                findings.push(Finding::new(file, line_naming(text, dependency), message));
            }
        }
        used_by_rooms.extend(named);
    }
    let Some(text) = tree.text("Cargo.toml") else { return findings };
    let Ok(workspace) = text.parse::<toml::Table>() else { return findings };
    let dependencies = workspace.get("workspace").and_then(toml::Value::as_table);
    for dependency in dependencies.map(|workspace| packages(workspace, &["dependencies"])).unwrap_or_default() {
        if !used_by_rooms.contains(&dependency) {
            let message = format!("no room depends on {dependency}; remove the line");
            findings.push(Finding::new("Cargo.toml", line_naming(text, &dependency), message));
        }
    }
    findings
}

fn in_room(file: &str, room: &str) -> bool {
    file.strip_prefix(room).is_some_and(|rest| rest.starts_with('/'))
}

/// Drops the lines that are comments. Strings stay: attributes name modules in them (`with = "humantime_serde"`).
fn without_prose(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::expect, check};

    const WORKSPACE: (&str, &str) = ("Cargo.toml", "[workspace.dependencies]\nserde-json = \"1\"\nurl = \"2\"\n");

    #[test]
    fn a_dependency_that_no_room_names_is_found() {
        let files = [
            WORKSPACE,
            ("worker/Cargo.toml", "[dependencies]\nserde-json.workspace = true\n"),
            ("worker/src/lib.rs", "//! url\nuse serde_json::Value;\n"),
        ];
        expect(check, &files, &[("Cargo.toml:3", "no room depends on url")]);
    }

    #[test]
    fn a_dependency_that_the_room_does_not_use_is_found() {
        let files = [
            WORKSPACE,
            (
                "worker/Cargo.toml",
                "[dependencies]\nserde-json.workspace = true\n\n[dev-dependencies]\nurl.workspace = true\n",
            ),
            ("worker/src/lib.rs", "//! x\n// url::Url\n#[serde(with = \"serde_json\")]\n"),
            ("worker-two/src/lib.rs", "//! x\nuse url::Url;\n"),
        ];
        expect(check, &files, &[("worker/Cargo.toml:5", "worker does not use url")]);
    }
}
