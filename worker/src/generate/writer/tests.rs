//! Texts on the fake generator, whose next token depends on all tokens before as they lie in the blocks: what each caller gets is
//! what the generator gives it alone, whoever comes, goes and fails beside it.

use super::*;
use crate::generate::{Blocks, Limits};
use models::backend::fake_generator::FakeGenerator;
use models::engine::GeneratorInfo;
use models::generate::Plan;
use models::task::generate::constraint::Format;
use models::task::generate::vocabulary::Vocabulary;
use std::time::Duration;

const VOCABULARY: usize = 97;
const BLOCK: usize = 4;

fn tokenizer() -> Arc<Tokenizer> {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..VOCABULARY).map(|id| (format!("w{id}"), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "truncation": null, "padding": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap())
}

fn limits() -> Limits {
    Limits {
        step_tokens: 24,
        prefill_tokens_min: 8,
        sequences_max: 8,
        queue_max: 100,
        context_max: 64,
        overtakes_max: 4,
        preemptions_max: 3,
        block_bytes: 1 << 20,
    }
}

fn writer_on(engine: Box<dyn Generator>) -> Writer {
    let blocks = Blocks::new(engine.info().blocks as u32, BLOCK);
    Writer::new(Scheduler::new(limits(), blocks).unwrap(), engine, tokenizer(), Pool::new(1).unwrap())
}

fn writer(blocks: usize) -> Writer {
    writer_on(Box::new(FakeGenerator::new(VOCABULARY, blocks, BLOCK)))
}

fn ask(prompt: &[u32], new_tokens_max: usize) -> Ask {
    let request =
        Request { prompt: prompt.to_vec(), generated: vec![], new_tokens_max, priority: 5, deadline: None, salt: 0 };
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let stream = TextStream::after(&tokenizer(), prompt).unwrap();
    Ask { request, sampling, stream, stops: Stops::default(), stop_tokens: Arc::new([]), constraint: None }
}

fn prompt(seed: u32) -> Vec<u32> {
    (0..seed % 20 + 1).map(|at| (seed * 7 + at * 13) % VOCABULARY as u32).collect()
}

/// What the generator gives a prompt alone.
fn alone(prompt: &[u32], count: usize) -> Vec<u32> {
    let fake = FakeGenerator::new(VOCABULARY, 1, 1);
    let mut text = prompt.to_vec();
    for _ in 0..count {
        text.push(fake.next(&text));
    }
    text.split_off(prompt.len())
}

fn run(writer: &mut Writer) {
    let mut steps = 0;
    while writer.step(&Instant::now) != Step::Idle {
        steps += 1;
        assert!(steps < 100_000, "it never ends");
    }
}

/// All that a channel holds: tokens, text, and the end.
fn read(mut from: mpsc::Receiver<Event>) -> (Vec<u32>, String, Result<End, Failure>) {
    let (mut tokens, mut all) = (vec![], String::new());
    loop {
        match from.try_recv().expect("an end comes last") {
            Event::Token { choice, text } => {
                tokens.push(choice.token);
                all += &text;
            }
            Event::Ended { ended, text } => {
                assert!(from.try_recv().is_err());
                return (tokens, all + &text, Ok(ended.end));
            }
            Event::Failed(failure) => return (tokens, all, Err(failure)),
        }
    }
}

fn words(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!(" w{token}")).collect()
}

#[test]
fn everyone_gets_what_they_get_alone() {
    // 40 texts of up to 32 tokens on blocks for some three of them.
    let mut writer = writer(26);
    let asked: Vec<_> = (0..40).map(|seed| (prompt(seed), 1 + seed as usize % 12)).collect();
    let channels: Vec<_> =
        asked.iter().map(|(prompt, most)| writer.submit(Instant::now(), ask(prompt, *most)).unwrap()).collect();
    run(&mut writer);
    for ((prompt, most), from) in asked.iter().zip(channels) {
        let want = alone(prompt, *most);
        assert_eq!(read(from), (want.clone(), words(&want), Ok(End::Length)), "{prompt:?}");
    }
    assert!(writer.texts.is_empty());
    assert_eq!(writer.scheduler().figures().blocks.used, 0);
}

