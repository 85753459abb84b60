//! Tokenizers of GGUF files, and what stands beside them, against those that are described in a `tokenizer.json`, and against a
//! SentencePiece in a few lines.

use crate::gguf_file::As;
use crate::gguf_file::{File, Meta, Model};
use crate::support::{data, json};
use models::load::gguf::{Gguf, tokenizer};
use models::load::{self, inspect, load_language};
use models::manifest::Task;
use models::task::Tokenizer;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The characters that stand for bytes in vocabularies of GPT-2's kind.
fn byte_characters() -> Vec<char> {
    let is_shown = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let of = |byte: u32| {
        if is_shown(byte) {
            return byte;
        }
        next += 1;
        next - 1
    };
    (0..256).map(of).map(|code| char::from_u32(code).unwrap()).collect()
}

/// A file with a vocabulary of bytes, some merges, and tokens of every use.
fn of_bytes(pre: &str) -> File {
    let mut tokens: Vec<String> = byte_characters().iter().map(char::to_string).collect();
    let pairs = [
        ("Ġ", "t"),
        ("h", "e"),
        ("Ġt", "he"),
        ("o", "u"),
        ("1", "2"),
        ("12", "3"),
        ("Ġ", "Ġ"),
        ("i", "n"),
        ("in", "g"),
        ("'", "s"),
        ("Ċ", "Ċ"),
        ("e", "r"),
        ("r", "e"),
        ("Ã", "¶"),
        ("Ġ", "a"),
        ("a", "n"),
        ("an", "d"),
        ("Ġ", "and"),
        ("!", "!"),
        ("T", "H"),
        ("TH", "E"),
        // What is never reached by merges: only a look at whole words finds it.
        ("s", "t"),
        ("or", "d"),
    ];
    let mut merges = vec![];
    for (left, right) in pairs {
        tokens.push(format!("{left}{right}"));
        if left != "or" {
            merges.push(format!("{left} {right}"));
        }
    }
    let mut uses = vec![1; tokens.len()];
    for (token, of) in [("<|begin|>", 3), ("<|im_end|>", 3), ("<tool>", 4), ("[PAD1]", 5)] {
        tokens.push(token.into());
        uses.push(of);
    }
    let begin = tokens.len() as u32 - 4;
    let mut file = File::default();
    file.set("general.architecture", Meta::text("llama"));
    file.set("tokenizer.ggml.model", Meta::text("gpt2"));
    file.set("tokenizer.ggml.pre", Meta::text(pre));
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Meta::I32s(uses));
    file.set("tokenizer.ggml.merges", Meta::Texts(merges));
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(begin));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(begin + 1));
    file
}

fn open(file: &File) -> Result<Gguf, load::Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.gguf"), file.bytes()).unwrap();
    Gguf::open(folder.path(), &["m.gguf"])
}

/// The tokens of a text as texts.
fn pieces(file: &File, tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let Some((_, Meta::Texts(tokens))) = file.values.iter().find(|(key, _)| key == "tokenizer.ggml.tokens") else {
        panic!("no tokens")
    };
    tokenizer.ids(text).unwrap().into_iter().map(|id| tokens[id as usize].clone()).collect()
}

fn check_pieces(pre: &str, text: &str, want: &[&str]) {
    let file = of_bytes(pre);
    let tokenizer = tokenizer(&open(&file).unwrap()).unwrap();
    assert_eq!(pieces(&file, &tokenizer, text), want, "{pre} {text:?}");
    assert_eq!(tokenizer.text(&tokenizer.ids(text).unwrap()).unwrap(), text.replace("<|im_end|>", ""), "{pre}");
}

#[test]
fn words_are_cut_as_the_name_says() {
    // Numbers: whole, in threes from the left, one by one.
    check_pieces("gpt-2", "12312", &["123", "12"]);
    check_pieces("llama-bpe", "12312", &["123", "12"]);
    check_pieces("dbrx", "0123", &["0", "12", "3"]);
    check_pieces("gpt-2", "0123", &["0", "123"]);
    check_pieces("qwen2", "123", &["1", "2", "3"]);
    check_pieces("smollm", "a123", &["a", "1", "2", "3"]);
    check_pieces("tekken", "123", &["1", "2", "3"]);
    check_pieces("default", "0123", &["0", "12", "3"]);
    // What belongs to a word.
    check_pieces("gpt-2", "ou's the", &["ou", "'s", "Ġthe"]);
    check_pieces("qwen2", "OU'S THE", &["O", "U", "'", "S", "Ġ", "THE"]);
    check_pieces("llama-bpe", "the\n\nand", &["t", "he", "ĊĊ", "and"]);
    check_pieces("default", "!!=", &["!!", "="]);
    check_pieces("gpt-4o", "THEing", &["THE", "ing"]);
    // A word that is a token and that no merges make.
    check_pieces("llama-bpe", "ord", &["ord"]);
    check_pieces("dbrx", "ord", &["o", "r", "d"]);
    // Marks are cut out first; ö in two characters is one where characters are composed.
    check_pieces("llama-bpe", "a<|im_end|> the<tool>", &["a", "<|im_end|>", "Ġthe", "<tool>"]);
    let file = of_bytes("qwen2");
    let composing = tokenizer(&open(&file).unwrap()).unwrap();
    assert_eq!(pieces(&file, &composing, "o\u{308}"), ["Ã¶"]);
}

