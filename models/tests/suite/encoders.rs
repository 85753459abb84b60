//! Small BERT checkpoints against the f64 reference: embeddings, scores and probabilities, alone and in batches.

use crate::support::{On, ask, assert_close, data, embed, json, load_on, manifest, numbers, vectors};
use models::engine::{Item, Tokens};
use models::manifest::{Pooling, Task};
use models::task::{Reply, Request, Text};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

crate::on_every_encoder_backend!(
    embeddings_are_those_of_the_reference,
    scores_are_those_of_the_reference,
    probabilities_are_those_of_the_reference,
    tokens_are_those_of_the_reference,
    an_answer_does_not_depend_on_its_neighbours,
    batches_side_by_side_are_answered_as_alone,
    given_tokens_are_answered_like_their_text,
);

/// f32 against f64 through two layers; largest differences seen are a tenth of it.
const TOLERANCE: f64 = 1e-5;

fn texts(golden: &serde_json::Value) -> Vec<String> {
    golden["cases"].as_array().unwrap().iter().map(|case| case["text"].as_str().unwrap().into()).collect()
}

fn embeddings_are_those_of_the_reference(on: On) {
    let golden = json("tiny-bert.golden.json");
    for (pooling, key) in [(Pooling::Mean, "mean"), (Pooling::Cls, "cls")] {
        let mut manifest = manifest(&data("tiny-bert"));
        assert_eq!((manifest.task, manifest.pooling), (Task::Embed, Some(Pooling::Mean)));
        manifest.pooling = Some(pooling);
        let Some(mut model) = load_on(on, &manifest, &data("tiny-bert")) else { return };
        let texts = texts(&golden);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (case, have) in golden["cases"].as_array().unwrap().iter().zip(embed(&mut model, &texts)) {
            assert_close(&have, &numbers(&case[key]), TOLERANCE, &format!("{key} {}", case["text"]));
        }
    }
}

fn scores_are_those_of_the_reference(on: On) {
    let golden = json("tiny-cross-encoder.golden.json");
    let manifest = manifest(&data("tiny-cross-encoder"));
    assert_eq!(manifest.task, Task::Rerank);
    let Some(mut model) = load_on(on, &manifest, &data("tiny-cross-encoder")) else { return };
    let cases = golden["cases"].as_array().unwrap();
    let query = cases[0]["text"].as_str().unwrap();
    let cases: Vec<_> = cases.iter().filter(|case| case["text"] == query).collect();
    let documents: Vec<String> = cases.iter().map(|case| case["pair"].as_str().unwrap().into()).collect();
    assert!(documents.len() >= 5, "{documents:?}");
    let request = Request::Rerank { query: query.into(), documents, top_n: None, truncate: false };
    let Reply::Ranking(ranking) = ask(&mut model, request).unwrap() else { panic!("not a ranking") };
    assert_eq!(ranking.len(), cases.len());
    assert!(ranking.windows(2).all(|pair| pair[0].score >= pair[1].score), "{ranking:?}");
    for score in &ranking {
        let logit = numbers(&cases[score.index]["logits"])[0];
        assert_close(
            &[score.score],
            &[1.0 / (1.0 + (-logit).exp())],
            TOLERANCE,
            &cases[score.index]["pair"].to_string(),
        );
    }
}

fn probabilities_are_those_of_the_reference(on: On) {
    let golden = json("tiny-bert-classifier.golden.json");
    let manifest = manifest(&data("tiny-bert-classifier"));
    assert_eq!(manifest.task, Task::Classify);
    let Some(mut model) = load_on(on, &manifest, &data("tiny-bert-classifier")) else { return };
    let inputs = texts(&golden).into_iter().map(Text::Words).collect();
    let request = Request::ClassifyTexts { inputs, top_n: None, truncate: false };
    let Reply::Labels(rows) = ask(&mut model, request).unwrap() else { panic!("not labels") };
    for (case, row) in golden["cases"].as_array().unwrap().iter().zip(rows) {
        let want = numbers(&case["probabilities"]);
        assert!(row.windows(2).all(|pair| pair[0].score >= pair[1].score), "{row:?}");
        for label in &row {
            let index = manifest.labels.iter().position(|name| *name == label.label).unwrap();
            assert_close(&[label.score], &[want[index]], TOLERANCE, &case["text"].to_string());
        }
    }
}

