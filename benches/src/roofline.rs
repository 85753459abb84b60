//! What one core of this machine can do at most: multiply-adds per second in registers, and bytes per second to and from a
//! working set of a given size. An instruction set comes in, measured rates go out. Never a figure from a data sheet.
//!
//! An op that does `flops` operations on `bytes` of traffic can run at `min(peak, bandwidth · flops / bytes)` operations
//! per second (Williams, Waterman, Patterson: Roofline, 2009); bandwidth is that of a STREAM triad (McCalpin, 1995) whose three
//! arrays together are as large as the op's working set, so that both live in the same cache.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::launch::{Isa, probe};

use crate::fastest::Fastest;

/// How long each rate is measured.
const MEASURED_FOR: Duration = Duration::from_millis(40);

/// The measured limits of one core.
pub struct Roofline {
    isa: Isa,
    /// Operations per second of multiply-adds in registers, each counted as two.
    pub flops_per_s: f64,
    bytes_per_s: HashMap<usize, f64>,
}

impl Roofline {
    /// Measures the peak. Bandwidths are measured when they are asked for.
    pub fn measure(isa: Isa) -> Self {
        let mut operations = 0;
        let seconds = best_seconds(|| {
            let (done, value) = probe::multiply_add(isa, black_box(20_000));
            operations = done;
            black_box(value);
        });
        Self { isa, flops_per_s: operations as f64 / seconds, bytes_per_s: HashMap::new() }
    }

    /// Bytes per second of a triad over three arrays of together `working_set` bytes, counted as STREAM does: two arrays read,
    /// one written. Measured once per size.
    pub fn bytes_per_s(&mut self, working_set: usize) -> f64 {
        let isa = self.isa;
        *self.bytes_per_s.entry(working_set).or_insert_with(|| {
            let n = (working_set / 12).max(64);
            // Not zeros: pages of zeros that were never written are all the same page.
            let (mut a, b, c) = (vec![1.0_f32; n], vec![2.0_f32; n], vec![3.0_f32; n]);
            let seconds = best_seconds(|| {
                probe::triad(isa, black_box(&mut a), black_box(&b), black_box(&c), black_box(0.5));
            });
            (12 * n) as f64 / seconds
        })
    }

    /// The fewest seconds in which this core could do so much work.
    pub fn seconds(&mut self, flops: u64, bytes: u64, working_set: usize) -> f64 {
        (flops as f64 / self.flops_per_s).max(bytes as f64 / self.bytes_per_s(working_set))
    }
}

/// The time of one call, from the fastest batch.
fn best_seconds(mut call: impl FnMut()) -> f64 {
    let mut fastest = Fastest::default();
    let start = Instant::now();
    while start.elapsed() < MEASURED_FOR {
        fastest.run_batch(&mut call);
    }
    fastest.seconds().expect("a batch has run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roof_is_the_slower_of_arithmetic_and_memory() {
        let mut roofline =
            Roofline { isa: Isa::Scalar, flops_per_s: 100.0, bytes_per_s: HashMap::from([(1, 10.0), (2, 1000.0)]) };
        assert_eq!(roofline.seconds(100, 20, 1), 2.0, "memory");
        assert_eq!(roofline.seconds(100, 20, 2), 1.0, "arithmetic");
    }

    #[test]
    fn what_is_measured_is_a_rate() {
        let mut roofline = Roofline::measure(Isa::Scalar);
        assert!(roofline.flops_per_s > 0.0 && roofline.flops_per_s.is_finite());
        let rate = roofline.bytes_per_s(64 << 10);
        assert!(rate > 0.0 && rate.is_finite());
        assert_eq!(roofline.bytes_per_s(64 << 10), rate, "measured once");
    }
}
