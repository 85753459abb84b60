//! A report as a picture: for each latency the share of requests that had their answer by a time, and where there are several
//! loads the latency over the throughput. A report comes in, one SVG goes out. Pure.

use super::report::{Report, StageReport};
use super::stats::Summary;
use super::table::{self, number};
use std::fmt::Write;

/// One panel, in pixels.
const PANEL: (f64, f64) = (420.0, 260.0);
/// Room for the labels of a panel's axes: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (58.0, 34.0, 16.0, 44.0);
/// For the head above the panels, and a line of the legend below.
const HEAD: f64 = 30.0;
const LEGEND: f64 = 18.0;

/// Colours that differ in brightness too; a load beyond them takes the first again, with dashes.
const COLOURS: [&str; 6] = ["#1b4965", "#d1495b", "#2a9d8f", "#e9a03b", "#7b5ea7", "#6b7280"];

/// Points of a line.
type Points = Vec<(f64, f64)>;

/// One of a stage's curves.
type Curve = fn(&StageReport) -> &Points;

/// A line of one stage in that stage's colour, or one through all stages with a dot for each.
struct Line {
    stage: Option<usize>,
    points: Points,
    /// The stage of each point, where it has a dot.
    dots: Vec<usize>,
}

/// A scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear(f64, f64),
    /// Both ends are above 0.
    Log(f64, f64),
}

impl Scale {
    /// Where a value stands: 0 at the first end, 1 at the second.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Log(from, to) => (value.max(from).ln() - from.ln()) / (to.ln() - from.ln()),
        }
    }

    /// The decades around some values above 0.
    fn decades(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        if most <= 0.0 {
            return Self::Log(1.0, 10.0);
        }
        let (from, to) = (10_f64.powf(least.log10().floor()), 10_f64.powf(most.log10().ceil()));
        Self::Log(from, if to > from { to } else { from * 10.0 })
    }

    /// From 0 to a round number above the values.
    fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        let step = round_step(most / 5.0);
        Self::Linear(0.0, ((most / step).ceil() * step).max(step))
    }

    /// Values that are written at the axis.
    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(from, to) => {
                let step = round_step((to - from) / 5.0);
                let count = ((to - from) / step + 1e-9) as usize;
                (0..=count).map(|tick| from + tick as f64 * step).collect()
            }
            Self::Log(from, to) => {
                let decades = (to / from).log10().round() as i32;
                // Where few decades are far apart, what is between them is written too.
                let factors: &[f64] = if decades <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let ticks =
                    (0..=decades).flat_map(|decade| factors.iter().map(move |f| f * from * 10_f64.powi(decade)));
                ticks.filter(|tick| *tick <= to * (1.0 + 1e-9)).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    if step <= 0.0 || !step.is_finite() {
        return 1.0;
    }
    let decade = 10_f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.into_iter().find(|factor| factor * decade >= step * (1.0 - 1e-9)).unwrap_or(10.0) * decade
}

