//! What comes in: Rust source. What goes out: the same text with comments and the insides of strings blanked, line for
//! line, so that a rule about code does not trip over prose. It is a scanner, not a parser: it must only be right about
//! where comments and strings begin and end.

/// Blanks comments, strings and character literals. Every line keeps its number and its columns.
pub(crate) fn code_only(text: &str) -> String {
    let mut scanner = Scanner { rest: text, code: String::with_capacity(text.len()) };
    while !scanner.rest.is_empty() {
        scanner.next();
    }
    scanner.code
}

/// True when `word` stands in `line` as a whole identifier.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(part_of_word) && !line[start + word.len()..].starts_with(part_of_word)
    })
}

struct Scanner<'a> {
    rest: &'a str,
    code: String,
}

impl Scanner<'_> {
    fn next(&mut self) {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            return self.blank(end);
        }
        if self.rest.starts_with("/*") {
            return self.blank(block_comment(self.rest));
        }
        if let Some(length) = raw_string(self.rest).filter(|_| !self.in_identifier()) {
            return self.blank(length);
        }
        if self.rest.starts_with('"') {
            return self.blank(quoted(self.rest, '"'));
        }
        if let Some(length) = character(self.rest) {
            return self.blank(length);
        }
        let length = self.rest.chars().next().map_or(0, char::len_utf8);
        self.code.push_str(&self.rest[..length]);
        self.rest = &self.rest[length..];
    }

    /// True when what was read last is part of a name, so that the `r` of `for"` is no raw string.
    fn in_identifier(&self) -> bool {
        self.code.ends_with(|last: char| last.is_alphanumeric() || last == '_')
    }

    fn blank(&mut self, length: usize) {
        let (blanked, rest) = self.rest.split_at(length);
        self.code.extend(blanked.chars().map(|character| if character == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

/// Length of a block comment, which may hold others.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a raw string (`r"…"`, `br#"…"#`, `cr"…"`), if one begins here.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"]
        .into_iter()
        .find(|prefix| text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"')))?;
    let hashes = text[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
    let body = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()))
}

/// Length of a quoted literal with escapes, from its opening quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + character.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Length of a character literal, if one begins here: `'x'` and `'\n'`, but not the lifetime `'x`.
fn character(text: &str) -> Option<usize> {
    let mut inside = text.strip_prefix('\'')?.chars();
    match inside.next()? {
        '\\' => Some(quoted(text, '\'')),
        first if inside.next() == Some('\'') => Some(first.len_utf8() + 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let code = code_only(text);
        assert_eq!(code.lines().count(), text.lines().count(), "{text}");
        let squeezed = code.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed, expected, "{text}");
    }

    #[test]
    fn comments_are_blanked() {
        check("let a = 1; // unsafe\nlet b;", "let a = 1; let b;");
        check("/* unsafe /* nested\n */ still */ let b;", "let b;");
    }

    #[test]
    fn strings_are_blanked_with_their_escapes() {
        check(r#"say("unsafe \" still"); go()"#, "say( ); go()");
        check("say(r#\"unsafe \" still\"#); go()", "say( ); go()");
        check("say(b\"unsafe\", br\"unsafe\\\"); go()", "say(b , ); go()");
    }

    #[test]
    fn a_slash_in_a_string_is_no_comment() {
        check("get(\"http://host\"); unsafe {}", "get( ); unsafe {}");
    }

    #[test]
    fn characters_are_blanked_and_lifetimes_are_kept() {
        check("f('\"', '\\'', '/', 'é'); unsafe {}", "f( , , , ); unsafe {}");
        check("fn f<'a>(x: &'a str) -> &'static str", "fn f<'a>(x: &'a str) -> &'static str");
    }

    #[test]
    fn what_does_not_end_is_blanked_to_the_end() {
        check("a \"b", "a");
        check("a /* b", "a");
        check("a r#\"b\"", "a");
    }

    #[test]
    fn a_word_is_whole() {
        for (line, found) in
            [("use axum::Router;", true), ("utoipa_axum::x", false), ("axumatic", false), ("(axum)", true)]
        {
            assert_eq!(has_word(line, "axum"), found, "{line}");
        }
    }
}
