//! Server-sent events: bytes come in, cut anywhere; whole events go out. Pure.
//!
//! # Source
//! WHATWG HTML, "Parsing an event stream". Stricter than it in two points: bytes that are not UTF-8 are an error, and so is an
//! event that the stream ends in. One point more: a field named `error`, which some servers write, is an event of that name.

use std::fmt;

/// An event may be so large. A text's piece is a few hundred bytes; whatever is larger is no event stream.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its type; empty for most.
    pub(crate) name: String,
    /// Its lines of data, with line feeds between them.
    pub(crate) data: String,
}

/// Why bytes are no events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Error {
    /// A line is not UTF-8.
    NotUtf8,
    /// An event is larger than any should be.
    TooLong,
    /// The stream ended inside of an event.
    CutOff,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("the event stream is not UTF-8"),
            Self::TooLong => write!(f, "an event is larger than {EVENT_BYTES_MAX} bytes"),
            Self::CutOff => f.write_str("the event stream ends inside of an event"),
        }
    }
}

/// What has come in and is no whole event yet.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return: a line feed behind it belongs to it.
    after_return: bool,
    is_begun: bool,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes and puts the events that they end into `events`.
    ///
    /// # Errors
    /// When the bytes are no events. The parser is of no use then.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Error> {
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(events)?,
                _ if self.line.len() + self.data.len() >= EVENT_BYTES_MAX => return Err(Error::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// When an event has begun.
    pub(crate) fn end(&self) -> Result<(), Error> {
        let is_between = self.line.is_empty() && !self.has_data && self.name.is_empty();
        if is_between { Ok(()) } else { Err(Error::CutOff) }
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), Error> {
        let line = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&line).map_err(|_| Error::NotUtf8)?;
        if !std::mem::replace(&mut self.is_begun, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            // An event without data is none.
            if std::mem::take(&mut self.has_data) {
                events.push(Event { name, data });
            }
            return Ok(());
        }
        // A line that begins with a colon is a comment: its field is empty.
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.into(),
            "data" | "error" => {
                if field == "error" {
                    self.name = field.into();
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Result<Vec<Event>, Error> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut events)?;
        }
        parser.end().map(|()| events)
    }

    /// Cuts the text at every place, and into single bytes; `want` are the events' names and data.
    fn check(text: &str, want: &[(&str, &str)]) {
        let event = |(name, data): &(&str, &str)| Event { name: (*name).into(), data: (*data).into() };
        let want: Vec<Event> = want.iter().map(event).collect();
        for cut in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            assert_eq!(parse(&[head, tail]).as_ref(), Ok(&want), "{text:?} cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(parse(&bytes).as_ref(), Ok(&want), "{text:?} in bytes");
    }

    #[test]
    fn events_are_the_same_wherever_the_bytes_are_cut() {
        check("data: {\"a\": 1}\n\ndata: [DONE]\n\n", &[("", "{\"a\": 1}"), ("", "[DONE]")]);
        check("data: größer 🦀\n\n", &[("", "größer 🦀")]);
        check("event: error\ndata: x\n\ndata: y\n\n", &[("error", "x"), ("", "y")]);
    }

    #[test]
    fn lines_end_with_any_of_the_three_ends() {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("data: a{end}data: b{end}{end}data: c{end}{end}");
            check(&text, &[("", "a\nb"), ("", "c")]);
        }
        check("data: a\r\n\ndata: b\n\r\n", &[("", "a"), ("", "b")]);
    }

    #[test]
    fn comments_unknown_fields_and_events_without_data_are_passed_over() {
        check(": ping\n\nid: 4\nretry: 3\nnonsense\ndata:x\n\n", &[("", "x")]);
        check("event: lost\n\ndata: x\n\n", &[("", "x")]);
        check("\u{feff}data: x\n\n", &[("", "x")]);
        check("data\n\n", &[("", "")]);
        check("data:  two\n\n", &[("", " two")]);
        check("error: {}\n\ndata: x\n\n", &[("error", "{}"), ("", "x")]);
        check("\n\n\n", &[]);
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        for text in ["data: x", "data: x\n", "event: x\n", "da"] {
            assert_eq!(parse(&[text.as_bytes()]), Err(Error::CutOff), "{text:?}");
        }
        assert_eq!(parse(&[b"data: \xff\xfe\n\n"]), Err(Error::NotUtf8));
        let mut parser = Parser::default();
        let long = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(parser.push(&long, &mut vec![]), Ok(()));
        assert_eq!(parser.push(b"x", &mut vec![]), Err(Error::TooLong));
        // Many lines of one event count together.
        let mut parser = Parser::default();
        let lines = b"data: 0123456789\n".repeat(EVENT_BYTES_MAX / 10);
        assert_eq!(parser.push(&lines, &mut vec![]), Err(Error::TooLong));
    }
}
