//! What is shown of a run: the table and the picture, from records that are made by hand.

use crate::bench::api::{Kind, Usage};
use crate::bench::length::Length;
use crate::bench::load::{Load, Metered, Stage, Taken};
use crate::bench::prompts::Counting;
use crate::bench::record::{Answer, Failure, Outcome, Record};
use crate::bench::report::{Asked, Machine, Report, StageReport};
use crate::bench::{plot, table};
use std::time::Duration;

/// Ten texts of three tokens each: the first token after `ms`, 2 `ms` and so on to 10 `ms`, the others `ms` apart.
fn stage(load: Load, ms: u64, more: Vec<Outcome>) -> StageReport {
    let stage = Stage {
        load,
        warmup: Duration::ZERO,
        duration: Some(Duration::from_secs(10)),
        requests: None,
        seed: 1,
        first: 0,
    };
    let answered = (1..=10).map(|number| {
        let due = Duration::from_millis(500 * number);
        let arrivals: Vec<Duration> = (0..3).map(|token| due + Duration::from_millis(ms * (number + token))).collect();
        let usage = Usage { prompt: Some(50), cached: Some(20), output: Some(3) };
        let answer = Answer { ended: arrivals[2], arrivals, usage };
        Record { due, sent: Some(due + Duration::from_millis(8)), outcome: Outcome::Answered(answer) }
    });
    let more = more.into_iter().map(|outcome| Record { due: Duration::from_secs(6), sent: None, outcome });
    let used = |cpu| Metered { over: Duration::from_secs(10), cpu: Duration::from_secs(cpu), rss_peak_bytes: 3 << 30 };
    let taken = Taken {
        records: answered.chain(more).collect(),
        window: Duration::ZERO..Duration::from_secs(10),
        in_flight_peak: 2,
        server: Some(used(5)),
        generator: Some(used(1)),
    };
    StageReport::new(&stage, &taken, Some("ttft=55ms".parse().unwrap()))
}

fn report(stages: Vec<StageReport>) -> Report {
    Report {
        date: "2026-01-02T03:04:05Z".into(),
        command: vec![],
        version: "1",
        machine: Machine { processor: "p".into(), threads: 2, system: "s".into() },
        server: "http://h".into(),
        model: "a<b&c".into(),
        kind: Kind::Chat,
        asked: Asked {
            prompts: None,
            prompt_tokens: Some(Length::Even(40, 60)),
            shared_prefix_tokens: 0,
            output_tokens: Some(Length::Fixed(5)),
            texts: None,
            ignore_eos: false,
            temperature: Some(0.0),
            extra: serde_json::Map::new(),
            seed: 7,
            counting: Counting::default(),
        },
        is_interrupted: true,
        stages,
    }
}

fn two_rates() -> Report {
    let rate = |per_second| Load::Open { per_second, in_flight_max: 2 };
    let wrong = vec![Outcome::Failed(Failure::Status(503, "queue is full".into())), Outcome::Dropped];
    report(vec![stage(rate(1.0), 10, vec![]), stage(rate(2.5), 40, wrong)])
}

#[test]
fn a_table_has_every_load_and_what_is_wrong_with_its_figures() {
    let text = table::text(&two_rates());
    let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "chats of a<b&c at http://h, prompts of 40-60 tokens, answers of 5, seed 7",
        "load due answered failed dropped unfinished answers/s tokens/s prompt tokens/s good/s good",
        "1/s 10 10 0 0 0 1.00 3.00 50.0 0.50 50.0 %",
        "2.5/s 12 10 1 1 0 1.00 3.00 50.0 0.10 8.3 %",
        "1/s first token 50.0 ms 90.0 ms 100 ms 100 ms",
        "2.5/s next token 40.0 ms 40.0 ms 40.0 ms 40.0 ms",
        "2.5/s whole answer 280 ms 440 ms 480 ms 480 ms",
        "1/s tokens/s of a text 100 100 100 100",
        "1/s server 5.00 s 0.50 3.2 GB",
        "1/s this program 1.00 s 0.10 3.2 GB",
    ] {
        assert!(lines.iter().any(|other| other == line), "no {line:?} in\n{text}");
    }
    for note in [
        "Ended before its time",
        "2.5/s: 1 failed with http_503: queue is full",
        "2.5/s: 1 were not sent, because 2 were under way",
        "1/s: requests left this program up to 8.00 ms late",
        "1/s: of 50.0 prompt tokens the server had 20.0 in its cache; another --seed",
        "1/s: answers had 3.00 tokens on average, 5 were asked; --ignore-eos",
    ] {
        assert!(text.contains(note), "no {note:?} in\n{text}");
    }
}

#[test]
fn a_picture_has_a_line_for_each_load_and_latency_and_is_well_formed() {
    let svg = plot::svg(&two_rates());
    // Three latencies of two loads, p50 and p99 over the throughput, and two lines of the legend.
    assert_eq!(svg.matches("fill=\"none\"").count(), 3 * 2 + 2 + 2);
    assert_eq!(svg.matches("<circle").count(), 4);
    assert!(svg.contains("a&lt;b&amp;c") && !svg.contains("a<b"));
    assert!(svg.contains("2.5/s: 3.00 tokens/s, 2 of 12 without answer"));
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn a_run_without_answers_is_shown_too() {
    let empty = Taken {
        records: vec![],
        window: Duration::ZERO..Duration::ZERO,
        in_flight_peak: 0,
        server: None,
        generator: None,
    };
    let load = Load::Closed { callers: 1 };
    let of = Stage { load, warmup: Duration::ZERO, duration: None, requests: Some(1), seed: 1, first: 0 };
    let report = report(vec![StageReport::new(&of, &empty, None)]);
    assert!(table::text(&report).contains("1 caller"));
    assert!(serde_json::to_string(&report).is_ok());
    let svg = plot::svg(&report);
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
}
