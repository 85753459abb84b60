//! Times the masks of texts that are held to a form: which of 128 thousand tokens may come next, and taking one in. Nothing comes in but the
//! machine; a table goes out. Never here: a model, whose logits the mask is for.
//!
//! The vocabulary is byte-level and made up: all bytes, then words with and without a space, numbers, runs of signs and of white space, words in
//! other scripts, in shares like those of large vocabularies. A text is written by taking any of the tokens that are allowed, each as likely
//! as the other, so that it goes where a model would seldom lead it. The same texts are written a few times, and of each call the fastest time
//! counts: what is left out is what others took of the processor meanwhile.
//!
//! What it says: masks of JSON and of grammars take microseconds, but an expression that repeats words takes milliseconds where its text goes
//! where none has been before. A worker computes them beside the step, so that no other text waits for them.
//!
//! `cargo bench -p benches --bench constraint`, with `-- schema` for the forms of that name.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use benches::machine;
use models::task::Tokenizer;
use models::task::generate::constraint::{Constraint, Format};
use models::task::generate::vocabulary::Vocabulary;
use serde_json::{Map, Value, json};

/// Tokens: as many as Llama 3 has, about.
const VOCABULARY: usize = 128 << 10;
/// Tokens that are written in each form.
const TOKENS: usize = 5_000;
/// How often the same texts are written.
const ROUNDS: usize = 5;
/// A text is begun anew after so many, for some forms have no end.
const TEXT_TOKENS_MAX: usize = 200;

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn chars(&mut self, of: &str, least: usize, most: usize) -> String {
        let of: Vec<char> = of.chars().collect();
        (0..least + self.below(most - least + 1)).map(|_| of[self.below(of.len())]).collect()
    }

    /// Something that a vocabulary might have.
    fn word(&mut self) -> String {
        // Letters as often as English has them.
        const LETTERS: &str =
            "eeeeeeeeeeeetttttttttaaaaaaaaoooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddddlllluuuccmmffyywwggppbbvkxqjz";
        let space = self.pick(&["", " ", " "]);
        match self.below(20) {
            0..10 => format!("{space}{}", self.chars(LETTERS, 2, 9)),
            10..13 => format!("{space}{}{}", self.chars("ABCDEFGHIJKLMNOPRSTUVW", 1, 1), self.chars(LETTERS, 1, 8)),
            13 => format!("{}{}", self.chars(LETTERS, 2, 5), self.chars("ABCDEFGHIJKLMNOPRSTUVW", 1, 3)),
            14 => self.chars("0123456789", 1, 3),
            15 => self.chars("{}[]()<>\"':;,.!?=+-*/_\\|&%$#@~^`", 2, 4),
            16 => format!("{}{}", self.chars("\n\t ", 1, 2), self.chars(" ", 0, 16)),
            17 => format!("{space}{}", self.chars("абвгдежзиклмнопрстуфхцчшыэюя", 2, 6)),
            18 => self.chars("的一是不了在人有我他这个们中来上大为和国", 1, 3),
            _ => format!("{}{}", self.chars("\"'(_.[", 1, 1), self.chars(LETTERS, 2, 6)),
        }
    }
}

/// How a byte-level vocabulary writes a byte: what can be printed is itself, the others are numbered from 256.
fn letter(byte: u8) -> char {
    let is_printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_printed(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !is_printed(byte)).count() as u32;
    char::from_u32(256 + before).expect("there are fewer than 256")
}

