//! What the scheduler promises, one by one.

mod properties;
mod world;

use std::time::Duration;

use super::*;
use world::{ENDLESS, LIMITS, World, request};

/// A text without repetitions.
fn text(tokens: usize) -> Vec<u32> {
    other_text(0, tokens)
}

/// A text that has nothing in common with one of another number.
fn other_text(number: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|token| ENDLESS + 10_000 * number + token).collect()
}

/// Every step of a world until it is empty, as (sequence, position, tokens).
fn steps(world: &mut World) -> Vec<Vec<(SequenceId, usize, usize)>> {
    let mut steps = Vec::new();
    while !world.running().is_empty() || !world.waiting().is_empty() {
        steps.push(world.step());
    }
    steps
}

#[test]
fn what_cannot_be_is_refused_at_once_with_its_figures() {
    let limits = Limits { queue_max: 2, context_max: 100, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(6, 16));
    world.pass(10);
    let valid = request(&text(10), 6);
    let late = Request { deadline: Some(world.start + Duration::from_millis(3)), ..valid.clone() };
    for (asked, want) in [
        (request(&[], 1), Refusal::Empty),
        (request(&[1], 0), Refusal::Complete { generated: 0, new_tokens_max: 0 }),
        (Request { generated: vec![1; 6], ..valid.clone() }, Refusal::Complete { generated: 6, new_tokens_max: 6 }),
        (Request { priority: 10, ..valid.clone() }, Refusal::Priority(10)),
        (late, Refusal::Late { by: Duration::from_millis(7) }),
        (request(&text(10), 91), Refusal::Context { prompt: 10, new_tokens_max: 91, context_max: 100 }),
        (request(&text(10), usize::MAX), Refusal::Context { prompt: 10, new_tokens_max: usize::MAX, context_max: 100 }),
        (
            request(&text(10), 88),
            Refusal::Memory { tokens: 98, needed_blocks: 7, free_blocks: 6, total_blocks: 6, block_bytes: 1 << 20 },
        ),
    ] {
        assert_eq!(world.submit(asked), Err(want));
    }
    // The last token is not run: 97 tokens take 6 blocks of 16.
    assert_eq!(world.submit(request(&text(10), 87)), Ok(0));
    assert_eq!(world.submit(valid.clone()), Ok(1));
    assert_eq!(world.submit(valid.clone()), Err(Refusal::QueueFull { waiting: 2 }));
    world.step();
    assert_eq!(world.submit(valid), Ok(2));
    world.drain();
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let new = |limits| Scheduler::new(limits, Blocks::new(1, 1)).map(|_| ());
    assert_eq!(new(Limits { sequences_max: 0, ..LIMITS }), Err(LimitsError::Least { name: "sequences_max", least: 1 }));
    assert_eq!(
        new(Limits { step_tokens: 15, ..LIMITS }),
        Err(LimitsError::Step { step_tokens: 15, sequences_max: 8, prefill_tokens_min: 8 })
    );
    assert_eq!(new(LIMITS), Ok(()));
}

#[test]
fn each_running_sequence_gets_a_token_in_each_step_beside_a_long_prompt() {
    let mut world = World::new(LIMITS, Blocks::new(64, 4));
    world.submit(request(&other_text(1, 3), 9)).unwrap();
    world.submit(request(&other_text(2, 3), 9)).unwrap();
    assert_eq!(world.step(), [(0, 0, 3), (1, 0, 3)]);
    world.submit(request(&other_text(3, 40), 9)).unwrap();
    assert_eq!(world.step(), [(0, 3, 1), (1, 3, 1), (2, 0, 14)]);
    assert_eq!(world.step(), [(0, 4, 1), (1, 4, 1), (2, 14, 14)]);
    assert_eq!(world.step(), [(0, 5, 1), (1, 5, 1), (2, 28, 12)]);
    assert_eq!(world.step(), [(0, 6, 1), (1, 6, 1), (2, 40, 1)]);
    world.drain();
}

