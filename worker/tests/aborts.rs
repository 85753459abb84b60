//! Texts that their callers give up: ten thousand on the fake and some on the model that comes with the program, in every phase, on a
//! worker's own device thread. In go texts and where each is given up; out comes what is left of them, which must be nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use coordinator_client::wire::text::{GenerateInput, Text, WriteOptions};
use models::backend::fake;
use models::load::Backend;
use models::manifest::Task;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::text::{Input, Next};
use worker::{Handle, NewText, Options};

/// The tests of this file watch the memory of the process, so they run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Texts that are inside at a time; a third of them has a place on the device.
const TOGETHER: usize = 24;

/// What the memory of the process may grow by from the 2,000th to the 10,000th text: half of what 1 KiB for each would be.
const GROWTH_KIB_MAX: u64 = 4_000;

/// Nobody waits for so long unless it is for ever.
const WEDGED: Duration = Duration::from_secs(300);

/// Where a text is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Before it lies on the desk.
    Prepared,
    /// On the desk, while others wait with it.
    Waiting,
    /// Before its first token.
    Prompt,
    /// Behind some tokens.
    Decode,
    /// Behind some tokens, of whose text a part is held back.
    Held,
    /// Behind its end, of which its caller read nothing.
    Unread,
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What writes.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    backend: Backend,
    cache_bytes: u64,
    /// Words of its longest prompts.
    words_max: u64,
}

/// A text that ends in one of these letters may be about to end at a stop string.
const HELD: [char; 4] = [' ', 'e', 'a', 't'];

fn text(model: Model, random: &mut Random) -> (NewText, Phase) {
    use Phase::{Decode, Held, Prepared, Prompt, Unread, Waiting};
    let phase = [Prepared, Waiting, Prompt, Decode, Held, Unread][random.below(6) as usize];
    let words = if phase == Prompt {
        model.words_max / 3 + random.below(model.words_max * 2 / 3)
    } else {
        1 + random.below(20)
    };
    // Many begin alike.
    let (from, many) = (random.below(3), 40);
    let words: Vec<String> = (0..words).map(|at| format!("w{}", 20 + (from * 7 + at * (from + 1)) % many)).collect();
    let max_tokens = if phase == Unread { 1 + random.below(20) } else { 200 };
    let stop = if phase == Held { HELD.map(|letter| format!("{letter}zzzz")).into() } else { Vec::new() };
    // A word of the fake that is not the likeliest may be one that it fails at.
    let temperature = Some(0.0);
    let max_tokens = Some(max_tokens as u32);
    let options = WriteOptions { max_tokens, stop, temperature, ignore_eos: true, ..Default::default() };
    let input = Input::Generate(GenerateInput { prompt: Text::Words(words.join(" ")), options });
    (NewText { priority: random.below(10) as u8, salt: random.below(2), ..NewText::new(model.name, input) }, phase)
}

/// Has a text written, and gives it up where it is meant to be; says where that was.
async fn give_up(worker: Handle, model: Model, text: NewText, phase: Phase, patience: u64) -> Phase {
    if phase == Phase::Prepared {
        let on_its_way = async {
            for _ in 0..1 + patience % 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = on_its_way => return Phase::Prepared,
            written = worker.write(text) => return written.map(|_| Phase::Waiting).unwrap(),
        }
    }
    let mut writing = worker.write(text).await.unwrap();
    match phase {
        Phase::Prepared | Phase::Waiting => {
            let others = worker.status().loaded[0].texts.map_or(0, |texts| texts.waiting);
            if others > 0 { Phase::Waiting } else { Phase::Prompt }
        }
        Phase::Prompt => {
            let first = tokio::time::timeout(Duration::from_micros(patience * 100), writing.next()).await;
            if first.is_err() { Phase::Prompt } else { Phase::Decode }
        }
        Phase::Decode | Phase::Held => {
            let mut met = Phase::Prompt;
            for _ in 0..1 + patience % 4 {
                match writing.next().await {
                    Some(Ok(Next::Piece(piece))) => {
                        // What may be the beginning of a stop string is not shown. The fake's words end in one, and none begins like one.
                        let is_held =
                            phase == Phase::Held && model.backend == Backend::Fake && !piece.tokens.is_empty();
                        assert!(!is_held || !piece.text.ends_with(HELD), "{piece:?}");
                        met = phase;
                    }
                    Some(Ok(Next::End(_))) => return Phase::Unread,
                    other => panic!("{other:?}"),
                }
            }
            met
        }
        Phase::Unread => {
            idle(&worker, 1).await;
            Phase::Unread
        }
    }
}

