//! What the records of a stage say: counts, speeds, latencies, how many answers kept the limits. Pure.

use super::api::Kind;
use super::length::Length;
use super::load::{Load, Metered, Stage, Taken};
use super::prompts::Counting;
use super::record::{Answer, Outcome, Record};
use super::slo::Limits;
use super::stats::{Samples, Sorted, Summary};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// When it began, in UTC.
    pub(crate) date: String,
    /// The command line, without keys.
    pub(crate) command: Vec<String>,
    /// The release that measured.
    pub(crate) version: &'static str,
    /// Where the load came from.
    pub(crate) machine: Machine,
    pub(crate) server: String,
    pub(crate) model: String,
    pub(crate) kind: Kind,
    pub(crate) asked: Asked,
    /// Whether it was ended before its time.
    pub(crate) is_interrupted: bool,
    pub(crate) stages: Vec<StageReport>,
}

/// The machine that sent the load; the server's too where that is the same.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    /// How many threads a program may run at once.
    pub(crate) threads: usize,
    pub(crate) system: String,
}

/// What the requests asked.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Asked {
    /// The file of prompts, where there is one.
    pub(crate) prompts: Option<String>,
    /// Tokens of a prompt.
    pub(crate) prompt_tokens: Option<Length>,
    pub(crate) shared_prefix_tokens: u32,
    /// Tokens of an answer.
    pub(crate) output_tokens: Option<Length>,
    /// Texts in a request for embeddings.
    pub(crate) texts: Option<usize>,
    pub(crate) ignore_eos: bool,
    pub(crate) temperature: Option<f64>,
    /// Fields that were put over the body.
    pub(crate) extra: serde_json::Map<String, serde_json::Value>,
    pub(crate) seed: u64,
    /// How the server counts.
    pub(crate) counting: Counting,
}

/// What one stage gave. Latencies are of requests that were due in the window and were answered, counted from when they were
/// due. Speeds are of what came in the window, whichever request it belongs to.
#[derive(Debug, Serialize)]
pub(crate) struct StageReport {
    pub(crate) load: Load,
    pub(crate) seed: u64,
    pub(crate) warmup_s: f64,
    /// How long was measured.
    pub(crate) window_s: f64,
    pub(crate) requests: Counts,
    /// Failed requests by kind.
    pub(crate) errors: BTreeMap<String, Errors>,
    /// Answers that ended in the window.
    pub(crate) requests_per_s: f64,
    /// Tokens that came in the window.
    pub(crate) output_tokens_per_s: Option<f64>,
    /// Tokens of the prompts whose answers ended in the window. `None` where the server does not say.
    pub(crate) prompt_tokens_per_s: Option<f64>,
    pub(crate) tokens: Tokens,
    /// Time until the first token.
    pub(crate) ttft_ms: Option<Summary>,
    /// Time of each token behind the first.
    pub(crate) itl_ms: Option<Summary>,
    /// Time until the end of the answer.
    pub(crate) e2e_ms: Option<Summary>,
    /// Tokens a second of one text, behind its first.
    pub(crate) text_tokens_per_s: Option<Summary>,
    /// How late requests left this program. It is part of every latency.
    pub(crate) sent_late_ms: Option<Summary>,
    pub(crate) in_flight_peak: u64,
    pub(crate) goodput: Option<Goodput>,
    pub(crate) server: Option<Process>,
    pub(crate) generator: Option<Process>,
    /// Curves of the latencies, for the plot.
    #[serde(skip)]
    pub(crate) curves: Curves,
}

/// What became of the requests that were due in the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) due: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Not sent, because as many as may be were under way.
    pub(crate) dropped: u64,
    /// Under way when the run was ended.
    pub(crate) unfinished: u64,
}

/// Requests that failed in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Errors {
    pub(crate) count: u64,
    /// What was said of the first.
    pub(crate) example: String,
}

/// Tokens of answered requests, on average.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Tokens {
    pub(crate) prompt_mean: Option<f64>,
    /// Of these, what the server had read before.
    pub(crate) cached_mean: Option<f64>,
    pub(crate) output_mean: Option<f64>,
    /// Pieces in which a text came.
    pub(crate) pieces_mean: Option<f64>,
    /// Whether the server counted the output. Otherwise each piece is taken for a token.
    pub(crate) are_counted_by_server: bool,
}

/// Answers that kept the limits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Goodput {
    pub(crate) limits: Limits,
    pub(crate) good: u64,
    /// Of all that were due; what failed, was dropped or did not end is not good.
    pub(crate) share: f64,
    pub(crate) requests_per_s: f64,
}

