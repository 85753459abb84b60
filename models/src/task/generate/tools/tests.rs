//! What models write, found whole and in pieces; what is demanded of them, written by random logits.

use super::*;
use crate::task::generate::sampling::{Sampler, Sampling, Scratch};
use crate::task::generate::text::TextStream;
use crate::task::generate::vocabulary::Vocabulary;
use crate::task::generate::vocabulary::tests::byte_level;
use proptest::prelude::*;

const TOOLS: &str = r##"[
    {"type": "function", "function": {"name": "weather", "description": "Of a place.", "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string", "maxLength": 6}, "unit": {"$ref": "#/$defs/unit"}},
        "required": ["place", "unit"], "additionalProperties": false,
        "$defs": {"unit": {"enum": ["C", "F"]}}}}},
    {"type": "function", "function": {"name": "get_time"}}
]"##;

const MARKS: &[&str] = &["<end>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"];

const SYNTAXES: [Syntax; 3] = [Syntax::Hermes, Syntax::Llama, Syntax::Mistral];

fn parser(syntax: Syntax) -> Parser {
    Parser::new(syntax, Arc::new(["weather".into(), "get_time".into()]))
}

/// All that is found in these pieces.
fn found(syntax: Syntax, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut parser = parser(syntax);
    let mut all: Vec<Found> = pieces.iter().map(|piece| parser.push(piece)).collect();
    all.push(parser.finish());
    let text = all.iter().map(|found| found.text.as_str()).collect();
    (text, all.into_iter().flat_map(|found| found.calls).map(|call| (call.name, call.arguments)).collect())
}

fn check(syntax: Syntax, text: &str, want: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> = calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect();
    assert_eq!(found(syntax, &[text]), (want.to_owned(), calls), "{text}");
}

const ARGUMENTS: &str = r#"{"place": "a {\"}] </tool_call> é", "unit": "C"}"#;