/// Waits until no text is on the desk, and so many of those that are done are still held.
async fn idle(worker: &Handle, held_min: usize) {
    loop {
        let status = worker.status();
        let texts = status.loaded[0].texts.expect("it writes");
        let is_over = texts.running == 0 && texts.waiting == 0 && texts.blocks.used == 0;
        if is_over && (held_min > 0 || status.slots.inside == 0) {
            return;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// Nothing is left of all those that were given up.
async fn check_empty(worker: &Handle) {
    idle(worker, 0).await;
    let status = worker.status();
    let texts = status.loaded[0].texts.unwrap();
    assert_eq!((status.slots.inside, status.slots.free, status.loaded[0].uses), (0, status.slots.capacity, 0));
    assert_eq!(texts.blocks.free + texts.blocks.cached, texts.blocks.total, "{texts:?}");
}

/// Memory of this process, where the system tells it.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// What a text is that nobody disturbs.
async fn alone(worker: &Handle, model: Model) -> Vec<u32> {
    let options = WriteOptions { max_tokens: Some(30), temperature: Some(0.0), ignore_eos: true, ..Default::default() };
    let input = Input::Generate(GenerateInput { prompt: Text::Words("w30 w31".into()), options });
    worker.write(NewText::new(model.name, input)).await.unwrap().whole().await.unwrap().written.tokens
}

/// Gives texts up until they are as many as each of these, and says what the memory is by then and how many met which phase.
async fn give_up_all(worker: &Handle, model: Model, counts: &[usize]) -> (Vec<Option<u64>>, BTreeMap<Phase, usize>) {
    let before = alone(worker, model).await;
    let (mut random, mut met, mut memory) = (Random(88_172_645_463_325_252), BTreeMap::new(), vec![]);
    let mut given_up = 0;
    for &count in counts {
        while given_up < count {
            let mut round = JoinSet::new();
            for _ in 0..TOGETHER {
                let (text, phase) = text(model, &mut random);
                round.spawn(give_up(worker.clone(), model, text, phase, random.below(20)));
            }
            given_up += round.len();
            for phase in round.join_all().await {
                *met.entry(phase).or_default() += 1;
            }
        }
        check_empty(worker).await;
        memory.push(resident_kib());
    }
    assert_eq!(alone(worker, model).await, before, "it writes what it wrote at first");
    (memory, met)
}

/// Runs a worker with this model, and gives texts up on it.
fn check(model: Model, counts: &[usize]) -> (Vec<Option<u64>>, BTreeMap<Phase, usize>) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.cache.folder = folder.path().join("models");
    options.http.address = ([127, 0, 0, 1], 0).into();
    options.compute.threads = 1;
    options.compute.backend = model.backend;
    options.text.sequences_max = TOGETHER / 3;
    options.text.cache_bytes = Some(model.cache_bytes);
    // Steps are small, and a prompt takes many.
    options.text.step = Duration::ZERO;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let worker = worker::build(options).unwrap();
        let (handle, stop) = (worker.handle(), CancellationToken::new());
        if model.backend == Backend::Fake {
            handle.cache().add(fake::manifest_for(model.name, Task::Generate), folder.path().to_owned()).unwrap();
        }
        let running = tokio::spawn(worker.run(stop.clone()));
        let found = tokio::time::timeout(WEDGED, give_up_all(&handle, model, counts)).await.expect("it is wedged");
        stop.cancel();
        running.await.unwrap().unwrap();
        found
    })
}

/// Its memory is enough for some of the texts that have a place, so that they are preempted too.
const FAKE: Model = Model { name: "writer", backend: Backend::Fake, cache_bytes: 160 << 10, words_max: 260 };
/// Three tokens are a word to it.
const CHAT: Model = Model { name: "debian-tiny-chat", backend: Backend::Auto, cache_bytes: 4 << 20, words_max: 80 };

#[test]
fn ten_thousand_texts_that_are_given_up_leave_nothing_behind() {
    let _alone = ALONE.lock();
    let (memory, met) = check(FAKE, &[2_000, 10_000]);
    assert!(met.len() == 6 && met.values().all(|count| *count > 300), "not every phase was met: {met:?}");
    let [Some(warm), Some(end)] = memory[..] else {
        eprintln!("skipped: memory is watched where there is a /proc");
        return;
    };
    eprintln!("{warm} KiB after 2,000 texts, {end} KiB after 10,000; {met:?}");
    assert!(end < warm + GROWTH_KIB_MAX, "{warm} KiB after 2,000 texts, {end} KiB after 10,000");
}

#[test]
fn texts_of_a_real_model_that_are_given_up_leave_nothing_behind() {
    let _alone = ALONE.lock();
    let (_, met) = check(CHAT, &[300]);
    assert!(met.len() >= 5, "not every phase was met: {met:?}");
}
