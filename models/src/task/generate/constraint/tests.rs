//! Texts of random logits that are held to a form: whatever a model would like to write, the text has it.

use super::*;
use crate::task::Tokenizer;
use crate::task::generate::sampling::{Sampler, Sampling, Scratch};
use crate::task::generate::vocabulary::Vocabulary;
use crate::task::generate::vocabulary::tests::byte_level;
use std::sync::OnceLock;

/// What models' tokens look like: pieces of words, of JSON, of characters, with spaces before and in them.
const TOKENS: &[&str] = &[
    "the", " the", "name", "\"name", "\":", "\": \"", "\", \"", "{\"", "\"}", "}}", "  ", "\n", "\n  ", "tr", "true",
    "null", "12", "3.", "né", " a", "ab", "abc", "aaaa", "], [", "\\u00", "\\\"", "-0", "e+", "red", "gre", "een\"",
];

/// A tokenizer, its vocabulary, and the token that ends a text.
fn vocabulary() -> &'static (Tokenizer, Vocabulary, u32) {
    static MADE: OnceLock<(Tokenizer, Vocabulary, u32)> = OnceLock::new();
    MADE.get_or_init(|| {
        let tokenizer = byte_level(TOKENS, &["<end>", "<mark>"]);
        let end = tokenizer.id("<end>").unwrap();
        let vocabulary = Vocabulary::new(&tokenizer, &[end]).unwrap();
        (tokenizer, vocabulary, end)
    })
}

/// Pseudo-random logits.
fn logits(seed: u64, position: usize, count: usize) -> Vec<f32> {
    let mut state =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (position as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 22) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// A text of this form and its tokens. It may end before it has so many tokens.
fn text(format: &Format, seed: u64, most: usize) -> (String, Vec<u32>, bool) {
    let (tokenizer, vocabulary, end) = vocabulary();
    let (end, mut constraint) = (*end, vocabulary.constraint(format).unwrap());
    let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }, &[], &[]);
    let (mut scratch, mut tokens) = (Scratch::new(), vec![]);
    // A model has more logits than tokens.
    let size = tokenizer.vocabulary() + 45;
    while tokens.len() < most {
        let mut logits = logits(seed, tokens.len(), size);
        let mask = constraint.mask(size).unwrap();
        let may_end = mask[end as usize / 32] >> (end % 32) & 1 == 1;
        let choice = sampler.choose(&mut logits, Some(mask), tokens.len(), &mut scratch).unwrap();
        assert_eq!(may_end, constraint.may_end());
        constraint.push(choice.token).unwrap();
        if choice.token == end {
            assert!(constraint.has_ended());
            return (tokenizer.text(&tokens).unwrap(), tokens, true);
        }
        tokens.push(choice.token);
        if constraint.has_ended() {
            return (tokenizer.text(&tokens).unwrap(), tokens, true);
        }
    }
    (tokenizer.text(&tokens).unwrap(), tokens, false)
}

const SCHEMA: &str = r##"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "né"]}, "minItems": 1, "maxItems": 3},
        "inner": {"$ref": "#/$defs/inner"}
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": false,
    "$defs": {"inner": {"type": "object", "properties": {"is": {"type": "boolean"}}, "required": ["is"], "additionalProperties": false}}
}"##;

/// Whether JSON is of [`SCHEMA`].
fn is_of_schema(value: &Value) -> bool {
    let object = value.as_object().unwrap();
    let colours = value["colours"].as_array().unwrap();
    let is_colour = |value: &Value| ["red", "green", "né"].iter().any(|colour| value == colour);
    object.keys().all(|key| ["name", "age", "colours", "inner"].contains(&key.as_str()))
        && value["name"].as_str().unwrap().chars().count() <= 8
        && (3..=120).contains(&value["age"].as_i64().unwrap())
        && (1..=3).contains(&colours.len())
        && colours.iter().all(is_colour)
        && object.get("inner").is_none_or(|inner| inner["is"].is_boolean() && inner.as_object().unwrap().len() == 1)
}