#[test]
fn who_awaits_a_token_keeps_its_place_and_the_others_go_on() {
    let mut world = World::new(LIMITS, Blocks::new(64, 4));
    world.submit(request(&other_text(1, 3), 9)).unwrap();
    world.submit(request(&other_text(2, 3), 9)).unwrap();
    world.plan();
    let results = world.run();
    // The second one's token comes later.
    world.finish_half_late(results);
    assert!(world.scheduler.awaits(1) && !world.scheduler.awaits(0));
    assert_eq!(world.step(), [(0, 3, 1)]);
    assert_eq!(world.step(), [(0, 4, 1)]);
    world.finish_late(1);
    assert_eq!(world.step(), [(0, 5, 1), (1, 3, 1)], "what has run is not run again");
    world.drain();
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_which_goes_on_beside_it() {
    let mut world = World::new(LIMITS, Blocks::new(64, 4));
    world.submit(request(&other_text(1, 60), 2)).unwrap();
    assert_eq!(world.step(), [(0, 0, 16)]);
    world.submit(request(&other_text(2, 20), 2)).unwrap();
    world.submit(request(&other_text(3, 3), 2)).unwrap();
    assert_eq!(world.step(), [(0, 16, 8), (1, 0, 5), (2, 0, 3)]);
    // One token of the budget is the third's.
    assert_eq!(world.step(), [(2, 3, 1), (0, 24, 8), (1, 5, 7)]);
    world.drain();
}

#[test]
fn priority_goes_first_then_arrival_but_nobody_is_overtaken_for_ever() {
    let limits = Limits { sequences_max: 1, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(64, 4));
    for priority in [0, 5, 9, 9, 9, 9, 9] {
        world.submit(Request { priority, ..request(&text(2), 1) }).unwrap();
    }
    let order: Vec<SequenceId> = steps(&mut world).into_iter().map(|step| step[0].0).collect();
    assert_eq!(order, [2, 3, 4, 0, 5, 6, 1]);
}

#[test]
fn who_needs_a_block_takes_it_from_the_lowest_priority_then_the_latest() {
    // Three texts of three blocks at their end, and room for seven: one of them has to wait.
    for (priorities, preempted) in [([5, 5, 5], 2), ([5, 1, 5], 1), ([1, 5, 5], 0)] {
        let mut world = World::new(LIMITS, Blocks::new(7, 4));
        for (number, priority) in (1..).zip(priorities) {
            world.submit(Request { priority, ..request(&other_text(number, 4), 9) }).unwrap();
        }
        world.drain();
        let found: Vec<SequenceId> = world
            .known
            .iter()
            .filter(|(_, known)| known.end.is_some_and(|ended| ended.preemptions > 0))
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(found, [preempted], "{priorities:?}");
        let texts = world.known.values().map(|known| known.end.unwrap());
        assert!(texts.into_iter().all(|ended| ended.end == End::Length && ended.new_tokens == 9));
    }
}

#[test]
fn a_prompt_takes_its_blocks_back_from_a_later_text_that_has_grown_into_them() {
    let limits = Limits { step_tokens: 4, prefill_tokens_min: 2, sequences_max: 2, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(18, 4));
    world.submit(request(&other_text(1, 60), 4)).unwrap();
    world.submit(request(&other_text(2, 1), 60)).unwrap();
    let mut steps = 0;
    while world.known[&0].text.is_empty() {
        world.step();
        steps += 1;
    }
    assert!(steps <= 60 / 3 + 1, "it was held up");
    world.drain();
    assert_eq!([0, 1].map(|id| world.known[&id].end.unwrap().preemptions), [0, 1]);
}

#[test]
fn a_prompt_waits_once_for_what_another_computes() {
    let limits = Limits { step_tokens: 40, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(64, 4));
    for _ in 0..3 {
        world.submit(request(&text(11), 1)).unwrap();
    }
    assert_eq!(world.plan().parts().map(|part| part.sequence).collect::<Vec<_>>(), [0]);
    let results = world.run();
    world.cancel(0);
    world.finish(results);
    // What they waited for did not come.
    assert_eq!(world.step(), [(1, 0, 11), (2, 0, 11)]);
    world.drain();
}

#[test]
fn who_was_preempted_often_enough_stands_before_all_priorities() {
    let mut sequence = Sequence::new(Instant::now(), 9, Request { priority: 0, ..request(&text(4), 4) });
    let rival = Sequence::new(Instant::now(), 3, Request { priority: 9, ..request(&text(4), 4) });
    sequence.note_preemption(2);
    assert!(rival.standing() < sequence.standing());
    sequence.note_preemption(2);
    assert!(sequence.standing() < rival.standing());
}

#[test]
fn a_stream_of_urgent_requests_does_not_keep_the_others_from_ending() {
    let mut world = World::new(LIMITS, Blocks::new(7, 4));
    let low = world.submit(Request { priority: 0, ..request(&other_text(1, 8), 12) }).unwrap();
    let mut steps = 0;
    while world.known[&low].end.is_none() {
        while world.waiting().len() < 4 {
            world.submit(Request { priority: 9, ..request(&other_text(2 + steps, 8), 12) }).unwrap();
        }
        world.step();
        steps += 1;
        // Each of its three turns is behind at most three others and those that run, of at most 13 steps.
        assert!(steps < 3 * (3 + 8) * 13, "it starves");
    }
    assert!(world.known[&low].end.unwrap().preemptions <= LIMITS.preemptions_max);
    world.drain();
}

#[test]
fn a_long_prompt_goes_on_beside_a_stream_of_urgent_ones() {
    // It keeps its place, so that this is about the steps alone.
    let mut world = World::new(Limits { preemptions_max: 0, ..LIMITS }, Blocks::new(200, 4));
    let low = world.submit(Request { priority: 0, ..request(&other_text(1, 40), 1) }).unwrap();
    let mut steps = 0;
    while world.known[&low].end.is_none() {
        // More than a step can run.
        for urgent in 0..2 {
            world.submit(Request { priority: 9, ..request(&other_text(2 + 2 * steps + urgent, 20), 1) }).unwrap();
        }
        world.step();
        steps += 1;
        // Half a step in every fourth.
        assert!(steps <= 4 * 40 / 8, "it stands still");
    }
    assert!(steps > 12, "the urgent ones go first");
    world.drain();
}

/// Texts of these priorities run, and one of another comes when so many blocks are left. Gives who lost its place then.
fn displaced(limits: Limits, blocks: u32, running: &[(u8, usize)], urgent: (u8, usize)) -> Vec<SequenceId> {
    let mut world = World::new(limits, Blocks::new(blocks, 4));
    for (number, (priority, tokens)) in (1..).zip(running) {
        world.submit(Request { priority: *priority, ..request(&other_text(number, *tokens), 8) }).unwrap();
    }
    while world.known.values().any(|known| known.text.is_empty()) {
        world.step();
    }
    let before = world.running();
    assert_eq!(before.len(), running.len(), "the test's own premise");
    let urgent = world.submit(Request { priority: urgent.0, ..request(&other_text(99, urgent.1), 8) }).unwrap();
    world.step();
    let after = world.running();
    let lost: Vec<SequenceId> = before.into_iter().filter(|id| !after.contains(id)).collect();
    assert_eq!(after.contains(&urgent), !lost.is_empty());
    world.drain();
    assert!(world.known.values().all(|known| known.end.is_some_and(|ended| ended.end == End::Length)));
    lost
}

#[test]
fn an_urgent_one_takes_the_place_of_the_youngest_of_the_lowest_priority() {
    let limits = Limits { sequences_max: 3, ..LIMITS };
    for (running, urgent, lost) in [
        ([5, 1, 1], 9, &[2][..]),
        ([1, 1, 5], 9, &[1]),
        ([1, 5, 9], 3, &[0]),
        ([9, 9, 0], 1, &[2]),
        ([5, 5, 5], 5, &[]),
        ([3, 3, 9], 3, &[]),
        ([9, 9, 9], 0, &[]),
    ] {
        let running = running.map(|priority| (priority, 4));
        assert_eq!(displaced(limits, 64, &running, (urgent, 4)), lost, "{running:?}, {urgent}");
    }
}

#[test]
fn an_urgent_one_takes_as_many_blocks_as_it_needs_and_none_in_vain() {
    // Each of those that run has two blocks and will want a third; two are left.
    let low = [(9, 5), (1, 5), (1, 5)];
    for (tokens, lost) in [(9, &[2][..]), (15, &[2]), (20, &[1, 2]), (28, &[1, 2]), (32, &[])] {
        assert_eq!(displaced(LIMITS, 11, &low, (5, tokens)), lost, "{tokens}");
    }
}

#[test]
fn a_text_loses_its_place_so_often_and_no_more() {
    let limits = Limits { sequences_max: 1, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(64, 4));
    let low = world.submit(Request { priority: 0, ..request(&other_text(1, 8), 12) }).unwrap();
    let mut number = 1;
    while world.known[&low].end.is_none() {
        // One comes whenever none is here, so that the low one has its place again and again.
        if world.running() == [low] && world.waiting().is_empty() {
            number += 1;
            world.submit(Request { priority: 9, ..request(&other_text(number, 8), 3) }).unwrap();
        }
        world.step();
    }
    let ended = world.known[&low].end.unwrap();
    assert_eq!((ended.preemptions, ended.new_tokens), (limits.preemptions_max, 12));
    world.drain();
}

#[test]
fn who_has_its_place_because_it_was_overtaken_so_often_keeps_it() {
    let mut world = World::new(Limits { sequences_max: 1, ..LIMITS }, Blocks::new(64, 4));
    let low = world.submit(Request { priority: 0, ..request(&other_text(1, 8), 12) }).unwrap();
    while world.known[&low].end.is_none() {
        while world.waiting().len() < 3 {
            let number = 2 + world.known.len() as u32;
            world.submit(Request { priority: 9, ..request(&other_text(number, 4), 2) }).unwrap();
        }
        world.step();
    }
    let before = world.known.values().filter(|known| known.request.priority == 9 && known.end.is_some()).count();
    assert_eq!((before, world.known[&low].end.unwrap().preemptions), (LIMITS.overtakes_max as usize, 0));
    world.drain();
}

#[test]
fn what_is_free_stays_with_whose_turn_it_is() {
    // One of twelve blocks runs in four and will want a fifth, and who is next wants eleven: seven are kept for that one.
    for (tokens, loses) in [(8, true), (16, true), (20, false)] {
        let mut world = World::new(Limits { overtakes_max: 0, ..LIMITS }, Blocks::new(12, 4));
        let low = world.submit(request(&other_text(1, 13), 8)).unwrap();
        world.step();
        let next = world.submit(Request { priority: 0, ..request(&other_text(2, 40), 4) }).unwrap();
        world.step();
        let urgent = world.submit(Request { priority: 9, ..request(&other_text(3, tokens), 4) }).unwrap();
        world.step();
        assert_eq!(world.running(), [if loses { urgent } else { low }], "{tokens}");
        assert!(world.waiting().contains(&next));
        world.drain();
    }
}

#[test]
fn deadlines_end_who_waits_and_who_runs() {
    let mut world = World::new(Limits { sequences_max: 1, ..LIMITS }, Blocks::new(64, 4));
    let deadline = Some(world.start + Duration::from_millis(5));
    world.submit(Request { deadline, ..request(&other_text(1, 4), 100) }).unwrap();
    world.submit(Request { deadline, ..request(&other_text(2, 4), 100) }).unwrap();
    assert_eq!(world.scheduler.next_deadline(), deadline);
    world.pass(4);
    assert_eq!(world.plan().len(), 1);
    world.pass(1);
    assert!(world.plan().is_empty());
    let ends: Vec<_> = world.known.values().map(|known| known.end.map(|ended| (ended.end, ended.total))).collect();
    assert_eq!(ends, [Some((End::Deadline, Duration::from_millis(5))); 2]);
    world.drain();
}

#[test]
fn a_cancelled_request_frees_its_blocks_before_the_next_plan() {
    let mut world = World::new(LIMITS, Blocks::new(4, 4));
    let long = world.submit(request(&other_text(1, 12), 4)).unwrap();
    let other = world.submit(request(&other_text(2, 12), 4)).unwrap();
    assert_eq!(world.step(), [(long, 0, 12)]);
    world.plan();
    let results = world.run();
    world.cancel(long);
    assert_eq!(world.scheduler.figures().blocks.used, 0);
    world.finish(results);
    assert_eq!(world.step(), [(other, 0, 12)]);
    world.drain();
}

/// Sixteen callers with a prompt of 1,000 tokens, alike but for their last 20: (steps until the last has its first token, tokens that
/// were computed until then).
fn time_to_first_tokens(is_shared: bool) -> (usize, u64) {
    let limits = Limits { step_tokens: 512, sequences_max: 16, context_max: 2_000, ..LIMITS };
    let mut world = World::new(limits, Blocks::new(2_000, 16));
    for caller in 0..16 {
        let own = other_text(10 + caller, 20);
        let prompt = if is_shared { [text(980), own].concat() } else { [other_text(10 + caller, 980), own].concat() };
        world.submit(request(&prompt, 50)).unwrap();
    }
    let mut steps = 0;
    while world.known.values().any(|known| known.text.is_empty()) {
        world.step();
        steps += 1;
    }
    let found = (steps, world.scheduler.figures().computed_tokens);
    world.drain();
    let cached: Vec<usize> = world.known.values().map(|known| known.end.unwrap().cached_tokens).collect();
    assert_eq!(cached, if is_shared { [vec![0], vec![976; 15]].concat() } else { vec![0; 16] });
    found
}

#[test]
fn a_common_beginning_is_computed_once_also_when_all_come_at_a_time() {
    let (steps, tokens) = time_to_first_tokens(true);
    // 976 in common are 61 blocks; 24 more for each, and the texts of those that were done earlier.
    assert!((976 + 16 * 24..976 + 16 * 24 + 16 * 3).contains(&(tokens as usize)), "{tokens}");
    assert_eq!(steps, 3);
    let (unshared_steps, unshared_tokens) = time_to_first_tokens(false);
    assert!(unshared_steps >= 16_000 / 512 && unshared_tokens >= 16_000, "{unshared_steps} {unshared_tokens}");
}

#[test]
fn a_text_that_goes_on_as_a_longer_prompt_is_not_computed_again() {
    let mut world = World::new(LIMITS, Blocks::new(64, 4));
    let first = world.submit(request(&text(10), 20)).unwrap();
    world.drain();
    let said = &world.known[&first].text;
    let turn = [text(10), said.clone(), other_text(2, 5)].concat();
    let computed = 10 + said.len() - 1;
    let second = world.submit(request(&turn, 4)).unwrap();
    world.drain();
    assert_eq!(world.known[&second].end.unwrap().cached_tokens, computed / 4 * 4);
}

#[test]
fn callers_with_different_salts_share_nothing() {
    let mut world = World::new(LIMITS, Blocks::new(64, 4));
    let cached = |world: &mut World, salt| {
        let id = world.submit(Request { salt, ..request(&text(13), 2) }).unwrap();
        world.drain();
        world.known[&id].end.unwrap().cached_tokens
    };
    assert_eq!([1, 1, 2, 2].map(|salt| cached(&mut world, salt)), [0, 12, 0, 12]);
}

#[test]
fn an_end_tells_how_long_everything_took() {
    let mut world = World::new(Limits { sequences_max: 1, ..LIMITS }, Blocks::new(64, 4));
    world.submit(request(&other_text(1, 20), 1)).unwrap();
    world.submit(request(&other_text(2, 20), 3)).unwrap();
    world.drain();
    let ms = |time: Option<Duration>| time.map(|time| time.as_millis());
    let times = |id| {
        let ended = world.known[&id].end.unwrap();
        (ms(ended.queued), ms(ended.first_token), ended.total.as_millis(), ended.prompt_tokens, ended.new_tokens)
    };
    assert_eq!(times(0), (Some(0), Some(2), 2, 20, 1));
    assert_eq!(times(1), (Some(2), Some(4), 6, 20, 3));
}