#[test]
fn a_seed_gives_the_same_text_alone_and_in_company() {
    let sampled = |seed| Ask { sampling: Sampling { seed, ..Sampling::default() }, ..ask(&prompt(9), 12) };
    let mut writer_alone = writer(40);
    let from = writer_alone.submit(Instant::now(), sampled(7)).unwrap();
    run(&mut writer_alone);
    let want = read(from);
    let mut writer = writer(40);
    let others: Vec<_> = (0..9).map(|n| writer.submit(Instant::now(), ask(&prompt(n), 9)).unwrap()).collect();
    let same = writer.submit(Instant::now(), sampled(7)).unwrap();
    let other = writer.submit(Instant::now(), sampled(8)).unwrap();
    run(&mut writer);
    assert_eq!(read(same), want);
    assert_ne!(read(other).0, want.0);
    drop(others);
}

#[test]
fn an_urgent_text_is_begun_at_once_and_everyone_gets_what_they_get_alone() {
    let low = |seed: u32| {
        let mut ask = Ask { sampling: Sampling { seed: seed.into(), ..Sampling::default() }, ..ask(&prompt(seed), 20) };
        ask.request.priority = 1;
        ask
    };
    let low_alone = |seed| {
        let mut writer = writer(40);
        let from = writer.submit(Instant::now(), low(seed)).unwrap();
        run(&mut writer);
        read(from)
    };
    let mut writer = writer(100);
    let channels: Vec<_> = (0..8).map(|seed| writer.submit(Instant::now(), low(seed)).unwrap()).collect();
    for _ in 0..12 {
        writer.step(&Instant::now);
    }
    assert_eq!(writer.scheduler().figures().running, 8, "all places are taken");
    let mut urgent = ask(&prompt(30), 3);
    urgent.request.priority = 9;
    let mut from = writer.submit(Instant::now(), urgent).unwrap();
    writer.step(&Instant::now);
    let first = from.try_recv();
    assert!(matches!(&first, Ok(Event::Token { choice, .. }) if choice.token == alone(&prompt(30), 1)[0]), "{first:?}");
    run(&mut writer);
    assert_eq!(read(from).0, alone(&prompt(30), 3)[1..]);
    for (seed, from) in (0..).zip(channels) {
        assert_eq!(read(from), low_alone(seed), "{seed}");
    }
    assert_eq!(writer.scheduler().figures().preemptions, 1);
}

#[test]
fn a_text_ends_at_a_stop_string_or_a_token_that_ends_texts() {
    let want = alone(&prompt(5), 12);
    let mut writer = writer(40);
    // The space is given out with the word before it only if the stop string does not begin with it.
    let stop = Ask { stops: Stops::new([format!("w{} w{}", want[3], want[4])]), ..ask(&prompt(5), 12) };
    let token = Ask { stop_tokens: Arc::new([want[6]]), ..ask(&prompt(5), 12) };
    let (stop, token) = (writer.submit(Instant::now(), stop).unwrap(), writer.submit(Instant::now(), token).unwrap());
    run(&mut writer);
    let (tokens, text, end) = read(stop);
    assert_eq!((tokens.as_slice(), end), (&want[..5], Ok(End::Stopped(Stop::Text))));
    assert_eq!(text, words(&want[..3]) + " ");
    let first = want.iter().position(|token| *token == want[6]).unwrap();
    assert_eq!(read(token), (want[..first].to_vec(), words(&want[..first]), Ok(End::Stopped(Stop::Token))));
}

