//! What the worker counts: events go in from all threads, a snapshot for JSON and the Prometheus text come out. Counting
//! is a handful of atomic additions; it never locks and never allocates.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Fault;
use crate::service::Timings;

/// Everything that is counted, from the worker's start.
#[derive(Debug, Default)]
pub struct Metrics {
    done: AtomicU64,
    failed: [AtomicU64; Fault::ALL.len()],
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    batches: AtomicU64,
    batches_failed: AtomicU64,
    panics: AtomicU64,
    batch_items: Histogram,
    batch_cost: Histogram,
    batch_us: Histogram,
    task_us: Histogram,
    queue_us: Histogram,
    prepare_us: Histogram,
    device_us: Histogram,
    finish_us: Histogram,
    first_token_us: Histogram,
    token_us: Histogram,
}

/// Counts by powers of two: bucket `i` holds values of `[2^i, 2^(i+1))`, the first one also 0. One size fits
/// microseconds of all lengths and sizes of batches, at an error of at most the factor 2, about 1.4 when interpolated.
#[derive(Debug)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

/// 2^36 µs is 19 hours.
const BUCKETS: usize = 36;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn add(&self, value: u64) {
        let bucket = (value.max(1).ilog2() as usize).min(BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        self.max.fetch_max(value, Ordering::Relaxed);
    }

    fn add_time(&self, time: Duration) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed))
    }

    fn summary(&self) -> Summary {
        let counts = self.counts();
        let count: u64 = counts.iter().sum();
        let max = self.max.load(Ordering::Relaxed);
        let quantile = |q: f64| quantile(&counts, q).min(max as f64);
        let mean = if count == 0 { 0.0 } else { self.sum.load(Ordering::Relaxed) as f64 / count as f64 };
        Summary { count, mean, p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99), max: max as f64 }
    }
}

/// The value below which a share `q` of all lie, linear inside its bucket.
fn quantile(counts: &[u64; BUCKETS], q: f64) -> f64 {
    let total: u64 = counts.iter().sum();
    let rank = q * total as f64;
    let mut below = 0.0;
    for (bucket, &count) in counts.iter().enumerate() {
        let within = rank - below;
        below += count as f64;
        if count > 0 && below >= rank {
            let low = if bucket == 0 { 0.0 } else { (1u64 << bucket) as f64 };
            let high = (1u64 << (bucket + 1)) as f64;
            return low + (high - low) * within / count as f64;
        }
    }
    0.0
}

/// A distribution in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their median, within its bucket of powers of two.
    pub p50: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// All figures at one moment. Times in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Tasks that were answered.
    pub done: u64,
    /// Tasks that were not, by who was at fault.
    pub failed: Vec<(Fault, u64)>,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Batches that were answered.
    pub batches: u64,
    /// Batches that failed, for whatever reason.
    pub batches_failed: u64,
    /// Engines that panicked.
    pub panics: u64,
    /// Distributions by name.
    pub distributions: Vec<(&'static str, Summary)>,
}