#[test]
fn calls_are_found_as_each_model_writes_them() {
    let hermes =
        format!("Let me see.\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {ARGUMENTS}}}\n</tool_call>");
    check(Syntax::Hermes, &hermes, "Let me see.", &[("weather", ARGUMENTS)]);
    let two = hermes.clone() + "\n<tool_call>{\"arguments\":{},\"name\":\"get_time\"}</tool_call>\n";
    check(Syntax::Hermes, &two, "Let me see.", &[("weather", ARGUMENTS), ("get_time", "{}")]);
    check(Syntax::Hermes, &(hermes + "\nThat is it. "), "Let me see.\nThat is it. ", &[("weather", ARGUMENTS)]);
    let llama = format!("{{\"name\": \"weather\", \"parameters\": {ARGUMENTS}}}");
    check(Syntax::Llama, &llama, "", &[("weather", ARGUMENTS)]);
    check(Syntax::Llama, &format!("<|python_tag|>{llama}"), "", &[("weather", ARGUMENTS)]);
    check(Syntax::Llama, &format!("\n{llama}; {llama}\n"), "", &[("weather", ARGUMENTS), ("weather", ARGUMENTS)]);
    check(Syntax::Llama, &format!("See: <|python_tag|>{llama}"), "See:", &[("weather", ARGUMENTS)]);
    check(Syntax::Llama, r#"{"type": "function", "name": "get_time", "parameters": null}"#, "", &[("get_time", "{}")]);
    let mistral =
        format!("[TOOL_CALLS] [{{\"name\": \"weather\", \"arguments\": {ARGUMENTS}}}, {{\"name\": \"get_time\"}}]");
    check(Syntax::Mistral, &mistral, "", &[("weather", ARGUMENTS), ("get_time", "{}")]);
    check(Syntax::Mistral, r#"[TOOL_CALLS]{"name":"get_time","arguments":"{}"}"#, "", &[("get_time", "{}")]);
}

#[test]
fn a_call_whose_tag_is_missing_is_one() {
    let call = r#"<tool_call>{"name": "get_time", "arguments": {}}"#;
    check(Syntax::Hermes, call, "", &[("get_time", "{}")]);
    check(Syntax::Hermes, &format!("{call}\n{call}</tool_call>"), "", &[("get_time", "{}"), ("get_time", "{}")]);
    check(Syntax::Hermes, &format!("{call}</tool_"), "</tool_", &[("get_time", "{}")]);
    check(Syntax::Hermes, &format!("{call}</tool_call></tool_call>"), "</tool_call>", &[("get_time", "{}")]);
}

#[test]
fn what_is_no_call_is_text_and_nothing_is_lost() {
    let call = r#"<tool_call>{"name": "get_time"}</tool_call>"#;
    for text in [
        "",
        "  \n",
        "a < b <tool> <tool_cal",
        "<tool_call>",
        "<tool_call>\n get_time() </tool_call>",
        r#"<tool_call>{"name": "unknown", "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>"#,
        r#"<tool_call>{"name": "get_time", "arguments": {}"#,
        r#"<tool_call>{"name": "get_time", "arguments": {]}}</tool_call>"#,
        r#"<tool_call>{"name": "get_time", arguments: {}}</tool_call> and more"#,
        r#"<tool_call>{"name": "get_time" "arguments": {}}</tool_call> and more"#,
        "<tool_call>{\"name\": \"get_\ntime\"}",
        "<tool_call>[]</tool_call>",
    ] {
        check(Syntax::Hermes, text, text, &[]);
        check(Syntax::Hermes, &format!("{text}<"), &format!("{text}<"), &[]);
        let (before, calls) = found(Syntax::Hermes, &[&format!("{text}\n{call}")]);
        assert_eq!((before.trim_end(), calls.len()), (text.trim_end(), 1), "{text}");
    }
    for text in [
        r#"{"answer": 3}; and so on"#,
        r#"{"name": "unknown", "parameters": {}}"#,
        r#"Look: {"name": "get_time", "parameters": {}}"#,
        "<|python_tag|>print({1})",
        r#"{"name": "get_time", "param"#,
        "{}}",
    ] {
        check(Syntax::Llama, text, text, &[]);
    }
    check(Syntax::Llama, r#"{"name": "get_time"}; and so on;;"#, "; and so on;;", &[("get_time", "{}")]);
    for text in [
        "[TOOL_CALLS] []",
        "[TOOL_CALLS] [1, {}]",
        "[TOOL",
        "[1, 2]",
        r#"[TOOL_CALLS] [{"name": "get_time"}, {"name": "x"}]"#,
    ] {
        check(Syntax::Mistral, text, text, &[]);
    }
}

#[test]
fn text_is_not_held_back_for_longer_than_it_must() {
    let mut parser = parser(Syntax::Hermes);
    let mut told = |piece| parser.push(piece).text;
    assert_eq!(["One", " two", " <t", "o be", "> ", "x"].map(&mut told), ["One", " two", "", " <to be", ">", " x"]);
    let mut parser = self::parser(Syntax::Llama);
    let mut told = |piece| parser.push(piece).text;
    assert_eq!(["It is", " {3", "}"].map(&mut told), ["It is", " {3", "}"]);
}

/// Texts of what models write and what is nearly that.
fn writing() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[TOOL",
        "<",
        "\n",
        " ",
        ";",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"",
        "\\",
        "a",
        "é🦀",
        r#"{"name": "get_time", "arguments": {}}"#,
        r#"{"name": "weather", "parameters": {"place": "}\"{é"}}"#,
        r#"[{"name": "get_time"}, {"name": "weather", "arguments": {"a": [{}]}}]"#,
        r#"{"name": "#,
        r#""get_time""#,
    ]);
    prop::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn where_the_pieces_end_makes_no_difference(text in writing(), cuts in prop::collection::vec(0usize..200, 0..12)) {
        for syntax in SYNTAXES {
            let whole = found(syntax, &[&text]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).filter(|cut| text.is_char_boundary(*cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect();
            prop_assert_eq!(&found(syntax, &pieces), &whole, "{:?}", syntax);
            let mut letters = [0; 4];
            let mut parser = parser(syntax);
            let mut one_by_one = String::new();
            for letter in text.chars() {
                one_by_one += &parser.push(letter.encode_utf8(&mut letters)).text;
            }
            one_by_one += &parser.finish().text;
            prop_assert_eq!(&one_by_one, &whole.0, "{:?}", syntax);
            // Without calls, all is text.
            if whole.1.is_empty() {
                prop_assert_eq!(&whole.0, &text, "{:?}", syntax);
            }
        }
    }
}

/// An answer of random logits to a request that demands a call: its text as callers get it, in pieces.
fn demanded(model: &(Tokenizer, Vocabulary), syntax: Syntax, choice: &Choice, seed: u64) -> (Vec<Call>, String) {
    let (tokenizer, vocabulary) = model;
    let end = tokenizer.id("<end>").unwrap();
    let tools = Tools::new(Some(syntax), tokenizer, Some(TOOLS), choice).unwrap();
    let mut constraint = vocabulary.constraint(tools.format().unwrap()).unwrap();
    let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }, &[], &[]);
    let mut stream = TextStream::showing(tokenizer, &[], tools.shown().clone()).unwrap();
    let mut parser = tools.parser().unwrap();
    let (mut scratch, mut all) = (Scratch::new(), vec![]);
    let size = tokenizer.vocabulary();
    for position in 0..3_000 {
        // All alike: the noise of sampling chooses.
        let choice =
            sampler.choose(&mut vec![0.0; size], Some(constraint.mask(size).unwrap()), position, &mut scratch).unwrap();
        constraint.push(choice.token).unwrap();
        if choice.token != end {
            all.push(parser.push(&stream.push(tokenizer, choice.token).unwrap()));
        }
        if constraint.has_ended() {
            all.push(parser.push(&stream.finish(tokenizer).unwrap()));
            all.push(parser.finish());
            let text = all.iter().map(|found| found.text.as_str()).collect();
            return (all.into_iter().flat_map(|found| found.calls).collect(), text);
        }
    }
    panic!("it never ends");
}

#[test]
fn a_demanded_call_is_written_whatever_the_logits_say() {
    // Marks that are special tokens, and marks that are spelled.
    for special in [MARKS, &MARKS[..1]] {
        let spelled = ["{\"", "name", "\": \"", "place", "\", \"", "\"}", "}}", "  ", "<tool", "_call>"];
        let tokenizer = byte_level(&spelled, special);
        let vocabulary = Vocabulary::new(&tokenizer, &[tokenizer.id("<end>").unwrap()]).unwrap();
        let model = (tokenizer, vocabulary);
        for syntax in SYNTAXES {
            let mut most = 0;
            for seed in 0..25 {
                let (calls, text) = demanded(&model, syntax, &Choice::Required, seed);
                let is_any = (1..=DEMANDED_CALLS_MAX).contains(&calls.len());
                assert!(is_any && text.is_empty(), "{syntax:?} {text:?} {calls:?}");
                most = most.max(calls.len());
                calls.iter().for_each(check_demanded);
                let (calls, text) = demanded(&model, syntax, &Choice::Function("weather".into()), seed);
                assert_eq!((calls.len(), calls[0].name.as_str(), text.as_str()), (1, "weather", ""));
            }
            assert_eq!(most > 1, syntax != Syntax::Llama, "{syntax:?}: {most}");
        }
    }
}

/// Its arguments are of the schema.
fn check_demanded(call: &Call) {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
    match call.name.as_str() {
        "weather" => {
            assert!(arguments["place"].as_str().unwrap().chars().count() <= 6, "{arguments}");
            assert!(arguments["unit"] == "C" || arguments["unit"] == "F", "{arguments}");
        }
        name => assert_eq!((name, arguments), ("get_time", json!({}))),
    }
}

#[test]
fn the_syntax_is_found_in_the_template() {
    for (template, want) in [
        ("{% if tools %}…{\"parameters\": …}<tool_call>\n{\"name\": ", Some(Syntax::Hermes)),
        ("{% if tools %}<tool_call><function=name>", None),
        ("{{ '[TOOL_CALLS] [' }}{% for tool in tools %}", Some(Syntax::Mistral)),
        ("[TOOL_CALLS]name[ARGS]", None),
        ("{%- if tools is not none %}…{\"name\": function name, \"parameters\": dictionary}", Some(Syntax::Llama)),
        ("<|python_tag|>", Some(Syntax::Llama)),
        ("{% for message in messages %}", None),
    ] {
        assert_eq!(Syntax::of(template), want, "{template}");
    }
}

#[test]
fn what_the_model_is_told_depends_on_the_choice() {
    let tokenizer = byte_level(&[], MARKS);
    let new = |tools, choice| Tools::new(Some(Syntax::Hermes), &tokenizer, tools, &choice);
    let auto = new(Some(TOOLS), Choice::Auto).unwrap();
    assert_eq!((auto.prompt(), auto.format(), auto.parser().is_some()), (Some(TOOLS), None, true));
    let shown: Vec<_> = ["<tool_call>", "</tool_call>"].iter().filter_map(|mark| tokenizer.id(mark)).collect();
    assert_eq!(auto.shown().to_vec(), shown);
    for nothing in [new(Some(TOOLS), Choice::None), new(None, Choice::Auto), new(Some("[]"), Choice::Auto)] {
        let nothing = nothing.unwrap();
        let told = (nothing.prompt(), nothing.format(), nothing.shown().len(), nothing.parser().is_none());
        assert_eq!(told, (None, None, 0, true));
    }
}

#[test]
fn tools_that_cannot_be_used_are_refused() {
    let refused = |syntax, tools: &str, choice, words: &str| {
        let error = Tools::new(syntax, &byte_level(&[], &[]), Some(tools), &choice).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let hermes = Some(Syntax::Hermes);
    refused(None, TOOLS, Choice::Auto, "knows no tools");
    refused(hermes, "{}", Choice::Auto, "must be a list");
    refused(hermes, r#"[{"type": "web", "function": {"name": "a"}}]"#, Choice::Auto, "\"web\"");
    refused(hermes, r#"[{"type": "function", "function": {"name": "a b"}}]"#, Choice::Auto, "\"a b\"");
    let one = r#"{"type": "function", "function": {"name": "a"}}"#;
    refused(hermes, &format!("[{one}, {one}]"), Choice::Auto, "no other tool's");
    refused(hermes, &format!("[{}{one}]", format!("{one},").repeat(TOOLS_MAX)), Choice::Auto, "129 tools");
    let pattern = "a".repeat(constraint::EXPRESSION_BYTES_MAX + 1);
    let parameters = format!(r#"{{"properties": {{"a": {{"pattern": "{pattern}"}}}}}}"#);
    let long = format!(r#"[{{"type": "function", "function": {{"name": "a", "parameters": {parameters}}}}}]"#);
    refused(hermes, &long, Choice::Required, "the tool \"a\" cannot be demanded");
    refused(hermes, "[]", Choice::Required, "there are no tools");
    refused(hermes, TOOLS, Choice::Function("time".into()), "weather, get_time");
}
