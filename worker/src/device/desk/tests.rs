//! Desks on a device's own thread, of which one crashes over a text that is put on it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use models::backend::fake_generator;
use models::engine::{self, Generator, GeneratorInfo};
use models::generate::Plan;
use models::task::Tokenizer;
use models::task::generate::sampling::Sampling;
use models::task::generate::stop::Stops;
use models::task::generate::text::TextStream;

use super::*;
use crate::Error;
use crate::batch::Queue;
use crate::batch::policy::Policy;
use crate::device::thread::{self, Command};
use crate::generate::{Blocks, End, Limits, Request, Scheduler};
use crate::pool::Pool;

/// A fake that panics when it is asked what it is more often than so. That is asked once for each new text, and in no step.
struct Armed {
    fake: Box<dyn Generator>,
    left: AtomicUsize,
}

impl Generator for Armed {
    fn info(&self) -> &GeneratorInfo {
        assert!(self.left.fetch_sub(1, Ordering::SeqCst) > 0, "expected by this test");
        self.fake.info()
    }

    fn step(&mut self, plan: &Plan, choose: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), engine::Error> {
        self.fake.step(plan, choose)
    }
}

/// How often its model panicked, and how its texts stood last.
#[derive(Default)]
struct Seen(Mutex<(usize, Option<Figures>)>);

impl Watcher for Seen {
    fn ran(&self, _: Report) {}

    fn failed(&self, error: &engine::Error) {
        panic!("{error}");
    }

    fn installed(&self) {}

    fn panicked(&self) {
        self.0.lock().unwrap().0 += 1;
    }

    fn stands(&self, figures: Figures) {
        self.0.lock().unwrap().1 = Some(figures);
    }
}

/// A desk whose model crashes over the text behind so many, and what is seen of it.
fn desk(texts: usize) -> (Box<Desk>, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let loaded = fake_generator::loaded(1 << 20);
    let info = loaded.generator.info();
    let blocks = Blocks::new(info.blocks as u32, info.block_tokens);
    let limits = Limits {
        step_tokens: 32,
        prefill_tokens_min: 16,
        sequences_max: 4,
        queue_max: 8,
        context_max: info.context,
        overtakes_max: 8,
        preemptions_max: 3,
        block_bytes: info.block_bytes,
    };
    let scheduler = Scheduler::new(limits, blocks).unwrap();
    let engine = Box::new(Armed { fake: loaded.generator, left: AtomicUsize::new(texts) });
    let writer = Writer::new(scheduler, engine, Arc::clone(loaded.language.tokenizer()), Pool::new(1).unwrap());
    let watcher = Arc::<Seen>::clone(&seen);
    (Box::new(Desk { writer, model: "m@1".into(), watcher }), seen)
}

fn ask(tokenizer: &Tokenizer, new_tokens_max: usize) -> Box<Ask> {
    let prompt = vec![20, 21, 22];
    let stream = TextStream::after(tokenizer, &prompt).unwrap();
    let request = Request { prompt, generated: vec![], new_tokens_max, priority: 5, deadline: None, salt: 0 };
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Box::new(Ask { request, sampling, stream, stops: Stops::default(), stop_tokens: Arc::new([]), constraint: None })
}

/// The tokens and the end of a text.
fn read(mut from: mpsc::Receiver<Event>) -> (Vec<u32>, Result<End, Failure>) {
    let mut tokens = vec![];
    loop {
        match from.blocking_recv().expect("an end comes last") {
            Event::Token { choice, .. } => tokens.push(choice.token),
            Event::Ended { ended, .. } => return (tokens, Ok(ended.end)),
            Event::Failed(failure) => return (tokens, Err(failure)),
        }
    }
}

#[test]
fn a_model_that_crashes_over_a_new_text_is_taken_out_of_use_and_no_other_notices() {
    let tokenizer = Arc::clone(fake_generator::loaded(1 << 20).language.tokenizer());
    let queue = Queue::new(Policy { overtakes_max: 8 });
    let furnish = |lane, desk| {
        let (done, wait) = sync_channel(1);
        assert!(queue.command(Command::Furnish(lane, desk, done)));
        wait
    };
    let write = |lane, new_tokens_max| {
        let (answer, answered) = oneshot::channel();
        assert!(queue.command(Command::Write(lane, ask(&tokenizer, new_tokens_max), answer)));
        answered
    };
    let taken = |answered: oneshot::Receiver<_>| answered.blocking_recv().expect("everyone is answered");
    // All of it waits for the thread, which takes it on before it makes a step.
    let ((crashing, seen), (sound, sound_seen)) = (desk(1), desk(100));
    let _furnished = [furnish(1, crashing), furnish(2, sound)];
    let (beside, on_it, over) = (write(2, 40), write(1, 40), write(1, 4));
    let thread = std::thread::spawn({
        let queue = queue.clone();
        move || thread::run(&queue)
    });
    assert!(matches!(taken(over), Err(NotTaken::Crashed)));
    // What is shown of it, too, is known before.
    assert_eq!(*seen.0.lock().unwrap(), (1, Some(Figures::default())));
    assert_eq!(read(taken(on_it).unwrap()), (vec![], Err(Failure::Panicked)));
    assert!(matches!(taken(write(1, 4)), Err(NotTaken::NoDesk(_))));

    let (tokens, end) = read(taken(beside).unwrap());
    assert_eq!((tokens.len(), end), (40, Ok(End::Length)));
    assert_eq!(read(taken(write(2, 4)).unwrap()), (tokens[..4].to_vec(), Ok(End::Length)));
    assert_eq!(sound_seen.0.lock().unwrap().0, 0);

    // Another takes its place.
    let _furnished = furnish(1, desk(1).0);
    assert_eq!(read(taken(write(1, 4)).unwrap()).0, tokens[..4]);
    queue.stop(&Error::Draining);
    thread.join().unwrap();
}
