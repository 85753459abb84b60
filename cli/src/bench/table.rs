//! A report as text for people: tables, and notes on what makes figures less than they seem. Pure.

use super::load::Load;
use super::report::{Process, Report, StageReport};
use super::server::noun;
use super::stats::Summary;
use crate::output;

/// A program that sends so late has measured itself.
const LATE_MS: f64 = 5.0;

/// The text.
pub(crate) fn text(report: &Report) -> String {
    let mut text = format!("{}\n\n", head(report));
    text.push_str(&output::table(&loads(&report.stages)));
    text.push('\n');
    text.push_str(&output::table(&latencies(&report.stages)));
    let processes = processes(&report.stages);
    if processes.len() > 1 {
        text.push('\n');
        text.push_str(&output::table(&processes));
    }
    let notes = notes(report);
    if !notes.is_empty() {
        text.push('\n');
        notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
    }
    text
}

fn head(report: &Report) -> String {
    let asked = &report.asked;
    let mut parts = vec![format!("{} of {} at {}", noun(report.kind), report.model, report.server)];
    match (&asked.prompts, asked.prompt_tokens) {
        (Some(file), _) => parts.push(format!("prompts from {file}")),
        (None, Some(length)) => {
            let what = if asked.texts.is_some() { "texts" } else { "prompts" };
            parts.push(format!("{what} of {length} tokens"));
        }
        (None, None) => {}
    }
    if asked.shared_prefix_tokens > 0 {
        parts.push(format!("{} of them shared", asked.shared_prefix_tokens));
    }
    if let Some(length) = asked.output_tokens {
        parts.push(format!("answers of {length}"));
    }
    if let Some(texts) = asked.texts {
        parts.push(if texts == 1 { "one a request".into() } else { format!("{texts} a request") });
    }
    parts.push(format!("seed {}", asked.seed));
    parts.join(", ")
}

/// What a load is called.
pub(crate) fn name(load: Load) -> String {
    match load {
        Load::Open { per_second, .. } => format!("{per_second}/s"),
        Load::Closed { callers: 1 } => "1 caller".into(),
        Load::Closed { callers } => format!("{callers} callers"),
    }
}

fn cells(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

fn loads(stages: &[StageReport]) -> Vec<Vec<String>> {
    let has_goodput = stages.iter().any(|stage| stage.goodput.is_some());
    let mut head = cells(&[
        "load",
        "due",
        "answered",
        "failed",
        "dropped",
        "unfinished",
        "answers/s",
        "tokens/s",
        "prompt tokens/s",
    ]);
    if has_goodput {
        head.extend(cells(&["good/s", "good"]));
    }
    let mut rows = vec![head];
    for stage in stages {
        let counts = stage.requests;
        let mut row = vec![name(stage.load)];
        row.extend(
            [counts.due, counts.answered, counts.failed, counts.dropped, counts.unfinished].map(|n| n.to_string()),
        );
        row.push(number(stage.requests_per_s));
        row.extend(
            [stage.output_tokens_per_s, stage.prompt_tokens_per_s].map(|speed| speed.map_or("-".into(), number)),
        );
        if let Some(goodput) = stage.goodput {
            row.extend([number(goodput.requests_per_s), format!("{:.1} %", goodput.share * 100.0)]);
        }
        rows.push(row);
    }
    rows
}

fn latencies(stages: &[StageReport]) -> Vec<Vec<String>> {
    let mut rows = vec![cells(&["load", "", "p50", "p90", "p99", "max"])];
    for stage in stages {
        let times = [("first token", stage.ttft_ms), ("next token", stage.itl_ms), ("whole answer", stage.e2e_ms)];
        for (what, times) in times {
            let Some(Summary { p50, p90, p99, max, .. }) = times else { continue };
            let mut row = vec![name(stage.load), what.into()];
            row.extend([p50, p90, p99, max].map(time));
            rows.push(row);
        }
        if let Some(Summary { p50, p10, p1, min, .. }) = stage.text_tokens_per_s {
            // Of speeds the low ones are the bad ones.
            let mut row = vec![name(stage.load), "tokens/s of a text".into()];
            row.extend([p50, p10, p1, min].map(number));
            rows.push(row);
        }
    }
    rows
}

fn processes(stages: &[StageReport]) -> Vec<Vec<String>> {
    let mut rows = vec![cells(&["load", "process", "CPU time", "cores busy", "peak memory"])];
    for stage in stages {
        // The generator is of interest beside the server only.
        let Some(server) = stage.server else { continue };
        let both = [("server", Some(server)), ("this program", stage.generator)];
        for (who, Process { cpu_s, cores, rss_peak_bytes }) in both.into_iter().filter_map(|(who, of)| Some((who, of?)))
        {
            let figures = [format!("{cpu_s:.2} s"), format!("{cores:.2}"), output::bytes(rss_peak_bytes)];
            rows.push([name(stage.load), who.into()].into_iter().chain(figures).collect());
        }
    }
    rows
}

/// What a reader must know beside the figures.
fn notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if report.is_interrupted {
        notes.push("Ended before its time: figures are of what was done until then.".into());
    }
    for stage in &report.stages {
        let name = name(stage.load);
        for (kind, errors) in &stage.errors {
            notes.push(format!("{name}: {} failed with {kind}: {}", errors.count, errors.example));
        }
        if let Load::Open { in_flight_max, .. } = stage.load
            && stage.requests.dropped > 0
        {
            notes.push(format!(
                "{name}: {} were not sent, because {in_flight_max} were under way (--in-flight-max); the server is slower than this rate",
                stage.requests.dropped
            ));
        }
        if let Some(late) = stage.sent_late_ms.filter(|late| late.p99 > LATE_MS) {
            notes.push(format!(
                "{name}: requests left this program up to {} late (p99 {}): it was short of CPU, and its figures are in part its own",
                time(late.max),
                time(late.p99)
            ));
        }
        let tokens = stage.tokens;
        if let (Some(mean), Some(cached)) = (tokens.prompt_mean, tokens.cached_mean.filter(|cached| *cached >= 1.0)) {
            // What all prompts share is meant to be there.
            let hint =
                if report.asked.shared_prefix_tokens == 0 { "; another --seed asks what it has not seen" } else { "" };
            notes.push(format!(
                "{name}: of {} prompt tokens the server had {} in its cache{hint}",
                number(mean),
                number(cached)
            ));
        }
        if let (Some(mean), Some(asked)) = (tokens.output_mean, report.asked.output_tokens)
            && mean < 0.95 * asked.mean()
            && !report.asked.ignore_eos
            // Lines of a file may ask for fewer.
            && report.asked.prompts.is_none()
        {
            notes.push(format!(
                "{name}: answers had {} tokens on average, {asked} were asked; --ignore-eos keeps models from ending before",
                number(mean)
            ));
        }
        if tokens.output_mean.is_some() && !tokens.are_counted_by_server {
            notes.push(format!("{name}: the server does not count its tokens; each piece of a text is taken for one"));
        }
    }
    notes
}

/// A time for people.
pub(crate) fn time(ms: f64) -> String {
    match ms {
        _ if ms >= 1_000.0 => format!("{} s", number(ms / 1_000.0)),
        _ => format!("{} ms", number(ms)),
    }
}

/// A number with three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_the_unit_that_fits() {
        let told = [0.123, 4.567, 45.67, 456.7, 4_567.0, 45_670.0, 456_700.0].map(time);
        assert_eq!(told, ["0.12 ms", "4.57 ms", "45.7 ms", "457 ms", "4.57 s", "45.7 s", "457 s"]);
    }
}