#[test]
fn whoever_leaves_frees_its_blocks_and_nobody_else_notices() {
    let mut writer = writer(40);
    let leaves = writer.submit(Instant::now(), ask(&prompt(15), 40)).unwrap();
    let stays = writer.submit(Instant::now(), ask(&prompt(4), 10)).unwrap();
    for _ in 0..4 {
        assert!(matches!(writer.step(&Instant::now), Step::Ran { .. }));
    }
    let before = writer.scheduler().figures().blocks.used;
    drop(leaves);
    writer.step(&Instant::now);
    assert!(writer.scheduler().figures().blocks.used < before);
    run(&mut writer);
    assert_eq!(read(stays).0, alone(&prompt(4), 10));
    assert_eq!(writer.scheduler().figures().blocks.used, 0);
}

#[test]
fn a_text_goes_on_behind_what_was_generated_elsewhere() {
    let want = alone(&prompt(8), 10);
    let mut writer = writer(40);
    let mut rest = ask(&prompt(8), 10);
    rest.request.generated = want[..6].to_vec();
    let from = writer.submit(Instant::now(), rest).unwrap();
    run(&mut writer);
    assert_eq!(read(from), (want[6..].to_vec(), words(&want[6..]), Ok(End::Length)));
}

#[test]
fn deadlines_and_refusals_are_told() {
    let mut writer = writer(8);
    let now = Instant::now();
    let mut late = ask(&prompt(3), 10);
    late.request.deadline = Some(now + Duration::from_secs(1));
    let from = writer.submit(now, late).unwrap();
    assert!(matches!(writer.step(&|| now), Step::Ran { .. }));
    writer.step(&|| now + Duration::from_secs(2));
    assert_eq!(read(from).2, Ok(End::Deadline));

    let refused = |ask: Ask, words: &str| {
        let mut writer = super::tests::writer(8);
        let error = writer.submit(now, ask).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
        assert!(writer.texts.is_empty());
    };
    refused(ask(&[1, 97], 3), "token id 97");
    refused(ask(&prompt(3), 60), "KV cache");
    refused(Ask { sampling: Sampling { top_p: 2.0, ..Sampling::default() }, ..ask(&[1], 3) }, "top_p");
    refused(
        Ask { sampling: Sampling { bias: vec![(100, 1.0)], ..Sampling::default() }, ..ask(&[1], 3) },
        "token id 100",
    );
}

/// Fails its n-th step, and gives one part logits of which none can be chosen.
struct Failing {
    fake: FakeGenerator,
    steps: usize,
    fails_at: usize,
    poisons: Option<u32>,
}

impl Generator for Failing {
    fn info(&self) -> &GeneratorInfo {
        self.fake.info()
    }

    fn step(&mut self, plan: &Plan, choose: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), engine::Error> {
        self.steps += 1;
        if self.steps == self.fails_at {
            return Err(engine::Error::Backend { backend: "failing", detail: "expected by this test".into() });
        }
        let poisons = self.poisons;
        self.fake.step(plan, &mut |at, logits| {
            if plan.part(at).tokens.last() == poisons.as_ref() {
                logits.fill(f32::NAN);
            }
            choose(at, logits);
        })
    }
}