#[test]
fn a_text_begins_as_the_file_says() {
    let begun = |file: &File| {
        let tokenizer = tokenizer(&open(file).unwrap()).unwrap();
        tokenizer.begun("a").unwrap().len() == 2
    };
    assert!(begun(&of_bytes("llama-bpe")) && !begun(&of_bytes("qwen2")));
    assert!(begun(of_bytes("qwen2").set("tokenizer.ggml.add_bos_token", Meta::Bool(true))));
    assert!(!begun(of_bytes("llama-bpe").set("tokenizer.ggml.add_bos_token", Meta::Bool(false))));
    assert!(begun(&of_pieces()) && !begun(of_pieces().set("tokenizer.ggml.add_bos_token", Meta::Bool(false))));
}

/// A file with SentencePiece's tokens.
fn of_pieces() -> File {
    let words = [
        "▁the", "▁t", "he", "▁a", "an", "▁an", "nd", "▁and", "ing", "in", "ng", "th", "er", "▁▁", "her", "the",
        "▁there", "re", "ere",
    ];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut uses = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    uses.extend([6; 256]);
    tokens.extend(words.map(String::from));
    tokens.extend("▁abcdefghinorstéö.".chars().map(String::from));
    uses.resize(tokens.len(), 1);
    tokens.push("<|tool|>".into());
    uses.push(4);
    let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { -((id * 7 % 23) as f32) - id as f32 / 1000.0 });
    let mut file = File::default();
    file.set("general.architecture", Meta::text("llama"));
    file.set("tokenizer.ggml.model", Meta::text("llama"));
    file.set("tokenizer.ggml.scores", Meta::F32s(scores.collect()));
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Meta::I32s(uses));
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(2));
    file
}

/// SentencePiece: the neighbours that make the token of the highest score become one, the leftmost first, as long as there are any; what is
/// no token in the end is its bytes.
fn sentence_piece(tokens: &[String], scores: &[f32], text: &str) -> Vec<String> {
    let score: HashMap<&str, f32> =
        tokens[259..tokens.len() - 1].iter().map(String::as_str).zip(scores[259..].iter().copied()).collect();
    let text = format!("▁{}", text.replace(' ', "▁"));
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let pairs = parts.windows(2).enumerate();
        let scored = pairs.filter_map(|(at, pair)| Some((*score.get(pair.concat().as_str())?, at)));
        let Some((_, at)) = scored.reduce(|best, next| if next.0 > best.0 { next } else { best }) else { break };
        let second = parts.remove(at + 1);
        parts[at].push_str(&second);
    }
    let bytes = |part: String| match score.contains_key(part.as_str()) {
        true => vec![part],
        false => part.bytes().map(|byte| format!("<0x{byte:02X}>")).collect(),
    };
    parts.into_iter().flat_map(bytes).collect()
}

#[test]
fn pieces_are_those_of_sentence_piece() {
    let file = of_pieces();
    let [Meta::F32s(scores), Meta::Texts(tokens)] = ["scores", "tokens"].map(|key| {
        let key = format!("tokenizer.ggml.{key}");
        file.values.iter().find(|(other, _)| *other == key).unwrap().1.clone()
    }) else {
        panic!("other lists")
    };
    let tokenizer = tokenizer(&open(&file).unwrap()).unwrap();
    let mut texts: Vec<String> = serde_json::from_value(json("texts_200.json")).unwrap();
    texts.extend(["there and here", "  two  spaces ", "é日\n", "x", "and the other thing"].map(String::from));
    for text in texts {
        assert_eq!(pieces(&file, &tokenizer, &text), sentence_piece(&tokens, &scores, &text), "{text:?}");
        let ids = tokenizer.ids(&text).unwrap();
        assert_eq!(tokenizer.text(&ids).unwrap(), text);
    }
    assert_eq!(pieces(&file, &tokenizer, "a<|tool|>b"), ["▁a", "<|tool|>", "▁", "b"]);
}

