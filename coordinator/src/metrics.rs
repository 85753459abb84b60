//! Counters of one coordinator: events come in, Prometheus' text goes out. Its own recorder, so that several coordinators
//! in one process do not count together.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of time histograms, in seconds: from a tenth of a millisecond, which is below a commit, to a minute.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// The counters.
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    pub(crate) submitted: Counter,
    pub(crate) claims: Counter,
    pub(crate) claims_empty: Counter,
    pub(crate) offered: Counter,
    pub(crate) declined: Counter,
    pub(crate) settled: Counter,
    pub(crate) duplicate: Counter,
    pub(crate) stale: Counter,
    pub(crate) failed: Counter,
    pub(crate) refused_results: Counter,
    pub(crate) refused_pieces: Counter,
    pub(crate) continued: Counter,
    pub(crate) lost: Counter,
    pub(crate) expired: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) frames_unknown: Counter,
    pub(crate) frames_malformed: Counter,
    pub(crate) links: Gauge,
    pub(crate) watched: Gauge,
    pub(crate) texts: Gauge,
    pub(crate) interactive_seconds: Histogram,
    pub(crate) first_piece_seconds: Histogram,
    queued: Gauge,
    leased: Gauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
            .expect("the bounds are not empty")
            .build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || Self {
            handle,
            submitted: counter!("neurogrid_tasks_submitted_total"),
            claims: counter!("neurogrid_claims_total"),
            claims_empty: counter!("neurogrid_claims_empty_total"),
            offered: counter!("neurogrid_attempts_offered_total"),
            declined: counter!("neurogrid_attempts_declined_total"),
            settled: counter!("neurogrid_attempts_settled_total"),
            duplicate: counter!("neurogrid_results_duplicate_total"),
            stale: counter!("neurogrid_results_stale_total"),
            failed: counter!("neurogrid_attempts_failed_total"),
            refused_results: counter!("neurogrid_results_refused_total"),
            refused_pieces: counter!("neurogrid_pieces_refused_total"),
            continued: counter!("neurogrid_texts_continued_total"),
            lost: counter!("neurogrid_attempts_lost_total"),
            expired: counter!("neurogrid_tasks_expired_total"),
            cancelled: counter!("neurogrid_tasks_cancelled_total"),
            frames_unknown: counter!("neurogrid_frames_unknown_total"),
            frames_malformed: counter!("neurogrid_frames_malformed_total"),
            links: gauge!("neurogrid_nodes_connected"),
            watched: gauge!("neurogrid_tasks_watched"),
            interactive_seconds: histogram!("neurogrid_interactive_seconds"),
            texts: gauge!("neurogrid_texts_open"),
            first_piece_seconds: histogram!("neurogrid_first_piece_seconds"),
            queued: gauge!("neurogrid_tasks_queued"),
            leased: gauge!("neurogrid_tasks_leased"),
        })
    }

    /// Prometheus' text form, with the store's present numbers.
    pub(crate) fn render(&self, queued: u64, leased: u64, links: usize, watched: usize, texts: usize) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            self.queued.set(queued as f64);
            self.leased.set(leased as f64);
            self.links.set(links as f64);
            self.watched.set(watched as f64);
            self.texts.set(texts as f64);
        }
        self.handle.run_upkeep();
        self.handle.render()
    }
}
