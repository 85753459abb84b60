//! The bundled model that writes text, beside what `transformers` makes of the same files: prompts, logits, what it writes.

use crate::decoders::{Text, argmax, step};
use crate::support::{On, json, numbers, options};
use models::load::load_text;
use serde_json::Value;

/// f32 here and there, with weights in f16; logits go up to 20.
const TOLERANCE: f64 = 2e-3;

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

#[test]
fn the_bundled_language_model_is_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = models::bundled::all().iter().find(|bundled| bundled.name == "debian-tiny-chat").unwrap();
    bundled.write(folder.path()).unwrap();
    let loaded = load_text(&bundled.manifest(), folder.path(), &options(On::Kernels), 8 << 20).unwrap();
    let (language, mut engine) = (loaded.language, loaded.generator);
    let golden = json("debian-tiny-chat.golden.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let prompt = language.chat(&case["messages"].to_string(), None).unwrap();
        assert_eq!(prompt, ids(&case["ids"]));
        let (mut text, greedy) = (Text::new(&*engine, &prompt, 0), ids(&case["greedy"]));
        let mut logits = step(&mut *engine, &[text.part(prompt.len())]).remove(0);
        for (id, want) in ids(&case["top_ids"]).into_iter().zip(numbers(&case["top_logits"])) {
            let off = (f64::from(logits[id as usize]) - want).abs();
            assert!(off < TOLERANCE, "{}: token {id} is off by {off}", case["messages"]);
        }
        // As far as the text goes: behind its end nothing is written.
        let end = greedy.iter().position(|id| language.end_tokens().contains(id)).unwrap_or(greedy.len() - 1);
        // Blocks for so many more tokens were laid out.
        for want in greedy.iter().take(end.min(15) + 1) {
            assert_eq!(argmax(&logits), *want, "{}", case["messages"]);
            text.ids.push(*want);
            logits = step(&mut *engine, &[text.part(1)]).remove(0);
        }
    }
}
