//! What comes in: the Markdown files. What goes out: relative links that lead nowhere.

use super::{Finding, Tree};

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.with_extension(&["md"]) {
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (number, line) in text.lines().enumerate() {
            for target in targets(line).filter(|target| !target.contains(':')) {
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = if path.is_empty() { Some(file.to_owned()) } else { resolved(folder, path) };
                let there = path.as_deref().filter(|path| tree.has(path));
                let Some(path) = there else {
                    findings.push(Finding::new(
                        file,
                        number + 1,
                        format!("`{target}` is not in the repository; mend the link"),
                    ));
                    continue;
                };
                let page = tree.text(path).unwrap_or_default();
                if !anchor.is_empty() && path.ends_with(".md") && !page.lines().any(|line| anchor_of(line) == anchor) {
                    findings.push(Finding::new(
                        file,
                        number + 1,
                        format!("{path} has no heading for `#{anchor}`; mend the link"),
                    ));
                }
            }
        }
    }
    findings
}

/// What stands in the round brackets of the links of one line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()).filter(|target| !target.is_empty())
}

/// The path from the root, or `None` when it leaves the repository.
fn resolved(folder: &str, path: &str) -> Option<String> {
    let folder = if path.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchor of a heading, as it is made where Markdown is shown: lower case, dashes for spaces, no punctuation.
fn anchor_of(line: &str) -> String {
    let Some(heading) = line.strip_prefix('#') else { return String::new() };
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::expect, check};

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let text = "[a](../how-to/a.md) [b](gone.md)\n[c](https://example.com/gone) [d](.)\n[e](../../../out.md)\n[f](#heres-one)\n";
        let files = [("docs/how-to/a.md", ""), ("docs/errors/README.md", text)];
        let expected = [
            ("docs/errors/README.md:1", "`gone.md`"),
            ("docs/errors/README.md:3", "out.md"),
            ("docs/errors/README.md:4", "heres-one"),
        ];
        expect(check, &files, &expected);
    }

    #[test]
    fn anchors_are_headings() {
        let page = "# Top\n## A `code` & more\n";
        expect(check, &[("a.md", page), ("b.md", "[x](a.md#a-code--more) [y](a.md#top)\n")], &[]);
    }
}