impl Metrics {
    /// A task was answered.
    pub fn task_done(&self, input_tokens: u64, timings: Timings, took: Duration) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.input_tokens.fetch_add(input_tokens, Ordering::Relaxed);
        let Timings { queue, prepare, device, finish } = timings;
        self.task_us.add_time(took);
        self.queue_us.add_time(queue);
        self.prepare_us.add_time(prepare);
        self.device_us.add_time(device);
        self.finish_us.add_time(finish);
    }

    /// A text is at its end: so many tokens were written here, the first so long after its arrival, and all in so long.
    pub fn text_done(&self, tokens: usize, first: Option<Duration>, device: Duration) {
        self.output_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        let Some(first) = first else { return };
        self.first_token_us.add_time(first);
        if let Some(gaps) = u32::try_from(tokens).ok().and_then(|tokens| tokens.checked_sub(1)).filter(|gaps| *gaps > 0) {
            self.token_us.add_time(device.saturating_sub(first) / gaps);
        }
    }

    /// A task was not answered.
    pub fn task_failed(&self, fault: Fault) {
        self.failed[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A batch was answered.
    pub fn batch(&self, items: usize, cost: usize, took: Duration) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.batch_items.add(items as u64);
        self.batch_cost.add(cost as u64);
        self.batch_us.add_time(took);
    }

    /// A batch failed.
    pub fn batch_failed(&self) {
        self.batches_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// An engine panicked.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    fn histograms(&self) -> [(&'static str, &'static str, &Histogram); 10] {
        [
            ("task_us", "From a task's arrival to its answer, in microseconds", &self.task_us),
            ("queue_us", "Waiting for the device, in microseconds", &self.queue_us),
            ("prepare_us", "From request to items, in microseconds", &self.prepare_us),
            ("device_us", "A task's time on the device, in microseconds", &self.device_us),
            ("finish_us", "From outputs to reply, in microseconds", &self.finish_us),
            ("first_token_us", "From a text's arrival at the device to its first token, in microseconds", &self.first_token_us),
            ("token_us", "Between two tokens of a text, its mean, in microseconds", &self.token_us),
            ("batch_us", "A batch's or a step's time on the device, in microseconds", &self.batch_us),
            ("batch_items", "Items in a batch, or texts in a step", &self.batch_items),
            ("batch_cost", "Tokens or rows in a batch or a step", &self.batch_cost),
        ]
    }

    /// All figures now.
    pub fn snapshot(&self) -> Snapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            done: get(&self.done),
            failed: Fault::ALL.iter().map(|&fault| (fault, get(&self.failed[fault as usize]))).collect(),
            input_tokens: get(&self.input_tokens),
            output_tokens: get(&self.output_tokens),
            batches: get(&self.batches),
            batches_failed: get(&self.batches_failed),
            panics: get(&self.panics),
            distributions: self.histograms().iter().map(|(name, _, h)| (*name, h.summary())).collect(),
        }
    }

    /// The text that Prometheus reads. `gauges` are name, help and value of what is measured now and not counted.
    pub fn prometheus(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            writeln!(text, "{arguments}").expect("writing to a string cannot fail");
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = [
            ("tasks_done_total", "Tasks that were answered", get(&self.done)),
            ("input_tokens_total", "Tokens read", get(&self.input_tokens)),
            ("output_tokens_total", "Tokens written", get(&self.output_tokens)),
            ("batches_total", "Batches that were answered", get(&self.batches)),
            ("batches_failed_total", "Batches that failed", get(&self.batches_failed)),
            ("engine_panics_total", "Engines that panicked", get(&self.panics)),
        ];
        for (name, help, value) in counters {
            line(format_args!("# HELP neurogrid_worker_{name} {help}.\n# TYPE neurogrid_worker_{name} counter"));
            line(format_args!("neurogrid_worker_{name} {value}"));
        }
        line(format_args!("# HELP neurogrid_worker_tasks_failed_total Tasks that were not answered, by whose fault."));
        line(format_args!("# TYPE neurogrid_worker_tasks_failed_total counter"));
        for &fault in Fault::ALL {
            let (name, value) = (fault.name(), get(&self.failed[fault as usize]));
            line(format_args!("neurogrid_worker_tasks_failed_total{{fault=\"{name}\"}} {value}"));
        }
        for (name, help, value) in gauges {
            line(format_args!("# HELP neurogrid_worker_{name} {help}.\n# TYPE neurogrid_worker_{name} gauge"));
            line(format_args!("neurogrid_worker_{name} {value}"));
        }
        for (name, help, histogram) in self.histograms() {
            line(format_args!("# HELP neurogrid_worker_{name} {help}.\n# TYPE neurogrid_worker_{name} histogram"));
            let mut below = 0;
            for (bucket, count) in histogram.counts().into_iter().enumerate() {
                below += count;
                // A bucket's values are whole and below the next power of two.
                let bound = (1u64 << (bucket + 1)) - 1;
                line(format_args!("neurogrid_worker_{name}_bucket{{le=\"{bound}\"}} {below}"));
            }
            line(format_args!("neurogrid_worker_{name}_bucket{{le=\"+Inf\"}} {below}"));
            line(format_args!("neurogrid_worker_{name}_sum {}", histogram.sum.load(Ordering::Relaxed)));
            line(format_args!("neurogrid_worker_{name}_count {below}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_right_bucket() {
        let histogram = Histogram::default();
        for value in 1..=1000 {
            histogram.add(value);
        }
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.max, summary.mean), (1000, 1000.0, 500.5));
        assert!((450.0..550.0).contains(&summary.p50), "{summary:?}");
        assert!((850.0..=1000.0).contains(&summary.p90), "{summary:?}");
        assert!((950.0..=1000.0).contains(&summary.p99), "{summary:?}");
    }

    #[test]
    fn nothing_counted_is_zero_and_extremes_are_kept() {
        let histogram = Histogram::default();
        assert_eq!(histogram.summary(), Summary::default());
        histogram.add(0);
        histogram.add(u64::MAX / 2);
        assert_eq!(histogram.summary().count, 2);
    }

    #[test]
    fn prometheus_buckets_add_up_and_every_metric_has_its_type() {
        let metrics = Metrics::default();
        metrics.batch(3, 30, Duration::from_micros(100));
        metrics.batch(5, 50, Duration::from_micros(900));
        metrics.task_failed(Fault::Caller);
        let text = metrics.prometheus(&[("tasks_inside", "Tasks inside", 2.0)]);
        for line in [
            "neurogrid_worker_batches_total 2",
            "neurogrid_worker_tasks_failed_total{fault=\"caller\"} 1",
            "neurogrid_worker_tasks_inside 2",
            "neurogrid_worker_batch_items_bucket{le=\"3\"} 1",
            "neurogrid_worker_batch_items_bucket{le=\"7\"} 2",
            "neurogrid_worker_batch_items_sum 8",
            "neurogrid_worker_batch_items_count 2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
        let names = text.lines().filter(|line| !line.starts_with('#'));
        for name in names.filter_map(|line| line.split(['{', ' ']).next()) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {base} ")), "{name}");
        }
    }
}