/// Every golden case's tokens, through the pipeline.
fn tokens_are_those_of_the_reference(on: On) {
    let check = |item: &Item, case: &serde_json::Value| {
        let Item::Tokens(tokens) = item else { panic!("tensors") };
        let list = |key: &str| numbers(&case[key]).into_iter().map(|n| n as u32).collect::<Vec<_>>();
        let type_ids = if tokens.type_ids.is_empty() { vec![0; tokens.ids.len()] } else { tokens.type_ids.clone() };
        assert_eq!((tokens.ids.clone(), type_ids), (list("token_ids"), list("type_ids")), "{case}");
    };
    for name in ["tiny-bert", "tiny-cross-encoder"] {
        let golden = json(&format!("{name}.golden.json"));
        let Some(model) = load_on(on, &manifest(&data(name)), &data(name)) else { return };
        for case in golden["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap().to_string();
            let request = match case["pair"].as_str() {
                Some(pair) => {
                    Request::Rerank { query: text, documents: vec![pair.into()], top_n: None, truncate: false }
                }
                None => {
                    let inputs = vec![Text::Words(text)];
                    Request::Embed { inputs, prompt: None, dimensions: None, normalize: None, truncate: false }
                }
            };
            let prepared = model.pipeline.prepare(request).unwrap();
            check(&prepared.items[0], case);
            assert_eq!(prepared.tokens, case["token_ids"].as_array().unwrap().len());
        }
    }
}

fn an_answer_does_not_depend_on_its_neighbours(on: On) {
    let manifest = manifest(&data("tiny-bert"));
    let Some(mut model) = load_on(on, &manifest, &data("tiny-bert")) else { return };
    // Lengths from 1 to the longest, in an order that is no order.
    let item = |n: usize| {
        let length = n * 37 % 128 + 1;
        Item::Tokens(Tokens { ids: (0..length).map(|i| ((i * 31 + n) % 291) as u32).collect(), type_ids: vec![] })
    };
    let items: Vec<Item> = (0..40).map(item).collect();
    let together = vectors(&mut model, &items);
    for (item, together) in items.iter().zip(&together) {
        let alone = vectors(&mut model, std::slice::from_ref(item)).remove(0);
        if on == On::Kernels {
            // Packed batches have no padding that could change how sums are rounded.
            assert_eq!(&alone, together, "{} tokens", item.cost());
        }
        let alone: Vec<f64> = alone.iter().map(|v| (*v).into()).collect();
        assert_close(together, &alone, TOLERANCE, &format!("{} tokens", item.cost()));
    }
}

fn batches_side_by_side_are_answered_as_alone(on: On) {
    let Some(mut model) = load_on(on, &manifest(&data("tiny-bert")), &data("tiny-bert")) else { return };
    let batch = |seed: u32| -> Vec<Item> {
        let lengths = (0..seed % 7 + 1).map(|n| (n * 41 + seed * 13) % 128 + 1);
        let ids = |length: u32| (0..length).map(|i| (i * 31 + seed) % 291).collect();
        lengths.map(|length| Item::Tokens(Tokens { ids: ids(length), type_ids: vec![] })).collect()
    };
    let (next, answers, calls) = (AtomicU32::new(0), Mutex::new(vec![]), AtomicU32::new(0));
    let (sides, is_sided) = (model.engine.sides(), matches!(on, On::Kernels | On::Cuda));
    model.engine.run_sides(&|side| {
        calls.fetch_add(1, Ordering::Relaxed);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= 40 {
                break;
            }
            let answer = side(&batch(seed)).unwrap();
            answers.lock().unwrap().push((seed, answer));
        }
    });
    assert_eq!((sides, sides as u32), (if is_sided { 2 } else { 1 }, calls.into_inner()));
    let answers = answers.into_inner().unwrap();
    assert_eq!(answers.len(), 40);
    for (seed, answer) in answers {
        assert_eq!(model.engine.run(&batch(seed)).unwrap(), answer, "batch {seed}");
    }
    if !is_sided {
        return;
    }
    // A batch that is refused refuses nothing else.
    model.engine.run_sides(&|side| {
        let refused = side(&[Item::Tokens(Tokens { ids: vec![100_000], type_ids: vec![] })]);
        assert!(matches!(refused, Err(models::engine::Error::Input(_))), "{refused:?}");
        assert!(side(&batch(3)).is_ok());
    });
}

fn given_tokens_are_answered_like_their_text(on: On) {
    let golden = json("tiny-bert.golden.json");
    let Some(mut model) = load_on(on, &manifest(&data("tiny-bert")), &data("tiny-bert")) else { return };
    for case in golden["cases"].as_array().unwrap() {
        let ids = numbers(&case["token_ids"]).into_iter().map(|n| n as u32).collect();
        let request = Request::Embed {
            inputs: vec![Text::Ids(ids)],
            prompt: None,
            dimensions: None,
            normalize: None,
            truncate: false,
        };
        let Reply::Embeddings { values, .. } = ask(&mut model, request).unwrap() else { panic!("no embeddings") };
        assert_close(&values, &numbers(&case["mean"]), TOLERANCE, &case["text"].to_string());
    }
}