/// What a process used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Process {
    pub(crate) cpu_s: f64,
    /// CPU time over time: how many cores were busy.
    pub(crate) cores: f64,
    /// Since the process started.
    pub(crate) rss_peak_bytes: u64,
}

/// Share of samples up to a value in milliseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Curves {
    pub(crate) ttft: Vec<(f64, f64)>,
    pub(crate) itl: Vec<(f64, f64)>,
    pub(crate) e2e: Vec<(f64, f64)>,
}

/// As many points as a curve of a few hundred pixels can show.
const CURVE_POINTS: usize = 200;

impl StageReport {
    /// Evaluates a stage.
    pub(crate) fn new(stage: &Stage, taken: &Taken, limits: Option<Limits>) -> Self {
        let window_s = (taken.window.end - taken.window.start).as_secs_f64();
        // A request that was due behind the window can only be one that came beside the last answer.
        let measured: Vec<&Record> = taken.records.iter().filter(|record| record.due >= taken.window.start).collect();
        let answered: Vec<(Duration, &Answer)> = measured.iter().filter_map(|record| answer(record)).collect();
        let all_answered: Vec<&Answer> = taken.records.iter().filter_map(|r| Some(answer(r)?.1)).collect();
        let has_text = answered.iter().any(|(_, answer)| !answer.arrivals.is_empty());
        let per_s = |count: f64| if window_s > 0.0 { count / window_s } else { 0.0 };

        let in_window = |at: &Duration| *at >= taken.window.start && *at <= taken.window.end;
        let ended_in_window = || all_answered.iter().filter(|answer| in_window(&answer.ended));
        let tokens_in_window = |answer: &&Answer| {
            let pieces = answer.arrivals.iter().filter(|at| in_window(at)).count();
            pieces as f64 * answer.tokens_per_piece()
        };
        let prompt_tokens: Option<u64> = ended_in_window().map(|answer| answer.usage.prompt).sum();

        let ttft = sorted(answered.iter().filter_map(|(due, answer)| answer.ttft(*due)));
        let e2e = sorted(answered.iter().map(|(due, answer)| answer.e2e(*due)));
        let mut itl = Samples::default();
        for (_, answer) in &answered {
            let tokens = answer.tokens_per_gap();
            answer.gaps().for_each(|gap| itl.add_weighted(ms(gap) / tokens, tokens));
        }
        let itl = itl.sorted();
        let speeds = answered.iter().filter_map(|(_, answer)| Some(1.0 / answer.mean_gap()?.as_secs_f64()));
        let late = measured.iter().filter_map(|record| Some(record.sent?.saturating_sub(record.due)));
        let requests = counts(&measured);
        Self {
            load: stage.load,
            seed: stage.seed,
            warmup_s: stage.warmup.as_secs_f64(),
            window_s,
            requests,
            errors: errors(&measured),
            requests_per_s: per_s(ended_in_window().count() as f64),
            output_tokens_per_s: has_text.then(|| per_s(all_answered.iter().map(tokens_in_window).sum())),
            prompt_tokens_per_s: prompt_tokens.filter(|tokens| *tokens > 0).map(|tokens| per_s(tokens as f64)),
            tokens: tokens(&answered, has_text),
            ttft_ms: ttft.summary(),
            itl_ms: itl.summary(),
            e2e_ms: e2e.summary(),
            text_tokens_per_s: speeds.collect::<Samples>().sorted().summary(),
            sent_late_ms: sorted(late).summary(),
            in_flight_peak: taken.in_flight_peak,
            goodput: limits.map(|limits| {
                let good = answered.iter().filter(|(due, answer)| limits.are_kept(*due, answer)).count() as u64;
                let share = if requests.due > 0 { good as f64 / requests.due as f64 } else { 0.0 };
                Goodput { limits, good, share, requests_per_s: per_s(good as f64) }
            }),
            server: taken.server.map(Into::into),
            generator: taken.generator.map(Into::into),
            curves: Curves {
                ttft: ttft.curve(CURVE_POINTS),
                itl: itl.curve(CURVE_POINTS),
                e2e: e2e.curve(CURVE_POINTS),
            },
        }
    }
}

impl From<Metered> for Process {
    fn from(metered: Metered) -> Self {
        let (cpu_s, over_s) = (metered.cpu.as_secs_f64(), metered.over.as_secs_f64());
        let cores = if over_s > 0.0 { cpu_s / over_s } else { 0.0 };
        Self { cpu_s, cores, rss_peak_bytes: metered.rss_peak_bytes }
    }
}

