//! Times an op, its oracle and a rival on the same work, and prints a table of them beside the roofline. Calls come in; the
//! table goes to stdout. Never an assertion about a time.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode};
use kernels::launch::{self, Isa};

use crate::fastest::Fastest;
use crate::machine;
use crate::roofline::Roofline;

/// Times the last cache that the large work takes: nothing of it is left there when it comes round again.
const LARGE: usize = 4;

/// Shapes of text models: a few requests and a full batch, by the widths of small, base and large encoders.
pub const ROWS: &[usize] = &[1, 16, 128, 512];

/// One shape of an op, and what it costs as our code does it.
#[derive(Clone, Debug)]
pub struct Work {
    /// How the shape is called: `16x384`.
    pub shape: String,
    /// Floating-point operations, a multiply-add as two.
    pub flops: u64,
    /// Bytes that must be read and written at least once.
    pub bytes: u64,
    /// Bytes of all buffers that are touched again in the next call.
    pub working_set: usize,
}

/// A bench of one op.
pub struct Bench {
    op: &'static str,
    criterion: Criterion,
    /// `None` when the bench is only tried, not timed.
    roofline: Option<Roofline>,
    rows: Vec<Row>,
}

struct Row {
    work: Work,
    who: String,
    seconds: f64,
}

impl Bench {
    /// Measures the machine's peak, unless `cargo bench` did not start us: `cargo test` only tries every call once.
    pub fn start(op: &'static str) -> Self {
        machine::on_one_thread();
        let timed = std::env::args().any(|argument| argument == "--bench");
        let criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(40))
            .measurement_time(Duration::from_millis(160))
            .sample_size(10)
            .nresamples(2_000)
            .without_plots()
            .configure_from_args();
        Self { op, criterion, roofline: timed.then(|| Roofline::measure(launch::isa())), rows: Vec::new() }
    }

    /// How many rows of `row_bytes` bytes are too many for every cache. A handful when nothing is timed.
    pub fn rows_beyond_cache(&self, row_bytes: usize) -> usize {
        if self.roofline.is_some() { LARGE * machine::last_cache_bytes() / row_bytes } else { 3 }
    }

    /// Times one call. The fastest batch goes into the table; Criterion prints its own estimate.
    pub fn time(&mut self, work: &Work, who: &str, mut call: impl FnMut()) {
        let mut fastest = Fastest::default();
        let mut group = self.criterion.benchmark_group(self.op);
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(BenchmarkId::new(who, &work.shape), |bencher| {
            bencher.iter_custom(|calls| fastest.run(calls, &mut call));
        });
        group.finish();
        // A filter may have left it out.
        if let Some(seconds) = fastest.seconds() {
            self.rows.push(Row { work: work.clone(), who: who.to_owned(), seconds });
        }
    }

    /// Prints the table.
    pub fn finish(self) {
        self.criterion.final_summary();
        if let Some(roofline) = self.roofline {
            #[expect(clippy::print_stdout, reason = "the table is what a bench is run for")]
            {
                println!("{}", table(self.op, roofline, &self.rows));
            }
        }
    }
}

/// A name for our code on the instruction set that it uses.
pub fn ours(isa: Isa) -> String {
    format!("kernels, {isa}")
}

/// Panics where a result is not what the oracle has: a wrong op must not be timed.
///
/// # Panics
/// When they differ by more than the op's tolerance.
pub fn assert_parity(who: &str, found: &[f32], expected: &[f32], tolerance: kernels::testing::Tolerance) {
    if let Err(difference) = kernels::testing::compare(black_box(found), expected, tolerance) {
        panic!("{who}: {difference}");
    }
}

fn table(op: &str, mut roofline: Roofline, rows: &[Row]) -> String {
    let mut text = format!(
        "\n## {op}\n\n{}, one thread, {}. Peak {:.1} GFLOP/s of multiply-adds.\n\
         Times are of the fastest batch. The roofline is what peak and triad allow; the triad counts two reads and a write, and does not\n\
         count the line that a write fetches, so that an op that writes less or in place can be above it.\n\n\
         | shape | who | time | GB/s | GFLOP/s | triad GB/s at this size | of the roofline | oracle = 1 |\n|---|---|--:|--:|--:|--:|--:|--:|\n",
        machine::processor(),
        launch::isa(),
        roofline.flops_per_s / 1e9,
    );
    for row in rows {
        let Work { shape, flops, bytes, working_set } = &row.work;
        let oracle = rows.iter().find(|other| other.who == "oracle" && other.work.shape == *shape);
        let faster = oracle.map_or_else(String::new, |oracle| format!("{:.1}", oracle.seconds / row.seconds));
        let roof = roofline.seconds(*flops, *bytes, *working_set);
        text += &format!(
            "| {shape} | {} | {} | {:.1} | {:.1} | {:.1} | {:.0} % | {faster} |\n",
            row.who,
            time(row.seconds),
            *bytes as f64 / row.seconds / 1e9,
            *flops as f64 / row.seconds / 1e9,
            roofline.bytes_per_s(*working_set) / 1e9,
            100.0 * roof / row.seconds,
        );
    }
    text
}

/// Seconds with three digits and a unit.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s => (s * 1e3, "ms"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (seconds, text) in [(1.234e-8, "12.3 ns"), (1.234e-6, "1.23 µs"), (1.234e-4, "123 µs"), (0.1234, "123 ms")]
        {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn the_table_compares_with_the_oracle_of_the_same_shape() {
        let work = |shape: &str| Work { shape: shape.to_owned(), flops: 1, bytes: 8, working_set: 4096 };
        let row = |shape, who: &str, seconds| Row { work: work(shape), who: who.to_owned(), seconds };
        let rows = [row("1x1", "oracle", 6e-6), row("2x2", "oracle", 1e-3), row("1x1", "ours", 2e-6)];
        let table = table("x", Roofline::measure(Isa::Scalar), &rows);
        let line = table.lines().last().unwrap();
        assert!(line.starts_with("| 1x1 | ours | 2.00 µs |") && line.ends_with("| 3.0 |"), "{line}");
    }

    #[test]
    #[should_panic(expected = "x: element 0 is 1e0, the oracle has 2e0")]
    fn a_wrong_result_is_not_timed() {
        assert_parity("x", &[1.0], &[2.0], kernels::testing::Tolerance::F32);
    }
}