#[test]
fn a_failed_step_fails_who_was_in_it_and_those_behind_go_on() {
    let fake = || FakeGenerator::new(VOCABULARY, 40, BLOCK);
    let mut writer = writer_on(Box::new(Failing { fake: fake(), steps: 0, fails_at: 2, poisons: None }));
    let first = writer.submit(Instant::now(), ask(&prompt(2), 9)).unwrap();
    run(&mut writer);
    let (tokens, _, end) = read(first);
    assert_eq!(tokens, alone(&prompt(2), 1));
    assert!(matches!(end, Err(Failure::Engine(_))), "{end:?}");
    let behind = writer.submit(Instant::now(), ask(&prompt(2), 9)).unwrap();
    run(&mut writer);
    assert_eq!(read(behind).0, alone(&prompt(2), 9));
    assert_eq!(writer.scheduler().figures().blocks.used, 0);

    // What a failed step was to compute is shared with nobody. The prompt takes two steps, and the first fails.
    let long: Vec<u32> = (0..40).collect();
    let mut writer = writer_on(Box::new(Failing { fake: fake(), steps: 0, fails_at: 1, poisons: None }));
    let failed = writer.submit(Instant::now(), ask(&long, 3)).unwrap();
    run(&mut writer);
    assert!(matches!(read(failed).2, Err(Failure::Engine(_))));
    let again = writer.submit(Instant::now(), ask(&long, 3)).unwrap();
    run(&mut writer);
    assert_eq!(read(again).0, alone(&long, 3));
    assert_eq!(writer.scheduler().figures().blocks.used, 0);

    // Of whom no token can be chosen fails alone.
    let poison = [50, 51];
    let mut writer = writer_on(Box::new(Failing { fake: fake(), steps: 0, fails_at: 0, poisons: Some(51) }));
    let poisoned = writer.submit(Instant::now(), ask(&poison, 9)).unwrap();
    let beside = writer.submit(Instant::now(), ask(&[1, 2, 3], 4)).unwrap();
    run(&mut writer);
    assert!(matches!(read(poisoned).2, Err(Failure::Sampling(_))));
    assert!(!alone(&[1, 2, 3], 4).contains(&51), "the test's own premise");
    assert_eq!(read(beside).0, alone(&[1, 2, 3], 4));
}

