//! What comes in: the error codes of `coordinator-client/src/api/problem.rs` and the page that describes them. What goes
//! out: codes without a section, sections without a code, sections that say another status.

use super::{Finding, Tree};

const CODES: &str = "coordinator-client/src/api/problem.rs";
const PAGE: &str = "docs/errors/README.md";

/// One code as its line in the table says: `Name = "name", 400, false;`.
#[derive(Debug, PartialEq)]
struct Code<'a> {
    line: usize,
    name: &'a str,
    status: &'a str,
    retryable: bool,
}

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(CODES) else { return Vec::new() };
    let codes: Vec<Code<'_>> = text.lines().enumerate().filter_map(|(number, line)| code(number + 1, line)).collect();
    let page = tree.text(PAGE).unwrap_or_default();
    let sections = sections(page);
    let mut findings = Vec::new();
    if codes.is_empty() {
        findings.push(Finding::new(
            CODES,
            1,
            format!("no line reads `Name = \"name\", 400, false;`; teach {}", file!()),
        ));
    }
    for Code { line, name, status, retryable } in &codes {
        let Some((at, _, body)) = sections.iter().find(|(_, section, _)| section == name) else {
            findings.push(Finding::new(
                CODES,
                *line,
                format!("`{name}` has no section `### {name}` in {PAGE}; write it"),
            ));
            continue;
        };
        let retry = if *retryable { "may be retried" } else { "do not retry" };
        let first = format!("HTTP {status}, {retry}.");
        if !body.trim_start().starts_with(&first) {
            findings.push(Finding::new(PAGE, *at, format!("begin the section with `{first}`, as the code is defined")));
        }
    }
    for (at, section, _) in sections.iter().filter(|(_, section, _)| !codes.iter().any(|code| code.name == *section)) {
        findings.push(Finding::new(PAGE, *at, format!("`{section}` is no error code of {CODES}; remove the section")));
    }
    findings
}

/// Reads a line of the table of codes.
fn code(line: usize, text: &str) -> Option<Code<'_>> {
    let (_, rest) = text.trim().split_once(" = \"")?;
    let (name, rest) = rest.split_once("\", ")?;
    let (status, retryable) = rest.strip_suffix(';')?.split_once(", ")?;
    status.parse::<u16>().ok()?;
    Some(Code { line, name, status, retryable: retryable.parse().ok()? })
}

/// (line, heading, body) of every section of the third level.
fn sections(page: &str) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    for (at, _) in page.match_indices("### ").filter(|(at, _)| *at == 0 || page[..*at].ends_with('\n')) {
        let line = page[..at].lines().count() + 1;
        let (heading, body) = page[at + 4..].split_once('\n').unwrap_or((&page[at + 4..], ""));
        found.push((line, heading.trim(), body));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::expect, *};

    const TABLE: &str =
        "//! x\ncodes! {\n    NotUtf8 = \"not_utf8\", 400, false;\n    QueueFull = \"queue_full\", 429, true;\n}\n";

    #[test]
    fn every_code_has_a_section_that_agrees_with_it() {
        let page =
            "# Errors\n\n### not_utf8\n\nHTTP 400, do not retry. Why.\n\n### queue_full\nHTTP 429, may be retried.\n";
        expect(check, &[(CODES, TABLE), (PAGE, page)], &[]);
    }

    #[test]
    fn missing_wrong_and_left_over_sections_are_found() {
        let page = "# Errors\n\n### not_utf8\n\nHTTP 404, do not retry.\n\n### gone\nx\n";
        let expected = [
            ("coordinator-client/src/api/problem.rs:4", "`queue_full` has no section"),
            ("docs/errors/README.md:3", "HTTP 400, do not retry."),
            ("docs/errors/README.md:7", "`gone` is no error code"),
        ];
        expect(check, &[(CODES, TABLE), (PAGE, page)], &expected);
    }

    #[test]
    fn a_table_that_reads_otherwise_is_found() {
        expect(check, &[(CODES, "//! x\n")], &[("coordinator-client/src/api/problem.rs:1", "no line reads")]);
    }
}