#[test]
fn spaces_belong_to_what_the_file_and_the_architecture_say() {
    let check = |file: &File, text: &str, want: &[&str]| {
        assert_eq!(pieces(file, &tokenizer(&open(file).unwrap()).unwrap(), text), want, "{text:?}");
    };
    check(&of_pieces(), "a", &["▁a"]);
    check(of_pieces().set("tokenizer.ggml.add_space_prefix", Meta::Bool(false)), "a", &["a"]);
    check(&of_pieces(), "</s> a", &["</s>", "▁", "▁a"]);
    check(of_pieces().set("general.architecture", Meta::text("phi3")), "</s> a", &["</s>", "▁a"]);
}

#[test]
fn a_tokenizer_that_is_broken_is_refused() {
    let check = |file: &File, words: &str| {
        let error = tokenizer(&open(file).unwrap()).err().unwrap_or_else(|| panic!("{words}: it was read")).to_string();
        assert!(error.contains(words), "{error} does not say {words:?}");
    };
    let text = |text: &str| vec![text.to_owned()];
    check(&of_bytes("falcon"), "\"falcon\"; default, ");
    check(of_bytes("qwen2").set("tokenizer.ggml.model", Meta::text("t5")), "\"t5\"");
    check(of_bytes("qwen2").set("tokenizer.ggml.model", Meta::U32(1)), "tokenizer.ggml.model is");
    check(of_bytes("qwen2").set("tokenizer.ggml.tokens", Meta::U32(1)), "a list of texts");
    check(of_bytes("qwen2").set("tokenizer.ggml.tokens", Meta::I32s(vec![1])), "a list of texts");
    check(of_bytes("qwen2").set("tokenizer.ggml.tokens", Meta::Texts(text("a"))), "entries for 1 tokens");
    check(of_bytes("qwen2").set("tokenizer.ggml.token_type", Meta::Texts(text("a"))), "whole numbers");
    check(of_bytes("qwen2").set("tokenizer.ggml.token_type", Meta::I32s(vec![1])), "1 entries for");
    check(of_bytes("qwen2").set("tokenizer.ggml.merges", Meta::Texts(text("ab"))), "a space between them");
    check(of_bytes("qwen2").set("tokenizer.ggml.merges", Meta::Texts(text(""))), "a space between them");
    check(of_bytes("qwen2").set("tokenizer.ggml.merges", Meta::Texts(text("never there"))), "broken");
    check(of_bytes("llama-bpe").set("tokenizer.ggml.bos_token_id", Meta::U32(1 << 20)), "bos_token_id is 1048576");
    check(of_bytes("llama-bpe").set("tokenizer.ggml.add_bos_token", Meta::U32(1)), "true or false");
    check(of_pieces().set("tokenizer.ggml.scores", Meta::F32s(vec![0.0])), "1 entries for");
    check(of_pieces().set("tokenizer.ggml.scores", Meta::text("high")), "a list of numbers");
    check(of_bytes("qwen2").set("tokenizer.ggml.merges", Meta::I32s(vec![0; (1 << 21) + 1])), "2097153 entries");
    let mut twice = of_bytes("qwen2");
    let (tokens, long) = (vec!["a".to_owned(); 2], vec!["a".repeat(2000)]);
    check(
        twice
            .set("tokenizer.ggml.tokens", Meta::Texts(tokens))
            .set("tokenizer.ggml.token_type", Meta::I32s(vec![1, 1])),
        "both \"a\"",
    );
    check(
        twice.set("tokenizer.ggml.tokens", Meta::Texts(long)).set("tokenizer.ggml.token_type", Meta::I32s(vec![1])),
        "2000 bytes",
    );
    twice.values.clear();
    check(&twice, "tokenizer.ggml.tokens is missing");
}