struct Panel {
    title: &'static str,
    x: (Scale, &'static str),
    y: (Scale, &'static str),
    lines: Vec<Line>,
    y_is_time: bool,
}

/// The picture.
pub(crate) fn svg(report: &Report) -> String {
    let panels = panels(&report.stages);
    let columns = panels.len().clamp(1, 2);
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (PANEL.0 * columns as f64, PANEL.1 * rows as f64);
    let total = HEAD + height + LEGEND * report.stages.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{total}\" viewBox=\"0 0 {width} {total}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let head = format!("{} at {}, {}", report.model, report.server, report.date);
    text(&mut svg, (12.0, 20.0), "start", &head);
    for (index, panel) in panels.iter().enumerate() {
        let (column, row) = (index % columns, index / columns);
        draw(&mut svg, panel, (PANEL.0 * column as f64, HEAD + PANEL.1 * row as f64));
    }
    for (index, stage) in report.stages.iter().enumerate() {
        let y = HEAD + height + LEGEND * (index as f64 + 0.5);
        let _ = writeln!(svg, "<path d=\"M12 {y:.1}h26\" {}/>", stroke(Some(index)));
        let speed = match stage.output_tokens_per_s {
            Some(tokens) => format!("{} tokens/s", number(tokens)),
            None => format!("{} answers/s", number(stage.requests_per_s)),
        };
        let failed = stage.requests.due - stage.requests.answered;
        let failed =
            if failed > 0 { format!(", {failed} of {} without answer", stage.requests.due) } else { String::new() };
        text(&mut svg, (46.0, y + 4.0), "start", &format!("{}: {speed}{failed}", table::name(stage.load)));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panels(stages: &[StageReport]) -> Vec<Panel> {
    let mut panels = Vec::new();
    let latencies: [(&'static str, Curve); 3] = [
        ("Time until the first token", |stage| &stage.curves.ttft),
        ("Time of a token behind the first", |stage| &stage.curves.itl),
        ("Time until the whole answer", |stage| &stage.curves.e2e),
    ];
    for (title, of) in latencies {
        let line = |(stage, report): (usize, &StageReport)| Line {
            stage: Some(stage),
            points: steps(of(report)),
            dots: vec![],
        };
        let lines: Vec<Line> = stages.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect();
        if !lines.is_empty() {
            let x = Scale::decades(lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)));
            let y = (Scale::Linear(0.0, 1.0), "share");
            panels.push(Panel { title, x: (x, "ms"), y, lines, y_is_time: false });
        }
    }
    panels.extend(over_throughput(stages));
    panels
}

/// A curve of shares rises where a sample is, and not on the way to it.
fn steps(curve: &Points) -> Points {
    let mut before = 0.0;
    let mut steps = Vec::with_capacity(curve.len() * 2);
    for (value, share) in curve {
        steps.extend([(*value, before), (*value, *share)]);
        before = *share;
    }
    steps
}

/// p50 and p99 over the throughput, where there is more than one load.
fn over_throughput(stages: &[StageReport]) -> Option<Panel> {
    let has_tokens = stages.iter().any(|stage| stage.output_tokens_per_s.is_some());
    let throughput =
        |stage: &StageReport| if has_tokens { stage.output_tokens_per_s } else { Some(stage.requests_per_s) };
    let line = |quantile: fn(&Summary) -> f64| {
        let point = |stage: &StageReport| Some((throughput(stage)?, quantile(stage.e2e_ms.as_ref()?)));
        let points = stages.iter().enumerate().filter_map(|(index, stage)| Some((index, point(stage)?)));
        let (dots, points) = points.unzip();
        Line { stage: None, points, dots }
    };
    let lines = vec![line(|summary| summary.p50), line(|summary| summary.p99)];
    if lines[0].points.len() < 2 {
        return None;
    }
    let all = || lines.iter().flat_map(|line| &line.points);
    let x = (Scale::from_zero(all().map(|point| point.0)), if has_tokens { "tokens/s" } else { "answers/s" });
    let y = (Scale::decades(all().map(|point| point.1)), "ms");
    Some(Panel { title: "Whole answer over throughput: p50 below, p99 above", x, y, lines, y_is_time: true })
}

fn draw(svg: &mut String, panel: &Panel, origin: (f64, f64)) {
    let (left, top) = (origin.0 + MARGIN.0, origin.1 + MARGIN.1);
    let (width, height) = (PANEL.0 - MARGIN.0 - MARGIN.2, PANEL.1 - MARGIN.1 - MARGIN.3);
    let x = |value: f64| left + width * panel.x.0.place(value);
    let y = |value: f64| top + height * (1.0 - panel.y.0.place(value));
    text(svg, (left, top - 10.0), "start", panel.title);
    for tick in panel.x.0.ticks() {
        let _ = writeln!(svg, "<path d=\"M{:.1} {top:.1}v{height:.1}\" stroke=\"#ddd\"/>", x(tick));
        text(svg, (x(tick), top + height + 15.0), "middle", &tick_label(tick));
    }
    for tick in panel.y.0.ticks() {
        let _ = writeln!(svg, "<path d=\"M{left:.1} {:.1}h{width:.1}\" stroke=\"#ddd\"/>", y(tick));
        text(svg, (left - 6.0, y(tick) + 4.0), "end", &tick_label(tick));
    }
    text(svg, (left + width, top + height + 30.0), "end", panel.x.1);
    let unit = if panel.y_is_time { panel.y.1 } else { "" };
    text(svg, (left - 6.0, top - 10.0), "end", unit);
    for line in &panel.lines {
        let mut path = String::new();
        for (index, (at, value)) in line.points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if index == 0 { 'M' } else { 'L' }, x(*at), y(*value));
        }
        let _ = writeln!(svg, "<path d=\"{path}\" {}/>", stroke(line.stage));
        for ((at, value), stage) in line.points.iter().zip(&line.dots) {
            let colour = COLOURS[stage % COLOURS.len()];
            let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", x(*at), y(*value));
        }
    }
}

fn stroke(stage: Option<usize>) -> String {
    let Some(stage) = stage else { return "fill=\"none\" stroke=\"#999\" stroke-width=\"1.2\"".into() };
    let colour = COLOURS[stage % COLOURS.len()];
    let dashes = if stage < COLOURS.len() { "" } else { " stroke-dasharray=\"5 3\"" };
    format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"{dashes}")
}

fn tick_label(value: f64) -> String {
    // Ticks are round: what is behind their last digit is the rounding of sums.
    let rounded = format!("{value:.6}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{escaped}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_their_values_between_round_ends() {
        assert_eq!(Scale::decades([3.0, 420.0].into_iter()), Scale::Log(1.0, 1_000.0));
        assert_eq!(Scale::decades([10.0].into_iter()), Scale::Log(10.0, 100.0));
        assert_eq!(Scale::decades([0.0].into_iter()), Scale::Log(1.0, 10.0));
        assert_eq!(Scale::from_zero([37.0].into_iter()), Scale::Linear(0.0, 40.0));
        assert_eq!(Scale::from_zero(std::iter::empty()), Scale::Linear(0.0, 1.0));
        let log = Scale::Log(1.0, 100.0);
        assert_eq!((log.place(1.0), log.place(10.0), log.place(100.0), log.place(0.0)), (0.0, 0.5, 1.0, 0.0));
        assert_eq!(log.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(Scale::Log(1.0, 1_000.0).ticks(), [1.0, 10.0, 100.0, 1_000.0]);
        let shares: Vec<String> = Scale::Linear(0.0, 1.0).ticks().into_iter().map(tick_label).collect();
        assert_eq!(shares, ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!([0.01, 0.5, 100.0, 1e6].map(tick_label), ["0.01", "0.5", "100", "1000000"]);
    }

    #[test]
    fn a_share_rises_where_a_sample_is() {
        assert_eq!(steps(&vec![(2.0, 0.5), (5.0, 1.0)]), [(2.0, 0.0), (2.0, 0.5), (5.0, 0.5), (5.0, 1.0)]);
    }
}
