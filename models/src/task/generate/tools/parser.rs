//! Finds calls in a text that comes in pieces: text goes in, text to be shown and calls go out. It goes character by character and keeps
//! what it has not decided on, so that where the pieces end makes no difference.
//!
//! ```text
//! between --mark--> before --{ or [--> value --it is a call--> between
//!    ^                 |                 |
//!    +-----------------+--- it is none --+    what was kept is text after all, and the character is looked at again
//! ```
//!
//! What is in a call's place but is no JSON, or names no tool of the request, or whose arguments are no object, is text. White space
//! before a call, between calls and at the end behind one is dropped. The tag that closes a call may be missing.

use super::{Deserialize, RawValue, Syntax};
use std::sync::Arc;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which tool.
    pub name: String,
    /// Its arguments: the text of a JSON object, as the model wrote it.
    pub arguments: String,
}

/// What a piece of text turned out to be: what is to be shown comes before the calls where there are both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What may be shown.
    pub text: String,
    /// Calls that are complete.
    pub calls: Vec<Call>,
}

/// Reads one answer.
#[derive(Debug, Clone)]
pub struct Parser {
    syntax: Syntax,
    names: Arc<[String]>,
    place: Place,
    /// White space that is dropped when a call comes, and what separates calls.
    gap: String,
    /// What may be a mark, or is one, and the value behind it as far as it is read.
    held: String,
    /// Whether the last thing but the gap is a call, or nothing at all.
    is_bare: bool,
    /// Whether the last thing but the gap is a call.
    is_behind_call: bool,
    /// Whether that call may still be closed by its tag.
    may_close: bool,
}

#[derive(Debug, Clone)]
enum Place {
    /// In text, or in what may be a mark.
    Between,
    /// Behind a mark.
    Before,
    /// In the value that begins at this byte of what is held.
    Value { begin: usize, json: Json },
}

impl Parser {
    pub(super) fn new(syntax: Syntax, names: Arc<[String]>) -> Self {
        let (gap, held) = (String::new(), String::new());
        Self { syntax, names, place: Place::Between, gap, held, is_bare: true, is_behind_call: false, may_close: false }
    }

    /// Takes a piece in.
    pub fn push(&mut self, piece: &str) -> Found {
        let mut found = Found::default();
        for character in piece.chars() {
            // One that ends what was held as none of a call's is looked at once more, in the text.
            while !self.take(character, &mut found) {}
        }
        found
    }

    /// What is left when no more comes.
    pub fn finish(mut self) -> Found {
        let mut found = Found::default();
        if !self.held.is_empty() {
            self.give_up(&mut found);
        } else if !self.is_behind_call || !self.gap.trim().is_empty() {
            found.text.push_str(&self.gap);
        }
        found
    }

    /// Takes a character in. Says whether it did: otherwise it must come again.
    fn take(&mut self, character: char, found: &mut Found) -> bool {
        match &mut self.place {
            Place::Between => self.take_between(character, found),
            Place::Before if is_space(character) => {
                self.held.push(character);
                true
            }
            Place::Before if character == '{' || character == '[' && self.syntax == Syntax::Mistral => {
                self.begin(character);
                true
            }
            Place::Before => {
                self.give_up(found);
                false
            }
            Place::Value { begin, json } => {
                let begin = *begin;
                match json.take(character) {
                    Step::Inside => self.held.push(character),
                    Step::End => {
                        self.held.push(character);
                        match calls(&self.held[begin..], &self.names) {
                            Some(calls) => {
                                found.calls.extend(calls);
                                self.gap.clear();
                                self.held.clear();
                                self.place = Place::Between;
                                (self.is_bare, self.is_behind_call, self.may_close) = (true, true, true);
                            }
                            None => self.give_up(found),
                        }
                    }
                    Step::Broken => {
                        self.give_up(found);
                        return false;
                    }
                }
                true
            }
        }
    }