fn vocabulary(tokens: usize) -> (Vocabulary, Duration) {
    let mut random = Random(88_172_645_463_325_252);
    let mut words: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    let mut known: HashSet<String> = words.iter().cloned().collect();
    while words.len() < tokens - 1 {
        let word: String = random.word().bytes().map(letter).collect();
        if known.insert(word.clone()) {
            words.push(word);
        }
    }
    let end = words.len();
    let words: Map<String, Value> = words.into_iter().enumerate().map(|(id, word)| (word, id.into())).collect();
    let added = json!({"id": end, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "added_tokens": [added], "normalizer": null, "post_processor": null, "truncation": null, "padding": null,
        "pre_tokenizer": byte_level, "decoder": byte_level, "model": {"type": "BPE", "vocab": words, "merges": []},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).expect("the tokenizer can be read");
    let start = Instant::now();
    (Vocabulary::new(&tokenizer, &[end as u32]).expect("its tokens have bytes"), start.elapsed())
}

/// What is demanded, by name.
fn forms() -> Vec<(&'static str, Format)> {
    let person = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags", "address"],
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["new", "regular", "former"]}, "maxItems": 5},
            "address": {
                "type": "object", "additionalProperties": false, "required": ["street", "city", "zip"],
                "properties": {"street": {"type": "string", "maxLength": 60}, "city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}
            }
        }
    });
    let many: Map<String, Value> = (0..200).map(|at| (format!("field_{at}"), json!({"type": "string"}))).collect();
    let many = json!({"type": "object", "properties": many, "additionalProperties": false});
    let arithmetic = "start: sum\nsum: product ((\"+\" | \"-\") product)*\nproduct: atom ((\"*\" | \"/\") atom)*\n\
        atom: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]+(\\.[0-9]+)?/\n%ignore /[ ]{1,4}/";
    let query = "start: \"SELECT \" columns \" FROM \" NAME (\" WHERE \" condition)? (\" LIMIT \" /[0-9]{1,4}/)?\n\
        columns: \"*\" | NAME (\", \" NAME)*\ncondition: comparison ((\" AND \" | \" OR \") comparison)*\n\
        comparison: NAME (\" = \" | \" < \" | \" > \") (NAME | /[0-9]+/ | /'[^'\\n]*'/)\nNAME: /[a-z_][a-z0-9_]*/";
    vec![
        ("JSON object", Format::JsonObject),
        ("schema of a person", Format::JsonSchema(person.to_string())),
        ("schema, 200 properties that may be", Format::JsonSchema(many.to_string())),
        ("regex, a date and time", Format::Regex(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z".into())),
        ("regex, up to 50 words", Format::Regex(r"([A-Za-z]+[ ,.]){1,50}".into())),
        ("regex, anything and a word", Format::Regex(r"(.|\n)*the end".into())),
        ("grammar of sums", Format::Grammar(arithmetic.into())),
        ("grammar of queries", Format::Grammar(query.into())),
    ]
}

/// One of the tokens that a mask allows.
fn any_allowed(mask: &[u32], random: &mut Random) -> Option<u32> {
    let allowed: usize = mask.iter().map(|word| word.count_ones() as usize).sum();
    let mut skip = if allowed == 0 { return None } else { random.below(allowed) };
    for (at, word) in mask.iter().enumerate() {
        let here = word.count_ones() as usize;
        if skip < here {
            return (0..32).filter(|bit| word >> bit & 1 == 1).nth(skip).map(|bit| at as u32 * 32 + bit);
        }
        skip -= here;
    }
    None
}

/// What was measured of one form.
#[derive(Default)]
struct Times {
    begun: Vec<Duration>,
    masks: Vec<Duration>,
    pushes: Vec<Duration>,
}

fn measure(vocabulary: &Vocabulary, tokens: usize, format: &Format, count: usize) -> Times {
    let mut fastest = write(vocabulary, tokens, format, count);
    for _ in 1..ROUNDS {
        let times = write(vocabulary, tokens, format, count);
        let all =
            [(&mut fastest.begun, times.begun), (&mut fastest.masks, times.masks), (&mut fastest.pushes, times.pushes)];
        for (fastest, times) in all {
            fastest.iter_mut().zip(times).for_each(|(fastest, time)| *fastest = time.min(*fastest));
        }
    }
    fastest
}

fn write(vocabulary: &Vocabulary, tokens: usize, format: &Format, count: usize) -> Times {
    let (mut times, mut random) = (Times::default(), Random(7));
    while times.pushes.len() < count {
        let start = Instant::now();
        let mut text: Constraint = vocabulary.constraint(format).expect("the form can be used");
        times.begun.push(start.elapsed());
        for _ in 0..TEXT_TOKENS_MAX {
            let start = Instant::now();
            let mask = text.mask(tokens).expect("there is a next token");
            times.masks.push(start.elapsed());
            let token = any_allowed(mask, &mut random).expect("some token is allowed");
            let start = Instant::now();
            text.push(token).expect("it was allowed");
            times.pushes.push(start.elapsed());
            if text.has_ended() || token as usize == tokens - 1 {
                break;
            }
        }
    }
    times
}

/// In seconds, how long these parts of all took at most.
fn quantiles<const N: usize>(mut times: Vec<Duration>, parts: [f64; N]) -> [f64; N] {
    times.sort_unstable();
    parts.map(|part| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64())
}

fn main() {
    let is_timed = std::env::args().any(|argument| argument == "--bench");
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    // When nothing is timed, a small vocabulary is enough to see that every call works.
    let (tokens, count) = if is_timed { (VOCABULARY, TOKENS) } else { (2_000, 50) };
    let (vocabulary, made_in) = vocabulary(tokens);
    let mut lines = Vec::new();
    for (name, format) in forms().iter().filter(|(name, _)| name.contains(&filter)) {
        let Times { begun, masks, pushes } = measure(&vocabulary, tokens, format, count);
        let mean = masks.iter().sum::<Duration>().as_secs_f64() * 1e6 / masks.len() as f64;
        let shares = quantiles(masks, [0.5, 0.9, 0.99, 1.0]).map(|time| format!("{:.0}", time * 1e6)).join(" | ");
        let ([push], [begun]) = (quantiles(pushes, [0.5]), quantiles(begun, [0.5]));
        lines.push(format!("| {name} | {shares} | {mean:.0} | {:.1} | {:.1} |", push * 1e6, begun * 1e3));
    }
    if is_timed {
        #[expect(clippy::print_stdout, reason = "the table is what a bench is run for")]
        {
            println!(
                "\n## constraint\n\n{}. {tokens} tokens, made ready in {:.0} ms; {count} tokens written in each form, the fastest of {ROUNDS} times; in µs, and of beginning a \
                 text in ms.\n\n| form | mask median | 90 % | 99 % | longest | mean | a token | begun in |\n|---|--:|--:|--:|--:|--:|--:|--:|\n{}",
                machine::processor(),
                made_in.as_secs_f64() * 1e3,
                lines.join("\n")
            );
        }
    }
}
