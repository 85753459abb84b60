//! Measured speed: out go the bandwidth of main memory and the f32 matrix rate of the processor. What is measured on the
//! processor is never told as a GPU's. It blocks its thread for about a second; run it where blocking is allowed.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Finding;

/// Multiplies f32 matrices (m × k) · (k × n), `iterations` times one after the other, with the library that serves the
/// models, on as many threads as it uses then. The arguments are m, n, k, iterations; it returns the seconds that this
/// took, without preparing the operands, or NaN if it cannot.
pub type Matmul = fn(usize, usize, usize, usize) -> f64;

/// Edge of the matrices of [`matmul`]: 2·1024³ operations are some 10 ms a core, and three such matrices (12 MiB) are past the
/// level-2 caches, as a model's are.
const EDGE: usize = 1024;
/// How long a measurement should take: long enough for the clock to settle.
const MEASURE_FOR: Duration = Duration::from_millis(300);
/// What is copied in a round, in last-level caches: of four caches full, little is still there when the next round begins.
const COPY_CACHES: u64 = 4;
/// What is copied in a round at least, for machines that do not tell their caches: four times 32 MiB.
const COPY_BYTES_MIN: u64 = 128 << 20;
/// The share of free memory that a measurement may take.
const MEMORY_SHARE: u64 = 8;

/// What was measured on this machine's processor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Measured)]
pub struct Measured {
    /// Bytes read plus bytes written per second by all threads copying blocks larger than the caches: the best of several
    /// rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bandwidth_bytes_per_s: Option<f64>,
    /// Operations (a multiplication and an addition are two) per second of an f32 matrix product, all threads together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f32_matmul_flops_per_s: Option<f64>,
    /// Threads that worked.
    pub threads: usize,
}

/// What a measurement needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Bench {
    /// Threads that may run.
    pub threads: usize,
    /// Free memory, of which only a share is taken.
    pub available_bytes: u64,
    /// Size of all last-level caches, or 0.
    pub cache_bytes: u64,
    /// The matrix product to measure, if any.
    pub matmul: Option<Matmul>,
}

/// Measures what can be measured, and says what cannot.
pub fn measure(bench: &Bench) -> (Measured, Vec<Finding>) {
    let mut findings = Vec::new();
    let memory_bandwidth_bytes_per_s = memory_bandwidth(bench);
    if memory_bandwidth_bytes_per_s.is_none() {
        let message = format!("memory bandwidth was not measured: {} MiB are free", bench.available_bytes >> 20);
        findings.push(Finding::warning("speed.no_memory", message).with_remedy("free memory and profile again"));
    }
    let f32_matmul_flops_per_s = bench.matmul.and_then(|multiply| {
        let rate = matmul(multiply);
        if rate.is_none() {
            let message = "the matrix rate was not measured: the library gave no time";
            findings.push(Finding::warning("speed.no_matmul", message));
        }
        rate
    });
    (Measured { memory_bandwidth_bytes_per_s, f32_matmul_flops_per_s, threads: bench.threads }, findings)
}

/// Bytes read plus written per second, or `None` when too little memory is free for blocks larger than the caches.
pub(super) fn memory_bandwidth(bench: &Bench) -> Option<f64> {
    const ROUNDS: usize = 5;
    let threads = bench.threads.max(1);
    let wanted = bench.cache_bytes.saturating_mul(COPY_CACHES).max(COPY_BYTES_MIN);
    // Two blocks: one is read, one is written.
    let copied = wanted.min(bench.available_bytes / MEMORY_SHARE / 2);
    if copied < wanted / 4 {
        return None;
    }
    let block = usize::try_from(copied).ok()? / threads / size_of::<u64>();
    // One place more for this thread, which holds the clock.
    let gate = Barrier::new(threads + 1);
    let best = std::thread::scope(|scope| {
        for seed in 0..threads {
            let gate = &gate;
            scope.spawn(move || {
                // Written, not just reserved: the kernel gives pages when they are first written to.
                let mut from = vec![seed as u64 + 1; block];
                let mut to = vec![u64::MAX; block];
                for _ in 0..ROUNDS {
                    gate.wait();
                    to.copy_from_slice(std::hint::black_box(&from));
                    std::hint::black_box(&mut to);
                    gate.wait();
                    std::mem::swap(&mut from, &mut to);
                }
            });
        }
        let round = || {
            gate.wait();
            let begun = Instant::now();
            gate.wait();
            begun.elapsed()
        };
        (0..ROUNDS).map(|_| round()).min()
    })?;
    let bytes = (2 * threads * block * size_of::<u64>()) as f64;
    (best > Duration::ZERO).then(|| bytes / best.as_secs_f64())
}

/// Operations per second: one call to warm up and to learn how long it takes, one of about [`MEASURE_FOR`].
fn matmul(multiply: Matmul) -> Option<f64> {
    let seconds = |iterations: usize| {
        Some(multiply(EDGE, EDGE, EDGE, iterations)).filter(|seconds| seconds.is_finite() && *seconds > 0.0)
    };
    seconds(1)?;
    let once = seconds(1)?;
    let iterations = ((MEASURE_FOR.as_secs_f64() / once) as usize).clamp(1, 10_000);
    let flops = 2.0 * (EDGE * EDGE * EDGE) as f64 * iterations as f64;
    seconds(iterations).map(|seconds| flops / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(available_bytes: u64, matmul: Option<Matmul>) -> Bench {
        Bench { threads: 2, available_bytes, cache_bytes: 8 << 20, matmul }
    }

    #[test]
    fn bandwidth_is_a_positive_number_and_no_gpu_is_spoken_of() {
        let (measured, findings) = measure(&bench(4 << 30, None));
        let bandwidth = measured.memory_bandwidth_bytes_per_s.unwrap();
        assert!(bandwidth.is_finite() && bandwidth > 0.0);
        assert_eq!((measured.f32_matmul_flops_per_s, measured.threads, findings), (None, 2, vec![]));
    }

    #[test]
    fn with_too_little_memory_the_figure_is_absent_and_the_finding_says_so() {
        let (measured, findings) = measure(&bench(64 << 20, None));
        assert_eq!(measured.memory_bandwidth_bytes_per_s, None);
        assert_eq!(findings[0].code, "speed.no_memory");
    }

    #[test]
    fn the_matrix_rate_is_operations_by_seconds() {
        // A library that takes 10 ms for each product.
        let rate = matmul(|_, _, _, iterations| 0.01 * iterations as f64).unwrap();
        let expected = 2.0 * 1024.0_f64.powi(3) / 0.01;
        assert!((rate / expected - 1.0).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn a_library_that_fails_gives_no_rate() {
        for broken in [(|_, _, _, _| f64::NAN) as Matmul, |_, _, _, _| 0.0, |_, _, _, _| -1.0] {
            assert_eq!(matmul(broken), None);
        }
        let (measured, findings) = measure(&bench(4 << 30, Some(|_, _, _, _| f64::NAN)));
        assert_eq!(measured.f32_matmul_flops_per_s, None);
        assert_eq!(findings[0].code, "speed.no_matmul");
    }
}