    fn take_between(&mut self, character: char, found: &mut Found) -> bool {
        if self.held.is_empty() {
            let is_separator = self.syntax == Syntax::Llama && self.is_behind_call && character == ';';
            if is_space(character) || is_separator && !self.gap.contains(';') {
                self.gap.push(character);
                return true;
            }
            if character == '{' && self.syntax == Syntax::Llama && self.is_bare {
                self.begin(character);
                return true;
            }
        }
        let (open, close) = (self.syntax.open(), self.syntax.close().filter(|_| self.may_close));
        self.held.push(character);
        let may_be = |mark: &str| mark.starts_with(&self.held);
        if self.held == open {
            self.place = Place::Before;
        } else if close == Some(self.held.as_str()) {
            self.held.clear();
            self.gap.clear();
            self.may_close = false;
        } else if !may_be(open) && !close.is_some_and(may_be) {
            // A mark has its first character nowhere else: of what is held, only this last one may begin another.
            let is_alone = self.held.chars().count() == 1;
            if !is_alone {
                self.held.pop();
            }
            self.give_up(found);
            return is_alone;
        }
        true
    }

    /// A value begins with this character.
    fn begin(&mut self, character: char) {
        let mut json = Json::default();
        json.take(character);
        self.place = Place::Value { begin: self.held.len(), json };
        self.held.push(character);
    }

    /// What was held is text.
    fn give_up(&mut self, found: &mut Found) {
        found.text.push_str(&self.gap);
        found.text.push_str(&self.held);
        self.gap.clear();
        self.held.clear();
        self.place = Place::Between;
        (self.is_bare, self.is_behind_call, self.may_close) = (false, false, false);
    }
}

/// White space as JSON has it: any other is text.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

/// Where a value ends, found without reading it: brackets that close each other, outside of strings.
#[derive(Debug, Clone, Default)]
struct Json {
    /// What must come to close what is open.
    open: Vec<char>,
    is_text: bool,
    is_escaped: bool,
}

enum Step {
    Inside,
    End,
    /// No JSON goes on like this.
    Broken,
}

impl Json {
    fn take(&mut self, character: char) -> Step {
        if self.is_text {
            match character {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' => self.is_escaped = true,
                '"' => self.is_text = false,
                '\0'..' ' => return Step::Broken,
                _ => {}
            }
            return Step::Inside;
        }
        match character {
            '"' => self.is_text = true,
            '{' => self.open.push('}'),
            '[' => self.open.push(']'),
            '}' | ']' if self.open.last() == Some(&character) => {
                self.open.pop();
                return if self.open.is_empty() { Step::End } else { Step::Inside };
            }
            ',' | ':' | '+' | '-' | '.' | '0'..='9' | 'a'..='z' | 'E' => {}
            character if is_space(character) => {}
            _ => return Step::Broken,
        }
        Step::Inside
    }
}

/// A call as models write it.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// The calls that a value says: one, or a list of some. Nothing when it says anything else.
fn calls(json: &str, names: &[String]) -> Option<Vec<Call>> {
    let written: Vec<Written<'_>> = match json.starts_with('[') {
        true => serde_json::from_str(json).ok()?,
        false => vec![serde_json::from_str(json).ok()?],
    };
    if written.is_empty() {
        return None;
    }
    written.into_iter().map(|call| call.read(names)).collect()
}

impl Written<'_> {
    fn read(self, names: &[String]) -> Option<Call> {
        let arguments = self.arguments.map_or("{}", RawValue::get);
        // Some write the object's text as a string.
        let unquoted = serde_json::from_str::<String>(arguments).ok();
        let arguments = unquoted.as_deref().unwrap_or(arguments).trim();
        let is_object = arguments.starts_with('{') && serde_json::from_str::<&RawValue>(arguments).is_ok();
        (is_object && names.contains(&self.name)).then(|| Call { name: self.name, arguments: arguments.to_owned() })
    }
}