/// A byte-level tokenizer of the bytes that can be printed, whose last token ends a text: ids are the bytes'.
fn bytes() -> (Arc<Tokenizer>, u32) {
    let vocabulary: serde_json::Map<String, serde_json::Value> = (33..=126_u8)
        .map(|byte| (char::from(byte).to_string(), (byte - 33).into()))
        .chain([("<end>".into(), 94.into())])
        .collect();
    let byte_level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let end = serde_json::json!({"id": 94, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [end], "normalizer": null, "post_processor": null, "truncation": null, "padding": null,
        "pre_tokenizer": byte_level, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    (Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap()), 94)
}

#[test]
fn a_text_that_is_held_to_a_form_has_it_alone_in_company_and_when_it_goes_on_elsewhere() {
    let (tokenizer, end) = bytes();
    let vocabulary = Vocabulary::new(&tokenizer, &[end]).unwrap();
    let writer = || {
        let engine = Box::new(FakeGenerator::new(VOCABULARY, 40, BLOCK));
        let scheduler = Scheduler::new(limits(), Blocks::new(40, BLOCK)).unwrap();
        Writer::new(scheduler, engine, tokenizer.clone(), Pool::new(1).unwrap())
    };
    // With an end that comes of itself, and with one that the model chooses.
    for (form, seed) in [("(yes|no){2}!", 1), ("[a-c]{4}[0-9]*", 2), (r#"\{"a":(true|[1-9]{1,3})\}"#, 3)] {
        let held = |generated: &[u32]| {
            let mut constraint = vocabulary.constraint(&Format::Regex(form.into())).unwrap();
            let mut stream = TextStream::after(&tokenizer, &prompt(9)).unwrap();
            for token in generated {
                constraint.push(*token).unwrap();
                stream.push(&tokenizer, *token).unwrap();
            }
            let sampling = Sampling { seed, ..Sampling::default() };
            let stop_tokens = Arc::new([end]);
            let mut ask = Ask { constraint: Some(constraint), sampling, stream, stop_tokens, ..ask(&prompt(9), 20) };
            ask.request.generated = generated.to_vec();
            ask
        };
        let mut alone = writer();
        let from = alone.submit(Instant::now(), held(&[])).unwrap();
        run(&mut alone);
        let (tokens, text, ended) = read(from);
        let ended = ended.unwrap();
        let is_written = match form {
            "(yes|no){2}!" => ["yesyes!", "yesno!", "noyes!", "nono!"].contains(&text.as_str()),
            "[a-c]{4}[0-9]*" => {
                text[..4].bytes().all(|b| b"abc".contains(&b)) && text[4..].bytes().all(|b| b.is_ascii_digit())
            }
            _ => serde_json::from_str::<serde_json::Value>(&text).is_ok(),
        };
        assert!(is_written, "{form}: {text}");
        let may_be =
            if seed == 2 { vec![End::Stopped(Stop::Token), End::Length] } else { vec![End::Stopped(Stop::Grammar)] };
        assert!(may_be.contains(&ended), "{form}: {ended:?}");
        let mut writer = writer();
        let others: Vec<_> = (0..5).map(|n| writer.submit(Instant::now(), ask(&prompt(n), 9)).unwrap()).collect();
        let same = writer.submit(Instant::now(), held(&[])).unwrap();
        let rest = writer.submit(Instant::now(), held(&tokens[..3])).unwrap();
        run(&mut writer);
        assert_eq!(read(same), (tokens.clone(), text.clone(), Ok(ended)), "{form}");
        assert_eq!(read(rest), (tokens[3..].to_vec(), text[3..].to_owned(), Ok(ended)), "{form}");
        drop(others);
    }
}

#[test]
fn a_device_that_chooses_tokens_writes_the_same_texts() {
    let (tokenizer, end) = bytes();
    let vocabulary = Vocabulary::new(&tokenizer, &[end]).unwrap();
    let off = Sampling::default;
    let samplings = [
        Sampling { temperature: 0.0, ..off() },
        Sampling { temperature: 1.5, seed: u64::MAX - 3, ..off() },
        Sampling { top_k: 7, top_p: 0.9, seed: 5, ..off() },
        Sampling { repetition_penalty: 1.4, presence_penalty: 0.5, frequency_penalty: 1.0, ..off() },
        Sampling { bias: vec![(4, 9.0), (5, 9.5)], ..off() },
        Sampling { logprobs: Some(2), ..off() },
    ];
    let write = |engine: FakeGenerator| {
        let scheduler = Scheduler::new(limits(), Blocks::new(60, BLOCK)).unwrap();
        let mut writer = Writer::new(scheduler, Box::new(engine), tokenizer.clone(), Pool::new(1).unwrap());
        let texts: Vec<_> = (0..2 * samplings.len())
            .map(|n| {
                let form = Format::Regex("[a-z]{3}[0-9]*".into());
                let constraint = (n >= samplings.len()).then(|| vocabulary.constraint(&form).unwrap());
                let prompt = prompt(n as u32);
                let stream = TextStream::after(&tokenizer, &prompt).unwrap();
                let sampling = samplings[n % samplings.len()].clone();
                let ask = Ask { sampling, stream, constraint, stop_tokens: Arc::new([end]), ..ask(&prompt, 12) };
                writer.submit(Instant::now(), ask).unwrap()
            })
            .collect();
        run(&mut writer);
        let events = |mut from: mpsc::Receiver<Event>| std::iter::from_fn(|| from.try_recv().ok()).collect::<Vec<_>>();
        let tokens = |event: &Event| match event {
            Event::Token { choice, text } => Some((choice.clone(), text.clone())),
            _ => None,
        };
        texts.into_iter().map(|from| events(from).iter().filter_map(tokens).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let fake = || FakeGenerator::new(VOCABULARY, 60, BLOCK);
    let (here, there) = (write(fake()), write(fake().choosing()));
    assert!(here.iter().all(|text| !text.is_empty()));
    assert_eq!(there, here);
}

/// A writer whose pool has so many threads, and a text for it that is held to four letters and any digits.
fn holding(pool: Pool, blocks: usize) -> (Writer, impl Fn(u64) -> Ask) {
    let (tokenizer, end) = bytes();
    let vocabulary = Vocabulary::new(&tokenizer, &[end]).unwrap();
    let scheduler = Scheduler::new(limits(), Blocks::new(blocks as u32, BLOCK)).unwrap();
    let engine = Box::new(FakeGenerator::new(VOCABULARY, blocks, BLOCK));
    let writer = Writer::new(scheduler, engine, tokenizer.clone(), pool);
    let held = move |seed| {
        let constraint = Some(vocabulary.constraint(&Format::Regex("[a-c]{4}[0-9]*".into())).unwrap());
        let prompt = prompt(seed as u32);
        let stream = TextStream::after(&tokenizer, &prompt).unwrap();
        let sampling = Sampling { seed, ..Sampling::default() };
        Ask { constraint, sampling, stream, stop_tokens: Arc::new([end]), ..ask(&prompt, 12) }
    };
    (writer, held)
}

#[test]
fn a_text_whose_next_tokens_are_not_found_yet_sits_out_and_nobody_else_does() {
    let pool = Pool::new(1).unwrap();
    let (release, gate) = std::sync::mpsc::sync_channel::<()>(0);
    pool.run_first(move || {
        gate.recv().ok();
    });
    let (mut writer, held) = holding(pool, 40);
    let mut late = writer.submit(Instant::now(), held(7)).unwrap();
    let beside = writer.submit(Instant::now(), ask(&prompt(4), 10)).unwrap();
    let ran = |writer: &mut Writer| match writer.step(&Instant::now) {
        Step::Ran { sequences, .. } => sequences,
        other => panic!("{other:?}"),
    };
    // What may come first is found before a text is put on; what may come second is for the pool, which has no time.
    assert_eq!([ran(&mut writer), ran(&mut writer)], [2, 2]);
    assert!(matches!(late.try_recv(), Ok(Event::Token { .. })));
    for _ in 2..10 {
        assert_eq!(ran(&mut writer), 1, "it sits out");
    }
    assert_eq!(read(beside).0, alone(&prompt(4), 10));
    assert!(late.try_recv().is_err());
    // With nothing else to do, the device's own thread finds it.
    assert_eq!(ran(&mut writer), 1);
    assert!(matches!(late.try_recv(), Ok(Event::Token { .. })));
    // One that leaves meanwhile is forgotten.
    drop(late);
    run(&mut writer);
    assert!(writer.texts.is_empty() && writer.late.is_empty());
    assert_eq!(writer.scheduler().figures().blocks.used, 0);
    drop(release);
}

#[test]
fn a_text_held_to_a_form_is_the_same_however_late_its_next_tokens_are_found() {
    let alone = |seed| {
        let (mut writer, held) = holding(Pool::new(1).unwrap(), 40);
        let from = writer.submit(Instant::now(), held(seed)).unwrap();
        run(&mut writer);
        read(from)
    };
    let want: Vec<_> = (0..12).map(alone).collect();
    assert!(want.iter().any(|(tokens, ..)| tokens.len() > 6), "the test's own premise");
    for round in 0..20_u64 {
        let pool = Pool::new(1 + round as usize % 3).unwrap();
        // Blocks for some three of them, so that some lose theirs while they sit out.
        let (mut writer, held) = holding(pool.clone(), 14);
        let channels: Vec<_> = (0..12).map(|seed| writer.submit(Instant::now(), held(seed)).unwrap()).collect();
        let others: Vec<_> = (0..6).map(|n| writer.submit(Instant::now(), ask(&prompt(n), 9)).unwrap()).collect();
        let mut state = round;
        loop {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pause = Duration::from_micros((state >> 33) % 300);
            pool.run_first(move || std::thread::sleep(pause));
            if writer.step(&Instant::now) == Step::Idle {
                break;
            }
        }
        assert_eq!(channels.into_iter().map(read).collect::<Vec<_>>(), want, "{round}");
        for (n, from) in (0..).zip(others) {
            assert_eq!(read(from).0, super::tests::alone(&prompt(n), 9));
        }
        assert_eq!(writer.scheduler().figures().blocks.used, 0);
    }
}