#[test]
fn whatever_the_logits_say_the_text_is_json_of_the_schema() {
    let format = Format::JsonSchema(SCHEMA.into());
    let mut different = std::collections::HashSet::new();
    for seed in 0..200 {
        let (text, _, has_ended) = text(&format, seed, 2_000);
        assert!(has_ended, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(is_of_schema(&value), "{text}");
        different.insert(text);
    }
    assert!(different.len() > 150, "{}", different.len());
}

#[test]
fn a_text_of_any_object_is_the_beginning_of_one() {
    let mut complete = 0;
    for seed in 0..50 {
        let (text, _, has_ended) = text(&Format::JsonObject, seed, 300);
        assert!(text.starts_with('{'), "{text}");
        // Numbers may be larger than any type can hold.
        let mut values = serde_json::Deserializer::from_str(&text).into_iter::<serde::de::IgnoredAny>();
        match values.next().unwrap() {
            Ok(_) => {
                assert!(has_ended && values.next().is_none(), "{text}");
                complete += 1;
            }
            Err(e) => assert!(e.is_eof() && !has_ended, "{e}: {text}"),
        }
    }
    assert!(complete > 0);
}

#[test]
fn whatever_the_logits_say_the_text_matches_the_expression() {
    for expression in [r"[a-f]{3,9}(-[0-9]+\.[0-9]{2}){0,3}", r"(yes|no|perhaps not)", r"né\w{2}€?/[^a-z]{1,5}", r"a*b"]
    {
        let whole = regex::Regex::new(&format!(r"\A(?:{expression})\z")).unwrap();
        let mut complete = 0;
        for seed in 0..60 {
            let (text, tokens, has_ended) = text(&Format::Regex(expression.into()), seed, 200);
            assert!(!has_ended || whole.is_match(&text), "{expression}: {text:?} {tokens:?}");
            complete += usize::from(has_ended);
        }
        assert!(complete > 50, "{expression}: {complete}");
    }
}

#[test]
fn a_grammar_says_what_may_be_written() {
    let grammar = "start: \"(\" start \")\" | item\nitem: /[0-9]{1,3}/ | <mark>";
    for seed in 0..60 {
        let (text, tokens, has_ended) = text(&Format::Grammar(grammar.into()), seed, 300);
        let mark = vocabulary().2 + 1;
        let inner = text.trim_start_matches('(').trim_end_matches(')');
        assert!(!has_ended || text.matches('(').count() == text.matches(')').count(), "{text}");
        // A special token has no text.
        let is_mark = has_ended && inner.is_empty();
        assert!(
            inner.bytes().all(|byte| byte.is_ascii_digit()) && is_mark == (has_ended && tokens.contains(&mark)),
            "{text}"
        );
    }
}

#[test]
fn a_text_goes_on_elsewhere_as_it_would_have_gone_on() {
    let format = Format::JsonSchema(SCHEMA.into());
    let (_, tokens, _) = text(&format, 7, 2_000);
    let (_, vocabulary, end) = vocabulary();
    let size = *end as usize + 2;
    for cut in 0..=tokens.len() {
        let mut one = vocabulary.constraint(&format).unwrap();
        let mut other = vocabulary.constraint(&format).unwrap();
        for token in &tokens[..cut] {
            // Masks leave nothing behind.
            one.mask(size).unwrap();
            one.push(*token).unwrap();
            other.push(*token).unwrap();
        }
        assert_eq!(one.mask(size).unwrap(), other.mask(size).unwrap());
        assert_eq!(one.has_ended(), other.has_ended());
    }
}

#[test]
fn what_is_complete_can_only_end() {
    let &(_, ref vocabulary, end) = vocabulary();
    let mut constraint = vocabulary.constraint(&Format::Regex("ab".into())).unwrap();
    assert!(!constraint.may_end());
    assert_eq!(constraint.push(u32::from(b'b')), Err(Error::Token { token: u32::from(b'b') }));
    // A token that was refused changes nothing.
    constraint.push(u32::from(b'a')).unwrap();
    constraint.push(u32::from(b'b')).unwrap();
    assert!(constraint.has_ended() && constraint.may_end());
    let mask = constraint.mask(end as usize + 2).unwrap();
    let allowed: Vec<usize> = (0..mask.len() * 32).filter(|token| mask[token / 32] >> (token % 32) & 1 == 1).collect();
    assert_eq!(allowed, [end as usize]);
    constraint.push(end).unwrap();
    assert_eq!(constraint.push(u32::from(b'a')), Err(Error::Token { token: u32::from(b'a') }));
}

#[test]
fn a_mask_has_the_words_that_the_model_needs() {
    let (tokenizer, vocabulary, _) = vocabulary();
    let own = tokenizer.vocabulary();
    let mut constraint = vocabulary.constraint(&Format::Regex("[^a]*".into())).unwrap();
    for size in [own, own + 1, own + 300, own - 40] {
        let mask = constraint.mask(size).unwrap();
        assert_eq!(mask.len(), size.div_ceil(32));
        let beyond = (own..mask.len() * 32).filter(|token| mask[token / 32] >> (token % 32) & 1 == 1).count();
        assert_eq!(beyond, 0, "{size}");
    }
}

fn refused(format: Format, words: &str) {
    let (_, vocabulary, _) = vocabulary();
    let error = vocabulary.constraint(&format).unwrap_err();
    assert!(error.is_callers());
    let error = error.to_string();
    assert!(error.contains(words) && error.len() < 2_000, "{error}");
}

#[test]
fn what_cannot_be_used_is_refused_in_the_librarys_words() {
    refused(Format::JsonSchema("{".into()), "JSON schema cannot be used: EOF");
    refused(Format::JsonSchema(r#"{"type": "colour"}"#.into()), "colour");
    refused(Format::JsonSchema(r#"{"type": "object", "if": {}}"#.into()), "if");
    refused(Format::JsonSchema(r#"{"$ref": "https://example.com/schema"}"#.into()), "example.com");
    refused(Format::JsonSchema(r##"{"$ref": "#/$defs/absent"}"##.into()), "absent");
    refused(
        Format::JsonSchema(r#"{"type": "integer", "minimum": 3, "maximum": 2}"#.into()),
        "JSON schema cannot be used",
    );
    refused(Format::Regex("(".into()), "regular expression cannot be used");
    refused(Format::Regex(r"a(?=b)".into()), "regular expression cannot be used");
    refused(Format::Grammar("start: other".into()), "other");
    refused(Format::Grammar(String::new()), "grammar cannot be used");
    refused(Format::Grammar("start: <unknown>".into()), "unknown");
    refused(Format::Regex("a".repeat(EXPRESSION_BYTES_MAX + 1)), "8193 bytes");
    refused(Format::JsonSchema(" ".repeat(SCHEMA_BYTES_MAX + 1)), "131073 bytes");
    let many: String = (0..=PROPERTIES_MAX).map(|n| format!(r#""p{n}": {{}},"#)).collect();
    refused(Format::JsonSchema(format!(r#"{{"properties": {{{many} "z": {{}}}}}}"#)), "1002 properties");
    let pattern = "a".repeat(EXPRESSION_BYTES_MAX);
    refused(Format::JsonSchema(format!(r#"{{"items": {{"pattern": "{pattern}b"}}}}"#)), "patterns of a JSON schema");
}

/// Compiles it and writes some of it, and neither hangs nor takes all memory.
fn is_bounded(format: Format) {
    let (tokenizer, vocabulary, _) = vocabulary();
    let Ok(mut constraint) = vocabulary.constraint(&format) else { return };
    let size = tokenizer.vocabulary();
    for position in 0..300 {
        let Ok(mask) = constraint.mask(size) else { return };
        let of_mask = |token: &usize| mask[token / 32] >> (token % 32) & 1 == 1;
        let allowed: Vec<usize> = (0..size).filter(of_mask).collect();
        let token = allowed[position * 7919 % allowed.len()];
        if constraint.push(token as u32).is_err() || constraint.has_ended() {
            return;
        }
    }
}

#[test]
fn what_is_held_to_a_form_goes_from_thread_to_thread() {
    fn check<T: Send>(_: T) {}
    check(vocabulary().1.constraint(&Format::JsonObject).unwrap());
    check(vocabulary().1.clone());
}

#[test]
fn hostile_forms_take_no_more_than_others() {
    let nested = |open: &str, inner: &str, close: &str, depth: usize| open.repeat(depth) + inner + &close.repeat(depth);
    for expression in [
        "((((a{1000}){1000}){1000}){1000})".to_owned(),
        "(a|aa|aaa|b?){1,5000}c".into(),
        "(.*a){1,2000}b".into(),
        format!("(.*)({})", "(a|b).{200}".repeat(50)),
        nested("(", "a", ")*", 2_700),
        nested("(", "a", ")", 200),
        "[^a]?".repeat(1_600),
        "a".repeat(8_000),
        r"\p{L}{1,9999}\P{L}{1,9999}".into(),
    ] {
        is_bounded(Format::Regex(expression));
    }
    for schema in [
        nested("{\"type\":\"array\",\"items\":", "{}", "}", 100),
        nested("{\"type\":\"array\",\"items\":", "{}", "}", 9_000),
        r##"{"$ref": "#"}"##.into(),
        r##"{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}"##.into(),
        r#"{"type": "string", "minLength": 100000, "maxLength": 100000000}"#.into(),
        r#"{"type": "array", "minItems": 1000000}"#.into(),
        r#"{"type": "number", "multipleOf": 1e-300}"#.into(),
        r#"{"type": "integer", "multipleOf": 999999937}"#.into(),
        format!("{{\"enum\": [{}1]}}", (0..12_000).map(|n| format!("\"v{n}\",")).collect::<String>()),
        format!(
            "{{\"properties\": {{{}\"z\": {{}}}}}}",
            (0..1_000).map(|n| format!("\"v{n}\": {{}},")).collect::<String>()
        ),
        format!("{{\"allOf\": [{}{{}}]}}", "{\"pattern\": \"(a|b)*a(a|b){9}\"},".repeat(450)),
    ] {
        is_bounded(Format::JsonSchema(schema));
    }
    let chain = |line: &dyn Fn(usize) -> String, count: usize| (0..count).map(line).collect::<String>();
    for grammar in [
        nested("start: ", "a\na: a a | \"x\" | \"\"", "", 1),
        "start: start start | \"a\" | start start start".into(),
        format!("start: {}", nested("(", "\"a\"", ")", 4_000)),
        format!("start: r0\n{}r500: \"x\"\n", chain(&|n| format!("r{n}: r{} \"a\"\n", n + 1), 500)),
        format!("start: T0\n{}T500: \"x\"\n", chain(&|n| format!("T{n}: T{} \"a\"\n", n + 1), 500)),
        format!("start: {}\"a\"", "\"b\" | ".repeat(1_300)),
        "start: \"a\"{1000000}".into(),
        "start: (\"a\"{1000}){1000}".into(),
    ] {
        is_bounded(Format::Grammar(grammar));
    }
}