#[test]
fn a_folder_with_a_file_is_a_model_that_writes() {
    let (model, _) = Model::read(&data("decoder/smollm2"));
    let mut file = model.gguf(|name| if name.contains("embed") { As::F16 } else { As::F32 });
    file.values.extend(of_bytes("smollm").values.into_iter().filter(|(key, _)| key.starts_with("tokenizer")));
    file.set("general.name", Meta::text("Tiny Model 1B"));
    file.set("general.license", Meta::text("apache-2.0"));
    file.set("general.sampling.temp", Meta::F32(0.5));
    file.set("general.sampling.top_k", Meta::U32(20));
    file.set("tokenizer.chat_template", Meta::text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("tiny-q8_0.gguf"), file.bytes()).unwrap();

    let manifest = inspect(folder.path(), None, None, None).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.architecture.as_str()), ("tiny-model-1b", "llama"));
    assert_eq!((manifest.task, manifest.precision.as_str()), (Task::Generate, "f32"));
    assert_eq!((manifest.license.as_deref(), manifest.max_tokens), (Some("apache-2.0"), Some(256)));
    assert_eq!(inspect(folder.path(), Some("mine"), None, None).unwrap().name, "mine");
    let options = crate::support::options(crate::support::On::Kernels);
    load::load_text(&manifest, folder.path(), &options, 8 << 20).unwrap();

    let language = load_language(&manifest, folder.path()).unwrap();
    let messages = r#"[{"role": "user", "content": "the"}]"#;
    let marks = ["<|begin|>", "<|im_end|>"].map(|token| language.tokenizer().id(token).unwrap());
    let the = language.tokenizer().ids("the").unwrap();
    assert_eq!(language.chat(messages, None).unwrap(), [&marks[..1], &the, &marks[1..]].concat());
    assert_eq!(**language.end_tokens(), marks[1..]);
    assert_eq!((language.sampling().temperature, language.sampling().top_k), (0.5, 20));

    // What lies beside the file goes before it.
    let words = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "the": 1, "<|begin|>": 2, "<|im_end|>": 3}, "unk_token": "a"},
    });
    let write = |name: &str, json: &Value| std::fs::write(path(name), json.to_string()).unwrap();
    write("tokenizer.json", &words);
    write("generation_config.json", &json!({"top_k": 3}));
    write("tokenizer_config.json", &json!({"chat_template": "the the", "model_max_length": 99}));
    let manifest = inspect(folder.path(), None, None, None).unwrap();
    assert_eq!((manifest.files.len(), manifest.max_tokens), (4, Some(99)));
    let language = load_language(&manifest, folder.path()).unwrap();
    assert_eq!(language.chat(messages, None).unwrap(), [1, 1]);
    assert_eq!((language.sampling().temperature, language.sampling().top_k), (0.5, 3));

    // Of several, one must be called so that it is the one.
    std::fs::write(path("other.gguf"), file.bytes()).unwrap();
    let error = inspect(folder.path(), None, None, None).unwrap_err().to_string();
    assert!(error.contains("other.gguf, tiny-q8_0.gguf"), "{error}");
    std::fs::rename(path("other.gguf"), path("model.gguf")).unwrap();
    assert_eq!(inspect(folder.path(), None, None, None).unwrap().gguf(), Some("model.gguf"));
}

#[test]
fn turns_end_where_a_model_of_that_kind_ends_them() {
    // The file states the end of a text only; a mark ends a turn all the same. A piece of text that reads like one does not.
    let ends = |uses: i32| {
        let (model, _) = Model::read(&data("decoder/smollm2"));
        let mut file = model.gguf(|_| As::F32);
        file.set("tokenizer.ggml.tokens", Meta::Texts(["a", "b", "<end_of_turn>", "c"].map(String::from).to_vec()));
        file.set("tokenizer.ggml.token_type", Meta::I32s(vec![1, 1, uses, 1]));
        file.set("tokenizer.ggml.eos_token_id", Meta::U32(1));
        file.set("tokenizer.ggml.eot_token_id", Meta::U32(3));
        load::gguf::config(&open(&file).unwrap()).unwrap()["eos_token_id"].clone()
    };
    assert_eq!((ends(3), ends(1)), (json!([1, 2, 3]), json!([1, 3])));
}

/// Where llama.cpp's `models/` lies: files with nothing but a vocabulary, each beside texts and the tokens that its model's own tokenizer
/// makes of them.
const VOCABULARIES: &str = "NEUROGRID_TEST_LLAMA_CPP_MODELS";

#[test]
fn vocabularies_of_published_models_give_their_tokens() {
    let Some(folder) = std::env::var_os(VOCABULARIES).map(std::path::PathBuf::from) else {
        println!("skipped: {VOCABULARIES} does not say where llama.cpp's models/ lies");
        return;
    };
    for name in ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"] {
        let path = format!("ggml-vocab-{name}.gguf");
        let read = |ending: &str| std::fs::read_to_string(folder.join(format!("{path}.{ending}"))).unwrap();
        let tokenizer = tokenizer(&Gguf::open(&folder, &[&path]).unwrap()).unwrap();
        let (texts, tokens) = (read("inp"), read("out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let mut looked_at = 0;
        for (text, line) in texts.iter().zip(tokens.lines()) {
            let want: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.ids(text).unwrap(), want, "{name} {text:?}");
            looked_at += 1;
        }
        println!("{name}: {looked_at} texts");
        assert!(looked_at > 40, "{name}: {looked_at}");
    }
}