fn answer(record: &Record) -> Option<(Duration, &Answer)> {
    match &record.outcome {
        Outcome::Answered(answer) => Some((record.due, answer)),
        Outcome::Failed(_) | Outcome::Dropped | Outcome::Unfinished => None,
    }
}

fn counts(records: &[&Record]) -> Counts {
    let mut counts = Counts::default();
    for record in records {
        counts.due += 1;
        *match &record.outcome {
            Outcome::Answered(_) => &mut counts.answered,
            Outcome::Failed(_) => &mut counts.failed,
            Outcome::Dropped => &mut counts.dropped,
            Outcome::Unfinished => &mut counts.unfinished,
        } += 1;
    }
    counts
}

fn errors(records: &[&Record]) -> BTreeMap<String, Errors> {
    let mut errors = BTreeMap::new();
    for record in records {
        if let Outcome::Failed(failure) = &record.outcome {
            let first = || Errors { count: 0, example: failure.message().into() };
            errors.entry(failure.kind()).or_insert_with(first).count += 1;
        }
    }
    errors
}

fn tokens(answered: &[(Duration, &Answer)], has_text: bool) -> Tokens {
    let mean = |value: &dyn Fn(&Answer) -> Option<f64>| {
        let values: Vec<f64> = answered.iter().filter_map(|(_, answer)| value(answer)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let of_text = |value: f64| has_text.then_some(value);
    Tokens {
        prompt_mean: mean(&|answer| Some(answer.usage.prompt? as f64)),
        cached_mean: mean(&|answer| Some(answer.usage.cached? as f64)),
        output_mean: mean(&|answer| of_text(answer.tokens() as f64)),
        pieces_mean: mean(&|answer| of_text(answer.arrivals.len() as f64)),
        are_counted_by_server: answered.iter().all(|(_, answer)| answer.usage.output.is_some()),
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Sorted {
    times.map(ms).collect::<Samples>().sorted()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::api::Usage;
    use crate::bench::record::Failure;
    use crate::bench::schedule::Arrivals;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn stage(load: Load) -> Stage {
        Stage { load, warmup: at(1_000), duration: Some(at(10_000)), requests: None, seed: 1, first: 0 }
    }

    const OPEN: Load = Load::Open { per_second: 10.0, in_flight_max: 64 };

    fn taken(records: Vec<Record>) -> Taken {
        Taken { records, window: at(1_000)..at(11_000), in_flight_peak: 3, server: None, generator: None }
    }

    /// Answered with pieces at these times; the last of them is the end.
    fn answered(due: u64, arrivals: &[u64], tokens: u64) -> Record {
        let arrivals: Vec<Duration> = arrivals.iter().map(|ms| at(*ms)).collect();
        let usage = Usage { prompt: Some(10), cached: None, output: Some(tokens) };
        let answer = Answer { ended: arrivals[arrivals.len() - 1], arrivals, usage };
        Record { due: at(due), sent: Some(at(due + 1)), outcome: Outcome::Answered(answer) }
    }

    fn ended(due: u64, outcome: Outcome) -> Record {
        Record { due: at(due), sent: Some(at(due)), outcome }
    }

    #[test]
    fn every_request_is_counted_once_and_what_fails_is_not_good() {
        let records = vec![
            answered(500, &[900], 1),
            answered(2_000, &[2_010, 2_020], 2),
            answered(3_000, &[3_900], 1),
            ended(4_000, Outcome::Failed(Failure::Status(503, "full".into()))),
            ended(4_100, Outcome::Failed(Failure::Status(503, "other".into()))),
            ended(4_200, Outcome::Failed(Failure::Timeout)),
            ended(5_000, Outcome::Dropped),
            ended(6_000, Outcome::Unfinished),
        ];
        let report = StageReport::new(&stage(OPEN), &taken(records), Some("ttft=100ms".parse().unwrap()));
        assert_eq!(report.requests, Counts { due: 7, answered: 2, failed: 3, dropped: 1, unfinished: 1 });
        assert_eq!(report.errors["http_503"], Errors { count: 2, example: "full".into() });
        assert_eq!(report.errors["timeout"].count, 1);
        let goodput = report.goodput.unwrap();
        assert_eq!((goodput.good, goodput.requests_per_s), (1, 0.1));
        assert!((goodput.share - 1.0 / 7.0).abs() < 1e-9);
        // What was answered in the warm-up is no latency.
        assert_eq!(report.ttft_ms.unwrap().samples, 2.0);
        assert_eq!(report.sent_late_ms.unwrap().max, 1.0);
    }

    #[test]
    fn speed_is_what_came_in_the_window() {
        let records = vec![
            // Due in the warm-up, half of it comes in the window.
            answered(500, &[800, 900, 1_100, 1_200], 8),
            // Due in the window, half of it comes behind it.
            answered(10_500, &[10_800, 10_900, 11_100, 11_200], 4),
            answered(5_000, &[5_100], 1),
        ];
        let report = StageReport::new(&stage(OPEN), &taken(records), None);
        assert_eq!(report.requests_per_s, 0.2);
        assert_eq!(report.output_tokens_per_s, Some((4.0 + 2.0 + 1.0) / 10.0));
        assert_eq!(report.prompt_tokens_per_s, Some(2.0));
        assert_eq!(report.tokens.output_mean, Some(2.5));
    }

    #[test]
    fn a_tokens_time_is_a_quantile_of_all_tokens_not_of_averages() {
        // One long text of 10 ms a token, and one short one that stands still for a second.
        let long: Vec<u64> = (0..100).map(|token| 2_000 + token * 10).collect();
        let records = vec![answered(1_990, &long, 100), answered(3_000, &[3_010, 4_010], 2)];
        let report = StageReport::new(&stage(OPEN), &taken(records), None);
        let itl = report.itl_ms.unwrap();
        assert_eq!((itl.samples, itl.p50, itl.p99, itl.max), (100.0, 10.0, 10.0, 1_000.0));
        let speed = report.text_tokens_per_s.unwrap();
        assert_eq!((speed.min, speed.max), (1.0, 100.0));
    }

    #[test]
    fn pieces_of_several_tokens_weigh_as_many() {
        let records = vec![answered(2_000, &[2_100, 2_200, 2_300], 9)];
        let itl = StageReport::new(&stage(OPEN), &taken(records), None).itl_ms.unwrap();
        assert_eq!((itl.samples, itl.p50, itl.max), (8.0, 25.0, 25.0));
    }

    #[test]
    fn vectors_have_no_tokens_of_their_own() {
        let usage = Usage { prompt: Some(30), ..Usage::default() };
        let answer = Answer { arrivals: vec![], ended: at(2_040), usage };
        let report = StageReport::new(&stage(OPEN), &taken(vec![ended(2_000, Outcome::Answered(answer))]), None);
        assert_eq!(report.e2e_ms.unwrap().p50, 40.0);
        assert_eq!((report.ttft_ms, report.itl_ms, report.output_tokens_per_s), (None, None, None));
        assert_eq!((report.tokens.output_mean, report.prompt_tokens_per_s), (None, Some(3.0)));
    }

    #[test]
    fn a_stage_without_answers_has_no_latencies_and_no_speed() {
        let report = StageReport::new(&stage(OPEN), &taken(vec![]), Some(Limits::default()));
        assert_eq!((report.requests_per_s, report.e2e_ms), (0.0, None));
        assert_eq!(report.goodput.unwrap().share, 0.0);
    }

    /// A server that answers one request after another in 5 ms, and does nothing from the 4th to the 5th second.
    fn stalling(sent: impl Iterator<Item = Duration>) -> Vec<Record> {
        let mut free = Duration::ZERO;
        let mut records = Vec::new();
        for due in sent {
            let mut begins = free.max(due);
            if (at(4_000)..at(5_000)).contains(&begins) {
                begins = at(5_000);
            }
            free = begins + at(5);
            let answer = Answer { arrivals: vec![free], ended: free, usage: Usage::default() };
            records.push(Record { due, sent: Some(due), outcome: Outcome::Answered(answer) });
        }
        records
    }

    #[test]
    fn a_stall_of_a_second_is_seen_by_all_who_would_have_come_in_it() {
        let due = Arrivals::new(50.0, 4).take_while(|due| *due < at(11_000));
        let report = StageReport::new(&stage(OPEN), &taken(stalling(due)), None);
        let open = report.e2e_ms.unwrap();
        // A tenth of the window stood still, and one who came then waited for half a second on average.
        assert!(open.p50 < 10.0, "{open:?}");
        assert!(open.p99 > 700.0, "{open:?}");
        assert!(open.p90 > 100.0, "{open:?}");

        // One caller who waits for each answer sees the same stall once, and takes it for one slow request of many.
        let mut records = Vec::new();
        let mut now = Duration::ZERO;
        while now < at(11_000) {
            let mut one = stalling(std::iter::once(now));
            now = answer(&one[0]).unwrap().1.ended + at(15);
            records.append(&mut one);
        }
        let closed = StageReport::new(&stage(Load::Closed { callers: 1 }), &taken(records), None).e2e_ms.unwrap();
        assert!(closed.p99 < 10.0 && closed.max > 900.0, "{closed:?}");
    }
}
